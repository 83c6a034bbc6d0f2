"""Which tokens of a row are masked, and what replaces them.

    rows ──> which positions may be masked ──> order: of tokens, words or spans ──> labels ──> replace 80/10/10
             once for rows that are packed together                                 at the rate of a step

The labels are a pure function of the rows, the key of the draws and the rate. The draws do not depend on the rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.config import ObjectiveConfig
from stream_pretrain.data.randomness import Hashed, Numbers
from stream_pretrain.data.rows import native
from stream_pretrain.data.rows.labels import Labelled, filled, flat_starts, lay_out, row_edges
from stream_pretrain.data.rows.packing import Rows
from stream_pretrain.data.rows.vocabulary import Vocabulary

LONGEST_SPAN = 10

_ORDER, _SPAN_LENGTH, _LOT, _REPLACEMENT = range(4)  # what a number is drawn for

_CUMULATIVE = (1 - 0.8 ** np.arange(1, LONGEST_SPAN)) / (1 - 0.8**LONGEST_SPAN)

# Words of a span for each value of 16 random bits: geometric(0.2) truncated at 10 words, with the mean of 3.8 of SpanBERT.
_SPAN_WORDS = (1 + np.searchsorted(_CUMULATIVE, (np.arange(1 << 16) + 0.5) / (1 << 16))).astype(np.uint8)


def label_slots(objective: ObjectiveConfig, sequence_length: int) -> int:
    """P: the most labels that a row has at any step."""
    return math.ceil(max(objective.mask_rate, objective.final_mask_rate or 0.0) * sequence_length)


@dataclass(frozen=True)
class Masks:
    """The masks of some rows at any rate: the tokens, words or spans of each row in random order."""

    rows: Rows
    vocabulary: Vocabulary
    objective: ObjectiveConfig
    numbers: Numbers
    maskable: NDArray[np.int64]
    """[R] positions of each row without special tokens and padding."""
    order: _TokenOrder | _WordOrder | _SpanOrder

    @classmethod
    def of(cls, rows: Rows, vocabulary: Vocabulary, objective: ObjectiveConfig, numbers: Numbers) -> Masks:
        """Draw the order, which is most of the work."""
        maskable = filled(rows) & ~vocabulary.special.take(rows.input_ids)
        order: _TokenOrder | _WordOrder | _SpanOrder
        if objective.selection == "token":
            order = _TokenOrder.of(maskable, label_slots(objective, maskable.shape[1]), numbers)
        elif objective.selection == "whole_word":
            order = _WordOrder.of(_Words.of(rows, vocabulary, maskable), numbers)
        else:
            order = _SpanOrder.of(_Words.of(rows, vocabulary, maskable), numbers)
        return cls(rows, vocabulary, objective, numbers, np.count_nonzero(maskable, axis=1), order)

    def label(self, which: range, rate: float, out: Labelled | None = None) -> Labelled:
        """Label `round(rate x maskable)` positions of each of these rows, at most P, and replace the tokens there.

        `token` labels exactly that many. `whole_word` and `span` take words or spans in their order and stop before the first
        that would exceed the number; one that exceeds it alone is left out, so that a row with a word that fits has a label.
        Whether a label becomes the mask, a random token or stays is drawn for each token, with `span` for each span.

        Source: BERT (1810.04805); whole words as in its later release; spans as in SpanBERT (1907.10529), see `_SpanOrder`.
        """
        here, length = slice(which.start, which.stop), self.rows.input_ids.shape[1]
        slots = label_slots(self.objective, length)
        budget = np.minimum(np.rint(rate * self.maskable[here]), slots).astype(np.int32)
        labelled, lots = self.order.first(which, budget, self.numbers)

        labels = self.rows.input_ids.take(labelled)
        lot, mask_share = lots * 2.0**-32, self.objective.mask_share
        shown = np.where(lot < mask_share, np.int32(self.vocabulary.mask_id), labels)
        randomized = np.flatnonzero((lot >= mask_share) & (lot < mask_share + self.objective.random_share))
        drawable = self.vocabulary.drawable
        drawn = (self.numbers.at(_REPLACEMENT, labelled[randomized]) * np.uint64(len(drawable))) >> np.uint64(32)
        shown[randomized] = drawable[drawn]
        input_ids = self.rows.input_ids[here].copy()
        labelled -= which.start * length
        input_ids.ravel()[labelled] = shown
        return lay_out(out or Labelled.room(len(which), length, slots), input_ids, labelled, labels)


@dataclass(frozen=True)
class CompiledMasks:
    """The masks of the tokens of some rows, as `Masks` has them: compiled, and drawn on demand."""

    rows: Rows
    vocabulary: Vocabulary
    objective: ObjectiveConfig
    numbers: Hashed

    def label(self, which: range, rate: float, out: Labelled | None = None) -> Labelled:
        """As `Masks.label`."""
        assert native.compiled is not None
        if out is None:
            length = self.rows.input_ids.shape[1]
            out = Labelled.room(len(which), length, label_slots(self.objective, length))
        native.compiled.mask_tokens(
            self.rows.input_ids[which.start : which.stop],
            self.rows.filled[which.start : which.stop],
            self.vocabulary.special,
            self.vocabulary.drawable,
            *(self.numbers.generator(purpose) for purpose in (_ORDER, _LOT, _REPLACEMENT)),
            which.start,
            rate,
            self.vocabulary.mask_id,
            self.objective.mask_share,
            self.objective.random_share,
            out.input_ids,
            out.label_positions,
            out.labels,
        )
        return out


@dataclass(frozen=True)
class _TokenOrder:
    """The tokens of each row in random order, as far as any rate needs it; every order is equally likely."""

    smallest: NDArray[np.uint32]
    """[R, P] the smallest keys of each row, ascending."""
    positions: NDArray[np.int64]
    """[C] ascending flat positions of these keys."""
    keys: NDArray[np.uint32]
    """[C] the keys there."""
    row_edges: NDArray[np.int64]
    """[R + 1] the first of each row among these C."""

    @classmethod
    def of(cls, maskable: NDArray[np.bool_], slots: int, numbers: Numbers) -> _TokenOrder:
        row_count, length = maskable.shape
        position_bits = (length - 1).bit_length()
        # A random key for each position, with the position in the lowest bits: keys of a row differ, so exactly as many as
        # wanted are at most the one of that rank.
        keys = numbers.run(_ORDER, range(row_count * length)).reshape(row_count, length)
        keys &= np.uint32((1 << 32) - (1 << position_bits))
        keys |= np.arange(length, dtype=np.uint32)
        keys |= _all_bits(~maskable)  # after the others
        smallest = np.partition(keys, slots - 1, axis=1)[:, :slots].copy()
        smallest.sort(axis=1)
        positions = np.flatnonzero((keys <= smallest[:, -1:]) & maskable)
        return cls(smallest, positions, keys.take(positions), row_edges(positions, row_count, length))

    def first(self, which: range, budget: NDArray[np.int32], numbers: Numbers) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """Ascending flat positions of exactly `budget` tokens of each row, and a number for each."""
        edges = self.row_edges[which.start : which.stop + 1]
        here = slice(int(edges[0]), int(edges[-1]))
        last = self.smallest[np.arange(which.start, which.stop), budget - 1]
        chosen = self.keys[here] <= np.repeat(last, np.diff(edges))
        if not budget.all():
            chosen &= np.repeat(budget > 0, np.diff(edges))
        labelled = self.positions[here][chosen]
        return labelled, numbers.at(_LOT, labelled)


@dataclass(frozen=True)
class _Words:
    """The words of rows, of maskable tokens."""

    positions: NDArray[np.int64]
    """[M] flat positions of the maskable tokens."""
    edges: NDArray[np.int64]
    """[W + 1] the first token of each word among these M."""
    row_edges: NDArray[np.int64]
    """[R + 1] the first word of each row."""
    segment_edges: NDArray[np.int64]
    """[S + 1] the first word of each segment."""
    segments_of_row: NDArray[np.int64]
    """[R] segments of each row."""

    @classmethod
    def of(cls, rows: Rows, vocabulary: Vocabulary, maskable: NDArray[np.bool_]) -> _Words:
        row_count, length = maskable.shape
        positions = np.flatnonzero(maskable)
        begins = vocabulary.begins_word(rows.input_ids.take(positions))
        segment_starts = np.searchsorted(positions, flat_starts(rows))
        begins[segment_starts[segment_starts < len(positions)]] = True
        edges = np.append(np.flatnonzero(begins), len(positions))
        return cls(
            positions,
            edges,
            row_edges=np.searchsorted(edges, row_edges(positions, row_count, length)),
            segment_edges=np.searchsorted(edges, np.append(segment_starts, len(positions))),
            segments_of_row=np.bincount(rows.segment_row, minlength=row_count),
        )

    @cached_property
    def tokens(self) -> NDArray[np.int32]:
        """[W] tokens of each word."""
        return np.diff(self.edges).astype(np.int32)

    def labelled(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Flat positions of the tokens of some words, in their order."""
        tokens = self.tokens.take(chosen)
        before = tokens.cumsum() - tokens
        labelled: NDArray[np.int64] = self.positions[
            np.arange(tokens.sum()) + (self.edges.take(chosen) - before).repeat(tokens)
        ]
        return labelled


