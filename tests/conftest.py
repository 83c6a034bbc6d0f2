"""Property tests try the same examples every time: a failure is seen again, and chance fails nobody else's change."""

import os
import tempfile

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: tests run side by side, on models that need no second thread

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share it: what is known of tokenizer engines is found out once
    cache = tempfile.TemporaryDirectory(prefix="stream-pretrain-tests-")
    os.environ["XDG_CACHE_HOME"] = cache.name

from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.load_profile("same")
