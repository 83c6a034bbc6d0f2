"""What the checkpoints of a run take on the disk, before they are written."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stream_pretrain.config import RunConfig

BYTES_A_WEIGHT = 4
"""float32"""
BYTES_OF_ADAMW = 8
"""Two moments a weight, in float32."""
BYTES_OF_HEADERS = 16_384
"""Of a file of tensors, and the small JSON files beside it."""


def model_bytes(weights: int, tokenizer: PreTrainedTokenizerBase | None = None) -> int:
    """Bytes of OUT/model. weights: bytes of the tensors; tokenizer: None where its file does not count."""
    assert tokenizer is None or isinstance(tokenizer, PreTrainedTokenizerFast), "no other is loaded"
    of_tokenizer = 0 if tokenizer is None else len(tokenizer.backend_tokenizer.to_str(pretty=True).encode())
    return weights + of_tokenizer + BYTES_OF_HEADERS


def checkpoint_bytes(weights: int, trained: int, tokenizer: PreTrainedTokenizerBase | None = None, corpus: bytes = b"") -> int:
    """Bytes of one checkpoint, without its cursors.

    weights, tokenizer: as for `model_bytes`; trained: number of weights that are trained; corpus: the content of corpus.json.
    """
    return model_bytes(weights, tokenizer) + BYTES_OF_ADAMW * trained + BYTES_OF_HEADERS + len(corpus)


def most_kept(run: RunConfig, steps: float | None) -> int:
    """The most checkpoints that are kept at a time. steps: of the run; None where they are not known."""
    for_good = int(steps) // run.keep_every if steps is not None and run.keep_every else 0
    return run.keep_last + for_good + best_kept(run)


def best_kept(run: RunConfig) -> int:
    """The most checkpoints of evaluations: the best one, and until a checkpoint of the run follows the best one before."""
    return 2 if run.keep_best else 0
