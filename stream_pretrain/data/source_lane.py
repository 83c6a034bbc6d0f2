"""What a lane reads of one source, row by row, and the cursor that restores it exactly.

    deal (epoch) -> stripes -> windows (shuffled) -> groups (tokenized, packed) -> rows
                       ^          ^                     ^                           ^
    the cursor:    epoch, stripe  window, restart       rank, piece, token          taken

Every stage is a pure function of the one before and of keys made of the cursor's own numbers, so a cursor holds no
text, no tokens and no random state. Tokens read past the end of a group are kept for the next as a cache; they are
never part of the state.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.dealing import Stripe, deal
from stream_pretrain.data.documents import DocumentReader, Documents, ReadOptions, Skip, open_reader
from stream_pretrain.data.objectives import Labelled
from stream_pretrain.data.packing import SMALLEST_FRAGMENT, Packing, Rows, assemble, place
from stream_pretrain.data.pieces import PIECE_CHARACTERS
from stream_pretrain.data.randomness import DEAL, MASK, ORDER, keyed_generator
from stream_pretrain.data.sources import Shard
from stream_pretrain.data.store_memory import StoreMemory
from stream_pretrain.data.tokenization import BatchTokenizer, Encoder
from stream_pretrain.data.transport import Restart
from stream_pretrain.errors import CheckpointError, ContentError, SourceError

EXPANSION = {"none": 1.0, "zstd": 3.5, "gzip": 3.0, "bz2": 4.0, "xz": 4.0, "lz4": 2.0}
"""Uncompressed bytes for a stored byte, as text usually compresses: estimates the windows of a shard."""

GROUP_ROWS = 16
CAUSES = ("network", "reading", "tokenizing")
"""What a lane spends its time on: waiting for a store; decompressing and parsing; tokenizing and packing."""
EMPTY_EPOCHS = 64
"""A lane that is dealt no document with text in this many epochs on end gives up..."""
HOPELESS_DOCUMENTS = 100_000
"""...as does one in which so many have none, one after the other: the field is wrong, and to read all of it may take days."""


@dataclass(frozen=True)
class SourcePlan:
    """All that decides the rows of a source in a lane besides the lane's number and cursor: equal on every rank."""

    name: str
    shards: tuple[Shard, ...]
    first_shard: int
    """Number of the first of them among the shards of all sources."""
    lanes: int
    seed: int
    sequence_length: int
    packing: Packing
    heldout_fraction: float
    max_epochs: int | None
    read: ReadOptions
    skip_bad_shards: bool = False
    whole: bool = False
    """Too small to be dealt: every lane reads all of it, in an order and with masks of its own."""

    def windows_of(self, shard: Shard) -> int:
        """Windows of a shard as far as its size tells."""
        if shard.size is None or shard.format == "examples":
            return self.lanes
        if shard.format == "text" and self.read.text_documents == "file":
            return 1
        return max(1, round(shard.size * EXPANSION[shard.compression] / self.read.window_bytes))

    def stripes(self, epoch: int, lane: int) -> list[Stripe]:
        """What a lane reads in an epoch, in order."""
        if self.whole:
            order = keyed_generator(self.seed, DEAL, epoch, self.first_shard, lane).permutation(len(self.shards))
            return [Stripe(shard) for shard in order.tolist()]
        if epoch not in self._dealt:
            sizes = [shard.size for shard in self.shards]
            windows = [self.windows_of(shard) for shard in self.shards]
            self._dealt.pop(epoch - 2, None)
            self._dealt[epoch] = deal(sizes, windows, self.lanes, self.seed, epoch, self.first_shard)
        return self._dealt[epoch][lane]

    @cached_property
    def _dealt(self) -> dict[int, list[list[Stripe]]]:
        return {}

    def ended(self, cursor: Cursor) -> bool:
        """Whether a lane has read all the epochs it was asked for."""
        return self.max_epochs is not None and cursor.epoch >= self.max_epochs

    def progress(self, lane: int, cursor: Cursor) -> float:
        """Share of a lane's epochs that lies before a cursor."""
        assert self.max_epochs is not None
        if self.ended(cursor):
            return 1.0
        key = (cursor.epoch, lane)
        if key not in self._weights:
            stripes = self.stripes(cursor.epoch, lane)
            sizes = np.array([(self.shards[stripe.shard].size or 1) / stripe.count for stripe in stripes], dtype=float)
            self._weights[key] = np.concatenate([[0.0], np.cumsum(sizes)])
        before = self._weights[key]
        share = 0.0
        if cursor.stripe + 1 < len(before):
            stripe = self.stripes(cursor.epoch, lane)[cursor.stripe]
            within = min(1.0, cursor.window * stripe.count / self.windows_of(self.shards[stripe.shard]))
            share = (before[cursor.stripe] * (1 - within) + before[cursor.stripe + 1] * within) / before[-1]
        return float((cursor.epoch + share) / self.max_epochs)

    @cached_property
    def _weights(self) -> dict[tuple[int, int], NDArray[np.float64]]:
        return {}


