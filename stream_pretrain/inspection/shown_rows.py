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
    mark = _mark_of_words(tokenizer)
    for row in range(len(rows)):
        slots = zip(rows.label_positions[row].tolist(), rows.labels[row].tolist(), strict=True)
        labels = {} if causal else {position: label for position, label in slots if label != IGNORED}
        words, after_special = list[str](), True
        for place, token in enumerate(rows.input_ids[row].tolist()):
            at = row * rows.length + place
            if at in ends:
                words.append(f" ... {rows.length - place} of padding")
                break
            if at in begins:
                words.append(f" {marked('border', BORDER)} ")
            label = labels.get(place)
            own = token if label is None else label
            if at not in begins and (after_special or not _goes_on(tokenizer, own, mark)):
                words.append(" ")
            after_special = own in tokenizer.all_special_ids
            if label is None:
                words.append(_word(tokenizer, token))
            elif token == tokenizer.mask_token_id:
                words.append(marked("masked", f"[{_word(tokenizer, label)}]"))
            elif token == label:
                words.append(marked("kept", f"({_word(tokenizer, label)})"))
            else:
                words.append(marked("random", f"{{{_word(tokenizer, token)}|{_word(tokenizer, label)}}}"))
        yield "".join(words).strip()


def _mark_of_words(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """The mark of tokens that begin a word; None where tokens that go on with a word are marked instead, as in BERT."""
    tokens = tokenizer.get_vocab()
    return next((mark for mark in ("Ġ", "▁") if 10 * sum(token.startswith(mark) for token in tokens) > len(tokens)), None)


def _goes_on(tokenizer: PreTrainedTokenizerFast, token: int, mark: str | None) -> bool:
    """Whether the token is not set apart by a space in the text."""
    if mark is None or token in tokenizer.all_special_ids:
        return False
    return not str(tokenizer.convert_ids_to_tokens(token)).startswith(mark)


def _word(tokenizer: PreTrainedTokenizerFast, token: int) -> str:
    text = tokenizer.decode([token])
    shown = text.strip() or text.strip(" ")  # such as a line feed
    return printable(shown or str(tokenizer.convert_ids_to_tokens(token)))
