"""The record (metrics.jsonl), and Weights & Biases without a server: disabled, offline, no key."""

import errno
import json
import os
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from stream_pretrain.config import RunConfig
from stream_pretrain.training.files import wandb_files
from stream_pretrain.training.files.records import trim_after
from stream_pretrain.training.report import tracking
from stream_pretrain.training.report.tracking import Tracker
from tests.forks import CHECKOUT, Forks

OPEN = """
import sys
import warnings
from pathlib import Path
from stream_pretrain.config import RunConfig
from stream_pretrain.errors import CheckpointError, ConfigError
from stream_pretrain.training.report.tracking import Tracker

warnings.simplefilter("error")

def open_tracker(wandb, resumed_step=None):
    return Tracker.open(RunConfig(wandb=wandb), Path("OUT"), config={"seed": 0}, resumed_step=resumed_step, report=print)
"""
PLAIN = {"PATH": os.environ["PATH"], "PYTHONPATH": str(CHECKOUT)}


@pytest.fixture(scope="module", autouse=True)
def clients() -> Iterator[Forks]:
    """Processes that have imported the client, without any settings of it."""
    forks = Forks(PLAIN, "wandb", "stream_pretrain.training.report.tracking")
    yield forks
    forks.close()


def run_python(clients: Forks, code: str, directory: Path, *, ends: int = 0, **environment: str) -> str:
    """What the code prints, run in `directory` by a user without any W&B settings; nothing may go to stderr."""
    (directory / "OUT").mkdir(exist_ok=True)
    done = clients.run(["-c", OPEN + code], {**PLAIN, "HOME": str(directory), **environment}, directory)
    assert done.stderr == ""
    assert done.returncode == ends
    return done.stdout


def open_local(out: Path, resumed_step: int | None = None) -> Tracker:
    return Tracker.open(RunConfig(wandb="disabled"), out, config={}, resumed_step=resumed_step, report=pytest.fail)


def test_every_call_is_one_flat_json_line(tmp_path: Path) -> None:
    with open_local(tmp_path) as tracker:
        tracker.log(10, {"train/loss": 2.5, "train/documents": 320})
        tracker.log(20, {"eval/loss": 2.25})
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 10, "train/loss": 2.5, "train/documents": 320}\n{"step": 20, "eval/loss": 2.25}\n'
    )


def test_a_line_is_in_the_file_when_log_returns(tmp_path: Path) -> None:
    tracker = open_local(tmp_path)
    tracker.log(1, {"train/loss": 2.5})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "train/loss": 2.5}\n'
    tracker.finish("finished")


def test_values_that_are_not_finite_are_null_under_their_key(tmp_path: Path) -> None:
    with open_local(tmp_path) as tracker:
        tracker.log(1, {"train/loss": float("nan"), "train/grad_norm": float("inf"), "train/documents": 3})
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 1, "train/loss": null, "train/grad_norm": null, "train/documents": 3}\n'
    )


def test_a_reopened_record_goes_on_after_its_last_line(tmp_path: Path) -> None:
    for step in (1, 2):
        with open_local(tmp_path) as tracker:
            tracker.log(step, {"train/loss": 0.5})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "train/loss": 0.5}\n{"step": 2, "train/loss": 0.5}\n'


def test_a_second_finish_does_nothing(tmp_path: Path) -> None:
    with open_local(tmp_path) as tracker:
        tracker.finish("preempted")


