"""`eval.sets`: several evaluation sets, each with a curve, kept in OUT, with the mean of their losses by weight."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from stream_pretrain.config import (
    Config,
    DataConfig,
    EvalConfig,
    EvalSetConfig,
    ModelConfig,
    flatten,
    redacted_text,
    run_directory,
    secrets_of,
    shown_options,
)
from stream_pretrain.training.evaluation.evaluation_documents import Origin
from tests.corpora import documents, write_shard
from tests.integration.jobs import lines, tiny_options
from tests.training.runs import run_here, run_to_end

WRONG_NAME = "must be unique, of letters, digits, `.`, `-` and `_`"


@pytest.fixture(scope="module")
def arguments(small_corpus: Path, model: Path) -> list[str]:
    return tiny_options(small_corpus, model, None, "--eval-every=2", "--eval.documents=6", "--micro-batch-size=4")


@pytest.fixture
def held(tmp_path: Path) -> dict[str, str]:
    """A shard for each name."""
    return {name: str(write_shard(tmp_path / name, documents(8, longest=40, seed=ord(name)), "plain")) for name in "abc"}


def sets(*records: dict[str, Any]) -> str:
    return f"--eval.sets={json.dumps(records)}"


def held_out(out: Path) -> dict[int, dict[str, float]]:
    """The metrics of each evaluation, by step."""
    found = [line for line in lines(out / "metrics.jsonl") if "eval/loss" in line]
    return {line["step"]: {name: value for name, value in line.items() if name.startswith("eval/")} for line in found}


def test_each_set_has_the_curve_that_it_has_alone_and_the_loss_is_their_mean_by_weight(
    arguments: list[str], held: dict[str, str], tmp_path: Path
) -> None:
    command = [*arguments, "--max-steps=2"]
    both = sets({"name": "one", "dataset": held["a"], "weight": 3}, {"name": "two", "dataset": held["b"]})
    done = run_to_end([*command, both, f"--output-dir={tmp_path / 'both'}"])
    for name in "ab":
        run_to_end([*command, f"--eval.dataset={held[name]}", f"--output-dir={tmp_path / name / 'out'}"])
    found, a, b = (held_out(tmp_path / out) for out in ("both", "a/out", "b/out"))
    assert list(found) == [0, 2]
    for step, metrics in found.items():
        assert list(metrics) == [
            "eval/loss", "eval/accuracy", "eval/one/loss", "eval/one/accuracy", "eval/two/loss", "eval/two/accuracy",
        ]  # fmt: skip
        assert metrics["eval/one/loss"] == a[step]["eval/loss"]
        assert metrics["eval/two/accuracy"] == b[step]["eval/accuracy"]
        assert metrics["eval/loss"] == (3 * a[step]["eval/loss"] + b[step]["eval/loss"]) / 4
    assert f"; one {found[2]['eval/one/loss']:.4f}, two {found[2]['eval/two/loss']:.4f}" in done
    assert "on up to 6 documents of each of one, two" in " ".join(done.split())


def test_other_sets_begin_the_best_anew_and_a_set_that_stays_keeps_its_documents(
    arguments: list[str], held: dict[str, str], tmp_path: Path
) -> None:
    command, out = [*arguments, "--run.keep-best"], tmp_path / "out"
    one, two, three = ({"name": name, "dataset": held[path]} for name, path in (("one", "a"), ("two", "b"), ("three", "c")))
    run_to_end([*command, sets(one, two), "--max-steps=2", f"--output-dir={out}"])
    before = [line for line in lines(out / "evaluation.jsonl") if line["set"] == "one"]
    assert len(before) == 6
    Path(held["a"]).write_text('{"text": "others"}\n' * 9)
    same = run_here([*command, sets(one, two), "--max-steps=4", f"--output-dir={out}"])
    assert "other evaluation sets" not in same.stderr
    assert "--run.keep-best starts over" not in same.stderr
    other = run_here([*command, sets(one, three), "--max-steps=6", f"--output-dir={out}"])
    warnings = [
        line.partition("warning: ")[2] for line in other.stderr.splitlines() if "warning: " in line and "lanes" not in line
    ]
    assert warnings[0] == "other evaluation sets: losses up to step 4 are not compared with those of later steps"
    assert warnings[1].startswith("--run.keep-best starts over on another evaluation set: the next evaluation replaces best/")
    assert [line for line in lines(out / "evaluation.jsonl") if line["set"] == "one"] == before
    assert {line["set"] for line in lines(out / "evaluation.jsonl")} == {"one", "three"}
    assert [path.name for path in (out / "best").iterdir()] == ["step-00000006"]
    [said] = [line for line in other.stderr.splitlines() if "step 6: held-out loss" in line]
    assert ", best " not in said, "not compared with another set"
    run_to_end([*command, sets({**one, "weight": 2}, three), "--max-steps=6", f"--output-dir={out}"])


def test_a_run_with_one_set_goes_on_with_it(arguments: list[str], held: dict[str, str], tmp_path: Path) -> None:
    command, out = [*arguments, f"--eval.dataset={held['a']}"], tmp_path / "out"
    run_to_end([*command, "--max-steps=2", f"--output-dir={out}"])
    assert json.loads((out / "evaluation.json").read_text()) == {"documents": 6, "dataset": held["a"], "split": None}
    assert [list(line) for line in lines(out / "evaluation.jsonl")] == [["text"]] * 6
    Path(held["a"]).unlink()
    (out / "evaluation.json").unlink()  # as in a run of a version that did not write it
    before = (out / "evaluation.jsonl").read_bytes()
    write_shard(tmp_path / "a", documents(3), "plain")
    run_to_end([*command, "--max-steps=4", f"--output-dir={out}"])
    assert (out / "evaluation.jsonl").read_bytes() == before
    run_to_end([*arguments, sets({"name": "b", "dataset": held["b"]}), "--max-steps=6", f"--output-dir={out}"])
    assert list(held_out(out)[6]) == ["eval/loss", "eval/accuracy", "eval/b/loss", "eval/b/accuracy"]
    assert {line["set"] for line in lines(out / "evaluation.jsonl")} == {"b"}


@pytest.mark.parametrize(
    ("records", "more", "said"),
    [
        ([{"name": "a b", "split": "x"}], [], f"--eval.sets: the name 'a b' {WRONG_NAME}"),
        ([{"name": "a", "split": "x"}] * 2, [], f"--eval.sets: the name 'a' {WRONG_NAME}"),
        ([{"name": "a"}], [], "--eval.sets: a: give a dataset, a split of the corpus, or both"),
        ([{"name": "a", "split": "x", "weight": -1}], [], "--eval.sets: a: weight must not be negative, not -1.0"),
        ([{"name": "a", "split": "x", "weight": 0}], [], "--eval.sets: no set has a weight"),
        ([{"name": "a", "split": "x", "weight": math.nan}], [], "--eval.sets: a: weight must be finite, not nan"),
        (
            [{"name": "a", "split": "x", "weight": 1e308}, {"name": "b", "split": "x", "weight": 1e308}],
            [],
            "--eval.sets: the sum of the weights must be finite: give smaller ones",
        ),
        ([{"name": "a", "wieght": 1}], [], "--eval.sets: record 1: unknown key wieght; did you mean weight?"),
        ([{"split": "x"}], [], "--eval.sets: record 1: name is missing"),
        ([{"name": "a", "split": "x"}], ["--eval-every=0"], "--eval.sets needs --eval-every"),
        (
            [{"name": "a", "split": "x"}],
            ["--eval.dataset=x"],
            "give either --eval.sets or --eval.dataset and --eval.split, not both",
        ),
        (
            [{"name": "a", "dataset": "https://…@host/x"}],
            [],
            "--eval.sets: a: dataset https://…@host/x has … in place of a secret: put it back",
        ),
        ([{"name": "a", "dataset": "/no/such.jsonl"}], [], "/no/such.jsonl: there is no such file or folder"),
    ],
)  # fmt: skip
def test_wrong_records_are_one_line(
    arguments: list[str], tmp_path: Path, records: list[dict[str, Any]], more: list[str], said: str
) -> None:
    refused = run_here([*arguments, "--max-steps=2", f"--output-dir={tmp_path / 'out'}", sets(*records), *more])
    assert refused.returncode in (1, 2)
    assert [line.partition("error: ")[2] for line in refused.stderr.splitlines() if "error: " in line] == [said]


def test_a_set_of_shards_that_are_trained_on_is_told(arguments: list[str], held: dict[str, str], tmp_path: Path) -> None:
    [corpus] = [word.partition("=")[2] for word in arguments if word.startswith("--dataset=")]
    both = sets({"name": "seen", "dataset": corpus}, {"name": "other", "dataset": held["a"]})
    done = run_to_end([*arguments, "--max-steps=1", both, f"--output-dir={tmp_path / 'out'}"])
    assert [line.partition("warning: ")[2] for line in done.splitlines() if "evaluation set" in line and "warning" in line] == [
        "evaluation set seen has shards that are trained on: its loss says little of other documents"
    ]


def test_a_line_of_a_set_that_cannot_be_read_is_left_out_with_a_warning(
    arguments: list[str], held: dict[str, str], tmp_path: Path
) -> None:
    shard = Path(held["a"])
    shard.write_bytes(b'{"text": 3}\n' + shard.read_bytes())
    done = run_to_end([*arguments, "--max-steps=1", f"--eval.dataset={shard}", f"--output-dir={tmp_path / 'out'}"])
    [said] = [line.partition("warning: ")[2] for line in done.splitlines() if "left out" in line]
    assert said.startswith(f"the evaluation set: left out, since it cannot be read: {shard.name}, offset 0: ")


def test_secrets_of_sets_are_hidden_everywhere_and_sets_do_not_name_the_run() -> None:
    url = "https://user:PASS@host/x.jsonl?sig=SIGN"
    config = Config(
        data=DataConfig(dataset="org/texts"),
        model=ModelConfig(path="org/model"),
        eval=EvalConfig(every=2, sets=(EvalSetConfig("a", url),)),
    )
    assert shown_options(flatten(config))["eval.sets"] == [
        {"name": "a", "dataset": "https://host/x.jsonl", "split": None, "weight": 1.0}
    ]
    assert "PASS" not in secrets_of(config, {}).hide(f"cannot read {url}")
    assert redacted_text("eval.sets", json.dumps([{"name": "a", "dataset": url}])) == (
        '[{"name": "a", "dataset": "https://…@host/x.jsonl?…"}]'
    )
    assert Origin.of_options(config.eval).sets == (EvalSetConfig("a", "https://host/x.jsonl"),)
    plain = Config(data=config.data, model=config.model)
    assert run_directory(config) == run_directory(plain)
