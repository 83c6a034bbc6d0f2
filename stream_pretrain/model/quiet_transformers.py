"""Reports of transformers, which are not shown where a note or an error of this package says the same in a line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def unreported() -> Iterator[None]:
    """Nothing but errors of transformers is shown in the block."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
