"""What `datasets` reads from a web server that fails: the documents of a clean read, or an error with a name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stream_pretrain.data.dealing import Stripe
from stream_pretrain.data.documents import ReadOptions, open_reader
from stream_pretrain.data.sources import Shard
from stream_pretrain.data.transport import Restart, TransportOptions
from stream_pretrain.errors import TransportError
from tests.integration.http_server import Server, serve

TEXTS = [f"document {number} " + "word " * 200 for number in range(2500)]
WHOLE = Stripe(0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "s.csv").write_text("text\n" + "".join(f"{text}\n" for text in TEXTS))
    with serve(folder) as server:
        yield server


@pytest.fixture(autouse=True)
def no_faults(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.forget()
    monkeypatch.setattr("datasets.config.STREAMING_READ_RETRY_INTERVAL", 0)
    monkeypatch.setattr("datasets.config.STREAMING_READ_MAX_RETRIES", 2)


def documents(server: Server, deadline: float = 60.0) -> list[str]:
    options = ReadOptions(
        "text", window_bytes=1 << 20, max_line_bytes=1 << 20, transport=TransportOptions(retry_deadline=deadline)
    )
    reader = open_reader(Shard(server.url("s.csv"), "s.csv", None, None, "examples", "none", "csv"), options)
    reader.follow(WHOLE, 0)
    texts: list[str] = []
    block = 0
    while (found := reader.read(WHOLE, block, Restart())) is not None:
        texts += found.texts
        block += 1
    assert reader.leave(WHOLE)
    return texts


@pytest.mark.parametrize(
    "fault",
    [
        {"do": "reset", "after": 1_000_000, "times": 8},
        {"do": "short", "after": 1_000_000, "times": 8},
        {"do": "status", "code": 503, "times": 3},
        {"do": "status", "code": 429, "times": 3, "headers": {"Retry-After": "0"}},
    ],
    ids=["reset", "short", "503", "429"],
)
def test_the_documents_are_those_of_a_clean_read(server: Server, fault: dict[str, object]) -> None:
    server.inject("s.csv", fault)
    assert [text.strip() for text in documents(server)] == [text.strip() for text in TEXTS]


@pytest.mark.parametrize(
    ("code", "message"), [(404, r"s\.csv: not found"), (403, r"s\.csv: access refused"), (503, "raise --data.retry-deadline")]
)
def test_a_shard_that_cannot_be_had_ends_the_run(server: Server, code: int, message: str) -> None:
    server.inject("s.csv", {"do": "status", "code": code, "times": 1000})
    with pytest.raises(TransportError, match=message):
        documents(server, deadline=2.0)
