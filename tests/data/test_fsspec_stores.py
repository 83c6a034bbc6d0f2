"""Stores that fsspec knows: read in blocks, retried, and refused in one line."""

from __future__ import annotations

import random
from contextlib import closing
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.data.transport.restart_point import RestartPoint
from stream_pretrain.data.transport.shard_bytes import ShardBytes
from stream_pretrain.errors import SourceError, TransportError
from tests.data.compressed import zstd_frame
from tests.data.shard_bytes import chunks_of


class FlakyFileSystem(MemoryFileSystem):
    """A store in memory that fails as told: each error of `errors` is raised by one read."""

    protocol = "flaky"
    store: dict[str, Any] = {}  # noqa: RUF012 (fsspec wants it here)
    errors: list[Exception] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.replace("flaky://", "memory://"))
        return stripped

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        if self.errors:
            raise self.errors.pop(0)
        content: bytes = super().cat_file(path, start=start, end=end, **kwargs)
        return content


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)


def flaky(content: bytes, *errors: Exception) -> str:
    FlakyFileSystem.errors = list(errors)
    FlakyFileSystem().pipe_file("/shard.jsonl.zst", content)
    return "flaky://shard.jsonl.zst"


def test_any_store_of_fsspec_is_read_in_blocks_and_retried() -> None:
    content = random.Random(0).randbytes(700_000)
    url = flaky(zstd_frame(content), TimeoutError("slow"), OSError("gone"))
    options = TransportOptions(block_bytes=100_000, retry_deadline=30)
    with closing(ShardBytes(url, "zstd", None, RestartPoint(), options)) as opened:
        assert b"".join(chunk for _, chunk in chunks_of(opened)) == content


@pytest.mark.parametrize("headers", ["Bearer x", ["a"], {"Authorization": 5}])
def test_headers_that_are_no_object_of_strings_are_refused(headers: object) -> None:
    options = TransportOptions(storage_options={"headers": headers})
    with pytest.raises(SourceError, match=r"^--data.storage-options: headers are an object of strings, like"):
        ShardBytes("https://nowhere.invalid/a.jsonl", "none", 10, options=options).read()


def test_storage_options_are_handed_on_as_a_copy() -> None:
    options = TransportOptions(storage_options={"skip_instance_cache": True, "custom": 1})
    with closing(ShardBytes(flaky(zstd_frame(b"text\n")), "zstd", None, RestartPoint(), options)) as opened:
        assert opened.read() == b"text\n"
    assert options.storage_options == {"skip_instance_cache": True, "custom": 1}


def test_a_store_that_keeps_failing_ends_at_the_deadline_with_the_option_named() -> None:
    url = flaky(zstd_frame(b"text\n"), *[OSError("gone")] * 50)
    opened = ShardBytes(url, "zstd", None, RestartPoint(), TransportOptions(retry_deadline=0.1))
    named = r"compressed byte 0 on .*OSError: gone.*--data\.retry-deadline \(now 0\.1 s\)"
    with closing(opened), pytest.raises(TransportError, match=named):
        opened.read()


@pytest.mark.parametrize(
    ("error", "named"),
    [(FileNotFoundError("no such key"), "check the id"), (PermissionError("Forbidden"), "check the token or keys")],
)
def test_a_missing_object_or_permission_is_not_retried(error: Exception, named: str) -> None:
    opened = ShardBytes(flaky(zstd_frame(b"text\n"), error), "zstd", None)
    with closing(opened), pytest.raises(TransportError, match=named):
        opened.read()


def test_a_mistake_of_ours_is_not_taken_for_a_fault_of_transport() -> None:
    opened = ShardBytes(flaky(zstd_frame(b"text\n"), AttributeError("typo")), "zstd", None)
    with closing(opened), pytest.raises(AttributeError, match="typo"):
        opened.read()


def test_a_store_whose_object_changes_between_retries_is_refused() -> None:
    content = random.Random(0).randbytes(3_000_000)
    url = flaky(zstd_frame(content))
    with closing(ShardBytes(url, "zstd", None, RestartPoint(), TransportOptions(block_bytes=100_000))) as opened:
        opened.skip_to(10)
        opened.read()
        flaky(zstd_frame(content[1:]), OSError("gone"))
        with pytest.raises(SourceError, match="was replaced since the run began"):
            chunks_of(opened)


def test_an_unknown_store_is_refused_by_name() -> None:
    opened = ShardBytes("nowhere://shard.zst", "zstd", None)
    with closing(opened), pytest.raises(SourceError, match="Protocol not known: nowhere"):
        opened.read()