class Cursor(NamedTuple):
    """Where a lane stands in a source: the row that comes next, and what was counted before it."""

    epoch: int = 0
    stripe: int = 0
    """Index into the lane's stripes of this epoch."""
    compressed: int = 0
    """Restart point from which the window can be read."""
    uncompressed: int = 0
    window: int = 0
    """Windows of the stripe that came before."""
    rank: int = 0
    """The group begins with this document of the shuffled window..."""
    piece: int = 0
    """...this piece of it..."""
    token: int = 0
    """...and this token of the piece."""
    taken: int = 0
    """Rows of the group that were given out."""
    rows: int = 0
    """Rows the lane has given out of the source since the run began."""
    documents: int = 0
    """Documents that began in them."""
    read: int = 0
    """Documents of the windows they come from, whatever became of them: what the next three are shares of."""
    skipped: int = 0
    """Documents that had to be skipped."""
    empty: int = 0
    """Documents without text."""
    filtered: int = 0
    """Documents left out by their length or as copies."""
    stripes: int = 0
    """Stripes whose rest had to be skipped, however much that was."""
    credit: int = 0
    """How far the source is behind its share of the lane's rows (mixture.py)."""


@dataclass(frozen=True)
class Skipped:
    """What no row is made of, named so that it is counted once however often its window is read."""

    epoch: int
    shard: int
    offset: int
    """Of the first of the documents."""
    reason: str
    documents: int | None = 1
    """How many; None for the rest of a stripe, where its shard does not tell."""


@dataclass
class Group:
    """The next few rows of a window."""

    rows: Rows
    key: tuple[int, ...]
    """Key of the masks: (seed, position in the corpus), the same on any topology."""
    documents: NDArray[np.int64]
    """[R] documents that begin in each row."""
    origins: NDArray[np.int64]
    """[S, 3] epoch, shard and offset in it of the document of each segment."""
    after: tuple[int, int, int] | None
    """Rank, piece and token that the next group begins with; None at the end of the window."""
    labelled: dict[float, Labelled] = field(default_factory=dict)
    """The rows with labels, at the mask rate they were last asked for with."""


class Readers:
    """The open shards of a source in one process: lanes which read stripes of the same shard share its decompression."""

    def __init__(self, plan: SourcePlan, memory: StoreMemory | None = None) -> None:
        """memory: what the stream has learnt of its stores, where it has other sources as well."""
        self.plan = plan
        self.memory = memory = memory or StoreMemory()
        self._options = replace(plan.read, transport=replace(plan.read.transport, memory=memory))
        self.open: dict[tuple[int, int, int], DocumentReader] = {}

    def follow(self, lane: int, epoch: int, stripe: Stripe, block: int) -> DocumentReader:
        key = self._key(lane, epoch, stripe)
        if key not in self.open:
            self.open[key] = open_reader(self.plan.shards[stripe.shard], self._options)
        self.open[key].follow(stripe, block)
        return self.open[key]

    def leave(self, lane: int, epoch: int, stripe: Stripe) -> None:
        key = self._key(lane, epoch, stripe)
        if self.open[key].leave(stripe):
            del self.open[key]

    def _key(self, lane: int, epoch: int, stripe: Stripe) -> tuple[int, int, int]:
        return (epoch, stripe.shard, lane if self.plan.whole else 0)


