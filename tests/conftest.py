"""What all tests share. Property tests try the same examples every time, however long each takes: a failure is seen again."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: tests run side by side, on models that need no second thread

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share it: what is known of tokenizer engines is found out once
    cache = tempfile.TemporaryDirectory(prefix="stream-pretrain-tests-")
    os.environ["XDG_CACHE_HOME"] = cache.name

import pytest
from hypothesis import HealthCheck, settings

may_be = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=may_be)
settings.load_profile("same")

# What is begun in the background, or by nohup, ignores these, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT and its tokenizer, which no test changes."""
    from tests.corpora import write_tiny_bert  # which imports transformers

    return write_tiny_bert(tmp_path_factory.mktemp("model"))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Names a parameter of bytes by its argument: a gzip has the time, and every process has to collect the same names."""
    return argname if isinstance(val, bytes) else None
