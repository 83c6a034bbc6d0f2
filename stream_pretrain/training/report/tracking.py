"""Metrics of a run: `metrics.jsonl` is the record, Weights & Biases a view of it.

A fault of Weights & Biases (no key, no network, a dead client) is reported in one line and never ends training. What it misses
is sent from the record at the next resume.
"""

from __future__ import annotations

import math
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Self

import psutil

from stream_pretrain.config import RunConfig
from stream_pretrain.errors import CheckpointError, ConfigError
from stream_pretrain.training.files.atomic_files import replace_file
from stream_pretrain.training.files.out_files import METRICS, WANDB, WANDB_ID, WANDB_SENT
from stream_pretrain.training.files.records import append, replace_last
from stream_pretrain.training.files.retried_reads import lines_of, parsed
from stream_pretrain.training.files.versions import repository
from stream_pretrain.training.files.wandb_files import steps_held
from stream_pretrain.training.ranks.signals import Interrupted
from stream_pretrain.typed_json import from_json

Mode = Literal["online", "offline", "disabled"]

CONNECT_TIMEOUT_SECONDS = 30
LOG_TIMEOUT_SECONDS = 60  # a line is handed over to the client at once: one that does not take it hangs
FINISH_TIMEOUT_SECONDS = 15  # a launcher kills 30 s after SIGTERM, and the last checkpoint comes first
CLIENT_EXIT_TIMEOUT_SECONDS = 3


class Tracker:
    """Writes every metric to OUT/metrics.jsonl, and to the Weights & Biases run of OUT. Created by the first rank."""

    def __init__(self, record: Path | None, view: WandbView | None) -> None:
        self._record = record
        self._view = view
        self._held: tuple[int, Mapping[str, float | int]] | None = None

    @classmethod
    def silent(cls) -> Self:
        """A tracker that writes nothing, for the other ranks."""
        return cls(None, None)

    @classmethod
    def open(
        cls,
        run: RunConfig,
        out: Path,
        *,
        config: dict[str, Any],
        resumed_step: int | None,
        report: Callable[[str], None],
        more: bool = False,
        only_missed: bool = False,
    ) -> Self:
        """Continue the record in `out`, and start or resume its Weights & Biases run.

        config: options shown with the run. resumed_step: the step of the checkpoint, None for a new run. report: takes
        lines for the user. more: as in `log`, for the resumed step. only_missed: start no client if it has every step.
        Raises: ConfigError when --run.wandb is online and there is no key; CheckpointError when a line of the record that
        has still to be sent is damaged.
        """
        path = out / METRICS
        mode, reason = _choose_mode(run, out, report)
        if only_missed and (not path.exists() or _has_all(out, mode)):
            mode = "disabled"
        view = None if mode == "disabled" else WandbView.open(run, out, mode, reason, config, report)
        tracker = cls(path, view)
        if resumed_step is not None and path.exists() and (view is not None or more):
            for step, metrics in _read_record(path):
                if more and step == resumed_step:
                    tracker._held = step, metrics
                elif step <= resumed_step:
                    tracker._show(step, metrics)
        return tracker

    def log(self, step: int, metrics: Mapping[str, float | int], *, more: bool = False) -> None:
        """Record the metrics of a step: one line, which the operating system has when this returns.

        more: an evaluation of this step may follow, perhaps after a resume, and is merged into the same line. Weights &
        Biases cannot change a line: it gets the step with the evaluation, or once the next step shows that there is none.
        """
        assert "step" not in metrics
        added = metrics
        held, self._held = self._held, None
        same = held is not None and held[0] == step
        if held is not None and same:
            metrics = {**held[1], **metrics}
        if self._record is not None:
            values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
            write = replace_last if same else append
            write(self._record, [{"step": step, **values}])
        if held is not None and not same:
            self._show(*held)
        if more:
            self._held = step, metrics
        else:
            self._show(step, metrics, added if same else None)

    def finish(self, state: Literal["finished", "preempted", "failed"]) -> None:
        """End the Weights & Biases run in this state; a second call does nothing."""
        if self._view is not None:
            if state == "finished" and self._held is not None:
                self._show(*self._held)
            self._view.finish(state)
            self._view = None

    def _show(self, step: int, metrics: Mapping[str, float | int], added: Mapping[str, float | int] | None = None) -> None:
        """Send the metrics of a step; only those `added` since, where Weights & Biases has the step already."""
        if self._view is not None and not self._view.has(step):
            self._view.log(step, metrics)
        elif self._view is not None and added is not None:
            self._view.log(step, added)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish("failed")  # does nothing after another `finish`


