"""Imports point one way, and what has to be light is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "stream_pretrain"
MODULES = sorted(PACKAGE.rglob("*.py"))
LAYERS = [
    {"earlier", "errors", "names", "urls"},
    {"redaction", "stored"},
    {"config", "terminal"},
    {"data", "model"},
    {"training"},
    {"commands"},
    {"cli"},
    {"__main__", ""},
]
"""From the bottom to the top; parts of one layer do not know each other. "" is the package itself."""
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def part_of(module: Path) -> str:
    """The part of the package that a module belongs to."""
    first = module.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported(module: Path) -> Iterator[str]:
    """Full names of what a module imports anywhere, inside functions too; `from a import b` counts as a.b."""
    for node in ast.walk(ast.parse(module.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.name}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def loaded_by(code: str, *names: str) -> set[str]:
    """Which of these packages a fresh interpreter has loaded after some code."""
    code += f"\nimport sys; print('loaded', *{set(names)!r} & set(sys.modules))"
    finished = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    loaded, *packages = finished.stdout.splitlines()[-1].split()
    assert loaded == "loaded"
    return set(packages)


def test_every_module_belongs_to_a_layer() -> None:
    assert {part_of(module) for module in MODULES} == set(LEVEL)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_own_part_and_from_below(module: Path) -> None:
    own = part_of(module)
    parts = {name.split(".")[1] for name in imported(module) if name.startswith("stream_pretrain.")}
    assert [part for part in parts if part != own and LEVEL[part] >= LEVEL[own]] == []


@pytest.mark.parametrize(
    ("part", "foreign"), [("data", {"accelerate", "wandb"}), ("model", {"accelerate", "wandb", "datasets"})]
)
def test_data_and_model_know_nothing_of_training_and_tracking(part: str, foreign: set[str]) -> None:
    packages = {name.split(".")[0] for module in MODULES if part_of(module) == part for name in imported(module)}
    assert packages & foreign == set()


def test_the_stages_before_the_stream_run_without_torch() -> None:
    stages = [module.stem for module in (PACKAGE / "data").glob("*.py") if module.stem not in ("__init__", "stream", "batches")]
    assert {"sources", "lanes", "objectives"} <= set(stages)
    code = "".join(f"import stream_pretrain.data.{stage}\n" for stage in stages)
    assert loaded_by(code, "torch", "transformers", "datasets", "accelerate", "wandb") == set()


@pytest.mark.parametrize(
    "code",
    [
        "import stream_pretrain; stream_pretrain.Config, stream_pretrain.StreamPretrainError",
        "from stream_pretrain import config; config.validate",
        "from stream_pretrain.cli import main; assert main(['--help']) == 0",
        "from stream_pretrain.cli import main; assert main(['--dataset=x', '--model=y']) == 2",
    ],
)
def test_options_help_and_usage_errors_load_nothing_heavy(code: str) -> None:
    assert loaded_by(code, "torch", "numpy", "transformers", "datasets", "accelerate", "wandb") == set()
