"""When a process of a run is killed: chosen by the verifying process, obeyed by the training one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Where = Literal["start", "step", "save", "rename", "worker"]


@dataclass(frozen=True)
class KillMoment:
    """A moment of a run at which a process of it gets SIGKILL."""

    where: Where
    """start: while the process starts; step: after a step; save, rename: while the checkpoint of a step is written, and when it
    is complete but has not got its name; worker: a data worker, after a step."""
    step: int = 0
    """The end of this step, or of the next one if it is past; of a save, the step that is saved."""
    seconds: float = 0.0
    """After that, or after the process started."""
    latest: int | None = None
    """The end of this step at the latest, however slow or fast the machine is."""
    rank: int = 0

    def __str__(self) -> str:
        match self.where:
            case "start":
                return f"{self.seconds:.1f} s after the start"
            case "step":
                return f"{self.seconds:.2f} s after step {self.step}" if self.step else "before step 1"
            case "save":
                return f"while step {self.step} was saved"
            case "rename":
                return f"before the checkpoint of step {self.step} had its name"
            case "worker":
                return f"a data worker after step {self.step}"
