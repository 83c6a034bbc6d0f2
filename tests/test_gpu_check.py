"""Every part of the GPU check runs on a CPU, and one that fails loses nothing. What it measures is not asked here."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.forks import ENVIRONMENT, trainers

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "gpu_check"

LOADED = f"""
import os, runpy, signal, subprocess, sys, time
from pathlib import Path

sys.path.insert(0, {str(SCRIPT.parent)!r})
gpu_check = runpy.run_path({str(SCRIPT)!r})
"""
WITH_OTHER_PARTS = """

def hangs(setting):
    yield {"started": subprocess.Popen(["sleep", "1000"]).pid}
    time.sleep(1000)

def raises(setting):
    print("what it says")
    yield {"half": 1}
    raise ValueError("no such kernel\\nand more")

def refuses(setting):
    yield {"error": 0.5}
    sys.exit("off by 0.5")

def dies(setting):
    yield {"before": 2}
    os.kill(os.getpid(), signal.SIGSEGV)

def passes(setting):
    yield {"first": setting}
    yield {"second": 4}

parts = [(hangs, 1), (raises, 100), (refuses, 100), (dies, 100), (passes, 100)]
parts = [gpu_check["Part"](run.__name__, run, 3, seconds) for run, seconds in parts]
gpu_check["check"](parts, {"device": None, "torch": "2", "transformers": "5"}, Path(sys.argv[1]))
"""


@pytest.fixture
def gpu_parts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu_parts

    return gpu_parts


def run(program: str, folder: Path) -> str:
    """What a program prints that has loaded the script; its argument is the folder."""
    (folder / "program.py").write_text(LOADED + program)
    done = trainers().run([str(folder / "program.py"), str(folder)], ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def test_parts_that_hang_raise_or_die_lose_neither_their_figures_nor_those_of_the_others(tmp_path: Path) -> None:
    printed = run(WITH_OTHER_PARTS, tmp_path)
    found = json.loads((tmp_path / "gpu_check.json").read_text())["parts"]
    assert {name: part["fault"] for name, part in found.items()} == {
        "hangs": "not done after 1 s",
        "raises": "ValueError: no such kernel",
        "refuses": "off by 0.5",
        "dies": "killed by SIGSEGV",
        "passes": None,
    }
    started = found["hangs"]["figures"].pop("started")
    assert [part["figures"] for part in found.values()] == [
        {},
        {"half": 1},
        {"error": 0.5},
        {"before": 2},
        {"first": 3, "second": 4},
    ]
    assert "what it says" in found["raises"]["log"]
    assert "ValueError: no such kernel" in found["raises"]["log"]
    assert found["passes"]["log"] == []
    for name in found:
        assert f"\n{name} " in f"\n{printed}"
    assert "    | ValueError: no such kernel\n    | and more\n    alone: scripts/gpu_check --only 'raises'\n" in printed
    while is_running(started):  # until the kernel has done what it was asked for
        time.sleep(0.01)


STOPPED = """

def is_stopped(setting):
    yield {"started": subprocess.Popen(["sleep", "1000"]).pid, "half": 1}
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(1000)

def is_not_reached(setting):
    yield {"more": 2}

