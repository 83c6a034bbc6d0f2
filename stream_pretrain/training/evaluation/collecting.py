"""Documents that models are evaluated on, read from the shards of a corpus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.data.documents.document import ReadOptions
from stream_pretrain.data.documents.filters import is_heldout
from stream_pretrain.data.documents.reader import windows_of
from stream_pretrain.errors import ContentError


@dataclass
class Collected:
    """Texts, and what could not be read on the way to them."""

    texts: list[str] = field(default_factory=list)
    left_out: int = 0
    """Documents, and parts of shards."""
    first_left_out: str = ""
    """Where and why."""

    @property
    def warning(self) -> str | None:
        """One line; None where all could be read."""
        if not self.left_out:
            return None
        others = f" and {self.left_out - 1:,} more" if self.left_out > 1 else ""
        return f"left out, since it cannot be read: {self.first_left_out}{others}"

    def leave_out(self, what: str) -> None:
        """Count what cannot be read. what: where and why."""
        self.left_out += 1
        self.first_left_out = self.first_left_out or what

    def add(self, other: Collected) -> None:
        """Add what was collected after this."""
        self.texts += other.texts
        self.left_out += other.left_out
        self.first_left_out = self.first_left_out or other.first_left_out


def collect(
    shards: Sequence[Shard],
    options: ReadOptions,
    *,
    documents: int,
    heldout_fraction: float | None,
    max_read_bytes: int,
    skip_bad_shards: bool,
    report: Callable[[str], None],
) -> Collected:
    """The first documents of the shards, or of those held out of training where a fraction is given.

    Reads at most about `max_read_bytes` of text, and may find fewer documents, or none. Raises: as `DocumentReader.read`.
    """
    found, read = Collected(), 0
    for shard in shards:
        try:
            for window in windows_of(shard, options):
                for skip in window.skips:
                    found.leave_out(f"{shard.name}, offset {skip.offset}: {skip.reason}")
                read += sum(map(len, window.texts))
                found.texts += [text for text in window.texts if heldout_fraction is None or is_heldout(text, heldout_fraction)]
                report(f"{min(len(found.texts), documents)} of {documents} documents, {read / 1e6:.0f} MB read")
                if len(found.texts) >= documents or read >= max_read_bytes:
                    del found.texts[documents:]
                    return found
        except ContentError as error:
            if not skip_bad_shards:
                raise
            found.leave_out(f"the rest of {shard.name}: {error}")
    return found