@dataclass(frozen=True)
class _WordOrder:
    """The words of each row in random order."""

    words: _Words
    order: NDArray[np.int64]
    """[W] the words, row by row."""
    tokens: NDArray[np.int32]
    """[W] tokens of each, in this order."""

    @classmethod
    def of(cls, words: _Words, numbers: Numbers) -> _WordOrder:
        order = _shuffle_within_rows(np.diff(words.row_edges), numbers)
        return cls(words, order, words.tokens.take(order))

    def first(self, which: range, budget: NDArray[np.int32], numbers: Numbers) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """Ascending flat positions of words of at most `budget` tokens of each row in all, and a number for each token."""
        edges = self.words.row_edges[which.start : which.stop + 1]
        here, words_of_row = slice(int(edges[0]), int(edges[-1])), np.diff(edges)
        tokens = self.tokens[here]
        fits = tokens <= budget.repeat(words_of_row)
        taken = _within(budget, tokens * fits, words_of_row) & fits
        labelled = self.words.labelled(np.sort(self.order[here][taken]))
        return labelled, numbers.at(_LOT, labelled)


@dataclass(frozen=True)
class _SpanOrder:
    """Spans of up to `LONGEST_SPAN` words in random order.

    Every word starts a span of random length; spans are taken in random order, that is, starts are drawn uniformly without
    replacement. Spans also start on `LONGEST_SPAN - 1` imagined words before each segment, so that its first words are
    labelled as often as the others. A span ends with its segment. Where spans overlap, the earlier one has the word; only new
    tokens count against the budget.

         slot      0 1 2 3 4 5 6 7 8 ...      LONGEST_SPAN = 3: two imagined words (.) before each segment,
         word      . . a b c . . d e ...      which also keep spans of the segment before from reaching into it
    """

    words: _Words
    slot_of_word: NDArray[np.int64]
    """[W]"""
    row_edges: NDArray[np.int64]
    """[R + 1] the first slot of each row."""
    rank: NDArray[np.uint32]
    """[slots] of the span that starts there, by row and randomly within a row."""
    span_words: NDArray[np.uint8]
    """[slots] length of that span in words..."""
    span_tokens: NDArray[np.int32]
    """[slots] ...and in tokens."""

    @classmethod
    def of(cls, words: _Words, numbers: Numbers) -> _SpanOrder:
        imagined, segments, word_count = LONGEST_SPAN - 1, len(words.segment_edges) - 1, len(words.edges) - 1
        imagined_before = np.repeat(imagined * np.arange(1, segments + 1), np.diff(words.segment_edges))
        slot_of_word = np.arange(word_count) + imagined_before
        slots_of_row = np.diff(words.row_edges) + imagined * words.segments_of_row
        slots = word_count + imagined * segments
        tokens_before = np.zeros(slots + LONGEST_SPAN, dtype=np.int32)
        tokens_before[slot_of_word + 1] = words.tokens
        tokens_before = tokens_before.cumsum(dtype=np.int32)
        rank = np.empty(slots, dtype=np.uint32)
        rank[_shuffle_within_rows(slots_of_row, numbers)] = np.arange(slots, dtype=np.uint32)
        span_words = _SPAN_WORDS.take(numbers.run(_SPAN_LENGTH, range(slots)) >> np.uint32(16))
        span_tokens = tokens_before.take(np.arange(slots) + span_words) - tokens_before[:slots]
        return cls(words, slot_of_word, np.append(0, np.cumsum(slots_of_row)), rank, span_words, span_tokens)

    def first(self, which: range, budget: NDArray[np.int32], numbers: Numbers) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """Ascending flat positions of the first spans, with at most `budget` tokens of each row; a number for each span."""
        edges = self.row_edges[which.start : which.stop + 1]
        here, slots_of_row = slice(int(edges[0]), int(edges[-1])), np.diff(edges)
        slots = here.stop - here.start
        rank = self.rank[here] - np.uint32(here.start)
        rank |= _all_bits(self.span_tokens[here] > budget.repeat(slots_of_row))

        # A word belongs to the first span that covers it; one that is too long comes after all others.
        first_span = rank.copy()
        for offset in range(1, LONGEST_SPAN):
            rank |= _all_bits(self.span_words[here] == offset)
            np.minimum(first_span[offset:], rank[:-offset], out=first_span[offset:])
        word_edges = self.words.row_edges[which.start : which.stop + 1]
        words = slice(int(word_edges[0]), int(word_edges[-1]))
        span_of_word = np.minimum(first_span.take(self.slot_of_word[words] - here.start), slots).astype(np.int64)

        tokens_of_word = self.words.tokens[words]
        new_tokens = np.bincount(span_of_word, tokens_of_word, minlength=slots + 1)[:slots].astype(np.int32)
        taken = np.append(_within(budget, new_tokens, slots_of_row), False)
        chosen = np.flatnonzero(taken.take(span_of_word))
        labelled = self.words.labelled(words.start + chosen)
        spans = span_of_word.take(chosen).repeat(tokens_of_word.take(chosen))
        lots = numbers.run(_LOT, range(here.start, here.start + int(spans.max(initial=-1)) + 1))
        return labelled, lots[spans]