parts = [gpu_check["Part"](run.__name__, run, 3, 100) for run in (is_stopped, is_not_reached)]
gpu_check["check"](parts, {"device": None, "torch": "2", "transformers": "5"}, Path(sys.argv[1]))
"""


def test_a_check_that_is_stopped_keeps_the_figures_of_the_part_that_ran_and_ends_it(tmp_path: Path) -> None:
    run(STOPPED, tmp_path)
    [(name, part)] = json.loads((tmp_path / "gpu_check.json").read_text())["parts"].items()
    started = part["figures"].pop("started")
    assert (name, part["fault"], part["figures"]) == ("is_stopped", "stopped: SIGTERM", {"half": 1})
    assert (tmp_path / "gpu_check.md").read_text().startswith("Tiny models on a CPU")
    while is_running(started):  # until the kernel has done what it was asked for
        time.sleep(0.01)


def test_the_limits_of_all_parts_are_within_eight_minutes(tmp_path: Path) -> None:
    printed = run("print(sum(part.seconds for part in gpu_check['parts_of']('')))", tmp_path)
    assert float(printed) <= 470  # and what it takes to begin


def test_a_part_that_there_is_not_is_refused_with_the_names_of_all(tmp_path: Path) -> None:
    done = trainers().run([str(SCRIPT), "--cpu", "--output", str(tmp_path), "--only", "wait", "trian"], ENVIRONMENT)
    assert done.returncode == 2
    assert "--only trian: the parts are attention, tests, prepare, train BERT-base 512, resume, save, " in done.stderr


def test_without_a_gpu_the_check_says_how_to_try_it_on_a_cpu(tmp_path: Path) -> None:
    done = trainers().run([str(SCRIPT), "--output", str(tmp_path)], ENVIRONMENT)
    assert done.returncode == 1
    assert done.stderr == "torch sees no GPU here: gpu_check --cpu tries every part on a CPU\n"
    assert not list(tmp_path.iterdir())


def test_the_table_has_a_line_for_each_measurement_and_nothing_of_a_part_without_figures(tmp_path: Path) -> None:
    eager = {"tokens_per_second": 402_345, "mfu": 0.3456, "data_wait_fraction": 0.0123, "peak_memory_gib": 21.34}
    compiled = {"tokens_per_second": 612_345, "mfu": None, "data_wait_fraction": 0.0, "peak_memory_gib": None}
    shape = {"architecture": "bert", "rows": 128, "sequence_length": 512}
    parts: dict[str, Any] = {
        "train BERT-base 512": {**shape, "eager": eager, "largest_micro_batch": 768, "compiled": compiled},
        "train ModernBERT-base 1024": {},
        "save": {"gigabytes": 1.314, "blocking_seconds": 0.05, "seconds_until_written": 3},
        "attention": {"BERT-base": {}},
    }
    found = {"device": "NVIDIA H200", "torch": "2.11.0", "transformers": "5.17.0"}
    found |= {"parts": {name: {"figures": figures} for name, figures in parts.items()}}
    lines = run(f"print(gpu_check['table']({found!r}))", tmp_path).splitlines()
    assert lines[0] == "NVIDIA H200, bf16; torch 2.11.0, transformers 5.17.0; one micro-batch a step."
    assert lines[4:] == [
        "| BERT-base | 128 x 512 | eager | 402,345 | 0.35 | 1.2% | 21.3 GiB | 768 rows |",
        "| BERT-base | 128 x 512 | compiled | 612,345 |  | 0.0% |  |  |",
        "",
        "A save of 1.314 GB blocks the training for 0.05 s.",
    ]


def test_the_largest_micro_batch_is_the_last_that_fits(gpu_parts: ModuleType) -> None:
    tried = []

    def fits(rows: int) -> bool:
        tried.append(rows)
        return rows < 30

    assert gpu_parts.largest(fits) == 24
    assert tried == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    assert gpu_parts.largest(lambda rows: False) is None
    assert gpu_parts.largest(lambda rows: True, limited=False) == 3


@pytest.mark.parametrize(("causal", "window"), [(False, None), (False, 3), (True, None), (True, 4)])
def test_attention_that_is_packed_agrees_with_each_document_alone(
    gpu_parts: ModuleType, causal: bool, window: int | None
) -> None:
    layer = gpu_parts.Attended("small", (1, 9, 6, 16), row=16, heads=4, key_heads=2, size=8, causal=causal, window=window)
    errors = gpu_parts.attention_errors(layer, "cpu")
    assert errors.keys() == {"output", "query", "key", "value"}
    assert all(0 < error < 0.02 for error in errors.values())


def test_a_single_document_that_sees_another_one_or_is_not_a_number_is_found(
    gpu_parts: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = gpu_parts.Attended("small", (2, 30, 32, 32, 32), row=32, heads=2, key_heads=2, size=8)
    exact = gpu_parts.packed_attention

    def leaks(*arguments: Any, cu_seq_lens_q: Tensor, **options: Any) -> Any:
        return exact(*arguments, cu_seq_lens_q=cu_seq_lens_q[cu_seq_lens_q != 2], **options)

    monkeypatch.setattr(gpu_parts, "packed_attention", leaks)
    assert all(error > 0.1 for error in gpu_parts.attention_errors(layer, "cpu").values())

    def breaks(*arguments: Any, **options: Any) -> Any:
        output, nothing = exact(*arguments, **options)
        return output * torch.where(torch.arange(32) == 1, torch.nan, 1.0).view(1, -1, 1, 1), nothing

    monkeypatch.setattr(gpu_parts, "packed_attention", breaks)
    assert gpu_parts.attention_errors(layer, "cpu")["output"] == float("inf")


def test_waits_for_the_device_are_counted_by_what_torch_says(gpu_parts: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def step() -> None:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    assert gpu_parts._synchronisations(step, cuda=True) == 3
    assert modes == ["warn", "default"]


@pytest.mark.long
@pytest.mark.timeout(1800)  # seconds of work for two cores that do nothing else: a minute
def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    done = trainers().run([str(SCRIPT), "--cpu", "--output", str(tmp_path)], ENVIRONMENT, timeout=1700)
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert done.returncode == 0, (done.stderr, found)
    assert found == json.loads(done.stdout.splitlines()[-1])  # no part has a log
    assert all(of_model["eager, ms, calls"]["all"][0] > 0 for of_model in found["parts"].values() if "eager" in of_model)
    assert (tmp_path / "gpu_check.md").read_text() in done.stdout
    figures = {name: part["figures"] for name, part in found["parts"].items()}
    trained = [figures.pop(f"train {name}") for name in ("BERT-base 512", "ModernBERT-base 1024", "ModernBERT-base 8192")]
    assert all(of_model["eager"]["tokens_per_second"] > 0 for of_model in trained)
    assert all(of_model["largest_micro_batch"] == 3 for of_model in trained)
    assert figures.keys() == {"prepare", "attention", "tests", "waits", "save", "resume"}
    assert figures["resume"]["steps"] in ([9, 8], [9, 4])  # a checkpoint every four, which is written beside the steps
    assert (figures["resume"]["rows_equal"], figures["resume"]["losses_differ_by"]) == (True, 0)
    assert 0 < figures["attention"]["largest_error"] < 0.02
    assert figures["tests"]["failed"] == figures["tests"]["passed"] == 0 < figures["tests"]["skipped"]
    assert figures["waits"].keys() == {"bert, eager", "bert, compiled", "modernbert, eager", "modernbert, compiled"}
    assert figures["save"]["blocking_seconds"] > 0
