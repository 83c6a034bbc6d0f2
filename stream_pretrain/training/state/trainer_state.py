"""trainer.json of a checkpoint: counters, options and versions of its run. Written and read here alone."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stream_pretrain.data.lanes.stream_state import CURSOR_VERSION
from stream_pretrain.data.rows.tokenizer_probe import EngineRecord
from stream_pretrain.errors import CheckpointError, DamagedCheckpointError
from stream_pretrain.training.files.manifest import json_of
from stream_pretrain.training.state.auto_learning_rate import Chosen
from stream_pretrain.training.state.passed_steps import Passed, passed_in
from stream_pretrain.training.state.totals import Totals
from stream_pretrain.typed_json import from_json

TRAINER = "trainer.json"
DEFAULTS_BEFORE_AUTO = {"train.learning_rate": 5e-4, "train.warmup_steps": 0}
"""Of a run that began before `auto`: its checkpoints have nothing that was chosen."""


@dataclass(frozen=True)
class Best:
    """The evaluation that a checkpoint was kept for."""

    loss: float
    documents: str
    """The fingerprint of the evaluation sets."""


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """What a checkpoint knows of its run beside tensors, cursors and shards."""

    step: int
    totals: Totals
    fixed: dict[str, Any]
    """The options that must not change in a run, by dotted name, without secrets."""
    max_steps: int | None
    max_epochs: int | None
    tokenizer: str
    """Its fingerprint."""
    engine: EngineRecord
    parent: str | None
    """The checkpoint of another run that this one began from."""
    world: int
    """The number of ranks."""
    defaults: dict[str, Any]
    """Those of the run's first start, by dotted name; of an option that is newer, those of the start that first knew it."""
    chosen: Chosen
    """The values of `auto`."""
    versions: dict[str, Any]
    """Of this program and of the libraries that decide what is learnt, by package."""
    commit: str | None
    skip_steps: list[str] = field(default_factory=list)
    """Steps that were passed over, as the option is given."""
    best: Best | None = None
    """The evaluation that the checkpoint was kept for."""

    @property
    def passed(self) -> Passed:
        """The steps that were passed over."""
        return passed_in(self.skip_steps, f"{TRAINER}: skip_steps")


def write_trainer_state(state: TrainerState, checkpoint: Path) -> None:
    """Write trainer.json, without `skip_steps` and `best` where there are none. Raises: OSError."""
    content = {name: value for name, value in dataclasses.asdict(state).items() if value or name not in ("skip_steps", "best")}
    (checkpoint / TRAINER).write_text(json.dumps(content), encoding="utf-8")


def read_trainer_state(checkpoint: Path) -> TrainerState:
    """Read trainer.json of a checkpoint that `refuse_other_version` accepts. Raises: CheckpointError."""
    where, content = f"{checkpoint / TRAINER}:", {"defaults": {}, **json_of(checkpoint / TRAINER)}
    is_before_auto = "chosen" not in content
    if is_before_auto:
        rate, warmup = DEFAULTS_BEFORE_AUTO.values()
        content["chosen"] = {"learning_rate": rate, "warmup_steps": warmup}
    state: TrainerState = from_json(TrainerState, content, where)
    if is_before_auto:
        state = dataclasses.replace(state, defaults={**state.defaults, **DEFAULTS_BEFORE_AUTO})
    for name, is_possible in {
        "max_steps": state.max_steps is None or state.max_steps > 0,
        "chosen": state.chosen.learning_rate > 0 and (state.chosen.warmup_steps or 0) >= 0,
    }.items():
        if not is_possible:
            raise CheckpointError(f"{where} {name} is {getattr(state, name)}, which no run writes: use another checkpoint")
    passed_in(state.skip_steps, f"{where} skip_steps")
    return state


def read_fixed_options(checkpoint: Path) -> dict[str, Any]:
    """The fixed options of a checkpoint, also of another version. Raises: CheckpointError."""
    where = f"{checkpoint / TRAINER}: fixed"
    fixed: dict[str, Any] = from_json(dict[str, Any], json_of(checkpoint / TRAINER).get("fixed"), where)
    from_json(list[dict[str, Any]], fixed.get("data.sources", []), f"{where}.data.sources")
    return fixed


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, also of another version. Raises: DamagedCheckpointError where it contradicts itself."""
    content = json_of(checkpoint / TRAINER)
    step, totals = content.get("step"), content.get("totals")
    counted = totals.get("step") if isinstance(totals, dict) else None
    if type(step) is not int or type(counted) is not int or counted != step or step < 0:
        raise DamagedCheckpointError(f"{checkpoint / TRAINER} contradicts itself on the step: use another checkpoint")
    return step


def refuse_other_version(checkpoint: Path, instead: str, otherwise: str = "") -> None:
    """Refuse cursors of another version, which would lead to other rows. Raises: CheckpointError.

    instead: what to do with the version that wrote them; otherwise: what else.
    """
    version = json_of(checkpoint / "stream.json").get("version")
    if version != CURSOR_VERSION:
        content = json_of(checkpoint / TRAINER)
        versions = from_json(dict[str, Any], content.get("versions", {}), f"{checkpoint / TRAINER}: versions")
        commit = from_json(str | None, content.get("commit"), f"{checkpoint / TRAINER}: commit")
        known = [versions.get("stream_pretrain"), commit and f"commit {commit[:12]}"]  # commits may share a version
        writer = ", ".join(filter(None, known))
        raise CheckpointError(
            f"{checkpoint} has cursors of version {version}, this program reads version {CURSOR_VERSION}: {instead} "
            f"the stream_pretrain that wrote it{f' ({writer})' if writer else ''}{otherwise}"
        )
