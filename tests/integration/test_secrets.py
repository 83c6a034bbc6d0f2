"""Nothing that a run writes, prints or sends holds a secret, however it ends."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.corpora import documents, write_shard, write_tiny_bert
from tests.forks import ENVIRONMENT, trainers
from tests.integration.http_server import Server, serve
from tests.integration.jobs import checkpoints, lines, tiny_options
from tests.training.runs import run_here, run_to_end

USER, PASSWORD, SIGNATURE, KEY, LATER = ("user-canary", "password-canary", "signature-canary", "key-canary", "later-canary")
VARIABLES = {
    "HF_TOKEN": "hf_canary",
    "AWS_ACCESS_KEY_ID": "id-canary",
    "AWS_SECRET_ACCESS_KEY": "aws/canary",
    "AWS_SESSION_TOKEN": "session-canary",
    "WANDB_API_KEY": "wandbcanary".ljust(40, "0"),
    "FTP_PROXY": "http://proxy:proxy-canary@127.0.0.1:1",
}
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@dataclass(frozen=True)
class Corpus:
    server: Server
    model: Path

    def url(self, shard: str, signature: str = SIGNATURE) -> str:
        return f"http://{USER}:{PASSWORD}@127.0.0.1:{self.server.port}/{shard}?X-Amz-Signature={signature}&Expires=9"

    def options(self, out: Path, shard: str = "a.jsonl.gz", *more: str, signature: str = SIGNATURE) -> list[str]:
        storage = json.dumps({"headers": {"X-Api-Key": KEY}})
        held_out = ["--eval-every=2", f"--eval.dataset={self.url('b.jsonl', signature)}", "--eval.documents=9"]
        more = ("--max-steps=2", "--save-every=2", "--data.storage-options", storage, "--debug", *more)
        return tiny_options(self.url(shard, signature), self.model, out, *held_out, *more)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:
    folder = tmp_path_factory.mktemp("served")
    shard = write_shard(folder / "a", documents(200), "gz")
    write_shard(folder / "b", documents(50, seed=1), "plain")
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2 :] = b"\xff" * (len(damaged) - len(damaged) // 2)
    (folder / "damaged.jsonl.gz").write_bytes(damaged)
    with serve(folder) as server:
        yield Corpus(server, write_tiny_bert(tmp_path_factory.mktemp("model")))


@pytest.fixture
def wandb_server() -> Iterator[str]:
    command = [sys.executable, str(Path(__file__).with_name("wandb_server.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"


def canaries(out: Path, said: str) -> list[str]:
    """Where a secret stands in what a run left and said."""
    places = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    places["stderr"] = said.encode()
    secrets = [USER, PASSWORD, SIGNATURE, KEY, LATER, BASIC, *VARIABLES.values(), "proxy-canary"]
    return [f"{place}: {secret}" for place, content in places.items() for secret in secrets if secret.encode() in content]


def test_a_run_leaves_no_secret_here_nor_at_weights_and_biases(corpus: Corpus, wandb_server: str, tmp_path: Path) -> None:
    variables = {**ENVIRONMENT, **VARIABLES, "WANDB_BASE_URL": wandb_server, "HOME": str(tmp_path)}
    variables["WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL"] = "1"
    out = tmp_path / "out"
    program = ["-m", "stream_pretrain", *corpus.options(out, "a.jsonl.gz", "--run.wandb=online")]
    done = trainers().run(program, variables, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (record,) = out.rglob("*.wandb")
    assert b"--model.config" in record.read_bytes(), "the arguments are there"
    with urllib.request.urlopen(f"{wandb_server}/heard") as answer:
        heard = "\n".join(json.load(answer)["heard"])
    assert f"http://127.0.0.1:{corpus.server.port}/a.jsonl.gz" in heard, "and so is the corpus"
    assert canaries(out, done.stderr) == canaries(out, heard) == []


@pytest.fixture
def secret_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("secret_variables")
@pytest.mark.parametrize(
    ("shard", "fault", "said"),
    [
        ("missing.jsonl", None, "missing.jsonl: not found (HTTP 404)"),
        ("a.jsonl.gz", {"do": "status", "code": 403}, "a.jsonl.gz: access refused (HTTP 403)"),
        ("a.jsonl.gz", {"do": "status", "code": 503, "times": 9}, "no good answer"),
        ("a.jsonl.gz", {"do": "reset", "after": 0, "times": 9}, "no good answer"),
        ("a.jsonl.gz", {"do": "redirect", "to": "http://127.0.0.1:1/x?Signature=signature-canary"}, "no server answers"),
        ("damaged.jsonl.gz", None, "damaged.jsonl.gz: the gzip member that begins"),
    ],
)
def test_a_run_that_fails_tells_no_secret(
    corpus: Corpus, tmp_path: Path, shard: str, fault: dict[str, object] | None, said: str
) -> None:
    corpus.server.forget()
    if fault is not None:
        corpus.server.inject(shard, fault)
    done = run_here(corpus.options(tmp_path / "out", shard, "--data.retry-deadline=0.5", "--max-steps=1000"))
    assert done.returncode == (75 if said == "no good answer" else 1)  # the deadline: the same command resumes
    assert "Traceback" in done.stderr
    assert said in done.stderr.splitlines()[-1]
    assert canaries(tmp_path, done.stderr) == []


@pytest.mark.usefixtures("secret_variables")
def test_a_refused_change_prints_a_command_that_says_where_a_secret_was(corpus: Corpus, tmp_path: Path) -> None:
    corpus.server.forget()
    out = tmp_path / "out"
    assert run_here(corpus.options(out)).returncode == 0
    done = run_here(corpus.options(out, "a.jsonl.gz", "--seed=3"))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "start a new run from its weights (put the secrets back in place of …): stream-pretrain" in last
    assert f"http://…@127.0.0.1:{corpus.server.port}/a.jsonl.gz?…" in last
    assert '{"headers": {"X-Api-Key": "…"}}' in last
    assert canaries(out, done.stderr) == []


@pytest.mark.usefixtures("secret_variables")
def test_an_old_checkpoint_with_secrets_goes_on_by_new_ones_and_the_next_has_none(corpus: Corpus, tmp_path: Path) -> None:
    corpus.server.forget()
    out = tmp_path / "out"
    assert run_here(corpus.options(out)).returncode == 0
    saved = out / "checkpoints" / "step-00000002"
    content = (saved / "corpus.json").read_text()
    address = f"http://127.0.0.1:{corpus.server.port}/a.jsonl.gz"
    assert content.count(f'"{address}"') == 2
    with_secrets = content.replace(f'"{address}"', f'"{corpus.url("a.jsonl.gz")}"').encode()
    (saved / "corpus.json").write_bytes(with_secrets)
    manifest = json.loads((saved / "MANIFEST.json").read_text())
    manifest["files"]["corpus.json"] = {"size": len(with_secrets), "sha256": hashlib.sha256(with_secrets).hexdigest()}
    (saved / "MANIFEST.json").write_text(json.dumps(manifest))
    done = run_to_end(corpus.options(out, "a.jsonl.gz", "--max-steps=4", "--run.keep-last=1", signature=LATER))
    assert "resuming after step 2" in done
    assert checkpoints(out) == [4]
    asked = [request["path"] for request in corpus.server.log()]
    assert f"/a.jsonl.gz?X-Amz-Signature={LATER}&Expires=9" in asked, "the URL of today"
    assert [line["step"] for line in lines(out / "metrics.jsonl") if "train/loss" in line] == [1, 2, 3, 4]
    assert canaries(out, done) == []


@pytest.mark.usefixtures("secret_variables")
def test_keys_in_files_open_the_shards_of_a_mixture_and_are_recorded_nowhere(corpus: Corpus, tmp_path: Path) -> None:
    keys, out = tmp_path / "keys.json", tmp_path / "out"
    keys.write_text(json.dumps({"headers": {"X-Api-Key": KEY}}))
    (tmp_path / "list.txt").write_text(f"{corpus.url('b.jsonl')}\n")
    sources = [
        {"name": "one", "dataset": corpus.url("a.jsonl.gz"), "storage_options": f"@{keys}"},
        {"name": "two", "dataset": f"@{tmp_path / 'list.txt'}", "storage_options": f"@{keys}"},
    ]
    corpus.server.forget()
    options = [o for o in tiny_options("x", corpus.model, out, "--max-steps=2", "--debug") if not o.startswith("--dataset")]
    done = run_to_end([*options, f"--data.sources={json.dumps(sources)}"])
    assert {request["key"] for request in corpus.server.log()} == {KEY}
    assert canaries(out, done) == []
    assert f"@{keys}" in (out / "run.json").read_text()