@pytest.mark.parametrize("option", ["disabled", "auto"])
def test_disabled_does_not_import_wandb(
    option: Literal["disabled", "auto"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would fail
    run = RunConfig(wandb=option)
    with Tracker.open(run, tmp_path, config={}, resumed_step=None, report=pytest.fail) as tracker:
        tracker.log(1, {"train/loss": 0.5})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


@pytest.mark.parametrize("value", ["true", "1", "YES"])
def test_the_variable_that_turned_it_off_in_transformers_turns_it_off_here_and_one_line_says_so(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DISABLED", value)
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would fail
    said: list[str] = []
    with Tracker.open(RunConfig(), tmp_path, config={}, resumed_step=None, report=said.append):
        pass
    assert said == ["W&B is off, by the variable WANDB_DISABLED"]


@pytest.mark.parametrize(
    ("variables", "option", "wanted"),
    [
        ({"WANDB_DISABLED": "true"}, "offline", "offline"),
        ({"WANDB_DISABLED": "false"}, "auto", "auto"),
        ({"WANDB_MODE": "dryrun"}, "auto", "offline"),
        ({"WANDB_MODE": "run"}, "auto", "online"),
        ({"WANDB_MODE": "Offline"}, "auto", "offline"),
        ({"WANDB_MODE": "disabled", "WANDB_DISABLED": "false"}, "auto", "disabled"),
    ],
)
def test_an_option_wins_over_the_variables_and_old_names_of_modes_are_known(
    variables: dict[str, str], option: Any, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert tracking._wanted(RunConfig(wandb=option)) == wanted


def test_without_a_key_the_run_is_offline_and_one_line_says_so(clients: Forks, tmp_path: Path) -> None:
    printed = run_python(clients, "open_tracker('auto').finish('finished')", tmp_path)
    run_id = (tmp_path / "OUT" / "wandb-id").read_text().strip()
    assert printed == (
        "W&B is offline, no API key: run `wandb login` or set WANDB_API_KEY;"
        f" upload with: wandb sync OUT/wandb/offline-run-*-{run_id}\n"
    )
    assert len(list((tmp_path / "OUT" / "wandb").glob(f"offline-run-*-{run_id}"))) == 1


def test_online_without_a_key_is_refused_and_says_how_to_give_one(clients: Forks, tmp_path: Path) -> None:
    refused = """
try:
    open_tracker("online")
except ConfigError as error:
    print(error)
"""
    expected = "W&B cannot be online, no API key: run `wandb login` or set WANDB_API_KEY, or give --run.wandb offline\n"
    assert run_python(clients, refused, tmp_path) == expected
    assert run_python(clients, refused, tmp_path, WANDB_MODE="offline") == expected


def test_with_an_unusable_key_the_run_is_offline_and_one_line_says_so(clients: Forks, tmp_path: Path) -> None:
    (line,) = run_python(clients, "open_tracker('auto').finish('finished')", tmp_path, WANDB_API_KEY="short").splitlines()
    assert line.startswith("W&B is offline, no usable API key (")


def test_a_mode_of_the_environment_that_wandb_does_not_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(ValueError, match=r"^WANDB_MODE is 'sometimes': set it to online, offline or disabled$"):
        Tracker.open(RunConfig(), tmp_path, config={}, resumed_step=None, report=pytest.fail)


def test_offline_a_resumed_run_keeps_its_id_and_sends_no_step_twice(clients: Forks, tmp_path: Path) -> None:
    log = """
tracker = open_tracker("offline", resumed_step={resumed})
for step in range({first}, {last} + 1):
    tracker.log(step, {{"train/loss": step + 0.03125}})
tracker.finish("preempted")
"""
    run_python(clients, log.format(resumed=None, first=1, last=4), tmp_path)
    (tmp_path / "OUT" / "metrics.jsonl").write_text('{"step": 2, "train/loss": 2.03125}\n')  # as trimmed to a checkpoint
    run_python(clients, log.format(resumed=2, first=3, last=6), tmp_path)
    files = sorted((tmp_path / "OUT" / "wandb").glob("offline-run-*/*.wandb"))
    assert [list(wandb_files._steps(path)) for path in files] == [[1, 2, 3, 4], [5, 6]]
    run_id = (tmp_path / "OUT" / "wandb-id").read_text().strip()
    assert [path.name for path in files] == [f"run-{run_id}.wandb"] * 2


def steps_in_files(out: Path) -> list[int]:
    """The steps of all offline files, as often as they are there."""
    files = (out / "wandb").glob("offline-run-*/*.wandb")
    return sorted(step for path in files for step in wandb_files._steps(path))


@pytest.mark.parametrize(("killed_after", "checkpoint"), [(45, 42), pytest.param(6, 6, marks=pytest.mark.long)])
def test_offline_the_files_have_every_step_once_after_a_hard_kill(
    clients: Forks, tmp_path: Path, killed_after: int, checkpoint: int
) -> None:
    log = """
import os
tracker = open_tracker("offline", {resumed})
for step in range({first}, {last} + 1):
    tracker.log(step, {{f"train/{{name}}": step + 0.03125 for name in range(20)}})
"""
    kill = """
import psutil
for client in psutil.Process().children(recursive=True):
    client.kill()
    client.wait()
os.kill(os.getpid(), 9)
"""
    run_python(clients, log.format(resumed=None, first=1, last=killed_after) + kill, tmp_path, ends=-9)
    [path] = (tmp_path / "OUT" / "wandb").glob("offline-run-*/*.wandb")
    os.truncate(path, path.stat().st_size // wandb_files.BLOCK * wandb_files.BLOCK)  # the client writes in blocks
    assert len(steps_in_files(tmp_path / "OUT")) < killed_after
    trim_after(tmp_path / "OUT" / "metrics.jsonl", checkpoint, pytest.fail)
    run_python(clients, log.format(resumed=checkpoint, first=checkpoint + 1, last=50) + "tracker.finish('finished')", tmp_path)
    assert steps_in_files(tmp_path / "OUT") == list(range(1, 51))
    record = (tmp_path / "OUT" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in record] == list(range(1, 51))


@pytest.mark.parametrize("steps", [0, 2000])
def test_a_client_that_hangs_is_given_up_in_one_line(clients: Forks, tmp_path: Path, steps: int) -> None:
    """It takes a while until nothing more can be handed over to it."""
    said = run_python(
        clients,
        f"""
import os, psutil, signal
from stream_pretrain.training.report import tracking
tracking.LOG_TIMEOUT_SECONDS = tracking.FINISH_TIMEOUT_SECONDS = tracking.CLIENT_EXIT_TIMEOUT_SECONDS = 0.5
tracker = open_tracker("offline")
for client in psutil.Process().children(recursive=True):
    os.kill(client.pid, signal.SIGSTOP)
for step in range({steps}):
    tracker.log(step, {{f"train/{{name}}": step + 0.03125 for name in range(20)}})
tracker.finish("finished")
""",
        tmp_path,
    )
    stopped = [line for line in said.splitlines() if line.startswith("W&B stopped: ")]
    assert len(stopped) == 1
    assert stopped[0].endswith("; OUT/metrics.jsonl has every metric")


def test_the_steps_of_a_file_are_read_up_to_where_it_is_damaged(clients: Forks, tmp_path: Path) -> None:
    run_python(
        clients,
        """
tracker = open_tracker("offline")
for step in range(1, 51):
    tracker.log(step, {f"train/{name}": step + 0.03125 for name in range(20)})
tracker.finish("finished")
""",
        tmp_path,
    )
    run_id = (tmp_path / "OUT" / "wandb-id").read_text().strip()
    [path] = (tmp_path / "OUT" / "wandb").glob("offline-run-*/*.wandb")
    content = path.read_bytes()
    assert wandb_files.steps_held(tmp_path / "OUT" / "wandb", run_id) == set(range(1, 51))
    for damaged in (content[:33_000], content[:40_000] + b"\0" + content[40_001:], content[:33_000] + bytes(1000)):
        path.write_bytes(damaged)
        held = wandb_files.steps_held(tmp_path / "OUT" / "wandb", run_id)
        assert held == set(range(1, max(held) + 1))
        assert 25 < max(held) < 50
    for empty in (b"", content[:7], content[:9]):
        path.write_bytes(empty)
        assert wandb_files.steps_held(tmp_path / "OUT" / "wandb", run_id) == set()
    assert wandb_files.steps_held(tmp_path / "OUT" / "wandb", "another") == set()


class View:
    """What Weights & Biases is handed."""

    def __init__(self, already: Collection[int] = ()) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.log = lambda step, metrics: self.lines.append((step, dict(metrics)))
        self.has = lambda step: step in already
        self.finish = lambda state: None


def test_a_disk_without_room_for_the_id_of_the_run_is_one_line_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, chunks: list[bytes]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    said: list[str] = []
    monkeypatch.setattr(tracking, "replace_file", full)
    with Tracker.open(RunConfig(wandb="offline"), tmp_path, config={}, resumed_step=None, report=said.append) as tracker:
        tracker.log(1, {"train/loss": 2.5})
    assert said == [
        f"W&B is off: its files in {tmp_path} cannot be used ([Errno 28] No space left on device); "
        "metrics.jsonl has every metric"
    ]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "train/loss": 2.5}\n'


def test_an_evaluation_that_comes_later_is_in_the_line_of_its_step(tmp_path: Path) -> None:
    view, record = View(), tmp_path / "metrics.jsonl"
    tracker = Tracker(record, view)  # type: ignore[arg-type]
    tracker.log(1, {"train/loss": 3.0}, more=True)
    tracker.log(2, {"train/loss": 2.0, "train/lr": float("nan")}, more=True)
    assert view.lines == [(1, {"train/loss": 3.0})]
    tracker.log(2, {"eval/loss": 1.0})
    tracker.log(3, {"train/loss": 1.5})
    assert record.read_text() == (
        '{"step": 1, "train/loss": 3.0}\n{"step": 2, "train/loss": 2.0, "train/lr": null, "eval/loss": 1.0}\n'
        '{"step": 3, "train/loss": 1.5}\n'
    )
    assert [(step, list(metrics)) for step, metrics in view.lines] == [
        (1, ["train/loss"]), (2, ["train/loss", "train/lr", "eval/loss"]), (3, ["train/loss"]),
    ]  # fmt: skip


@pytest.mark.parametrize(("state", "sent"), [("finished", [1]), ("preempted", []), ("failed", [])])
def test_a_line_that_waits_for_its_evaluation_is_sent_by_a_run_that_has_finished_only(
    tmp_path: Path, state: Literal["finished", "preempted", "failed"], sent: list[int]
) -> None:
    view = View()
    tracker = Tracker(tmp_path / "metrics.jsonl", view)  # type: ignore[arg-type]
    tracker.log(1, {"train/loss": 3.0}, more=True)
    tracker.finish(state)
    assert [step for step, _ in view.lines] == sent


def test_a_resumed_run_completes_the_last_line(tmp_path: Path) -> None:
    record = tmp_path / "metrics.jsonl"
    record.write_text('{"step": 1, "train/loss": 0.1}\n{"step": 2, "train/loss": null, "train/documents": 3}\n')
    run = RunConfig(wandb="disabled")
    with Tracker.open(run, tmp_path, config={}, resumed_step=2, more=True, report=pytest.fail) as tracker:
        tracker.log(2, {"eval/loss": 1.0})
        tracker.log(3, {"train/loss": 1.5})
    assert record.read_text() == (
        '{"step": 1, "train/loss": 0.1}\n{"step": 2, "train/loss": null, "train/documents": 3, "eval/loss": 1.0}\n'
        '{"step": 3, "train/loss": 1.5}\n'
    )


def test_an_evaluation_of_a_step_that_was_sent_before_is_sent_alone(tmp_path: Path) -> None:
    view, record = View(already=[1, 2]), tmp_path / "metrics.jsonl"
    record.write_text('{"step": 2, "train/loss": 2.0}\n')
    tracker = Tracker(record, view)  # type: ignore[arg-type]
    tracker._held = 2, {"train/loss": 2.0}  # as `open` leaves it
    tracker.log(2, {"eval/loss": 1.0})
    tracker.log(3, {"train/loss": 1.5})
    assert view.lines == [(2, {"eval/loss": 1.0}), (3, {"train/loss": 1.5})]


WRONG_SETTINGS = [("WANDB_BASE_URL", "garbage"), ("WANDB_SILENT", "maybe"), ("WANDB_INIT_TIMEOUT", "abc")]


@pytest.mark.parametrize(("name", "value"), WRONG_SETTINGS)
def test_wrong_settings_of_wandb_are_one_line_and_the_run_goes_on_without(
    name: str, value: str, clients: Forks, tmp_path: Path
) -> None:
    printed = run_python(
        clients,
        """
for mode in ("auto", "offline"):
    tracker = open_tracker(mode)
    tracker.log(1, {"train/loss": 0.5})
    tracker.finish("finished")
try:
    open_tracker("online")
except ConfigError as error:
    print(error)
""",
        tmp_path,
        **{name: value},
    )
    auto, offline, online = printed.splitlines()
    setting = name.removeprefix("WANDB_").lower()
    assert auto.startswith(f"W&B is off: its client does not start ({setting}: ")
    assert offline.startswith(f"W&B is off: it did not start ({setting}: ")
    assert auto.endswith("; OUT/metrics.jsonl has every metric")
    assert offline.endswith("; OUT/metrics.jsonl has every metric")
    assert online.startswith(f"W&B cannot be online, its client does not start ({setting}: ")
    assert (tmp_path / "OUT" / "metrics.jsonl").read_text() == 2 * '{"step": 1, "train/loss": 0.5}\n'


def test_a_client_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    said: list[str] = []
    for mode in ("auto", "offline"):
        with Tracker.open(RunConfig(wandb=mode), tmp_path, config={}, resumed_step=None, report=said.append):  # type: ignore[arg-type]
            pass
    assert [line.partition(":")[0] for line in said] == ["W&B is off", "W&B is off"]


def test_a_damaged_line_that_is_to_be_sent_is_named(clients: Forks, tmp_path: Path) -> None:
    printed = run_python(
        clients,
        """
Path("OUT/metrics.jsonl").write_text('{"step": 1}\\nrubbish\\n')
try:
    open_tracker("offline", resumed_step=2)
except CheckpointError as error:
    print(error)
""",
        tmp_path,
    )
    assert printed.splitlines()[-1] == "OUT/metrics.jsonl, line 2: not metrics; delete the line and run the command again"
