"""Datasets and models on a Hub, played by a server on loopback; each asked from a process of its own."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from stream_pretrain.data.corpus.shard import Corpus, Shard
from stream_pretrain.data.corpus.unchanged_since_start import check_unchanged
from stream_pretrain.errors import SourceError
from stream_pretrain.typed_json import from_json
from tests.forks import CHECKOUT
from tests.integration.hub_server import AskedHub, asked

# What the stand-in takes for the commits of org/corpus: sha1 of "datasets/org/corpus/main" and ".../second".
FIRST = "d22a000f3d56f5e56c0c722d1bab35c1f8790c8a"
SECOND = "3f817a327985ae6c1b08dbeeced7bcf1da4c8c2c"

RESOLVE = """
import json, sys
from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.resolve import resolve
from stream_pretrain.errors import StreamPretrainError

for options in json.loads(sys.argv[1]):
    try:
        print(json.dumps(resolve(DataConfig(**options)).to_json()))
    except StreamPretrainError as error:
        print(json.dumps(f"{type(error).__name__}: {error}"))
"""


READ = """
import sys
from stream_pretrain.data.transport.shard_bytes import ShardBytes
from stream_pretrain.errors import StreamPretrainError

try:
    ShardBytes(sys.argv[1], "none", None).read()
except StreamPretrainError as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AskedHub]:
    root = tmp_path_factory.mktemp("hub")
    with asked(root, "stream_pretrain.data.corpus.resolve", "datasets", "huggingface_hub", "transformers", page_size=3) as hub:
        yield hub


@pytest.fixture
def hub(server: AskedHub) -> AskedHub:
    server.forget()
    server.clear_home()
    return server


UNREAD = """
import json, sys
from dataclasses import asdict
from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.resolve import resolve
from stream_pretrain.inspection.unread_files import unread_files

data = DataConfig(**json.loads(sys.argv[1]))
print(json.dumps(asdict(unread_files(data, resolve(data).shards))))
"""


def write(hub: AskedHub, repository: str, *names: str) -> Path:
    """A revision (datasets/org/name/main) with files that hold one document each: their name."""
    root = hub.root / repository
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f'{{"text": "{name}"}}\n')
    return root


