"""What is secret is not recorded, and not shown."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from stream_pretrain import cli
from stream_pretrain.arguments import parse
from stream_pretrain.config import storage_options, validate
from stream_pretrain.data.corpus.pinned_corpus import PinnedCorpus, PinnedSource
from stream_pretrain.data.corpus.shard import Shard
from stream_pretrain.errors import ConfigError
from stream_pretrain.redaction import Secrets, printable, redacted_options
from stream_pretrain.urls import redacted_url

NEEDED = ("--model=bert", "--max-steps=3")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://user:PASS@host/x.jsonl?X-Amz-Signature=SIG", "http://…@host/x.jsonl?…"),
        ("https://token@host/x", "https://…@host/x"),
        ("sftp://me:secret@host/a", "sftp://…@host/a"),
        ("simplecache::https://me:secret@host/a.zip?sig=a/b", "simplecache::https://…@host/a.zip?…"),
        ("abfs://container@account.net/a?sv=1&sig=abc", "abfs://container@account.net/a?…"),
        ("abfs://container@account.net/a?sv=1&sig=SIG/ab=", "abfs://container@account.net/a?…"),
        ("gs://bucket/a?SECRET", "gs://bucket/a?…"),
        ("s3://KEY:sec/ret@bucket/a@b", "s3://…@bucket/a@b"),
        ("sftp://me:pass@host:22/a@b", "sftp://…@host:22/a@b"),
        ("https://me:pa/ss@host/a", "https://…@host/a"),
        ("https://host/a#token=S", "https://host/a#…"),
        ("https://host/a;jsessionid=S?b", "https://host/a;…"),
        ("https://host/a;b/c", "https://host/a;b/c"),
        ("https://host/a?from=http://me:pw@other/", "https://host/a?…"),
        ("hdfs://name:8020/a@b/c", "hdfs://name:8020/a@b/c"),
        ("http://[::1]:8000/a@b", "http://[::1]:8000/a@b"),
        ("gs://bucket/20??-lang=en", "gs://bucket/20??-lang=en"),
        ("s3://bucket/part-????", "s3://bucket/part-????"),
        ("zip://a?.csv::s3://b/c.zip", "zip://a?.csv::s3://b/c.zip"),
        ("s3://bucket/part-?.jsonl", "s3://bucket/part-?.jsonl"),
        ("hf://datasets/org/name@main/a?b=c", "hf://datasets/org/name@main/a?b=c"),
        ("folder/a?b=c@d", "folder/a?b=c@d"),
        ("@list.txt", "@list.txt"),
    ],
)
def test_a_url_is_shown_with_dots_in_place_of_its_secrets(url: str, shown: str) -> None:
    assert redacted_url(url) == shown


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ('{"headers":{"X-Key":"K"}}', '{"headers": {"X-Key": "…"}}'),
        ('{"key": "a", "endpoint_url": "http://me:pw@h", "ssl": 0}', '{"key": "…", "endpoint_url": "http://…@h", "ssl": 0}'),
        ('{"anon":true}', '{"anon":true}'),
        (
            '{"password": 12345678901234, "pin": [1.5], "port": 443, "blockSize": 5, "read-timeout": 2.5, "x": null}',
            '{"password": "…", "pin": ["…"], "port": 443, "blockSize": 5, "read-timeout": 2.5, "x": null}',
        ),
        ("@keys.json", "@keys.json"),
        ("{token: abc", "…"),
    ],
)  # fmt: skip
def test_storage_options_are_shown_with_dots_in_place_of_their_values(options: str, shown: str) -> None:
    assert redacted_options(options) == shown


def recorded_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Sequence[str]:
    """What a command is told to record and to print."""
    from stream_pretrain.commands import train

    told: list[str] = []
    monkeypatch.setattr(train, "run", lambda config, command, stop: told.extend(command) or 0)
    assert cli.main([*arguments, *NEEDED]) == 0
    return told[: -len(NEEDED)]


def test_the_command_that_is_recorded_has_dots_in_place_of_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [{"name": "a", "dataset": "http://u:PASS@h/a.jsonl?s=SIG", "storage_options": '{"headers": {"X": "K"}}'}]
    assert recorded_command(
        monkeypatch, "--dataset", "http://user:PASS@host/x.jsonl?X-Amz-Signature=SIG", "--eval-every=1",
        "--eval.dataset=https://user:PASS@host/y.jsonl?s=SIG", "--data.storage_options", '{"headers":{"X-Key":"K"}}',
    ) == [
        "stream-pretrain", "--dataset", "http://…@host/x.jsonl?…", "--eval-every=1",
        "--eval.dataset=https://…@host/y.jsonl?…", "--data.storage_options", '{"headers": {"X-Key": "…"}}',
    ]  # fmt: skip
    (_, mixture) = recorded_command(monkeypatch, f"--data.sources={json.dumps(sources)}")
    assert json.loads(mixture.removeprefix("--data.sources=")) == [
        {"name": "a", "dataset": "http://…@h/a.jsonl?…", "storage_options": '{"headers": {"X": "…"}}'}
    ]
    (_, mixture) = recorded_command(monkeypatch, f"--sources={json.dumps(sources)}")
    assert [secret for secret in ("PASS", "SIG", "K") if secret in mixture] == []
    keys = '{"headers":{"X-Key":"K"}}'
    shown = ["--storage-options", '{"headers": {"X-Key": "…"}}', '--storage_options={"headers": {"X-Key": "…"}}']
    once = recorded_command(monkeypatch, "--dataset=x", "--storage-options", keys)
    assert [*once[2:], *recorded_command(monkeypatch, "--dataset=x", f"--storage_options={keys}")[2:]] == shown
    plain = ["--dataset=s3://b/a?.jsonl", '--data.storage-options={"anon":true}', "--model.compile"]
    assert recorded_command(monkeypatch, *plain)[1:] == plain


def test_the_arguments_of_the_process_lose_their_secrets_before_a_library_records_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from stream_pretrain.commands import train

    seen: list[str] = []
    monkeypatch.setattr("sys.argv", ["stream-pretrain", "--dataset=http://u:PASS@h/a.jsonl", *NEEDED])
    monkeypatch.setattr(train, "run", lambda config, command, stop: seen.extend([config.data.dataset, *cli.sys.argv[1:2]]) or 0)
    assert cli.main() == 0
    assert seen == ["http://u:PASS@h/a.jsonl", "--dataset=http://…@h/a.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dataset=http://…@host/x.jsonl?…"], "--dataset http://…@host/x.jsonl?… has … in place of a secret: put it back"),
        (
            ["--dataset=http://me:pw@host/x.jsonl?…"],
            "--dataset http://…@host/x.jsonl?… has … in place of a secret: put it back",
        ),
        (
            ["--dataset=x", "--eval-every=1", "--eval.dataset=https://…@h/y"],
            "--eval.dataset https://…@h/y has … in place of a secret: put it back",
        ),
        (
            ["--dataset=http://h/x", '--data.storage-options={"headers": {"X-Key": "…"}}'],
            "--data.storage-options has … in place of a secret: put it back",
        ),
    ],
)
def test_a_command_that_was_copied_without_its_secrets_says_so(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(parse([*arguments, *NEEDED]))
    assert str(error.value) == said


def test_storage_options_are_read_from_a_file_of_which_only_the_name_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text('{"headers": {"X-Key": "K"}}')
    assert storage_options(f"@{keys}") == {"headers": {"X-Key": "K"}}
    assert recorded_command(monkeypatch, "--dataset=x", f"--data.storage-options=@{keys}")[-1].endswith("keys.json")
    sources = [{"name": "a", "dataset": "x", "storage_options": f"@{keys}"}]
    assert f"@{keys}" in shlex.join(recorded_command(monkeypatch, f"--data.sources={json.dumps(sources)}"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "--data.storage-options @{}: the file cannot be read: No such file or directory"),
        (b"\xff", "--data.storage-options @{}: the file is not UTF-8 text"),
        (b"{token: secret", "--data.storage-options @{} is not JSON: Expecting property name"),
        (b"[1]", "--data.storage-options @{} must be a JSON object"),
    ],
)
def test_a_file_of_storage_options_that_is_none_is_named_without_what_is_in_it(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    keys = tmp_path / "keys.json"
    if content is not None:
        keys.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        validate(parse(["--dataset=x", f"--data.storage-options=@{keys}", *NEEDED]))
    assert str(error.value).startswith(said.format(keys))
    assert "secret" not in str(error.value)


def test_keys_that_are_not_utf_8_are_refused_without_being_shown(capsys: pytest.CaptureFixture[str]) -> None:
    keys = os.fsdecode(b'{"secret": "caf\xe9-SESAME"}')
    of_source = json.dumps([{"name": "a", "dataset": "x", "storage_options": "..."}]).replace("...", keys.replace('"', '\\"'))
    for given in ([f"--data.storage-options={keys}", "--dataset=x"], [f"--data.sources={of_source}"]):
        assert cli.main([*given, *NEEDED]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: --data.s")
        assert said.endswith("is not UTF-8 text\n")
        assert "SESAME" not in said


@pytest.mark.parametrize("value", [os.fsdecode(b"caf\xe9-SESAME"), "\ud800-SESAME"])
def test_a_secret_that_is_not_utf_8_is_hidden_like_any_other(value: str) -> None:
    assert Secrets.of([], [], {"HF_TOKEN": value}).hide(f"the token {value}") == "the token …"


def test_a_checkpoint_holds_urls_without_secrets() -> None:
    url = "http://user:PASS@host/x.jsonl?X-Amz-Signature=SIG"
    shard = Shard(url, "x.jsonl", 9, "etag:e", "jsonl", "none")
    pinned = PinnedCorpus((PinnedSource(url, None, (shard,), name="", window_bytes=4096, bundles=(), group_rows=16),), lanes=4)
    content = json.loads(pinned.encoded)
    assert content["sources"][0]["dataset"] == content["sources"][0]["shards"][0]["url"] == "http://host/x.jsonl"
    assert PinnedCorpus.from_json(content).shards == (Shard("http://host/x.jsonl", "x.jsonl", 9, "etag:e", "jsonl", "none"),)


def test_text_of_libraries_is_searched_for_secrets() -> None:
    secrets = Secrets.of(
        ["http://user:PASS@host/x?X-Amz-Signature=SIG%2Fsig&Expires=1234567890"],
        [{"headers": {"Authorization": "Bearer abcdefgh"}, "endpoint_url": "http://minio:9000", "secret": "s3cr"}],
        {
            "HF_TOKEN": "hf_12345",
            "AWS_SECRET_ACCESS_KEY": "aws/12345",
            "HTTPS_PROXY": "http://me:proxypass@h:1",
            "HOME": "/home/me",
        },
    )
    said = "PASS, SIG%2Fsig, SIG/sig, 1234567890, Bearer abcdefgh, abcdefgh, s3cr, hf_12345, aws/12345, aws%2F12345, proxypass"
    assert secrets.hide(said) == "…, …, …, …, …, …, …, …, …, …, …"
    for kept in ("COMPASSES of /home/me", "http://minio:9000/a?.jsonl", "user", "hf://datasets/org/a@main/x"):
        assert secrets.hide(kept) == kept
    assert (
        secrets.hide("404 for https://me:pw@other/x?a=b&c=d (Caused by /x?sig=1)")
        == "404 for https://…@other/x?… (Caused by /x?…)"
    )


def test_a_number_is_a_secret_and_a_usual_word_of_a_query_is_none() -> None:
    options = {"password": 12345678901234, "block_size": 52428800, "client_kwargs": {"pin": 8765432109}}
    secrets = Secrets.of(["https://h/a?ref=training&access=abcdefgh1&token=training2", "gs://b/c?SECRET"], [options], {})
    assert secrets.hide("12345678901234 8765432109 abcdefgh1 training2 b/c?SECRET") == "… … … … b/c…"
    for kept in ("training of 52428800 bytes", "SECRETARY"):
        assert secrets.hide(kept) == kept


def test_a_name_is_shown_in_one_line_that_a_terminal_shows_as_it_is() -> None:
    name = "a\nerror: forged\r\x1b[2J\x9b1m\u202egnp.\u2028\udce9é漢"
    assert printable(name) == "a\\nerror: forged\\r\\x1b[2J\\x9b1m\\u202egnp.\\u2028\\xe9é漢"
