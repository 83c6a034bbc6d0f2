"""Property tests try the same examples every time: a failure is seen again, and chance fails nobody else's change."""

from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.load_profile("same")
