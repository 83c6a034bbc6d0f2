"""Pretrain, or continue to pretrain, a language model on a corpus that is streamed and never stored.

    errors <- config <- data | model <- training <- commands <- cli

Imports point one way. The program is `stream-pretrain`, or `python -m stream_pretrain`; from Python,
`stream_pretrain.cli.main([...])` takes the same arguments. This module imports nothing heavy.
"""

from stream_pretrain.config import Config
from stream_pretrain.errors import StreamPretrainError

__all__ = ["Config", "StreamPretrainError"]
