"""The reader of a bundle: consecutive small shards whose documents are shuffled and packed together.

Each shard is read by the reader of its format, which compares its identity and finds its damage. Its documents and skips are
marked with its number in the bundle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.documents.document import Damage, DocumentReader, Documents, ReadOptions, Skip
from stream_pretrain.data.documents.stripe import Stripe
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.data.transport.threads import side_by_side
from stream_pretrain.errors import ContentError
from stream_pretrain.urls import is_remote

_WHOLE = Stripe(0)


class BundleDocuments(DocumentReader):
    """The documents of some small shards, as one window."""

    def __init__(
        self, shards: Sequence[Shard], options: ReadOptions, open_reader: Callable[[Shard, ReadOptions], DocumentReader]
    ) -> None:
        self.shards = shards
        self.options = options
        self.open_reader = open_reader

    def follow(self, stripe: Stripe, block: int) -> None:
        """Nothing to register: a bundle has one stripe, and is read at once."""

    def leave(self, stripe: Stripe) -> bool:  # noqa: ARG002 (the only one)
        return True

    def read(self, stripe: Stripe, block: int, restart: RestartPoint) -> Documents | None:  # noqa: ARG002 (the only one)
        """See `DocumentReader`. The restart point of a bundle is (0, number of its texts when it was first read).

        Damage is returned in the window; ContentError only where the window has changed since a run read part of it.
        """
        if block > 0:
            return None
        found = self._joined(self._members())
        if restart.uncompressed not in (0, len(found.texts)):
            first, last = self.shards[0].name, self.shards[-1].name
            why = f": {found.damaged[0].error}" if found.damaged else ""
            raise ContentError(
                f"{first} to {last}: hold {len(found.texts)} documents, but held {restart.uncompressed} when some of them "
                f"were read{why}"
            )
        return found

    def offset_of(self, block: int) -> int:  # noqa: ARG002
        return 0

    def _members(self) -> Iterator[list[Documents]]:
        """The windows of the shards, in order. Remote ones are read concurrently, unless by `datasets`."""
        remote = [i for i, shard in enumerate(self.shards) if is_remote(shard.url) and shard.format != "examples"]
        fetched = self._side_by_side(remote)
        for number in range(len(self.shards)):
            yield fetched.pop(number) if number in fetched else self._member(number, self.options)

    def _side_by_side(self, numbers: Sequence[int]) -> dict[int, list[Documents]]:
        """Some of the shards, read by several threads."""
        found: dict[int, list[Documents]] = {}

        def read(number: int, transport: TransportOptions) -> None:
            found[number] = self._member(number, replace(self.options, transport=transport))

        began, memory = time.perf_counter(), self.options.transport.memory
        waited = memory.seconds_waiting
        try:
            side_by_side("bundle", numbers, self.options.transport, read)
        finally:
            memory.seconds_waiting = waited + time.perf_counter() - began  # not the sum over threads
        return found

    def _member(self, number: int, options: ReadOptions) -> list[Documents]:
        """The windows of a shard; damage is in one of its own, the last."""
        reader = self.open_reader(self.shards[number], options)
        windows: list[Documents] = []
        restart = RestartPoint()
        reader.follow(_WHOLE, 0)
        try:
            while (window := reader.read(_WHOLE, len(windows), restart)) is not None:
                windows.append(window)
                restart = window.restart
        except ContentError as error:
            offset, missing = reader.offset_of(len(windows)), reader.documents_from(_WHOLE, len(windows))
            windows.append(Documents([], [], [], restart, damaged=(Damage(number, offset, missing, error),)))
        finally:
            reader.leave(_WHOLE)
        return windows

    def _joined(self, members: Iterator[list[Documents]]) -> Documents:
        """The documents of all shards in order, without duplicates if they are dropped."""
        texts: list[str] = []
        offsets: list[int] = []
        of_member: list[int] = []
        skips: list[Skip] = []
        empty: list[Skip] = []
        damaged: list[Damage] = []
        filtered = content_bytes = 0
        seen = set[str]()
        for number, windows in enumerate(members):
            for window in windows:
                for text, offset in zip(window.texts, window.offsets, strict=True):
                    if text in seen:
                        filtered += 1
                        continue
                    if self.options.drop_duplicates:
                        seen.add(text)
                    texts.append(text)
                    offsets.append(offset)
                    of_member.append(number)
                skips += [replace(skip, member=number) for skip in window.skips]
                empty += [replace(skip, member=number) for skip in window.empty]
                filtered += window.filtered
                content_bytes += window.content_bytes
                damaged += window.damaged
        return Documents(
            texts,
            offsets,
            skips,
            RestartPoint(0, len(texts)),
            filtered,
            tuple(empty),
            stored=(0, sum(shard.size or 0 for shard in self.shards)),
            content_bytes=content_bytes,
            members=of_member,
            damaged=tuple(damaged),
        )
