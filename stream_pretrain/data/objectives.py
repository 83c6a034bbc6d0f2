"""Rows to model inputs and labels: masked language modelling and next-token prediction.

    rows ──> which positions may be masked ──> select: tokens, words or spans ──> labels ──> replace 80/10/10

All draws come from one generator per group, so the labels are a pure function of its key, the rows and the rates.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.config import ObjectiveConfig
from stream_pretrain.data.randomness import uniform_uint32, uniform_uint64
from stream_pretrain.errors import ModelError

if TYPE_CHECKING:
    from stream_pretrain.data.packing import Rows

IGNORED = -100
"""Label of a slot that holds none."""

LONGEST_SPAN = 10
_CUMULATIVE = (1 - 0.8 ** np.arange(1, LONGEST_SPAN)) / (1 - 0.8**LONGEST_SPAN)
# Words of a span for each value of 16 random bits: geometric(0.2) truncated at 10 words, with the mean of 3.8 of SpanBERT.
_SPAN_WORDS = (1 + np.searchsorted(_CUMULATIVE, (np.arange(1 << 16) + 0.5) / (1 << 16))).astype(np.uint8)


@dataclass(frozen=True)
class Labelled:
    """Rows as the model sees them, and what it has to predict.

    Shapes: R rows of L positions with P slots for labels.
    """

    input_ids: NDArray[np.int32]
    """[R, L], replacements included."""
    label_positions: NDArray[np.int32]
    """[R, P] positions in the row that have a label, ascending, padded with 0."""
    labels: NDArray[np.int32]
    """[R, P] what is to be predicted there, `IGNORED` where padded."""


@dataclass(frozen=True)
class Vocabulary:
    """What masking must know of a tokenizer, as arrays over its V ids."""

    mask_id: int
    special: NDArray[np.bool_]
    """[V] ids that are never masked."""
    drawable: NDArray[np.int32]
    """Ids that can replace a token: every id in use that is not special, and was not where it is kept in documents."""
    opens: NDArray[np.uint8]
    """[V] how the token's first character relates to words; empty when single tokens are selected."""
    closes: NDArray[np.uint8]
    """[V] the same for its last character."""

    @classmethod
    def of(
        cls, tokenizer: Any, selection: Literal["token", "whole_word", "span"] = "token", kept: Sequence[int] = ()
    ) -> Vocabulary:
        """Reads the arrays from a loaded fast tokenizer; where words begin only if `selection` needs it.

        kept: special tokens that documents have. They are content, each a word of its own: masked like any other, and never
        what replaces another.

        Raises:
            ModelError: the tokenizer has no mask token, or ids alone do not tell where its words begin.
        """
        if tokenizer.mask_token_id is None:
            raise ModelError(
                f"tokenizer {tokenizer.name_or_path}: it has no mask token, which --objective.name mlm needs; "
                "use a tokenizer that has one, or --objective.name clm"
            )
        tokens: dict[str, int] = tokenizer.get_vocab()
        special = np.zeros(max(tokens.values()) + 1, dtype=np.bool_)
        special[tokenizer.all_special_ids] = True
        special[[token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special]] = True
        used = np.array(sorted(tokens.values()), dtype=np.int32)
        drawable = used[~special[used]]
        special[list(kept)] = False
        opens = closes = np.zeros(0, dtype=np.uint8)
        if selection != "token":
            opens, closes = _token_edges(tokenizer, tokens, len(special))
            opens[list(kept)] = closes[list(kept)] = _BEGINS_ALWAYS
        return cls(tokenizer.mask_token_id, special, drawable, opens, closes)

    def begins_word(self, ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        """[N] whether a word begins at each token of a text [N]; the first one begins one."""
        begins = np.ones(len(ids), dtype=np.bool_)
        begins[1:] = _BEGINS.take(self.closes.take(ids[:-1]) * _CLASSES + self.opens.take(ids[1:]))
        return begins


def label_slots(objective: ObjectiveConfig, sequence_length: int) -> int:
    """P: labels a row can have at most, at any step of the run."""
    if objective.name == "clm":
        return sequence_length
    return math.ceil(_highest_rate(objective) * sequence_length)


def mask_rates(objective: ObjectiveConfig, steps: NDArray[np.integer[Any]], max_steps: int | None) -> NDArray[np.float64]:
    """The mask rate of each step, a pure function of the step.

    Constant, or linear from `mask_rate` at step 0 to `final_mask_rate` at step `max_steps - 1`, and constant after it.
    """
    if objective.final_mask_rate is None:
        return np.full(steps.shape, objective.mask_rate)
    assert max_steps is not None, "a mask rate that changes needs an end"
    progress = np.clip(steps / max(max_steps - 1, 1), 0.0, 1.0)
    rates: NDArray[np.float64] = objective.mask_rate * (1 - progress) + objective.final_mask_rate * progress
    return rates


def mask(
    rows: Rows,
    vocabulary: Vocabulary,
    objective: ObjectiveConfig,
    rates: NDArray[np.float64],
    generator: np.random.Generator,
) -> Labelled:
    """Selects `round(rate x maskable)` positions of each row, or all slots, as labels and replaces what the model sees there.

    Maskable is every position that holds no special token and no padding. Selection `token` labels exactly that many.
    `whole_word` and `span` draw their units in random order and stop before the first that would exceed the number;
    a unit that alone exceeds it takes no part, so a row that has a fitting unit has a label.

    Masked, random or kept is drawn for each token, for `span` once for each span.

    Shapes: `rates`: [R], one mask rate a row.
    Source: BERT (1810.04805); whole words as in its later release; spans as in SpanBERT (1907.10529), see `_select_words`.
    """
    input_ids = rows.input_ids
    maskable = _filled(rows) & ~vocabulary.special.take(input_ids)
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
    return _lay_out(replaced, labelled, input_ids.take(labelled), slots)


def next_tokens(rows: Rows) -> Labelled:
    """Every position predicts the token after it in its segment; the last position of a segment has no label."""
    has_next = _filled(rows).ravel()
    has_next[_flat_starts(rows) + rows.segment_length - 1] = False
    labelled = np.flatnonzero(has_next)
    return _lay_out(rows.input_ids, labelled, rows.input_ids.take(labelled + 1), rows.input_ids.shape[1])


def _highest_rate(objective: ObjectiveConfig) -> float:
    return max(objective.mask_rate, objective.final_mask_rate or 0.0)


def _flat_starts(rows: Rows) -> NDArray[np.int64]:
    """First position of each segment, counted over the rows one after another."""
    starts: NDArray[np.int64] = rows.segment_row.astype(np.int64) * rows.input_ids.shape[1] + rows.segment_start
    return starts


def _filled(rows: Rows) -> NDArray[np.bool_]:
    """[R, L] positions that hold a segment: padding is at the end of a row."""
    row_count, length = rows.input_ids.shape
    filled = np.bincount(rows.segment_row, weights=rows.segment_length, minlength=row_count).astype(np.int32)
    fills: NDArray[np.bool_] = np.arange(length, dtype=np.int32) < filled[:, None]
    return fills


def _lay_out(input_ids: NDArray[np.int32], labelled: NDArray[np.int64], values: NDArray[np.int32], slots: int) -> Labelled:
    """Moves the labels, given by ascending flat position, to the front of their row's slots."""
    row_count, length = input_ids.shape
    edges = np.arange(row_count + 1) * length
    count = np.diff(np.searchsorted(labelled, edges))
    used = np.arange(slots) < count[:, None]
    positions = np.zeros((row_count, slots), dtype=np.int32)
    labels = np.full((row_count, slots), IGNORED, dtype=np.int32)
    positions[used] = labelled - np.repeat(edges[:-1], count)
    labels[used] = values
    return Labelled(input_ids, positions, labels)


def _select_tokens(maskable: NDArray[np.bool_], budget: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Ascending flat positions of exactly `budget` maskable positions of each row, every subset alike."""
    row_count, length = maskable.shape
    position_bits = (length - 1).bit_length()
    # A random key for each position. The position itself in the lowest bits makes the keys of a row differ, so that exactly
    # `budget` of them reach up to the budget-th smallest.
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

    Every word starts a span of random length, and the spans are taken in random order: a start is drawn uniformly, without
    replacement. So that the first words of a segment are labelled as often as the others, spans also start on up to
    `longest - 1` imagined words in front of it. A span ends with its segment. Where spans overlap, the earlier one has
    the word; only tokens that are new count against the budget.

         slot      0 1 2 3 4 5 6 7 8 ...      longest = 3: two imagined words (.) in front of each segment
         word      . . a b c . . d e ...      they also keep a span from reaching into the next segment
    """
    row_count = len(maskable)
    at = np.flatnonzero(maskable)
    if len(at) == 0:
        return at, at

    # Words: where one begins, its tokens, and how many there are in each segment.
    begins = vocabulary.begins_word(rows.input_ids.take(at))
    segment_starts = np.searchsorted(at, _flat_starts(rows))
    begins[segment_starts[segment_starts < len(at)]] = True
    word_edges = np.append(np.flatnonzero(begins), len(at))
    tokens_of_word = np.diff(word_edges)
    words_of_segment = np.diff(np.append(np.searchsorted(word_edges, segment_starts), len(tokens_of_word)))

    # Slots: the words, with the imagined ones in front of each segment.
    imagined = longest - 1
    words, segments = len(tokens_of_word), len(segment_starts)
    slot_of_word = np.arange(words) + np.repeat(imagined * np.arange(1, segments + 1), words_of_segment)
    slots_of_row = np.bincount(rows.segment_row, weights=words_of_segment + imagined, minlength=row_count).astype(np.int64)
    row_starts = np.cumsum(slots_of_row) - slots_of_row
    slots = words + imagined * segments
    tokens_before = np.zeros(slots + longest, dtype=np.int64)
    tokens_before[slot_of_word + 1] = tokens_of_word
    tokens_before = np.cumsum(tokens_before)

    # Spans: one from each slot. Their ranks follow the rows, and within a row a random order.
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

    # Taken while the row's running total stays within its budget.
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
    # Row, then chance, then the index itself: sorting such keys is several times as fast as sorting the indices by them.
    keys = uniform_uint64(generator, count) >> np.uint64(row_bits + index_bits) << np.uint64(index_bits)
    keys |= np.repeat(np.arange(len(row_sizes), dtype=np.uint64) << np.uint64(64 - row_bits), row_sizes)
    keys |= np.arange(count, dtype=np.uint64)
    keys.sort()
    return (keys & np.uint64((1 << index_bits) - 1)).astype(np.int64)


# --- Where words begin, told from ids alone -------------------------------------------------------------------------
#
# WordPiece: a token with the prefix ## continues a word, every other one begins one; equal to the tokenizer's own `word_ids`.
#
# Byte-level BPE and SentencePiece: a word is a run of letters, of digits or of other signs with the space in front of it, as
# in the pattern of GPT-2. Whether a token begins one follows from its first character and the last one of the token before.
# It differs from `word_ids` on purpose where those serve masking badly: SentencePiece's own words keep punctuation, and are
# whole sentences in scripts written without spaces, where every token is a word here; GPT-2's end at combining marks (Hindi).
# And it differs by necessity in contractions and runs of white space: at 0.1 to 0.6 % of the words of English prose, measured
# with GPT-2's tokenizer.

_CLASSES = 8
_CONTINUES, _BEGINS_ALWAYS, _SPACE, _BLANK, _LETTER, _DIGIT, _SIGN, _UNSPACED = range(_CLASSES)
# At the end of a token _SPACE is one, _BEGINS_ALWAYS other white space. At its beginning _BLANK is spaces and nothing else.


def _begins(last: int, first: int) -> bool:
    """Whether a word begins at a token, given its first character and the last one of the token before it."""
    if first in (_CONTINUES, _BEGINS_ALWAYS):
        return first == _BEGINS_ALWAYS
    if first == _BLANK:
        return last not in (_SPACE, _BEGINS_ALWAYS)
    return last != _SPACE and (last != first or first == _UNSPACED)


# At last * _CLASSES + first.
_BEGINS = np.array([_begins(last, first) for last in range(_CLASSES) for first in range(_CLASSES)])


def _token_edges(tokenizer: Any, tokens: dict[str, int], vocabulary_size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """`opens` and `closes` of a vocabulary."""
    serialized = json.loads(tokenizer.backend_tokenizer.to_str())
    model = serialized["model"]
    stages = json.dumps([serialized["normalizer"], serialized["pre_tokenizer"], serialized["decoder"]], ensure_ascii=False)
    edges_of: Callable[[str], tuple[int, int]]
    if model["type"] == "WordPiece":
        prefix = model["continuing_subword_prefix"]

        def edges_of(token: str) -> tuple[int, int]:
            return (_CONTINUES if token.startswith(prefix) else _BEGINS_ALWAYS), _LETTER
    elif model["type"] in ("BPE", "Unigram") and '"ByteLevel"' in stages:

        def edges_of(token: str) -> tuple[int, int]:
            return _edges(b"".join(_BYTE_LEVEL.get(character, character.encode()) for character in token))
    elif model["type"] in ("BPE", "Unigram") and "▁" in stages:

        def edges_of(token: str) -> tuple[int, int]:
            byte = re.fullmatch("<0x([0-9A-F]{2})>", token)
            return _edges(bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode())
    else:
        raise ModelError(
            f"tokenizer {tokenizer.name_or_path}: its ids do not tell where words begin (not WordPiece, byte-level BPE or "
            "SentencePiece); use --objective.selection token"
        )
    edges = np.zeros((2, vocabulary_size), dtype=np.uint8)
    for token, token_id in tokens.items():
        edges[:, token_id] = edges_of(token)
    return edges[0], edges[1]


def _edges(text: bytes) -> tuple[int, int]:
    """Classes of the first and the last character of a token, which may begin or end inside a character."""
    inside = re.match(rb"[\x80-\xbf]*", text)
    assert inside is not None
    if inside.end() == len(text):
        return _CONTINUES, _LETTER
    # A character cut short is completed to one near it, which is nearly always of its script.
    last = re.search(rb"[^\x80-\xbf][\x80-\xbf]*\Z", text)
    assert last is not None
    missing = max(0, _bytes_of_character(last[0][0]) - len(last[0]))
    whole = (text[inside.end() :] + b"\x80" * missing).decode(errors="replace")
    closes = _character_class(whole[-1])
    if inside.end() > 0:
        return _CONTINUES, closes
    if whole[0] == " ":
        return (_BEGINS_ALWAYS if whole.strip(" ") else _BLANK), closes
    return _character_class(whole[0]), closes


def _bytes_of_character(first_byte: int) -> int:
    return 1 if first_byte < 0xC0 else 2 if first_byte < 0xE0 else 3 if first_byte < 0xF0 else 4


def _character_class(character: str) -> int:
    if character.isspace():
        return _SPACE if character == " " else _BEGINS_ALWAYS
    category = unicodedata.category(character)
    if category[0] in "LM":
        return _UNSPACED if re.match(_UNSPACED_SCRIPTS, character) else _LETTER
    return _DIGIT if category[0] == "N" else _SIGN


# Thai, Lao, Tibetan, Myanmar, Khmer, Chinese and Japanese.
_UNSPACED_SCRIPTS = "[\u0e00-\u109f\u1780-\u17ff\u2e80-\u312f\u31a0-\ua4cf\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"


def _byte_level_alphabet() -> dict[str, bytes]:
    """The character that stands for each byte in byte-level BPE: itself where it is printable, else the next from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): bytes([byte]) for byte in printable} | {chr(256 + i): bytes([byte]) for i, byte in enumerate(others)}


_BYTE_LEVEL = _byte_level_alphabet()
