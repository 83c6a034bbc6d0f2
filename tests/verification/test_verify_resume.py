"""`verify-resume` proves what resumes as it should, and says where anything else goes astray: real processes, real kills."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from transformers import PreTrainedConfig

from stream_pretrain import cli
from stream_pretrain.arguments import invocation, parse
from stream_pretrain.commands import verify_resume
from stream_pretrain.config import Config, DataConfig, ModelConfig, TrainConfig
from stream_pretrain.config.command_options import VerifyConfig
from stream_pretrain.data.corpus.pinned_corpus import PinnedCorpus
from stream_pretrain.errors import TrainingError
from stream_pretrain.model.flops import training_flops
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.units import human_duration
from stream_pretrain.verification import trials
from stream_pretrain.verification.comparing import Comparison, Difference, compared
from stream_pretrain.verification.cost import cost_of
from stream_pretrain.verification.kill_moments import KillMoment
from stream_pretrain.verification.proof import Outcome, Proof
from stream_pretrain.verification.recorded_steps import RecordedSegment, RecordedStep
from stream_pretrain.verification.reduced_model import ReducedModel, reduced
from stream_pretrain.verification.starts import Launch, WatchedStart, arguments_of, launched
from stream_pretrain.verification.table import lines_of
from stream_pretrain.verification.trials import Baseline, Trial
from tests.command_lines import with_last
from tests.corpora import documents, write_shard, write_tiny_bert
from tests.forks import ENVIRONMENT, trainers


def forked(program: str | None = None) -> Launch:
    """Starts in forks, which import nothing; program: code to run first in each."""

    def launch(command: Sequence[str], variables: Mapping[str, str], log: Path, deadline: float) -> int | None:
        arguments = list(command[1:])
        if program is not None:
            place = arguments.index("stream_pretrain.verification.watched_run")
            log.with_suffix(".py").write_text(
                f"{program}\nfrom stream_pretrain.verification import watched_run\nwatched_run.main()\n"
            )
            arguments[place - 1 : place + 1] = [str(log.with_suffix(".py"))]
        with log.open("w") as said:
            fork = trainers().start(arguments, {**variables, **ENVIRONMENT}, said)
            try:
                return fork.wait(deadline)
            finally:
                fork.kill()
                fork.wait()

    return launch


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus in shards of several kinds, and a model with dropout."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "corpus").mkdir()
    for number, style in enumerate(["plain", "zst", "gz"]):
        write_shard(folder / "corpus" / f"s{number}", documents(60, seed=number, longest=60), style)
    write_tiny_bert(folder / "model")
    return folder


def config_of(inputs: Path) -> Config:
    return Config(
        data=DataConfig(dataset=str(inputs / "corpus"), sequence_length=32, workers=0, window_bytes=3000),
        model=ModelConfig(config=str(inputs / "model"), tokenizer=str(inputs / "model")),
        train=TrainConfig(global_batch_size=6, micro_batch_size=4, max_steps=1000),
    )


Proofs = Callable[..., Proof]


@pytest.fixture(scope="module")
def proofs(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Proofs:
    def proof(program: str | None = None) -> Proof:
        folder = tmp_path_factory.mktemp("proof")
        config, options = config_of(inputs), VerifyConfig(run_steps=8, kills=2)
        model = reduced(config.model, causal=False, full=False, folder=folder)
        return Proof(config, model, options, folder, forked(program), Progress(None))

    return proof


@pytest.fixture(scope="module")
def undisturbed(proofs: Proofs) -> Baseline:
    proof = proofs()
    return proof.undisturbed("undisturbed", proof.config)


def one_kill(baseline: Baseline) -> Trial:
    return Trial("killed", baseline, [WatchedStart(baseline.config, KillMoment("step", 5)), WatchedStart(baseline.config)], 0.0)


def test_a_run_killed_in_its_saves_is_proven_to_resume(proofs: Proofs, undisturbed: Baseline) -> None:
    found = proofs().outcome(trials.killed_while_saving(undisturbed, 0.0))
    assert found.proven, found
    assert found.weights_equal
    assert (found.kills, len(found.seconds_to_resume)) == (2, 2)
    assert found.comparison.losses_differ_by == 0


def test_two_ranks_of_which_one_is_killed_are_proven_to_go_on_as_one(proofs: Proofs, undisturbed: Baseline) -> None:
    proof = proofs()
    assert proof.model.without_dropout is not None
    calm = proof.undisturbed("without dropout", replace(undisturbed.config, model=proof.model.without_dropout))
    trial = trials.other_ranks(calm, 1e-4)
    assert trial is not None
    found = proof.outcome(trial)
    assert found.proven, found
    assert (found.weights_equal, found.kills) == (None, 1)


AFTER_THE_RESUME = (3, 5)
"""The checkpoint of step 4 may still be under way when the run is killed after step 5."""


DROPS = """
from stream_pretrain.data.lanes.source_lane import SourceLane
begin = SourceLane.__init__
def skips(self, *given):
    *others, cursor = given
    at_start = {"piece": 0, "token": 0, "taken": 0}
    begin(self, *others, cursor._replace(next_document=cursor.next_document + 1, **at_start) if cursor.rows else cursor)
