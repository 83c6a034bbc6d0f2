"""Property tests try the same examples every time: a failure is seen again, and chance fails nobody else's change."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: tests run side by side, on models that need no second thread

from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.load_profile("same")
