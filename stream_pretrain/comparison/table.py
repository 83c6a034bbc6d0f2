"""The comparison of models, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stream_pretrain.units import aligned, counted


def lines_of(result: Mapping[str, Any]) -> Iterator[str]:
    """A table of the models, one of the parts of the documents, and the differences to the first model."""
    models = result["models"]
    columns = ["loss", "accuracy", *(["perplexity"] if "perplexity" in models[0] else []), "bits_per_byte"]
    probed = any(model["probe"] for model in models)
    head = ["model", *(column.replace("_", " ") for column in columns), *(["probe"] if probed else [])]
    rows = [[model["model"], *(_number(model[name]) for name in columns), *_probe(model)] for model in models]
    yield from aligned([head, *rows])
    sample = result["likelihood_sample"]
    yield ""
    yield (
        f"{counted(result['documents'], 'document')}; "
        f"bits per byte of the beginnings of {sample['documents']:,} of them, "
        f"{sample['bytes']:,} bytes"
    )
    for model in models:
        if left := sample["bytes"] - model["likelihood_bytes"]:
            yield f"{model['model']} does not predict {left:,} of these bytes, and they do not count: those of first tokens"
    for part in ("by_source", "by_length"):
        names = list(dict.fromkeys(name for model in models for name in model[part]))
        if len(names) > 1:
            yield ""
            parts = [[name, *(_loss(model[part].get(name)) for model in models)] for name in names]
            yield from aligned([[f"loss {part.replace('_', ' ')}", *(model["model"] for model in models)], *parts])
    for difference in result["differences"]:
        yield ""
        yield f"{difference['model']} minus {difference['base']} (95 % interval over documents):"
        for name in ("loss", "accuracy", "bits_per_byte"):
            if difference.get(name):
                yield f"  {name.replace('_', ' ')} {_with_interval(difference[name])}"
        if "loss" not in difference:
            yield "  their tokenizers differ, and so do their labels: compare bits per byte"


def _probe(model: Mapping[str, Any]) -> list[str]:
    probe = model["probe"]
    return [f"{probe['accuracy']:.4f} ({min(probe['folds']):.3f} to {max(probe['folds']):.3f})"] if probe else []


def _loss(means: Mapping[str, Any] | None) -> str:
    return "none" if means is None or means["loss"] is None else f"{means['loss']:.4f} ({means['documents']:,})"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _with_interval(found: Mapping[str, Any]) -> str:
    if found["low"] is None:
        return f"{found['difference']:+.4f}, of one document: no interval"
    return f"{found['difference']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"
