"""Which engine tokenizes: a fast one that is installed, supports the tokenizer and gives the ids of `tokenizers`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import version

from stream_pretrain.config import EngineName
from stream_pretrain.data.rows import parity_cache
from stream_pretrain.data.rows.encoder import FLAT, Encoder
from stream_pretrain.data.rows.engine_parity import differing, excerpt
from stream_pretrain.data.rows.engine_probes import probes
from stream_pretrain.data.rows.fast_engine import FastEngine, UnsupportedTokenizerError
from stream_pretrain.data.rows.installed_engines import installed, refuse_uninstalled
from stream_pretrain.errors import ConfigError, EngineError

AUTO = ("nanotoken", "fastokens")
"""Candidates of `auto`; no two support the same tokenizer."""


@dataclass(frozen=True)
class Choice:
    """An engine, and why it is not a fast one."""

    name: str
    why: str = ""

    def in_words(self) -> str:
        """A line for the start of a run."""
        return f"tokenizing with {self.name} {version(self.name)}{self.why and f': {self.why}'}"


def choose(requested: EngineName, encoder: Encoder) -> Choice:
    """The engine for --data.engine. Raises: ConfigError where the one that it names cannot be used."""
    if requested == "tokenizers":
        return Choice(requested)
    if requested != "auto":
        refuse_uninstalled(requested)
        fault = _unsupported(requested, encoder) or _fault(requested, encoder)
        if fault is not None:
            raise ConfigError(f"--data.engine {requested}: {fault}; give --data.engine auto")
        return Choice(requested)
    unsupported = {name: _unsupported(name, encoder) for name in AUTO}
    for name, reason in unsupported.items():
        if reason is None:
            fault = f"for a faster one, pip install {name}" if installed(name) is None else _fault(name, encoder)
            return Choice("tokenizers", fault) if fault is not None else Choice(name)
    return Choice("tokenizers", ", ".join(reason for reason in unsupported.values() if reason is not None))


def _unsupported(name: str, encoder: Encoder) -> str | None:
    """Why an engine does not support a tokenizer, installed or not; None where it does."""
    try:
        FLAT[name].check(encoder.serialized)
    except UnsupportedTokenizerError as error:
        return f"{name} does not support {error}"
    return None


def _fault(name: str, encoder: Encoder) -> str | None:
    """Why an installed engine cannot be used; None where it can."""
    try:
        engine = replace(encoder, engine=name).build()  # also where the result is cached: its package may be broken by now
    except UnsupportedTokenizerError as error:
        return f"{name} {version(name)} does not support {error}"
    except EngineError as error:
        return f"{name} {version(name)} cannot be loaded: {error.__cause__}"
    assert isinstance(engine, FastEngine)
    key = parity_cache.key_of(encoder.serialized, name, version(name))
    answer = parity_cache.lookup(key)
    if answer is None:
        try:
            answer = _difference(engine)
        except EngineError as error:
            answer = str(error)
        parity_cache.store(key, answer)
    return answer or None


def _difference(engine: FastEngine) -> str:
    """How an engine differs from `tokenizers`; empty where it does not. Raises: EngineError."""
    own = [token.content for token in engine.plain.tokenizer.get_added_tokens_decoder().values()]
    texts = probes(own)
    for index in differing(engine, engine.plain, texts):
        return f"{engine.other_ids} for {excerpt(engine, engine.plain, texts[index])}"
    return ""