class SourceLane:
    """The rows of one source in one lane, from a cursor on."""

    def __init__(
        self, plan: SourcePlan, number: int, encoder: Encoder, tokenizer: BatchTokenizer, readers: Readers, cursor: Cursor
    ) -> None:
        self.plan = plan
        self.number = number
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.readers = readers
        self.cursor = cursor
        self.reader: DocumentReader | None = None
        self.window: _Window | None = None
        self.group: Group | None = None
        self.unreported: list[Skipped] = []
        self.uncounted: Counter[str] = Counter()
        """What was met since the last row, by the field of the cursor that counts it."""
        self.seconds = np.zeros(len(CAUSES))
        self.empty_epochs = 0
        self.rows_before_epoch = cursor.rows
        self.characters_per_token = 4.0
        self.stripes: list[Stripe] = []
        self._begin_epoch(cursor.epoch, cursor.stripe)

    @property
    def ended(self) -> bool:
        """Whether all the epochs that were asked for are read."""
        return self.plan.ended(self.cursor)

    def next_row(self) -> tuple[Group, int, list[Skipped]] | None:
        """The next row as (group, index in it), with what was skipped on the way to it; None behind the last epoch."""
        while self.group is None:
            if self.ended:
                return None
            if self.window is None:
                self._open_window()
            else:
                self._open_group(self.window)
        group, index, cursor = self.group, self.cursor.taken, self.cursor
        skipped, self.unreported = self.unreported, []
        cursor = self._counted(cursor)._replace(
            taken=index + 1, rows=cursor.rows + 1, documents=cursor.documents + int(group.documents[index])
        )
        if cursor.taken == len(group.rows.input_ids):
            self.group = None
            if group.after is None:
                cursor = self._after_window(cursor)
            else:
                rank, piece, token = group.after
                cursor = cursor._replace(rank=rank, piece=piece, token=token, taken=0)
        self.cursor = cursor
        return group, index, skipped

    def report_skipped(self) -> list[Skipped]:
        """What was skipped behind the last row of the last epoch; told once, like what rides with a row."""
        skipped, self.unreported = self.unreported, []
        self.cursor = self._counted(self.cursor)
        return skipped

    def _counted(self, cursor: Cursor) -> Cursor:
        """A cursor behind what was met since the last row."""
        if self.uncounted:
            cursor = cursor._replace(**{name: getattr(cursor, name) + count for name, count in self.uncounted.items()})
            self.uncounted.clear()
        return cursor

    def take_seconds(self) -> NDArray[np.float64]:
        """[causes] seconds spent since this was asked last."""
        seconds, self.seconds = self.seconds, np.zeros(len(CAUSES))
        return seconds

    def _begin_epoch(self, epoch: int, stripe: int) -> None:
        self.stripes = self.plan.stripes(epoch, self.number) if not self.ended else []
        self._follow(stripe)

    def _follow(self, stripe: int) -> None:
        if stripe < len(self.stripes):
            block = self.stripes[stripe].first + self.cursor.window * self.stripes[stripe].count
            self.reader = self.readers.follow(self.number, self.cursor.epoch, self.stripes[stripe], block)
        else:
            self.reader = None

    def _open_window(self) -> None:
        """Read the cursor's window, or move the cursor on to the next stripe or epoch."""
        cursor = self.cursor
        if self.reader is None:
            self._next_epoch()
            return
        stripe = self.stripes[cursor.stripe]
        block = stripe.first + cursor.window * stripe.count
        began, waited, damaged = time.perf_counter(), self.readers.memory.seconds_waiting, False
        try:
            found = self.reader.read(stripe, block, Restart(cursor.compressed, cursor.uncompressed))
        except ContentError as error:
            if not self.plan.skip_bad_shards:
                raise
            self._skip_rest_of(stripe, block, error)
            found, damaged = None, True
        waited = self.readers.memory.seconds_waiting - waited
        self.seconds += waited, time.perf_counter() - began - waited, 0.0
        if found is None:
            if not self._at_start_of_window and not damaged:
                raise self._astray(stripe, block)
            self.readers.leave(self.number, cursor.epoch, stripe)
            # Where a run goes on, damage may be met in a window that was read in part before.
            self.cursor = self._after_window(cursor)._replace(stripe=cursor.stripe + 1, window=0, compressed=0, uncompressed=0)
            self._follow(self.cursor.stripe)
            return
        self.cursor = cursor._replace(compressed=found.restart.compressed, uncompressed=found.restart.uncompressed)
        if self._at_start_of_window:
            self._report(stripe, "skipped", found.skips)
            self._report(stripe, "empty", found.empty)
            self.uncounted.update(read=found.read, filtered=found.filtered)
            self._refuse_hopeless()
        self.window = _Window(
            _kept(found, self.plan.heldout_fraction), self._key(ORDER, stripe, block), self.tokenizer.piece_edges
        )
        if not self.window.has(cursor.rank, cursor.piece):
            raise self._astray(stripe, block)

    def _astray(self, stripe: Stripe, block: int) -> CheckpointError:
        """What a run ends with that goes on from a place which is not there."""
        where = f"{self.plan.shards[stripe.shard].name}, window {block}"
        return CheckpointError(
            f"lane {self.number} is to go on at a place of {where} that is not there: the checkpoint, or the shard, is not of "
            "this run; use another checkpoint"
        )

    @property
    def _at_start_of_window(self) -> bool:
        """Whether no row of the cursor's window was given out; else what it holds is in the cursor's counts already."""
        cursor = self.cursor
        return cursor.rank == cursor.piece == cursor.token == cursor.taken == 0

    def _report(self, stripe: Stripe, counted: str, skips: Sequence[Skip]) -> None:
        """Name what no row is made of, and count it in a field of the cursor."""
        shard = self._shard(stripe)
        self.unreported += [Skipped(self.cursor.epoch, shard, skip.offset, skip.reason, skip.documents) for skip in skips]
        self.uncounted[counted] += sum(skip.documents for skip in skips)

    def _skip_rest_of(self, stripe: Stripe, block: int, error: ContentError) -> None:
        """Name and count what a stripe holds from a window on that cannot be read."""
        assert self.reader is not None
        shard, offset = self._shard(stripe), self.reader.offset_of(block)
        documents = self.reader.documents_from(stripe, block if self._at_start_of_window else block + stripe.count)
        self.unreported.append(Skipped(self.cursor.epoch, shard, offset, f"rest of the stripe skipped: {error}", documents))
        self.uncounted.update(stripes=1, read=documents or 0, skipped=documents or 0)

    def _shard(self, stripe: Stripe) -> int:
        """Number of the stripe's shard among those of all sources."""
        return self.plan.first_shard + stripe.shard

    def _key(self, purpose: int, stripe: Stripe, block: int) -> tuple[int, ...]:
        """Key of a window's random numbers: its place in the corpus, and the lane where each reads it in its own way."""
        key = (self.plan.seed, purpose, self.cursor.epoch, self._shard(stripe), block)
        return (*key, self.number) if self.plan.whole else key

    def _next_epoch(self) -> None:
        self.empty_epochs = self.empty_epochs + 1 if self.cursor.rows == self.rows_before_epoch else 0
        self.rows_before_epoch = self.cursor.rows
        # A lane that was dealt nothing, or nothing with text, is dealt something in another epoch; bad documents stay bad.
        only_bad = (self.uncounted["skipped"] or self.uncounted["stripes"]) and not self.uncounted["empty"]
        if self.plan.max_epochs is None and self.empty_epochs >= (2 if only_bad else EMPTY_EPOCHS):
            raise self._met_nothing(f"in {self.empty_epochs} epochs")
        self.cursor = self.cursor._replace(epoch=self.cursor.epoch + 1, stripe=0, window=0, compressed=0, uncompressed=0)
        self._begin_epoch(self.cursor.epoch, 0)

    def _refuse_hopeless(self) -> None:
        """Raise SourceError where a lane meets no text for so long that there surely is none in the field."""
        met = self.uncounted
        if met["read"] >= HOPELESS_DOCUMENTS and met["empty"] + met["skipped"] == met["read"]:
            raise self._met_nothing(f"in {met['read']:,} that it read")

    def _met_nothing(self, where: str) -> SourceError:
        of = f" of source {self.plan.name}" if self.plan.name else ""
        nothing = f"lane {self.number} of {self.plan.lanes} met no document{of} {where}"
        if self.unreported:
            reasons = "; ".join(sorted({skip.reason for skip in self.unreported})[:3])
            empty, skipped = self.uncounted["empty"], self.uncounted["skipped"]
            return SourceError(
                f"{nothing}, but {empty:,} without text and {skipped:,} that had to be skipped ({reasons}): "
                "check --data.text-field and what the shards hold"
            )
        return SourceError(
            f"{nothing}: the corpus is empty, all of it is held out or filtered, or it is too small for so many lanes; "
            "give fewer with --lanes, or a smaller --data.window-bytes"
        )

    def _after_window(self, cursor: Cursor) -> Cursor:
        self.window = None
        return cursor._replace(window=cursor.window + 1, rank=0, piece=0, token=0, taken=0)

    def _open_group(self, window: _Window) -> None:
        """Tokenize and pack the documents from the cursor on."""
        began = time.perf_counter()
        cursor, length = self.cursor, self.plan.sequence_length
        rows = GROUP_ROWS
        if cursor.rows == cursor.taken:  # the lane's first group: shorter by lane, so that refills are spread over steps
            rows = 1 + self.number * GROUP_ROWS // self.plan.lanes
        framing = len(self.encoder.prefix) + len(self.encoder.suffix)
        window.begin_group(cursor.rank, cursor.piece)
        needed = cursor.token + rows * length + SMALLEST_FRAGMENT + 1
        while window.has_more and window.positions(framing) < needed:
            if self.plan.packing == "none" and window.complete_documents > rows:
                break
            characters = math.ceil((needed - window.positions(framing)) * self.characters_per_token)
            self._tokenize(window, characters)
        stripe = self.stripes[cursor.stripe]
        block = stripe.first + cursor.window * stripe.count
        if cursor.token and cursor.token >= next(iter(window.counts), 0):
            raise self._astray(stripe, block)
        held = window.held()
        lengths = [document.tokens for document in held]
        placements, left = place(lengths, cursor.token, rows, length, framing, self.plan.packing)
        after = window.position_of(held, *left)
        shard = self._shard(stripe)
        if cursor.taken == 0 and (without := window.documents_without_tokens(held, cursor.rank, after)):
            self._report(stripe, "empty", [Skip(min(without), "no tokens", len(without))])
        if not placements:
            if cursor.taken:
                raise self._astray(stripe, block)
            self.cursor = self._after_window(cursor)
            return
        packed = assemble(
            placements, window.ids, np.cumsum([0, *lengths]), length, self.encoder.prefix, self.encoder.suffix, self.encoder.pad
        )
        if cursor.taken >= len(packed.input_ids):
            raise self._astray(stripe, block)
        begins = packed.segment_token == 0
        if cursor.piece > 0:  # the first document has begun in a group before
            begins &= packed.segment_document > 0
        origins = np.empty((len(begins), 3), dtype=np.int64)
        origins[:] = cursor.epoch, shard, 0
        origins[:, 2] = window.offsets_of(held)[packed.segment_document]
        self.group = Group(
            rows=packed,
            key=(*self._key(MASK, stripe, block), cursor.rank, cursor.piece, cursor.token),
            documents=np.bincount(packed.segment_row[begins], minlength=len(packed.input_ids)),
            origins=origins,
            after=after,
        )
        self.seconds[2] += time.perf_counter() - began

    def _tokenize(self, window: _Window, characters: int) -> None:
        texts = window.next_texts(characters)
        ids, lengths = self.tokenizer.encode(texts, [piece > 0 for piece in window.pieces[-len(texts) :]])
        window.append(ids, lengths, self.encoder.document_end)
        self.characters_per_token = sum(map(len, texts)) / max(1, len(ids))


