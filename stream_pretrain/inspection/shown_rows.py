"""Packed rows as people read them: where documents begin, and what is masked."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PreTrainedTokenizerFast

from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.stream_state import LaneCursors
from stream_pretrain.data.rows.labels import IGNORED
from stream_pretrain.data.rows.train_rows import TrainRows
from stream_pretrain.redaction import printable

BORDER = "¦"
LEGEND = f"{BORDER} a document begins   [word] masked   {{shown|word}} replaced at random   (word) kept, predicted too"
_COLOURS = {"masked": "\x1b[7m", "random": "\x1b[31m", "kept": "\x1b[32m", "border": "\x1b[1;34m"}
_PLAIN = "\x1b[0m"


def first_rows(plan: StreamPlan, step: int, cursors: list[LaneCursors], count: int) -> TrainRows | None:
    """The first rows after these cursors, which are of `step`; None where there are none. Raises: as a run does."""
    with StepStream(plan, cursors, step=step) as stream:
        rows = next(stream).trained
        return rows.cut(range(count)) if len(rows) else None


def lines_of_rows(rows: TrainRows, tokenizer: PreTrainedTokenizerFast, *, causal: bool, coloured: bool) -> Iterator[str]:
    """A line for each row, with the label of every token that is predicted; of a causal model, the text alone."""

    def marked(kind: str, text: str) -> str:
        return f"{_COLOURS[kind]}{text}{_PLAIN}" if coloured else text

    begins = {int(start) for start, tokens in zip(rows.segment_start, rows.segment_tokens, strict=True) if tokens}
    ends = {int(start) for start, tokens in zip(rows.segment_start, rows.segment_tokens, strict=True) if not tokens}
    for row in range(len(rows)):
        slots = zip(rows.label_positions[row].tolist(), rows.labels[row].tolist(), strict=True)
        labels = {} if causal else {position: label for position, label in slots if label != IGNORED}
        words: list[str] = []
        for place, token in enumerate(rows.input_ids[row].tolist()):
            at = row * rows.length + place
            if at in ends:
                words.append(f"... {rows.length - place} of padding")
                break
            if at in begins:
                words.append(marked("border", BORDER))
            label = labels.get(place)
            if label is None:
                words.append(_word(tokenizer, token))
            elif token == tokenizer.mask_token_id:
                words.append(marked("masked", f"[{_word(tokenizer, label)}]"))
            elif token == label:
                words.append(marked("kept", f"({_word(tokenizer, label)})"))
            else:
                words.append(marked("random", f"{{{_word(tokenizer, token)}|{_word(tokenizer, label)}}}"))
        yield " ".join(words)


def _word(tokenizer: PreTrainedTokenizerFast, token: int) -> str:
    return printable(tokenizer.decode([token]).strip() or repr(tokenizer.decode([token])))
