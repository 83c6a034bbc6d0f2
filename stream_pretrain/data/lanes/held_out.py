"""Which documents are held out of training."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from stream_pretrain.data.documents.document import Documents


def kept(documents: Documents, heldout_fraction: float) -> Documents:
    """The documents that train: not those held out by the hash of their text."""
    if heldout_fraction == 0:
        return documents
    kept = [i for i, text in enumerate(documents.texts) if not is_heldout(text, heldout_fraction)]
    return replace(documents, texts=[documents.texts[i] for i in kept], offsets=[documents.offsets[i] for i in kept])


def is_heldout(text: str, fraction: float) -> bool:
    """Whether a document is held out of training: decided by its text alone, so that its copies are too."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2.0**64
