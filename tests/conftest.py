"""Property tests try the same examples every time: a failure is seen again, and chance fails nobody else's change."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: tests run side by side, on models that need no second thread

import pytest
from hypothesis import settings

from stream_pretrain.data import transport

settings.register_profile("same", derandomize=True)
settings.load_profile("same")


@pytest.fixture(autouse=True)
def _stores_told_nothing_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test is a process of its own to the memory of what stores told: tests use URLs again for other files."""
    monkeypatch.setattr(transport, "_FIRST_TOLD", {})
