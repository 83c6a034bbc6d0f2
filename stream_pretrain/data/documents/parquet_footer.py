"""Footers of Parquet that would end the process, since not every call of Arrow translates the exceptions of its C++."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow.parquet as pq


def look_at_chunks(metadata: pq.FileMetaData, columns: Sequence[str]) -> None:
    """Let Arrow look at the chunks of some columns, as it does before it reads. Raises: what it raises for a chunk that it
    refuses, where `RowGroupMetaData.column()` ends the process: wrong statistics, or an encrypted column.
    """
    import pyarrow.parquet as pq

    file = pq.ParquetFile(_Unread(), metadata=metadata, pre_buffer=True)
    try:
        next(file.iter_batches(1, columns=[*columns], use_threads=False), None)
    except _UnreadError as error:
        error.__traceback__ = None  # Arrow keeps the error, and would keep all that the calls here refer to, open files too


class _UnreadError(Exception):
    """All chunks were looked at."""


class _Unread(io.RawIOBase):
    """A file that is large enough for any chunk, and is not read."""

    _at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: sys.maxsize}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:  # noqa: ARG002
        raise _UnreadError
