"""Imports point one way, and what has to be light is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "stream_pretrain"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = Path(__file__).parent
LAYERS = [
    {"errors", "nearest_names", "non_utf8_names", "units", "urls"},
    {"exit_codes", "redaction", "typed_json"},
    {"config", "terminal"},
    {"arguments", "data", "model", "shown_commands"},
    {"training"},
    {"comparison", "inspection", "library", "replay", "verification"},
    {"command_checks", "commands"},
    {"help"},
    {"cli"},
    {"__main__", ""},
]
"""From the bottom to the top; parts of one layer do not know each other. "" is the package itself."""
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
ROOMS = {
    "data": ["randomness", "transport", "corpus", "documents", "rows", "lanes", "chain"],
    "training": ["files", "ranks", "state", "report", "evaluation", "start", "steps"],
}
"""From the bottom to the top: the way that a byte takes, and that a run takes."""
WITH_TORCH = {"stream_pretrain.data.rows.batches"}


def part_of(module: Path) -> str:
    """The part of the package that a module belongs to."""
    first = module.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


@cache
def imported(module: Path) -> list[str]:
    """Full names of what a module imports anywhere, inside functions too; `from a import b` counts as a.b."""
    names: list[str] = []
    for node in ast.walk(ast.parse(module.read_bytes())):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.name}: imports are absolute"
            names += (f"{node.module}.{alias.name}" for alias in node.names)
    return names


def loaded_by(code: str, *names: str) -> set[str]:
    """Which of these packages a fresh interpreter has loaded after some code."""
    code += f"\nimport sys; print('loaded', *{set(names)!r} & set(sys.modules))"
    finished = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    loaded, *packages = finished.stdout.splitlines()[-1].split()
    assert loaded == "loaded"
    return set(packages)


def test_every_module_belongs_to_a_layer() -> None:
    assert {part_of(module) for module in MODULES} == set(LEVEL)


def test_a_module_imports_only_from_its_own_part_and_from_below() -> None:
    for module in MODULES:
        own = part_of(module)
        parts = {name.split(".")[1] for name in imported(module) if name.startswith("stream_pretrain.")}
        assert [part for part in parts if part != own and LEVEL[part] >= LEVEL[own]] == [], module


@pytest.mark.parametrize(
    ("part", "foreign"), [("data", {"accelerate", "wandb"}), ("model", {"accelerate", "wandb", "datasets"})]
)
def test_data_and_model_know_nothing_of_training_and_tracking(part: str, foreign: set[str]) -> None:
    packages = {name.split(".")[0] for module in MODULES if part_of(module) == part for name in imported(module)}
    assert packages & foreign == set()


@pytest.mark.parametrize("part", ROOMS)
def test_a_module_imports_only_from_its_own_room_and_from_below(part: str) -> None:
    order, seen = ROOMS[part], set()
    for module in MODULES:
        way = module.relative_to(PACKAGE).with_suffix("").parts
        if way[0] == part and way[1] != "__init__":
            seen.add(way[1])
            rooms = {name.split(".")[2] for name in imported(module) if name.startswith(f"stream_pretrain.{part}.")}
            assert [room for room in rooms if order.index(room) > order.index(way[1])] == [], module
    assert seen == set(order)


def test_no_test_imports_from_another_test() -> None:
    from_tests = {name for module in sorted(TESTS.rglob("*.py")) for name in imported(module) if name.startswith("tests.")}
    assert from_tests
    assert [name for name in sorted(from_tests) if any(part.startswith("test_") for part in name.split("."))] == []


def test_all_of_data_but_the_batches_runs_without_torch() -> None:
    modules = {
        ".".join(module.relative_to(PACKAGE.parent).with_suffix("").parts) for module in (PACKAGE / "data").rglob("*.py")
    }
    assert modules > WITH_TORCH
    code = "".join(f"import {module.removesuffix('.__init__')}\n" for module in sorted(modules - WITH_TORCH))
    assert loaded_by(code, "torch", "transformers", "datasets", "accelerate", "wandb") == set()


def test_randomness_needs_numpy_and_nothing_else() -> None:
    heavy = {"torch", "transformers", "tokenizers", "datasets", "accelerate", "wandb", "pyarrow", "fsspec", "requests", "numpy"}
    assert loaded_by("import stream_pretrain.data.randomness", *heavy) == {"numpy"}


@pytest.mark.parametrize(
    "code",
    [
        "import stream_pretrain; stream_pretrain.Config, stream_pretrain.StreamPretrainError",
        "from stream_pretrain import config; config.validate",
        "from stream_pretrain.cli import main; assert main(['--help']) == 0",
        "from stream_pretrain.cli import main; assert main(['--dataset=x', '--model=y']) == 2",
        "from stream_pretrain.cli import main; assert (main(['--lr=3']), main(['a.yaml'])) == (2, 2)",
    ],
)
def test_options_help_and_usage_errors_load_nothing_heavy(code: str) -> None:
    assert loaded_by(code, "torch", "numpy", "transformers", "datasets", "accelerate", "wandb") == set()


FIRST_LINE = """
import io, os, sys

class Terminal(io.StringIO):
    def write(self, text):
        heavy = {"torch", "transformers", "datasets", "accelerate", "numpy", "pyarrow", "wandb", "huggingface_hub"}
        print(repr(text), sorted(heavy & set(sys.modules)), asked, flush=True)
        os._exit(0)

def asks(event, _):
    if event.startswith(("socket.connect", "socket.get", "socket.send", "subprocess.", "os.fork", "os.posix_spawn")):
        asked.append(event)

asked = []
sys.addaudithook(asks)
sys.stderr = Terminal()
from stream_pretrain.cli import main
main(["--dataset=org/corpus", "--model=org/bert", "--max-steps=3", "--output-dir=out"])
"""


def test_the_first_line_of_a_run_comes_before_anything_heavy_is_imported_and_anyone_is_asked() -> None:
    finished = subprocess.run([sys.executable, "-c", FIRST_LINE], capture_output=True, text=True, check=True)
    assert finished.stdout == "'run folder: out\\n' [] []\n"


def test_no_two_classes_have_one_name() -> None:
    names = [node.name for module in MODULES for node in ast.parse(module.read_bytes()).body if isinstance(node, ast.ClassDef)]
    assert [name for name, count in Counter(names).items() if count > 1] == []
