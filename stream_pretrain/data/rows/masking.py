"""Which tokens of a row are masked, and what replaces them.

    rows ──> which positions may be masked ──> select: tokens, words or spans ──> labels ──> replace 80/10/10

All draws come from one generator per group, so the labels are a pure function of its key, the rows and the rates.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.config import ObjectiveConfig
from stream_pretrain.data.randomness import uniform_uint32, uniform_uint64
from stream_pretrain.data.rows.labels import Labelled, filled, flat_starts, lay_out
from stream_pretrain.data.rows.packing import Rows
from stream_pretrain.data.rows.vocabulary import Vocabulary

LONGEST_SPAN = 10

_CUMULATIVE = (1 - 0.8 ** np.arange(1, LONGEST_SPAN)) / (1 - 0.8**LONGEST_SPAN)

# Words of a span for each value of 16 random bits: geometric(0.2) truncated at 10 words, with the mean of 3.8 of SpanBERT.
_SPAN_WORDS = (1 + np.searchsorted(_CUMULATIVE, (np.arange(1 << 16) + 0.5) / (1 << 16))).astype(np.uint8)


def label_slots(objective: ObjectiveConfig, sequence_length: int) -> int:
    """P: the most labels that a row has at any step."""
    return math.ceil(max(objective.mask_rate, objective.final_mask_rate or 0.0) * sequence_length)


def mask(
    rows: Rows,
    vocabulary: Vocabulary,
    objective: ObjectiveConfig,
    rates: NDArray[np.float64],
    generator: np.random.Generator,
) -> Labelled:
    """Label `round(rate x maskable)` positions of each row, at most P, and replace the tokens there.

    Maskable positions are those without special tokens and padding. `token` labels exactly that many. `whole_word` and `span`
    draw words or spans in random order and stop before the first that would exceed the number; one that exceeds it alone is
    left out, so that a row with a word that fits has a label. Whether a label becomes the mask, a random token or stays is
    drawn for each token, with `span` for each span.

    Shapes: rates [R], one mask rate a row.
    Source: BERT (1810.04805); whole words as in its later release; spans as in SpanBERT (1907.10529), see `_select_words`.
    """
    input_ids = rows.input_ids
    maskable = filled(rows) & ~vocabulary.special.take(input_ids)
    slots = label_slots(objective, input_ids.shape[1])
    budget = np.minimum(np.rint(rates * maskable.sum(axis=1)).astype(np.int64), slots)

    if objective.selection == "token":
        labelled = _select_tokens(maskable, budget, generator)
        lots = uniform_uint32(generator, len(labelled))
    elif objective.selection == "whole_word":
        labelled, _ = _select_words(rows, vocabulary, maskable, budget, 1, generator)
        lots = uniform_uint32(generator, len(labelled))
    else:
        labelled, span = _select_words(rows, vocabulary, maskable, budget, LONGEST_SPAN, generator)
        lots = uniform_uint32(generator, int(span.max(initial=0)) + 1)[span]

    lot = lots * 2.0**-32
    masked = labelled[lot < objective.mask_share]
    randomized = labelled[(lot >= objective.mask_share) & (lot < objective.mask_share + objective.random_share)]
    drawn = (uniform_uint32(generator, len(randomized)) * np.uint64(len(vocabulary.drawable))) >> 32
    replaced = input_ids.copy()
    replaced.ravel()[masked] = vocabulary.mask_id
    replaced.ravel()[randomized] = vocabulary.drawable[drawn]
    return lay_out(replaced, labelled, input_ids.take(labelled), slots)


def _select_tokens(maskable: NDArray[np.bool_], budget: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Ascending flat positions of exactly `budget` maskable positions of each row, every subset equally likely."""
    row_count, length = maskable.shape
    position_bits = (length - 1).bit_length()
    # A random key for each position, with the position in the lowest bits: keys of a row differ, so exactly `budget` of them
    # are at most the budget-th smallest.
    keys = uniform_uint32(generator, row_count * length).reshape(row_count, length)
    keys &= np.uint32((1 << 32) - (1 << position_bits))
    keys |= np.arange(length, dtype=np.uint32)
    keys[~maskable] = np.iinfo(np.uint32).max
    threshold: NDArray[np.uint32] = np.sort(keys, axis=1)[np.arange(row_count), budget - 1]
    chosen: NDArray[np.bool_] = (keys <= threshold[:, None]) & maskable & (budget > 0)[:, None]
    return np.flatnonzero(chosen)