SourceLane.__init__ = skips
"""


RUNNING_NUMBER = """
from itertools import count
from stream_pretrain.data.rows.mlm import Mlm
draw, number = Mlm.draw, count()
Mlm.draw = lambda self, rows, key: draw(self, rows, (*key, next(number)))
"""


AFTER = """
from stream_pretrain.training.start import setup
restored, resumed = setup.restored, []
def noted(*given):
    resumed.append(True)
    return restored(*given)
setup.restored = noted
"""
"""Begins a program whose fault comes with a resume."""


REPEATS = """
from stream_pretrain.data.lanes.source_lane import SourceLane
begin = SourceLane.__init__
def again(self, *given):
    *others, cursor = given
    begin(self, *others, cursor._replace(next_document=0, piece=0, token=0, taken=0) if cursor.rows else cursor)
SourceLane.__init__ = again
"""


SWAPS_LANES = """
from stream_pretrain.data.lanes.source_plan import SourcePlan
stripes = SourcePlan.stripes
SourcePlan.stripes = lambda self, epoch, lane: stripes(self, epoch, lane ^ 1 if resumed and lane < 2 else lane)
"""


WRONG_LABEL = """
from stream_pretrain.data.lanes import stream
read = stream.step_of
def wrong(*given, **options):
    rows = read(*given, **options)
    if resumed and len(rows.trained):
        rows.trained.labels[0, 0] ^= 1
    return rows
stream.step_of = wrong
"""


FORGETS_OPTIMIZER = """
from stream_pretrain.training.state.parallelism import DataParallel
DataParallel.load_optimizer = lambda self, file, *, updates: None
"""


OTHER_DROPOUT = """
from stream_pretrain.training.steps import loop
seed = loop._seed
loop._seed = lambda *key: seed(*key, 1) if resumed else seed(*key)
"""


OTHER_RATE = """
from stream_pretrain.training.steps import loop
rate = loop.learning_rate
loop.learning_rate = lambda train, step, progress: rate(train, step + bool(resumed), progress + bool(resumed) / train.max_steps)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("program", "rows_equal", "repeated", "message"),
    [
        (REPEATS, False, True, "the document of s"),
        (AFTER + SWAPS_LANES, False, False, "in the place of the document of s"),
        (AFTER + WRONG_LABEL, False, False, "other tokens or masks in the document of s"),
        (FORGETS_OPTIMIZER, True, False, "the loss is "),
        (AFTER + OTHER_DROPOUT, True, False, "the loss is "),
        (AFTER + OTHER_RATE, True, False, "the loss is "),
    ],
    ids=["a document again", "lanes swapped", "one label", "optimizer", "dropout", "learning rate"],
)
def test_what_a_resume_does_wrong_is_in_the_table(
    program: str, rows_equal: bool, repeated: bool, message: str, proofs: Proofs, undisturbed: Baseline
) -> None:
    found = proofs(program).outcome(one_kill(undisturbed))
    assert (found.proven, found.fault) == (False, None)
    assert (found.comparison.rows_equal, found.comparison.losses_equal, found.weights_equal) == (rows_equal, False, False)
    assert bool(found.comparison.documents_repeated) == repeated
    difference = found.comparison.first_difference
    assert difference is not None
    assert message in difference.message
    assert difference.step in (range(5, 9) if "loop.learning_rate" in program else (*AFTER_THE_RESUME, 4, 6))