def _kept(documents: Documents, heldout_fraction: float) -> Documents:
    """The documents that train: not those held out by the hash of their text."""
    if heldout_fraction == 0:
        return documents
    kept = [i for i, text in enumerate(documents.texts) if not is_heldout(text, heldout_fraction)]
    return replace(documents, texts=[documents.texts[i] for i in kept], offsets=[documents.offsets[i] for i in kept])


def is_heldout(text: str, fraction: float) -> bool:
    """Whether a document is held out of training: decided by its text alone, so that its copies are too."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2.0**64


class _Held(NamedTuple):
    """A document of a window that some of the held tokens are of."""

    rank: int
    entry: int
    """Its first piece among those held."""
    tokens: int


class _Window:
    """The shuffled documents of a window, tokenized as far as its groups needed."""

    def __init__(self, documents: Documents, key: Sequence[int], piece_edges: Callable[[str], list[int]]) -> None:
        self.order: list[int] = keyed_generator(*key).permutation(len(documents.texts)).tolist()
        self.documents = documents
        self.piece_edges = piece_edges
        self.ids = np.empty(0, dtype=np.int32)
        # One entry a tokenized piece, from the piece the group begins with: its document's rank, its index there, tokens.
        self.ranks: list[int] = []
        self.pieces: list[int] = []
        self.counts: list[int] = []
        self.next_rank = 0  # the first piece that is not tokenized yet
        self.next_piece = 0
        self.edges: tuple[int, list[int]] | None = None

    def begin_group(self, rank: int, piece: int) -> None:
        """Forget the tokens before a piece; begin to tokenize there if none are held."""
        passed = 0
        while passed < len(self.ranks) and (self.ranks[passed], self.pieces[passed]) < (rank, piece):
            passed += 1
        self.ids = self.ids[sum(self.counts[:passed]) :]
        del self.ranks[:passed], self.pieces[:passed], self.counts[:passed]
        if not self.ranks:
            self.next_rank, self.next_piece = rank, piece

    def has(self, rank: int, piece: int) -> bool:
        """Whether a group can begin with this piece of this document."""
        if rank >= len(self.order):
            return rank == piece == 0
        text = self.documents.texts[self.order[rank]]
        return piece == 0 or (len(text) > PIECE_CHARACTERS and piece < len(self.piece_edges(text)) - 1)

    @property
    def has_more(self) -> bool:
        return self.next_rank < len(self.order)

    @property
    def complete_documents(self) -> int:
        return len(self._with_tokens() - {self.next_rank})

    def positions(self, framing: int) -> int:
        """Positions the held tokens need at the least."""
        return len(self.ids) + framing * len(self._with_tokens())

    def _with_tokens(self) -> set[int]:
        """Ranks of the held documents that the tokenizer makes something of."""
        return {rank for rank, count in zip(self.ranks, self.counts, strict=True) if count}

    def next_texts(self, characters: int) -> list[str]:
        """Pieces that were not tokenized yet, of at least so many characters in all."""
        texts = []
        while characters > 0 and self.has_more:
            text = self.documents.texts[self.order[self.next_rank]]
            self.ranks.append(self.next_rank)
            self.pieces.append(self.next_piece)
            if len(text) <= PIECE_CHARACTERS:
                self.next_rank += 1
            else:
                edges = self._edges(text)
                text = text[edges[self.next_piece] : edges[self.next_piece + 1]]
                self.next_piece += 1
                if self.next_piece == len(edges) - 1:
                    self.next_rank, self.next_piece = self.next_rank + 1, 0
            texts.append(text)
            characters -= len(text)
        return texts

    def _edges(self, text: str) -> list[int]:
        if self.edges is None or self.edges[0] != self.next_rank:
            self.edges = self.next_rank, self.piece_edges(text)
        return self.edges[1]

    def append(self, ids: NDArray[np.int32], lengths: NDArray[np.int64], document_end: tuple[int, ...]) -> None:
        """Take the tokens of the pieces that `next_texts` gave last."""
        counts = lengths.tolist()
        if document_end:
            ends = np.cumsum(lengths)
            first = len(self.ranks) - len(counts)
            # The last piece of a document; one of a long document also where the tokenizer makes nothing of it.
            last = (i for i in range(len(counts)) if self._next_of(first + i) != self.ranks[first + i])
            whole = [i for i in last if counts[i] or self.pieces[first + i]]
            ids = np.insert(ids, np.repeat(ends[whole], len(document_end)), np.tile(document_end, len(whole)))
            for i in whole:
                counts[i] += len(document_end)
        self.ids = np.concatenate([self.ids, ids])
        self.counts += counts

    def _next_of(self, index: int) -> int:
        """Rank of the piece behind an entry."""
        return self.ranks[index + 1] if index + 1 < len(self.ranks) else self.next_rank

    def held(self) -> list[_Held]:
        """The documents that have tokens among `ids`, in their order."""
        found: list[_Held] = []
        for entry, (rank, count) in enumerate(zip(self.ranks, self.counts, strict=True)):
            if found and found[-1].rank == rank:
                found[-1] = found[-1]._replace(tokens=found[-1].tokens + count)
            else:
                found.append(_Held(rank, entry, count))
        return [document for document in found if document.tokens]

    def offsets_of(self, held: Sequence[_Held]) -> NDArray[np.int64]:
        """int64 [documents] where each stands in its shard."""
        return np.array([self.documents.offsets[self.order[document.rank]] for document in held], dtype=np.int64)

    def position_of(self, held: Sequence[_Held], document: int, token: int) -> tuple[int, int, int] | None:
        """Rank, piece and token in the piece, of a token of a held document; None behind the last of the window."""
        if document == len(held):
            assert not self.has_more
            return None
        rank, entry, _ = held[document]
        if token == 0:  # with the pieces in front that the tokenizer makes nothing of: there the document begins
            return rank, self.pieces[entry], 0
        while token >= self.counts[entry]:
            token -= self.counts[entry]
            entry += 1
        return rank, self.pieces[entry], token

    def documents_without_tokens(self, held: Sequence[_Held], rank: int, after: tuple[int, int, int] | None) -> list[int]:
        """Offsets of the documents from a rank up to `after` that the tokenizer makes nothing of."""
        with_tokens = {document.rank for document in held}
        stop = len(self.order) if after is None else after[0]
        return [self.documents.offsets[self.order[r]] for r in range(rank, stop) if r not in with_tokens]
