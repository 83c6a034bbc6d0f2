"""The inner loops of packing, masking and tensors, compiled: several times as fast as with numpy, and the same to the bit.

They exist if there was a C compiler when the package was installed.
"""

from __future__ import annotations

from types import ModuleType

VERSION = 4
"""Of their arguments and results; loops of another version, left by an earlier install, are not used."""


def _compiled() -> ModuleType | None:
    try:
        from stream_pretrain.data.rows import _native
    except ImportError:
        return None
    return _native if _native.VERSION == VERSION else None


compiled = _compiled()
"""`_native.c`, or None."""
