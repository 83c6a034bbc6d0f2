"""`stream-pretrain [train]`: start or resume a run."""

from __future__ import annotations

import atexit
import os
import resource
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress

import torch

from stream_pretrain import exit_codes
from stream_pretrain.config import Config, secrets_of
from stream_pretrain.terminal import say
from stream_pretrain.training.files.out_files import MODEL
from stream_pretrain.training.ranks.launcher import tell_launcher
from stream_pretrain.training.ranks.meeting import meeting
from stream_pretrain.training.ranks.peers import ACKNOWLEDGE_SECONDS, STOPPED, between_ranks
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.ranks.signals import StopRequest
from stream_pretrain.training.ranks.watchdog import Watchdog
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.training.start.setup import set_up
from stream_pretrain.training.state.parallelism import accelerate_for_one_run, accelerator_for, collective_timeout
from stream_pretrain.training.steps.finished_run import complete_finished
from stream_pretrain.training.steps.run import State, train
from stream_pretrain.training.steps.run_process import RunProcess, ending_of

GROUPS = ("data", "model", "objective", "train", "eval", "run")
NEEDED = ("data.dataset", "model.path", "train.max_steps")
EXAMPLE = """
stream-pretrain --dataset 'data/*.jsonl.zst' --model bert-base-uncased \\
    --max-steps 10000 --output-dir runs/first
"""

MOST_OPEN_FILES = 65_536
"""What a process asks the system for: one for each of `validation.MOST_LANES`."""


@accelerate_for_one_run()
def run(config: Config, command: Sequence[str], stop: StopRequest) -> int:
    """Train; returns the exit code of this process."""
    _allow_many_open_files()
    with meeting():
        accelerator = accelerator_for(config)
        ranks = Ranks.of(accelerator.process_index, accelerator.num_processes, collective_timeout(config))
    secrets = secrets_of(config, os.environ)
    progress = Progress(sys.stderr if ranks.is_first else None)
    warn = progress.warning if ranks.is_first else lambda text: say(f"warning: {text}")
    state: State = "finished"
    with ExitStack() as stack:
        stack.callback(progress.close)
        process = RunProcess(config, command, ranks, stop, progress)
        with meeting():
            peers = stack.enter_context(between_ranks(ranks, stop, process.give_up, warn))
        stop.answer(process.answer, lambda name: process.quit_at_once(name, peers))
        watchdog = stack.enter_context(Watchdog(ranks, warn))
        try:
            with watchdog.stage("starting"):
                with stop.interruptible():
                    ranks.from_first(lambda: process.own_folder(stack))
                already = ranks.from_first(lambda: complete_finished(config, command, progress, stop, process.out))
                if already is None:
                    setup = set_up(config, command, accelerator, ranks, progress, stop, process.out)
                    process.begin(setup)
            if already is None:
                state = train(setup, process.writer, watchdog, stack)
        except SystemExit:  # the first rank reports why
            announced = peers.wait_for_ending(patience=ACKNOWLEDGE_SECONDS)
            if announced is not None and announced != STOPPED:
                tell_launcher(announced.why, announced.exit_code)
            raise
        except BaseException as error:
            explained = process.explained(error, peers)
            own_ending = ending_of(explained, ranks, secrets)
            announced = peers.announce(own_ending)
            process.record_end(announced or own_ending)
            peers.leave()  # cleanup, such as a checkpoint in progress, may take longer than the others wait
            if announced is not None and announced != STOPPED:
                tell_launcher(announced.why, announced.exit_code)
                raise SystemExit(announced.exit_code) from error  # the first rank to end reports why
            if (announced or own_ending) != STOPPED:
                if explained is error:
                    raise
                raise explained from error
            state = "preempted"
        else:
            # A launcher may kill the other ranks when one leaves, and the first one has the most to do.
            with watchdog.stage("waiting for the other ranks"), suppress(RuntimeError):  # one died: all is saved
                ranks.wait()
            peers.leave()
    if state == "preempted":
        stop.wait_for_answer()
        progress.notice(process.last_line(stop.signal or "a signal to another rank"))
    else:
        done = "finished" if already is None else f"already finished at step {already:,}"
        progress.notice(f"{done}; the model is in {process.out.path / MODEL}")
    if ranks.world > 1:
        # At exit: here, the last reference would be that of DDP, which then waits for threads that need its lock.
        atexit.register(torch.distributed.destroy_process_group)
    return exit_codes.FINISHED if state == "finished" else exit_codes.of_stopped_process(stop.signal)


def _allow_many_open_files() -> None:
    """Raise the limit of 1,024: each lane has an open file or connection per source. Data workers inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