def _select_words(
    rows: Rows,
    vocabulary: Vocabulary,
    maskable: NDArray[np.bool_],
    budget: NDArray[np.int64],
    longest: int,
    generator: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ascending flat positions of whole words, chosen in spans of up to `longest` words, and the span of each position.

    Every word starts a span of random length; spans are taken in random order, that is, starts are drawn uniformly without
    replacement. Spans also start on `longest - 1` imagined words before each segment, so that its first words are labelled as
    often as the others. A span ends with its segment. Where spans overlap, the earlier one has the word; only new tokens
    count against the budget.

         slot      0 1 2 3 4 5 6 7 8 ...      longest = 3: two imagined words (.) before each segment,
         word      . . a b c . . d e ...      which also keep spans of the segment before from reaching into it
    """
    row_count = len(maskable)
    at = np.flatnonzero(maskable)
    if len(at) == 0:
        return at, at

    # Words: their first tokens, their lengths in tokens, and their number in each segment.
    begins = vocabulary.begins_word(rows.input_ids.take(at))
    segment_starts = np.searchsorted(at, flat_starts(rows))
    begins[segment_starts[segment_starts < len(at)]] = True
    word_edges = np.append(np.flatnonzero(begins), len(at))
    tokens_of_word = np.diff(word_edges)
    words_of_segment = np.diff(np.append(np.searchsorted(word_edges, segment_starts), len(tokens_of_word)))

    # Slots: the words, and the imagined ones before each segment.
    imagined = longest - 1
    words, segments = len(tokens_of_word), len(segment_starts)
    slot_of_word = np.arange(words) + np.repeat(imagined * np.arange(1, segments + 1), words_of_segment)
    slots_of_row = np.bincount(rows.segment_row, weights=words_of_segment + imagined, minlength=row_count).astype(np.int64)
    row_starts = np.cumsum(slots_of_row) - slots_of_row
    slots = words + imagined * segments
    tokens_before = np.zeros(slots + longest, dtype=np.int64)
    tokens_before[slot_of_word + 1] = tokens_of_word
    tokens_before = np.cumsum(tokens_before)

    # Spans: one from each slot, ranked by row and randomly within a row.
    rank = np.empty(slots, dtype=np.int64)
    rank[_shuffle_within_rows(slots_of_row, generator)] = np.arange(slots)
    span_words = _SPAN_WORDS.take(uniform_uint32(generator, slots) >> 16) if longest > 1 else np.ones(slots, dtype=np.uint8)
    tokens_of_span = tokens_before.take(np.arange(slots) + span_words) - tokens_before[:slots]
    budget_of_slot = np.repeat(budget, slots_of_row)
    never = slots
    rank[tokens_of_span > budget_of_slot] = never

    # A word belongs to the first span that covers it.
    first_span = rank.copy()
    for offset in range(1, longest):
        rank[span_words == offset] = never
        np.minimum(first_span[offset:], rank[:-offset], out=first_span[offset:])
    span_of_word = first_span.take(slot_of_word)

    # Spans are taken while the running total of the row is within its budget.
    total = np.cumsum(np.bincount(span_of_word, weights=tokens_of_word, minlength=slots + 1)[:slots])
    total_before_row = np.append(0, total).take(row_starts)
    taken = np.append(total <= np.repeat(budget + total_before_row, slots_of_row), False)
    word_taken = taken.take(span_of_word)
    labelled = at[np.repeat(word_taken, tokens_of_word)]
    return labelled, np.repeat(span_of_word[word_taken], tokens_of_word[word_taken])


def _shuffle_within_rows(row_sizes: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """The indices 0, 1, 2... of rows of these sizes, in random order within each row."""
    count = int(row_sizes.sum())
    row_bits, index_bits = len(row_sizes).bit_length(), count.bit_length()
    assert row_bits + index_bits < 40, "too many words in a group to shuffle them in one sort"
    # Keys of row, random bits and index: sorting them is several times as fast as an argsort.
    keys = uniform_uint64(generator, count) >> np.uint64(row_bits + index_bits) << np.uint64(index_bits)
    keys |= np.repeat(np.arange(len(row_sizes), dtype=np.uint64) << np.uint64(64 - row_bits), row_sizes)
    keys |= np.arange(count, dtype=np.uint64)
    keys.sort()
    return (keys & np.uint64((1 << index_bits) - 1)).astype(np.int64)
