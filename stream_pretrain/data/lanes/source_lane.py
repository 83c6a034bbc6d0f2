"""What a lane reads of one source, group by group, and the cursor that restores it exactly.

    deal (epoch) -> stripes -> windows (shuffled) -> groups (tokenized, packed) -> rows
                       ^          ^                     ^                           ^
    the cursor:    epoch, stripe  window, restart       next_document, piece, token taken

Every stage is a pure function of the one before and of keys made of the cursor's own numbers, so a cursor holds no
text, no tokens and no random state. Tokens read past the end of a group are kept for the next as a cache; they are
never part of the state.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.documents.document import Damage, DocumentReader, Documents, Skip
from stream_pretrain.data.documents.filters import without_held_out
from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.lanes.cursor import Cursor, Skipped
from stream_pretrain.data.lanes.group import Group
from stream_pretrain.data.lanes.readers import Readers
from stream_pretrain.data.lanes.source_plan import SourcePlan
from stream_pretrain.data.lanes.tokenized_window import Tokenized, TokenizedWindow
from stream_pretrain.data.randomness import MASK, ORDER, SAMPLE
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.engine import Engine
from stream_pretrain.data.rows.engine_parity import FIRST_CHARACTERS, refuse_other_ids
from stream_pretrain.data.rows.packing import SMALLEST_FRAGMENT, Rows, assemble, place
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.errors import CheckpointError, ContentError, SourceError

CAUSES = ("network", "reading", "tokenizing")
"""Where a lane spends its time: waiting for a store; decompressing and parsing; tokenizing and packing."""

EMPTY_EPOCHS = 64
"""Consecutive epochs without a document with text after which a lane gives up..."""

HOPELESS_DOCUMENTS = 100_000
"""...and consecutive documents without text: the field is wrong, and reading on may take days."""


class SourceEnd(NamedTuple):
    """The end of the last epoch, and what was skipped on the way to it."""

    skipped: list[Skipped]


class SourceLane:
    """The groups of one source in one lane, from a cursor on."""

    def __init__(
        self, plan: SourcePlan, number: int, encoder: Encoder, engine: Engine, readers: Readers, cursor: Cursor
    ) -> None:
        self.plan = plan
        self.number = number
        self.encoder = encoder
        self.engine = engine
        self.readers = readers
        self.cursor = cursor
        """The cursor before the first row of the next group that was not returned before."""
        self.reader: DocumentReader | None = None
        self.window: TokenizedWindow | None = None
        self.bytes_of_window = 0  # of its content
        self.unreported: list[Skipped] = []
        self.uncounted: Counter[str] = Counter()
        """Counts since the last group, by the field of the cursor that they are added to."""
        self.seconds = [0.0] * len(CAUSES)
        self.empty_epochs = 0
        self.rows_before_epoch = cursor.rows
        self.characters_per_token = 4.0
        self.opened = np.zeros(3)  # characters, documents and bytes of the windows that were opened
        self.tokenized = np.zeros(2)  # characters, and tokens of them
        self.stripes: list[Stripe] = []
        self._begin_epoch()

    @property
    def ended(self) -> bool:
        """Whether all epochs are read."""
        return self.plan.ended(self.cursor)

    @property
    def stripe(self) -> Stripe:
        """The one that the cursor is in."""
        return self.stripes[self.cursor.stripe]

    @property
    def block(self) -> int:
        """Number of the cursor's window in its unit."""
        return self.stripe.block(self.cursor.window)

    def next_group(self) -> Group | SourceEnd:
        """The next group; at the end of the last epoch, once, what was skipped after the last row."""
        while not self.ended:
            if self.window is None:
                self._open_window()
            else:
                group = self._open_group(self.window)
                if group is not None:
                    self.cursor = group.end
                    return group
        self.cursor = self._counted(self.cursor)
        return SourceEnd(self._report_skipped())

    def _report_skipped(self) -> list[Skipped]:
        skipped, self.unreported = self.unreported, []
        return skipped

    def _counted(self, cursor: Cursor) -> Cursor:
        """A cursor with the counts since the last group added."""
        if self.uncounted:
            cursor = cursor._replace(**{name: getattr(cursor, name) + count for name, count in self.uncounted.items()})
            self.uncounted.clear()
        return cursor

    def take_seconds(self) -> list[float]:
        """[causes] seconds spent since the last call."""
        seconds, self.seconds = self.seconds, [0.0] * len(CAUSES)
        return seconds

    @property
    def sampled(self) -> tuple[float, float]:
        """[2] approximate tokens of the windows opened so far, and bytes of their content; 0 where they are unknown."""
        (characters, documents, content), (seen, tokens) = self.opened.tolist(), self.tokenized.tolist()
        framing = self.encoder.framing + len(self.encoder.document_end)
        return (characters * tokens / seen + documents * framing, content) if seen else (0.0, 0.0)

    def _begin_epoch(self) -> None:
        self.stripes = self.plan.stripes(self.cursor.epoch, self.number) if not self.ended else []
        self._begin_stripe()

    def _begin_stripe(self) -> None:
        self.reader = None
        if self.cursor.stripe < len(self.stripes):
            self.reader = self.readers.follow(self.number, self.cursor.epoch, self.stripe, self.block)

    def _open_window(self) -> None:
        """Read the cursor's window, or move the cursor on to the next stripe or epoch."""
        cursor = self.cursor
        if self.reader is None:
            self._next_epoch()
            return
        began, waited, damaged = time.perf_counter(), self.readers.memory.seconds_waiting, False
        try:
            found = self.reader.read(self.stripe, self.block, RestartPoint(cursor.compressed, cursor.uncompressed))
            if found is not None and found.damaged and not self.plan.skip_bad_shards:
                raise found.damaged[0].error
        except ContentError as error:
            if not self.plan.skip_bad_shards:
                raise
            self._skip_rest_of_stripe(error)
            found, damaged = None, True
        waited = self.readers.memory.seconds_waiting - waited
        self.seconds[0] += waited
        self.seconds[1] += time.perf_counter() - began - waited
        if found is None:
            if not cursor.is_at_start_of_window and not damaged:
                raise self._no_such_place()
            self.readers.leave(self.number, cursor.epoch, self.stripe)
            # After a resume, damage may be found in a window that was read in part before.
            self.cursor = self._after_stripe(damaged=damaged)
            self._begin_stripe()
            return
        self.cursor = cursor._replace(compressed=found.restart.compressed, uncompressed=found.restart.uncompressed)
        self.bytes_of_window = self.plan.bytes_of(self.stripe.unit, found)
        if self.cursor.is_at_start_of_window:
            self._report("skipped", found.skips)
            self._report("empty", found.empty)
            for damage in found.damaged:
                self._report_rest("shard", damage)
            self.uncounted.update(read=found.read, filtered=found.filtered)
            self._refuse_hopeless()
        documents = without_held_out(found, self.plan.heldout_fraction)
        self._refuse_other_ids(documents)
        self.window = TokenizedWindow(documents, self._key(ORDER), self.engine.piece_edges)
        if self.bytes_of_window:
            self.opened += self.window.characters, len(self.window), self.bytes_of_window
        if not self.window.has(cursor.next_document, cursor.piece):
            raise self._no_such_place()

    def _refuse_other_ids(self, documents: Documents) -> None:
        """Compare the engine with `tokenizers`, more closely where the run begins. Raises: EngineError."""
        shards = self.plan.shards_of(self.stripe.unit)

        def named(index: int) -> str:
            member, offset = documents.origin_of(index)
            return f"{shards[member].name}, offset {offset}"

        first = FIRST_CHARACTERS // self.plan.layout.lanes if self.cursor.rows == 0 else 0
        refuse_other_ids(self.engine, documents.texts, self._key(SAMPLE), named, first_characters=first)

    def _no_such_place(self) -> CheckpointError:
        """The error of a resume from a place that the shard does not have."""
        where = f"{self.plan.shards_of(self.stripe.unit)[0].name}, window {self.block}"
        return CheckpointError(
            f"lane {self.number} would resume at a place that {where} does not have: the checkpoint or the shard is of another "
            "run; use another checkpoint"
        )

    def _report(self, counted: str, skips: Sequence[Skip]) -> None:
        """Record documents that no row is made of, and count them in a field of the cursor."""
        epoch, first = self.cursor.epoch, self._first_shard
        self.unreported += [Skipped(epoch, first + one.member, one.offset, one.reason, one.documents) for one in skips]
        self.uncounted[counted] += sum(skip.documents for skip in skips)

    def _skip_rest_of_stripe(self, error: ContentError) -> None:
        """Record and count the rest of the stripe, from the window on, which cannot be read."""
        assert self.reader is not None
        unread = self.block if self.cursor.is_at_start_of_window else self.block + self.stripe.count
        missing = self.reader.documents_from(self.stripe, unread)
        self._report_rest("stripe", Damage(0, self.reader.offset_of(self.block), missing, error))

    def _report_rest(self, what: str, damage: Damage) -> None:
        """Record and count the rest of the stripe, or of a shard of a bundle."""
        shard, reason = self._first_shard + damage.member, f"rest of the {what} skipped: {damage.error}"
        self.unreported.append(Skipped(self.cursor.epoch, shard, damage.offset, reason, damage.documents))
        self.uncounted.update(stripes=1, read=damage.documents or 0, skipped=damage.documents or 0)

    @property
    def _first_shard(self) -> int:
        """Number of the first shard of the stripe's unit among those of all sources."""
        return self.plan.first_shard + self.plan.units[self.stripe.unit].start

    def _key(self, purpose: int) -> tuple[int, ...]:
        """Key of the window's random numbers: its place in the corpus, and the lane if every lane reads it."""
        key = (self.plan.layout.seed, purpose, self.cursor.epoch, self._first_shard, self.block)
        return (*key, self.number) if self.plan.undealt else key

    def _next_epoch(self) -> None:
        self.empty_epochs = self.empty_epochs + 1 if self.cursor.rows == self.rows_before_epoch else 0
        self.rows_before_epoch = self.cursor.rows
        # A lane that was dealt nothing, or nothing with text, may get some in another epoch; bad documents stay bad.
        only_bad = (self.uncounted["skipped"] or self.uncounted["stripes"]) and not self.uncounted["empty"]
        if self.plan.max_epochs is None and self.empty_epochs >= (2 if only_bad else EMPTY_EPOCHS):
            raise self._no_document_found(f"in {self.empty_epochs} epochs")
        self.cursor = self.cursor.in_next_epoch()
        self._begin_epoch()

    def _refuse_hopeless(self) -> None:
        """Raises: SourceError where a lane has found no text for so long that the field must be wrong."""
        met = self.uncounted
        if met["read"] >= HOPELESS_DOCUMENTS and met["empty"] + met["skipped"] == met["read"]:
            raise self._no_document_found(f"in {met['read']:,} that it read")

    def _no_document_found(self, where: str) -> SourceError:
        of = f" of source {self.plan.name}" if self.plan.name else ""
        nothing = f"lane {self.number} of {self.plan.layout.lanes} found no document{of} {where}"
        if self.unreported:
            reasons = "; ".join(sorted({skip.reason for skip in self.unreported})[:3])
            counts = {"without text": self.uncounted["empty"], "skipped": self.uncounted["skipped"]}
            met = " and ".join(f"{count:,} {what}" for what, count in counts.items() if count)
            return SourceError(f"{nothing}, but {met} ({reasons}): check --data.text-field and the content of the shards")
        return SourceError(
            f"{nothing}: the corpus is empty, all of it is held out or filtered, or it is too small for so many lanes; "
            "give fewer with --lanes, or a smaller --data.window-bytes"
        )

    def _after_window(self, cursor: Cursor) -> Cursor:
        self.window = None
        return cursor.in_next_window(cursor.finished_bytes + self.bytes_of_window)

    def _after_stripe(self, *, damaged: bool) -> Cursor:
        cursor, stripe = self.cursor, self.stripe
        finished = cursor.finished_bytes
        if damaged:
            rest = self.plan.bytes_from(stripe, cursor.window)
            finished = max(cursor.bytes_read, min(finished + rest, (cursor.epoch + 1) * self.plan.bytes_of_epoch))
        elif not self.plan.knows_bytes(stripe.unit):
            finished += self.plan.bytes_from(stripe, 0)
        return cursor.in_next_stripe(finished)

    def _open_group(self, window: TokenizedWindow) -> Group | None:
        """Tokenize and pack the documents from the cursor on; None at the end of the window, where no tokens are left."""
        began = time.perf_counter()
        cursor, layout = self.cursor, self.plan.layout
        rows = self.plan.group_sizes.after(cursor.rows - cursor.taken, self.number)
        window.begin_group(cursor.next_document, cursor.piece)
        self._tokenize_for(window, rows)
        if cursor.token and cursor.token >= window.counts[:1].sum():
            raise self._no_such_place()
        tokenized = window.tokenized()
        framing = self.encoder.framing
        placements, left = place(tokenized.tokens, cursor.token, rows, layout.sequence_length, framing, layout.packing)
        after = window.position_of(tokenized, *left)
        if cursor.taken == 0:
            without_tokens = window.documents_without_tokens(tokenized, cursor.next_document, after)
            self._report_without_tokens(window, without_tokens)
        if not len(placements):
            if cursor.taken:
                raise self._no_such_place()
            self.cursor = self._after_window(cursor)
            return None
        encoder, offsets = self.encoder, np.zeros(len(tokenized.tokens) + 1, dtype=np.int64)
        np.cumsum(tokenized.tokens, out=offsets[1:])
        packed = assemble(
            placements, window.kept_ids(), offsets, layout.sequence_length, encoder.prefix, encoder.suffix, encoder.pad
        )
        if cursor.taken >= len(packed.input_ids):
            raise self._no_such_place()
        group = self._group_of(packed, window, tokenized, after)
        self.seconds[2] += time.perf_counter() - began
        return group

    def _group_of(self, rows: Rows, window: TokenizedWindow, tokenized: Tokenized, after: tuple[int, int, int] | None) -> Group:
        """These rows as a group. after: where the next group begins; None at the end of the window."""
        cursor = self.cursor
        begins = rows.segment_token == 0
        if cursor.piece > 0:  # the first document has begun in a group before
            begins &= rows.segment_document > 0
        origins = np.empty((len(tokenized.documents), 3), dtype=np.int64)
        origins[:, 0] = cursor.epoch
        origins[:, 1:] = window.origins_of(tokenized.documents)
        origins[:, 1] += self._first_shard
        characters = (
            window.characters_before(cursor.next_document, cursor.piece, cursor.token),
            window.characters if after is None else window.characters_before(*after),
        )
        bytes_before, bytes_after = (self.bytes_of_window * count // max(1, window.characters) for count in characters)
        begin = self._counted(cursor)._replace(
            taken=0,
            rows=cursor.rows - cursor.taken,
            documents=cursor.documents - int(np.count_nonzero(begins[: rows.segments_of(range(cursor.taken)).stop])),
            window_bytes=bytes_before,
        )
        end = begin._replace(
            rows=begin.rows + len(rows.input_ids),
            documents=begin.documents + int(np.count_nonzero(begins)),
            window_bytes=bytes_after,
        )
        place = None if after is None else dict(zip(("next_document", "piece", "token"), after, strict=True))
        end = self._after_window(end) if place is None else end._replace(**place)
        return Group(
            rows=rows,
            key=(*self._key(MASK), cursor.next_document, cursor.piece, cursor.token),
            origins=origins.take(rows.segment_document, axis=0),
            begin=begin,
            end=end,
            first=cursor.taken,
            skipped=self._report_skipped(),
            begins=begins,
            content=(bytes_before, bytes_after),
        )

    def _report_without_tokens(self, window: TokenizedWindow, documents: NDArray[np.int64]) -> None:
        """Record and count documents without tokens: one entry for each shard, at the first of them."""
        if len(documents) == 0:
            return
        shards, offsets = window.origins_of(documents).T
        found, counts = np.unique(shards, return_counts=True)
        self._report(
            "empty",
            [
                Skip(int(offsets[shards == shard].min()), "no tokens", count, shard)
                for shard, count in zip(found.tolist(), counts.tolist(), strict=True)
            ],
        )

    def _tokenize_for(self, window: TokenizedWindow, rows: int) -> None:
        """Tokenize as many documents as this number of rows may need."""
        layout = self.plan.layout
        needed = self.cursor.token + rows * layout.sequence_length + SMALLEST_FRAGMENT + 1
        while window.has_more and (missing := needed - window.positions(self.encoder.framing)) > 0:
            if layout.packing == "none" and window.complete_documents > rows:
                return
            first = window.next
            texts, continues = window.next_texts(math.ceil(missing * self.characters_per_token))
            ids, counts = self.engine.encode(texts, continues)
            window.append(ids, counts, self.encoder.document_end)
            characters = int(window.characters_to[window.next] - window.characters_to[first])
            self.characters_per_token = characters / max(1, len(ids))
            self.tokenized += characters, len(ids)