def run(hub: AskedHub, code: str, *arguments: str, **environment: str) -> str:
    """What `code` prints in a process that knows this Hub only."""
    done = hub.forks.run(["-c", code, *arguments], hub.environment(hub.home, **environment), CHECKOUT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def resolve(hub: AskedHub, *asked: dict[str, Any], **environment: str) -> list[Corpus | str]:
    """The corpus, or the message of the error, for each set of options."""
    answers = [json.loads(line) for line in run(hub, RESOLVE, json.dumps(asked), **environment).splitlines()]
    return [answer if isinstance(answer, str) else from_json(Corpus, answer, "") for answer in answers]


def names(answer: Corpus | str) -> list[str]:
    assert isinstance(answer, Corpus), answer
    return [shard.name for shard in answer.shards]


def one_corpus(hub: AskedHub, **options: Any) -> Corpus:
    (answer,) = resolve(hub, options)
    assert isinstance(answer, Corpus), answer
    return answer


@pytest.mark.parametrize(
    ("token", "status", "advice"),
    [
        ({}, 401, "You must be authenticated to access it"),
        (
            {"HF_TOKEN": "hf_other"},
            403,
            "Visit the dataset page at https://huggingface.co/datasets/org/corpus to ask for access",
        ),
    ],
)
def test_a_gated_dataset_says_that_access_has_to_be_asked_for(
    hub: AskedHub, token: dict[str, str], status: int, advice: str
) -> None:
    write(hub, "datasets/org/corpus/main", "a.jsonl")
    (hub.root / "datasets/org/corpus/.gated").touch()
    [message] = resolve(hub, {"dataset": "org/corpus"}, **token)
    said = f"SourceError: org/corpus: Dataset 'org/corpus' is a gated dataset on the Hub. {advice}"
    assert message == f"{said}; set HF_TOKEN to the token of an account with access"
    assert run(hub, READ, f"hf://datasets/org/corpus@{FIRST}/a.jsonl", **token) == (
        f"TransportError: hf://datasets/org/corpus@{FIRST}/a.jsonl: access refused (HTTP {status}); the dataset is gated: "
        "ask for access on its page on the Hub, and give the token of that account in HF_TOKEN\n"
    )


def test_a_dataset_with_a_script_of_its_own_is_refused(hub: AskedHub) -> None:
    write(hub, "datasets/org/corpus/main", "a.jsonl", "corpus.py")
    [message] = resolve(hub, {"dataset": "org/corpus"})
    assert message == "SourceError: org/corpus: Dataset scripts are no longer supported, but found corpus.py"


def test_files_of_a_repository_that_are_not_read_are_told_by_a_listing_of_each_folder(hub: AskedHub) -> None:
    write(hub, "datasets/org/corpus/main", "data/train.jsonl", "data/test.jsonl", "README.md", ".gitattributes", "x/y.bin")
    one_corpus(hub, dataset="org/corpus")
    asked_to_resolve = len(hub.requests())
    hub.clear_home()
    assert json.loads(run(hub, UNREAD, json.dumps({"dataset": "org/corpus"}))) == {
        "count": 4,
        "kinds": {"hidden": 1, ".md": 1, ".jsonl": 1, ".bin": 1},
        "first": ["data/test.jsonl", ".gitattributes", "README.md"],
        "is_all": True,
    }
    assert len(hub.requests()) <= 2 * asked_to_resolve + 5  # its commit, three folders, one of them in two pages


def test_a_dataset_is_pinned_with_sizes_and_content_hashes(hub: AskedHub) -> None:
    root = write(hub, "datasets/org/corpus/main", "a.jsonl", "name with spaces & ümlaut [1].jsonl", "notes.docx")
    large = b'{"text": "large"}\n' * 10_000  # as large as files in LFS
    (root / "b.jsonl.zst").write_bytes(large)
    prefix = f"hf://datasets/org/corpus@{FIRST}/"
    small = b'{"text": "a.jsonl"}\n'
    spaces = '{"text": "name with spaces & ümlaut [1].jsonl"}\n'.encode()
    assert one_corpus(hub, dataset="org/corpus") == Corpus(
        "org/corpus",
        FIRST,
        (
            Shard(prefix + "a.jsonl", "a.jsonl", 20, git_identity(small), "jsonl", "none"),
            Shard(
                prefix + "b.jsonl.zst", "b.jsonl.zst", 180_000, f"sha256:{hashlib.sha256(large).hexdigest()}", "jsonl", "zstd"
            ),
            Shard(
                prefix + "name with spaces & ümlaut [1].jsonl",
                "name with spaces & ümlaut [1].jsonl",
                49,
                git_identity(spaces),
                "jsonl",
                "none",
            ),
        ),
    )


def git_identity(content: bytes) -> str:
    return "git:" + hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def test_every_page_of_the_listing_is_asked_for_once(hub: AskedHub) -> None:
    files = [f"data/train-{number}.jsonl" for number in range(7)]
    write(hub, "datasets/org/corpus/main", *files)
    assert names(one_corpus(hub, dataset="org/corpus")) == files
    listings = [request["path"] for request in hub.requests() if "/tree/" in request["path"]]
    tree = f"/api/datasets/org/corpus/tree/{FIRST}"
    assert sorted(listings) == [
        f"{tree}/data?recursive=false&expand=false",
        f"{tree}/data?recursive=false&expand=false&cursor=3",
        f"{tree}/data?recursive=false&expand=false&cursor=6",
        f"{tree}?recursive=false&expand=false",
    ]
    assert not [request for request in hub.requests() if "train-" in request["path"]], "a file was asked for alone"


def test_shards_are_opened_by_range_and_leave_nothing_on_the_disk(hub: AskedHub) -> None:
    root = write(hub, "datasets/org/corpus/main", "with ü [1].jsonl")
    (root / "large.jsonl").write_bytes(b"".join(b'{"text": "%07d"}\n' % number for number in range(10_000)))
    read = """
import fsspec
from stream_pretrain.config import DataConfig
from stream_pretrain.data.corpus.resolve import resolve

for shard in resolve(DataConfig(dataset="org/corpus")).shards:
    with fsspec.open(shard.url, block_size=1024) as file:
        file.seek(20 * 5_000 if shard.size > 1000 else 0)
        print(file.readline().decode().strip())
"""
    assert run(hub, read).splitlines() == ['{"text": "0005000"}', '{"text": "with ü [1].jsonl"}']
    (read_of_large,) = [request for request in hub.requests() if "/lfs/" in request["path"]]
    assert (read_of_large["status"], read_of_large["range"].partition("-")[0]) == (206, "bytes=100000")
    assert read_of_large["bytes"] < 10_000
    stored = [file for file in hub.home.rglob("*") if file.is_file() and file.stat().st_size > 1000]
    assert stored == []


def test_a_branch_a_tag_and_a_commit_are_pinned_to_the_commit(hub: AskedHub) -> None:
    write(hub, "datasets/org/corpus/main", "old.jsonl")
    write(hub, "datasets/org/corpus/second", "new.jsonl")
    refs = hub.root / "datasets/org/corpus/refs.json"
    refs.write_text('{"main": "second", "v1": "main"}')
    answers = resolve(
        hub,
        {"dataset": "org/corpus"},
        {"dataset": "org/corpus", "revision": "v1"},
        {"dataset": "org/corpus", "revision": FIRST},
        {"dataset": f"hf://datasets/org/corpus@{SECOND}"},
        {"dataset": "hf://datasets/org/corpus/*.jsonl", "revision": "v1"},
        {"dataset": "org/corpus", "revision": "v2"},
    )
    assert [(answer.revision, names(answer)) for answer in answers if isinstance(answer, Corpus)] == [
        (SECOND, ["new.jsonl"]),
        (FIRST, ["old.jsonl"]),
        (FIRST, ["old.jsonl"]),
        (SECOND, ["new.jsonl"]),
        (FIRST, ["old.jsonl"]),
    ]
    assert answers[5] == "SourceError: org/corpus: has no revision 'v2' on the Hub"


def test_a_branch_that_moves_leaves_the_pinned_corpus_readable_and_is_noticed(hub: AskedHub) -> None:
    write(hub, "datasets/org/corpus/main", "a.jsonl", "b.jsonl")
    pinned = one_corpus(hub, dataset="org/corpus")
    write(hub, "datasets/org/corpus/second", "a.jsonl", "b.jsonl", "c.jsonl")
    (hub.root / "datasets/org/corpus/second/b.jsonl").write_text('{"text": "B.jsonl"}\n')
    (hub.root / "datasets/org/corpus/refs.json").write_text('{"main": "second"}')
    again, moved = resolve(hub, {"dataset": "org/corpus", "revision": pinned.revision}, {"dataset": "org/corpus"})
    assert again == pinned
    assert isinstance(moved, Corpus)
    with pytest.raises(SourceError, match=r"began with: c\.jsonl is new, b\.jsonl changed; restore"):
        check_unchanged(pinned, moved)


def test_a_private_dataset_needs_its_token(hub: AskedHub) -> None:
    write(hub, "datasets/org/private/main", "a.jsonl")
    (hub.root / "datasets/org/private/.token").write_text("hf_secret")
    unreadable = (
        "SourceError: org/private: neither a file or folder here nor a dataset on the Hub that can be read; "
        "a private one needs HF_TOKEN"
    )
    assert resolve(hub, {"dataset": "org/private"}) == [unreadable]
    assert resolve(hub, {"dataset": "org/private"}, HF_TOKEN="hf_wrong") == [unreadable]
    assert names(resolve(hub, {"dataset": "org/private"}, HF_TOKEN="hf_secret")[0]) == ["a.jsonl"]
    by_option = {"dataset": "org/private", "storage_options": '{"token": "hf_secret"}'}
    assert names(resolve(hub, by_option)[0]) == ["a.jsonl"]


def test_what_is_not_on_the_hub_is_named(hub: AskedHub) -> None:
    missing, bad_name, empty = resolve(
        hub, {"dataset": "org/missing"}, {"dataset": "org/-bad-"}, {"dataset": "hf://datasets/org/missing/*.jsonl"}
    )
    assert isinstance(missing, str)
    assert isinstance(bad_name, str)
    assert isinstance(empty, str)
    assert missing.startswith("SourceError: org/missing: neither a file or folder here nor a dataset on the Hub")
    assert bad_name.startswith("SourceError: org/-bad-: there is no such file or folder")
    assert empty.startswith("SourceError: hf://datasets/org/missing/*.jsonl: neither")


def test_a_hub_that_stays_busy_until_the_deadline_or_is_not_there_is_a_transport_error(hub: AskedHub) -> None:
    write(hub, "datasets/org/corpus/main", "a.jsonl")
    hub.fail("GET /api/datasets/org/corpus", 503, times=1000)
    (busy,) = resolve(hub, {"dataset": "org/corpus", "retry_deadline": 2.0})
    assert isinstance(busy, str)
    assert re.match(r"DeadlineError: org/corpus: no good answer for \d s \(HTTP 503", busy)
    assert "--data.retry-deadline (now 2 s)" in busy
    nowhere = subprocess.run(  # where the Hub is, libraries read when they are imported
        [sys.executable, "-c", RESOLVE, '[{"dataset": "org/corpus"}]'],
        env=hub.environment(hub.home, HF_ENDPOINT="http://127.0.0.1:9"),
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    absent = json.loads(nowhere.stdout)
    assert re.match(
        r"TransportError: org/corpus: no server answers \([^;]*: connection refused\); check the network and the name", absent
    )


def test_a_machine_that_is_to_stay_offline_does_not_wait_for_the_hub(hub: AskedHub) -> None:
    command = [sys.executable, "-c", RESOLVE, '[{"dataset": "no-such-folder"}]']
    offline = hub.environment(hub.home, HF_HUB_OFFLINE="1")  # read when it is imported
    done = subprocess.run(command, env=offline, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == (
        "TransportError: no-such-folder (no file or folder here): HF_HUB_OFFLINE is set, so the Hub is not asked: "
        "unset it, or give a local file or folder"
    )


CARD = """---
configs:
- config_name: en
  data_files: en/*.jsonl
---
"""


@pytest.mark.parametrize(
    "fault", [{"answer": 503}, {"answer": 429, "retry_after": 1}, {"answer": "reset"}], ids=lambda fault: str(fault["answer"])
)
def test_whichever_request_fails_while_a_dataset_is_found_the_same_shards_are(hub: AskedHub, fault: dict[str, Any]) -> None:
    def publish(name: str) -> None:
        (write(hub, f"datasets/org/{name}/main", "en/1.jsonl", "en/2.jsonl", "de/1.jsonl", "a", "b") / "README.md").write_text(
            CARD
        )

    publish("clean")
    (clean,) = resolve(hub, {"dataset": "org/clean", "name": "en"})
    requests = [f"{request['method']} {request['path']}" for request in hub.requests()]
    assert len(requests) >= 4
    for number, request in enumerate(requests):
        publish(f"copy-{number}")
        # The commit is another one in each; the request is the same up to it.
        pattern = re.sub(r"[0-9a-f]{40}", "[0-9a-f]{40}", request.replace("clean", f"copy-{number}").replace("?", r"\?"))
        hub.fail(pattern, **fault)
    found = resolve(hub, *({"dataset": f"org/copy-{number}", "name": "en"} for number in range(len(requests))))
    assert names(clean) == ["en/1.jsonl", "en/2.jsonl"]
    assert [names(copy) for copy in found] == [names(clean)] * len(requests)
    failed = [request for request in hub.requests() if request["status"] == fault["answer"]]
    assert len(failed) == len(requests)


def test_splits_come_from_names_and_folders(hub: AskedHub) -> None:
    write(hub, "datasets/org/names/main", "corpus-train-1.jsonl", "corpus-train-2.jsonl", "corpus-test.jsonl")
    write(hub, "datasets/org/folders/main", "train/a.txt.gz", "validation/b.txt.gz")
    write(hub, "datasets/org/sharded/main", "data/shard-00000-of-00002.jsonl", "data/shard-00001-of-00002.jsonl")
    answers = resolve(
        hub,
        {"dataset": "org/names"},
        {"dataset": "org/names", "split": "test"},
        {"dataset": "org/folders", "split": "validation"},
        {"dataset": "org/names", "split": "validation"},
        {"dataset": "org/sharded"},
    )
    assert [names(answer) for answer in answers[:3]] == [
        ["corpus-train-1.jsonl", "corpus-train-2.jsonl"],
        ["corpus-test.jsonl"],
        ["validation/b.txt.gz"],
    ]
    assert answers[3:] == [
        "SourceError: org/names: there is no split 'validation', only train, test",
        "SourceError: org/sharded: there is no split 'train', only shard",
    ]


def test_what_a_run_has_left_in_a_dataset_is_no_corpus(hub: AskedHub) -> None:
    run = ("out/run.json", "out/lock", "out/metrics.jsonl", "out/model/tokenizer.json")
    write(hub, "datasets/org/with-a-run/main", "a.jsonl", *run)
    answers = resolve(hub, *({"dataset": "org/with-a-run", **chosen} for chosen in ({}, {"data_files": "**"})))
    assert [names(answer) for answer in answers] == [["a.jsonl"], ["a.jsonl"]]


def test_a_name_that_puts_all_others_in_no_split_is_named(hub: AskedHub) -> None:
    files = [f"en/c4-af.tfrecord-0000{number}-of-00002.json.gz" for number in range(2)]
    write(hub, "datasets/org/c4/main", *files, "en/c4-af-validation.tfrecord-00000-of-00001.json.gz")
    assert resolve(hub, {"dataset": "org/c4"}) == [
        "SourceError: org/c4: there is no split 'train', only validation "
        "(en/c4-af-validation.tfrecord-00000-of-00001.json.gz); en/c4-af.tfrecord-00000-of-00002.json.gz, "
        "en/c4-af.tfrecord-00001-of-00002.json.gz in none: name the files to read with --data.data-files"
    ]


def test_files_in_no_split_are_said_without_another_request(hub: AskedHub) -> None:
    """Of files in two formats, `datasets` takes those of the more frequent."""
    write(hub, "datasets/org/corpus/main", "README.md", "a/1.jsonl", "a/2.jsonl", "b/3.parquet", "b/4.jsonl", "de/5.csv")
    code = f"import logging, sys\nlogging.basicConfig(stream=sys.stdout, format='%(message)s')\n{RESOLVE}"

    def said(**options: str) -> list[str]:
        *lines, answer = run(hub, code, json.dumps([{"dataset": "org/corpus", **options}])).splitlines()
        assert json.loads(answer)["shards"]
        return [line for line in lines if "not read" in line]

    assert said() == [
        "org/corpus: 2 files are of another kind than 3 JSON lines and are not read: b/3.parquet, de/5.csv; "
        "choose files with --data.data-files"
    ]
    listings = [request["path"] for request in hub.requests() if "/tree/" in request["path"]]
    assert len(listings) == len(set(listings))
    assert said(data_dir="a") == []


def test_the_card_of_a_dataset_names_its_configurations(hub: AskedHub) -> None:
    root = write(hub, "datasets/org/corpus/main", "en/1.jsonl", "en/2.jsonl", "en/held.jsonl", "de/1.jsonl")
    (root / "README.md").write_text("""---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/[0-9].jsonl
  - split: test
    path: en/held.jsonl
- config_name: de
  data_files: de/*.jsonl
- config_name: fr
  data_files: fr/*.jsonl
---
""")
    answers = resolve(
        hub,
        {"dataset": "org/corpus", "name": "en"},
        {"dataset": "org/corpus", "name": "en", "split": "test"},
        {"dataset": "org/corpus", "name": "de"},
        {"dataset": "org/corpus"},
        {"dataset": "org/corpus", "name": "it"},
        {"dataset": "org/corpus", "name": "fr"},
    )
    assert [names(answer) for answer in answers[:3]] == [["en/1.jsonl", "en/2.jsonl"], ["en/held.jsonl"], ["de/1.jsonl"]]
    assert "Please pick one among the available configs: ['en', 'de', 'fr']" in str(answers[3])
    assert "BuilderConfig 'it' not found. Available: ['en', 'de', 'fr']" in str(answers[4])
    assert str(answers[5]).startswith("SourceError: org/corpus: no shard there")


def test_data_files_data_dir_and_hub_urls_choose_inside_a_dataset(hub: AskedHub) -> None:
    write(hub, "datasets/org/corpus/main", "en/train.jsonl", "en/deep/a.parquet", "de/test.jsonl", "README.md")
    answers = resolve(
        hub,
        {"dataset": "org/corpus", "data_files": "*/*.jsonl"},
        {"dataset": "org/corpus", "data_files": "en"},
        {"dataset": "org/corpus", "data_dir": "en", "data_files": "*.jsonl"},
        {"dataset": "org/corpus", "data_dir": "de", "split": "test"},
        {"dataset": "hf://datasets/org/corpus/**/*.jsonl"},
        {"dataset": f"hf://datasets/org/corpus@{FIRST}/en/deep/a.parquet"},
        {"dataset": "org/corpus", "data_files": "fr-*.jsonl"},
    )
    assert [names(answer) for answer in answers[:6]] == [
        ["de/test.jsonl", "en/train.jsonl"],
        ["en/deep/a.parquet", "en/train.jsonl"],
        ["en/train.jsonl"],
        ["de/test.jsonl"],
        ["de/test.jsonl", "en/train.jsonl"],
        ["en/deep/a.parquet"],
    ]
    assert {answer.revision for answer in answers[:6] if isinstance(answer, Corpus)} == {FIRST}
    assert answers[6] == "SourceError: org/corpus/fr-*.jsonl: no file matches"


def test_formats_that_only_datasets_reads_carry_their_builder(hub: AskedHub) -> None:
    write(hub, "datasets/org/tables/main", "a.csv", "b.csv.gz")
    write(hub, "datasets/org/genes/main", "a.fasta")
    tables, genes = resolve(hub, {"dataset": "org/tables"}, {"dataset": "org/genes"})
    assert isinstance(tables, Corpus)
    assert isinstance(genes, Corpus)
    assert [(shard.name, shard.format, shard.compression, shard.builder) for shard in (*tables.shards, *genes.shards)] == [
        ("a.csv", "examples", "none", "csv"),
        ("b.csv.gz", "examples", "gzip", "csv"),
        ("a.fasta", "examples", "none", "fasta"),
    ]


def test_a_list_may_name_several_datasets_and_an_old_short_name(hub: AskedHub, tmp_path: Path) -> None:
    write(hub, "datasets/org/one/main", "a.jsonl")
    write(hub, "datasets/org/two/main", "a.jsonl")
    (hub.root / "datasets/two").symlink_to(hub.root / "datasets/org/two")
    (tmp_path / "list.txt").write_text("org/one\ntwo\n")
    corpus = one_corpus(hub, dataset=f"@{tmp_path}/list.txt")
    assert names(corpus) == ["one/a.jsonl", "two/a.jsonl"]
    assert corpus.revision is None
    assert [shard.url.partition("@")[0] for shard in corpus.shards] == ["hf://datasets/org/one", "hf://datasets/org/two"]


def test_transformers_loads_a_tokenizer_and_a_config(hub: AskedHub) -> None:
    root = hub.root / "models/org/model/main"
    root.mkdir(parents=True)
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "hello": 1, "world": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(root / "tokenizer.json"))
    (root / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}')
    (root / "config.json").write_text('{"model_type": "bert", "hidden_size": 8, "num_attention_heads": 1}')
    load = """
from transformers import AutoConfig, AutoTokenizer

print(AutoTokenizer.from_pretrained("org/model")("world hello you")["input_ids"])
print(AutoConfig.from_pretrained("org/model").hidden_size)
"""
    assert run(hub, load).splitlines() == ["[2, 1, 0]", "8"]


# The stand-in itself


def test_injected_faults_are_answered_once_each(hub: AskedHub) -> None:
    (hub.root / "files").mkdir()
    (hub.root / "files/a.txt").write_text("0123456789")
    url = f"{hub.endpoint}/files/a.txt"
    hub.fail("GET /files/a", 429, retry_after=7)
    hub.fail("GET /files/a", "short")
    hub.fail("GET /files/a", "reset")
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(url)
    assert (raised.value.code, raised.value.headers["Retry-After"]) == (429, "7")
    raised.value.close()
    with urllib.request.urlopen(url) as response, pytest.raises((ConnectionError, http.client.IncompleteRead)):
        response.read()
    with pytest.raises((ConnectionError, urllib.error.URLError)):
        urllib.request.urlopen(url)
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Range": "bytes=2-4"})) as response:
        assert (response.status, response.read(), response.headers["Content-Range"]) == (206, b"234", "bytes 2-4/10")
    assert [(request["status"], request["range"], request["bytes"]) for request in hub.requests()] == [
        (429, None, 21),
        (200, None, 5),
        ("reset", None, 0),
        (206, "bytes=2-4", 3),
    ]