def test_a_difference_of_the_weights_alone_is_said(undisturbed: Baseline) -> None:
    equal = compared([undisturbed.steps], undisturbed.steps, ["a"], 0.0)
    [*_, message, last] = lines_of([Outcome(one_kill(undisturbed), equal, False, 1, [1.0], None)])
    assert (
        message == "killed: all rows and losses are equal, but the weights or the state of the optimizer after step 8 are not"
    )
    assert last == "NOT proven: 1 of 1 runs are not as if nothing had happened"


def test_the_table_has_the_figures_of_each_trial(undisturbed: Baseline) -> None:
    trial = one_kill(undisturbed)
    differ = Comparison(False, False, 0.25, 1, 2000, Difference(5, None, "step 5 was not trained"))
    close = replace(compared([undisturbed.steps], undisturbed.steps, ["a"], 0.0), losses_differ_by=1e-6)
    outcomes = [
        Outcome(trial, differ, False, 2, [1.0, 2.0, 30.0], "ended with 9"),
        Outcome(replace(trial, name="other ranks (2, 1)", tolerance=0.0001), close, None, 1, [], None),
    ]
    assert list(lines_of(outcomes)) == [
        "run                   rows         losses       weights  lost  repeated  resumes  seconds to resume",
        "killed              DIFFER         DIFFER        DIFFER     1     2,000        3                2.0",
        "other ranks (2, 1)   equal  within 0.0001  not compared     0         0        0               none",
        "",
        "killed: ended with 9",
        "killed: step 5 was not trained",
        "NOT proven: 1 of 2 runs are not as if nothing had happened",
    ]


def test_a_document_dropped_at_a_resume_is_named_with_its_step(proofs: Proofs, undisturbed: Baseline) -> None:
    found = proofs(DROPS).outcome(one_kill(undisturbed))
    assert not found.proven
    assert not found.comparison.rows_equal
    assert found.comparison.documents_lost
    difference = found.comparison.first_difference
    assert difference is not None
    assert difference.step in AFTER_THE_RESUME
    assert difference.message.startswith(f"step {difference.step}, row {difference.row}: ")
    assert ".jsonl" in difference.message
    assert "NOT proven: 1 of 1" in list(lines_of([found]))[-1]


def test_masks_keyed_by_a_running_number_are_found_in_the_first_step_after_a_kill(proofs: Proofs) -> None:
    proof = proofs(RUNNING_NUMBER)
    found = proof.outcome(one_kill(proof.undisturbed("undisturbed", proof.config)))
    assert not found.proven
    assert (found.comparison.documents_lost, found.comparison.documents_repeated) == (0, 0)
    difference = found.comparison.first_difference
    assert difference is not None
    assert difference.step in AFTER_THE_RESUME
    assert "other tokens or masks in the document of s" in difference.message


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("program", "code"), [(None, 0), (DROPS, 1)], ids=["as it is", "broken"])
def test_the_whole_command_says_by_its_exit_code_whether_it_is_proven(program: str | None, code: int, inputs: Path) -> None:
    options = with_last([*arguments_of(config_of(inputs)), "--workers=1", f"--output-dir={inputs}/out"])
    disk, starts, begin = [0], [0], forked(program)

    def launch(command: Sequence[str], variables: Mapping[str, str], log: Path, deadline: float) -> int | None:
        code, starts[0] = begin(command, variables, log, deadline), starts[0] + 1
        disk[0] = max(disk[0], sum(path.stat().st_size for path in log.parents[2].glob("*/out/**/*") if path.is_file()))
        return code

    told: list[str] = []
    progress = Progress(None)
    progress.notice = told.append  # type: ignore[method-assign]
    answer = verify_resume.run(invocation([*options, "--verify.kills=2"], {}), progress, launch)
    [cost] = [re.match(r"about ([0-9]+) runs with ([0-9]+) starts: .* and ([0-9.]+) MB of disk", line) for line in told[1:2]]
    assert cost is not None, told
    assert (int(cost[1]), int(cost[2])) == (10, pytest.approx(starts[0], abs=2 if code == 0 else 20))
    assert 0.4 * float(cost[3]) < disk[0] / 1e6 < float(cost[3])
    record, trials_run = answer.record, {trial["trial"]: trial for trial in answer.record["trials"]}
    assert not (inputs / "out").exists(), "the folder of the user's run"
    assert (answer.exit_code, record["proven"]) == (code, code == 0), answer.lines
    assert list(trials_run) == [
        "killed at random moments", "killed while saving", "a data worker killed", "other workers (1, 2, 0)",
        "killed at the end of an epoch", "other micro-batches (4, 2)", "other ranks (2, 1)",
    ]  # fmt: skip
    names = ("rows_equal", "losses_equal", "weights_equal")
    assert all(record[name] for name in names) == (code == 0)
    assert bool(record["documents_lost"]) == (code == 1)
    assert record["resumes"] == sum(trial["resumes"] for trial in trials_run.values()) >= 9
    assert record["median_seconds_to_resume"] > 0
    assert [trials_run[name]["weights_equal"] for name in list(trials_run)[-2:]] == [None, None]
    assert any("at the end of an epoch" in line and "equal" in line for line in answer.lines) or code
    assert answer.lines[-1].startswith("proven: 7 runs" if code == 0 else "NOT proven: ")


