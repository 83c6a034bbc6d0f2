"""Pretrain, or continue to pretrain, a language model on a corpus that is streamed and never stored.

    errors <- config <- data | model <- training <- comparison | inspection | library | replay <- commands <- cli

Imports point one way. The program is `stream-pretrain`, or `python -m stream_pretrain`; from Python,
`stream_pretrain.cli.main([...])` takes the same arguments. `TokenStream` and `prepare` are for training loops of your own. This
module imports nothing before one of its names is used: the program has to handle signals first.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stream_pretrain.config import Config, DataConfig, ObjectiveConfig, SourceConfig
    from stream_pretrain.errors import StreamPretrainError
    from stream_pretrain.library.prepared_model import prepare
    from stream_pretrain.library.token_stream import TokenStream

__all__ = [
    "Config",
    "DataConfig",
    "ObjectiveConfig",
    "SourceConfig",
    "StreamPretrainError",
    "TokenStream",
    "prepare",
]

_ELSEWHERE = {
    "StreamPretrainError": "errors",
    "TokenStream": "library.token_stream",
    "prepare": "library.prepared_model",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ELSEWHERE.get(name, 'config')}"), name)