class WandbView:
    """The Weights & Biases run of one OUT: its id is in OUT/wandb-id, its files in OUT/wandb.

    A step is sent once. Online, the server knows the last step it has (also kept in OUT/wandb-sent-step); offline, the files of
    earlier starts do: the client writes in blocks, and a hard kill loses the last one.
    """

    def __init__(
        self,
        run: Any,
        mode: Literal["online", "offline"],
        sent: int | None,
        in_files: set[int],
        out: Path,
        report: Callable[[str], None],
    ) -> None:
        """sent: the last step on the server; in_files: the steps in offline files."""
        self._run, self._mode, self._sent, self._in_files, self._out, self._report = run, mode, sent, in_files, out, report
        self._last = sent
        self._working = True

    @classmethod
    def open(
        cls,
        run: RunConfig,
        out: Path,
        mode: Literal["online", "offline"],
        reason: str | None,
        config: dict[str, Any],
        report: Callable[[str], None],
    ) -> Self | None:
        """Start the run, or resume that of `out`; falls back to offline, then to None."""
        # Else the client reports its own errors over OpenTelemetry, and retries that noisily at exit while the server is down.
        os.environ.setdefault("OTEL_SDK_DISABLED", "true")
        sent_path = out / WANDB_SENT
        try:
            run_id = _run_id(out / WANDB_ID)
            sent: int | None = int(sent_path.read_text()) if sent_path.exists() else None
            in_files = steps_held(out / WANDB, run_id) if mode == "offline" else set()
        except (OSError, ValueError) as error:
            report(f"W&B is off: its files in {out} cannot be used ({_one_line(error)}); {METRICS} has every metric")
            return None

        upload = f"upload with: wandb sync {out / WANDB}/offline-run-*-{run_id}"
        try:
            started = _start_client(run, out, run_id, mode, config)
            if mode == "online":
                sent = started.summary.get("train/step")
                _keep_step(sent_path, sent)
        except Interrupted:
            _end_client()
            raise
        # Any exception: the client raises private types, and none may end training.
        except Exception as error:
            with suppress(Exception):  # the client may be what failed
                _end_client()
            if mode == "offline":
                report(f"W&B is off: it did not start ({_one_line(error)}); {out / METRICS} has every metric")
                return None
            return cls.open(run, out, "offline", f"online failed ({_one_line(error)})", config, report)
        if mode == "online":
            report(f"W&B: {started.url}")
        else:
            report(f"W&B is offline{f', {reason}' if reason else ''}; {upload}")
        return cls(started, mode, sent, in_files, out, report)

    def has(self, step: int) -> bool:
        """Whether an earlier start has sent the metrics of a step."""
        return (self._sent is not None and step <= self._sent) or step in self._in_files

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Give metrics to the client, which sends them from its own process."""
        if not self._working:
            return
        try:
            with _client_killed_after(LOG_TIMEOUT_SECONDS):
                self._run.log({"train/step": step, **metrics})
        # Any exception: it refuses, its process is dead, or a private one of its. The client itself retries outages.
        except Exception as error:
            self._fail(error)
        else:
            self._last = max(step, self._last or 0)

    def finish(self, state: Literal["finished", "preempted", "failed"]) -> None:
        """End the run in this state, and the process of the client, soon after FINISH_TIMEOUT_SECONDS at the latest."""
        exit_code = 0 if state == "finished" else 1
        try:
            try:
                with _client_killed_after(FINISH_TIMEOUT_SECONDS + CLIENT_EXIT_TIMEOUT_SECONDS):
                    if state == "preempted":
                        self._run.mark_preempting()
                    self._run.finish(exit_code=exit_code)
                if self._mode == "online" and self._working:  # the server has all steps
                    _keep_step(self._out / WANDB_SENT, self._last)
            finally:
                _end_client(exit_code)  # not at exit, where a failure prints a traceback
        # Any exception, as at the start: training is over and saved.
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self._working:
            self._working = False
            self._report(f"W&B stopped: {_one_line(error)}; {self._out / METRICS} has every metric")


def _start_client(run: RunConfig, out: Path, run_id: str, mode: Literal["online", "offline"], config: dict[str, Any]) -> Any:
    """The run of the client. Raises: any exception, also private types of the client."""
    import wandb  # takes a second

    wandb.setup(settings=wandb.Settings(mode=mode, silent=True))
    started = wandb.init(
        project=run.wandb_project,
        entity=run.wandb_entity,
        name=run.wandb_name or out.resolve().name,
        id=run_id,
        resume="allow",
        dir=out,
        mode=mode,
        config=config,
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=CONNECT_TIMEOUT_SECONDS,
            finish_timeout=FINISH_TIMEOUT_SECONDS,
            finish_timeout_raises=True,
            **repository(),  # else the client records the URL of the remote with its secrets
        ),
    )
    started.define_metric("train/step")
    started.define_metric("*", step_metric="train/step")
    return started


def _has_all(out: Path, mode: Mode) -> bool:
    """Whether Weights & Biases has every step of the record, or offline its files."""
    try:
        run_id = (out / WANDB_ID).read_text().strip()
        sent = int((out / WANDB_SENT).read_text()) if (out / WANDB_SENT).exists() else -1
        held = steps_held(out / WANDB, run_id) if mode == "offline" else set()
    except (OSError, ValueError):  # reported when the client starts
        return False
    return all(step <= sent or step in held for step, _ in _read_record(out / METRICS))


def _keep_step(path: Path, step: int | None) -> None:
    if step is None:
        path.unlink(missing_ok=True)
    else:
        replace_file(path, [b"%d\n" % step])


def _end_client(exit_code: int = 0) -> None:
    """End the process of the client, by force where it still waits for a server."""
    import wandb

    with _client_killed_after(CLIENT_EXIT_TIMEOUT_SECONDS), suppress(SystemExit):  # its process failed, or was killed here
        wandb.teardown(exit_code)


@contextmanager
def _client_killed_after(seconds: float) -> Iterator[None]:
    """Kill the process of the client if the block takes longer: where it is stopped, or waits for a disk, no call returns."""
    killer = threading.Timer(seconds, _kill_client)
    killer.daemon = True
    killer.start()
    try:
        yield
    finally:
        killer.cancel()


def _kill_client() -> None:
    for child in psutil.Process().children():
        if child.name() == "wandb-core":
            child.kill()


def refuse_wandb(run: RunConfig) -> None:
    """Refuse what no start can do, before anything else is done. Raises: ConfigError."""
    if _wanted(run) not in ("auto", "offline", "disabled"):  # else the client need not be imported yet
        _choose_mode(run, Path(), lambda _: None)


def _is_disabled() -> bool:
    """Whether WANDB_DISABLED, a variable of transformers, turns W&B off."""
    return os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on")


def _wanted(run: RunConfig) -> str:
    """The mode that the option asks for, or where it is auto the environment."""
    if run.wandb != "auto":
        return run.wandb
    if _is_disabled():
        return "disabled"
    mode = os.environ.get("WANDB_MODE", "").lower() or "auto"
    return {"dryrun": "offline", "run": "online"}.get(mode, mode)  # older names of the client


def _choose_mode(run: RunConfig, out: Path, report: Callable[[str], None]) -> tuple[Mode, str | None]:
    """The mode, and the reason for one that the user did not ask for. Raises: ConfigError."""
    match wanted := _wanted(run):
        case "offline":
            return "offline", None
        case "disabled":
            if run.wandb == "auto" and _is_disabled():
                report("W&B is off, by the variable WANDB_DISABLED")
            return "disabled", None
        case "auto" | "online":
            try:
                problem = _key_problem()
            except Exception as error:  # not installed, or a wrong value in a variable of its environment
                broken = f"its client does not start ({_one_line(error)})"
                if run.wandb == "online":
                    raise ConfigError(f"W&B cannot be online, {broken}: fix that, or give --run.wandb disabled") from error
                report(f"W&B is off: {broken}; {out / METRICS} has every metric")
                return "disabled", None
            if problem is None:
                return "online", None
            if wanted == "online":
                raise ConfigError(f"W&B cannot be online, {problem}, or give --run.wandb offline")
            return "offline", problem
        case _:
            raise ConfigError(f"WANDB_MODE is {wanted!r}: set it to online, offline or disabled")


def _key_problem() -> str | None:
    """What is wrong with the API key that the client finds in its environment, settings or netrc; never prompts."""
    import wandb

    wandb.setup(settings=wandb.Settings(mode="online", silent=True))
    try:
        found = wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError as error:
        return f"no usable API key ({_one_line(error)}): run `wandb login` or set WANDB_API_KEY"
    return None if found else "no API key: run `wandb login` or set WANDB_API_KEY"


def _read_record(path: Path) -> Iterator[tuple[int, dict[str, float | int]]]:
    """Steps and metrics of the record, in order; null is NaN."""
    for number, line in enumerate(lines_of(path), start=1):
        try:
            metrics = from_json(dict[str, Any], parsed(line), "")
            step = from_json(int, metrics.pop("step"), "")
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{path}, line {number}: not metrics; delete the line and run the command again") from error
        yield step, {name: math.nan if value is None else value for name, value in metrics.items()}


def _run_id(path: Path) -> str:
    if not path.exists() or not path.read_text().strip():
        replace_file(path, [secrets.token_hex(8).encode() + b"\n"])
    return path.read_text().strip()


def _one_line(error: Exception) -> str:
    if hasattr(error, "errors"):  # of pydantic, whose text contains the value, which may be a key
        return "; ".join(f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}" for wrong in error.errors())
    return " ".join(str(error).split()) or type(error).__name__