def test_a_disk_that_fills_up_ends_the_verification_and_says_nothing_of_the_stream(
    proofs: Proofs, undisturbed: Baseline, inputs: Path, tmp_path: Path
) -> None:
    said = "out/checkpoints/step-00000002 cannot be written (No space left on device): free some space"

    def ended(*lines: str) -> Launch:
        def launch(_command: Sequence[str], _variables: Mapping[str, str], log: Path, _deadline: float) -> int:
            log.write_text("\n".join(lines))
            return 75

        return launch

    proof = proofs()
    proof.launch = ended("2026-11-29T20:04:14Z step 1/8", f"2026-11-29T20:04:15Z error: {said}")
    with pytest.raises(TrainingError, match=f"^{re.escape(f'killed: {said}')}$"):
        proof.outcome(one_kill(undisturbed))
    proof.launch = ended()
    with pytest.raises(TrainingError, match=r"^killed: ended with 75 and without an error in .*log.txt: is the disk full\?$"):
        proof.outcome(one_kill(undisturbed))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    options = with_last([*arguments_of(config_of(inputs)), f"--verify.folder={tmp_path}"])
    with pytest.raises(TrainingError, match=f"^the runs in {tmp_path} cannot be recorded: No space left on device$"):
        verify_resume.run(invocation(options, {}), Progress(None), full)


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda name: name.name)
def test_a_signal_ends_the_start_under_way_and_leaves_nothing(
    name: signal.Signals, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)}

    def signalled(_command: Sequence[str], variables: Mapping[str, str], log: Path, deadline: float) -> int | None:
        sleeps = [sys.executable, "-S", "-c", "import time; time.sleep(100)"]
        threading.Timer(0.2, os.kill, (os.getpid(), name)).start()
        try:
            return launched(sleeps, variables, log, deadline)
        finally:
            assert [child for child in psutil.Process().children() if "time.sleep(100)" in child.cmdline()] == []

    with pytest.raises(KeyboardInterrupt):
        verify_resume.run(invocation(with_last([*arguments_of(config_of(inputs))]), {}), Progress(None), signalled)
    assert list(tmp_path.iterdir()) == []
    assert {one: signal.getsignal(one) for one in before} == before


EPOCHS = {
    number: RecordedStep(number, 1.0, 1, (), tuple((RecordedSegment(epoch, 0, 0, 9, ""),) for epoch in epochs), 0.0)
    for number, epochs in enumerate([*[[0]] * 3, [0, 1], *[[1]] * 8], start=1)
}
"""The second epoch begins in the step in which the first one ends."""