def _within(budget: NDArray[np.int32], sizes: NDArray[np.int32], sizes_of_row: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[N] whether the running total of the sizes in a row is within its budget."""
    total = sizes.cumsum(dtype=np.int32)
    before_row = np.append(np.int32(0), total).take(sizes_of_row.cumsum() - sizes_of_row)
    within: NDArray[np.bool_] = total <= (budget + before_row).repeat(sizes_of_row)
    return within


def _all_bits(where: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """All bits where it is true; several times as fast as to assign them there."""
    return -where.astype(np.uint32)


def _shuffle_within_rows(row_sizes: NDArray[np.int64], numbers: Numbers) -> NDArray[np.int64]:
    """The indices 0, 1, 2... of rows of these sizes, in random order within each row."""
    count = int(row_sizes.sum())
    row_bits, index_bits = len(row_sizes).bit_length(), count.bit_length()
    assert row_bits + index_bits < 40, "too many words in a group to shuffle them in one sort"
    # Keys of row, random bits and index: sorting them is several times as fast as an argsort.
    keys = numbers.run(_ORDER, range(2 * count)).view("<u8").astype(np.uint64, copy=False)
    keys >>= np.uint64(row_bits + index_bits)
    keys <<= np.uint64(index_bits)
    keys |= np.repeat(np.arange(len(row_sizes), dtype=np.uint64) << np.uint64(64 - row_bits), row_sizes)
    keys |= np.arange(count, dtype=np.uint64)
    keys.sort()
    keys &= np.uint64((1 << index_bits) - 1)
    return keys.view(np.int64)