@pytest.mark.parametrize(
    ("options", "starts", "undisturbed"),
    [
        ({}, (1, 3, 3, 3, 1, 3, 1, 2, 2), 3),
        ({"run_steps": 12, "kills": 5}, (1, 6, 3, 2, 3, 1, 3, 1, 2, 2), 3),
        ({"batch": 1}, (1, 3, 3, 3, 1, 3), 2),
    ],
)
def test_the_starts_that_are_told_before_are_those_of_the_proof(
    options: dict[str, int], starts: tuple[int, ...], undisturbed: int, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(inputs)
    config = replace(config, train=replace(config.train, global_batch_size=options.pop("batch", 6)))
    model = ReducedModel(config.model, replace(config.model, config="another"), "", PreTrainedConfig(), 0)
    proof = Proof(config, model, VerifyConfig(**{"run_steps": 8, "kills": 2, **options}), inputs, launched, Progress(None))
    found: list[int] = []

    def calm(_: Proof, name: str, config: Config) -> Baseline:
        found.append(1)
        steps = {step: EPOCHS[step] for step in range(1, proof.options.run_steps + 1)}
        return Baseline(config, steps, inputs, PinnedCorpus((), 1), 1.0, 1.0)

    def outcome(_: Proof, trial: Trial) -> None:
        found.append(len(trial.starts))

    monkeypatch.setattr(Proof, "undisturbed", calm)
    monkeypatch.setattr(Proof, "first_documents", lambda self, baseline: self.undisturbed("few", baseline.config))
    monkeypatch.setattr(Proof, "outcome", outcome)
    said: list[str] = []
    monkeypatch.setattr(Progress, "notice", lambda _, text: said.append(text))
    list(proof.outcomes())
    assert (proof.starts, proof.undisturbed_runs) == (starts, undisturbed)
    assert tuple(found) == starts
    # A second to the first step, and on average half of the steps, which take a second each.
    seconds = human_duration((sum(starts) - 1) * (1 + proof.options.run_steps / 2))
    assert said[0] == f"at this speed, the other runs take about {seconds}"


def test_what_a_verification_takes_is_its_starts_its_work_and_its_checkpoints(inputs: Path, tmp_path: Path) -> None:
    config = config_of(inputs)
    model = reduced(config.model, causal=False, full=False, folder=tmp_path)
    proof = Proof(config, model, VerifyConfig(run_steps=8, kills=2), tmp_path, launched, Progress(None))
    lengths = np.full(6, 32)
    work = 8 * training_flops(model.settings, lengths, round(6 * 32 * 0.3))
    cost = cost_of(proof, seconds_of_a_start=4.0, flops_a_second=1e9)
    assert cost.starts == (1, 3, 3, 3, 1, 3, 1, 2, 2)
    assert cost.seconds == pytest.approx(1.5 * (19 * 4.0 + 9 * work / 1e9))
    assert cost_of(proof, seconds_of_a_start=4.0, flops_a_second=None).seconds == 1.5 * 19 * 4.0
    weights, headers = model.parameters, 16_384
    a_run = 2 * (12 * weights + 2 * headers) + 4 * weights + headers
    assert cost.disk_bytes == 4 * a_run + 12 * weights + 2 * headers  # those of three undisturbed runs stay
    kept = replace(proof.options, folder="kept")
    proof = Proof(config, model, kept, tmp_path, launched, Progress(None))
    assert cost_of(proof, seconds_of_a_start=4.0, flops_a_second=1e9).disk_bytes == 9 * a_run + 12 * weights + 2 * headers


@pytest.mark.parametrize(
    "options",
    [
        ["--eval-every=2", "--run.keep-best", "--data.heldout-fraction=0.1"],
        ["--eval-every=2", '--eval.sets=[{"name": "a", "dataset": "x"}, {"name": "b", "split": "test"}]'],
        ["--eval-every=2", "--eval.dataset=x", "--eval.split=test"],
        ["--resume=runs/a/checkpoints/step-00000900", "--train.skip-steps=901:1000", "--wandb=online"],
    ],
)
def test_options_of_evaluations_and_of_a_resume_are_no_reason_to_refuse_a_verification(
    options: list[str], inputs: Path, tmp_path: Path
) -> None:
    config = parse([*arguments_of(config_of(inputs)), *options])
    model = ReducedModel(config.model, config.model, "", PreTrainedConfig(), 0)
    verified = Proof(config, model, VerifyConfig(), tmp_path, launched, Progress(None)).config
    assert (parse([*arguments_of(verified)]).eval.every, verified.run.resume) == (0, "auto")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(["verify-resume", *arguments])
    return code, capsys.readouterr().err.splitlines()[-1]


def test_what_cannot_be_verified_is_refused(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = [*arguments_of(config_of(inputs))]
    assert refusal(capsys, *run, f"--verify.folder={inputs}") == (
        2,
        f"error: --verify.folder {inputs} is not empty: give another one",
    )
    assert refusal(capsys, *run, "--verify.run-steps=3") == (
        2,
        "error: --verify.run-steps must be at least 4, not 3",
    )
    assert refusal(capsys, *run, "--verify.kills=0") == (2, "error: --verify.kills must be above 0, not 0")
    (tmp_path / "file").touch()
    assert refusal(capsys, *run, f"--verify.folder={tmp_path}/file/x") == (
        2,
        f"error: --verify.folder {tmp_path}/file/x: Not a directory",
    )
    monkeypatch.setenv("RANK", "0")
    assert refusal(capsys, *run) == (
        2,
        "error: only a run takes several processes: start this command without torchrun or accelerate launch",
    )
