"""The shuffled documents of a window, tokenized as its groups need them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.documents.document import Documents
from stream_pretrain.data.lanes.shuffled_text import ShuffledText
from stream_pretrain.data.randomness import keyed_generator
from stream_pretrain.data.rows.engine import Text
from stream_pretrain.data.rows.pieces import PIECE_CHARACTERS


@dataclass(frozen=True)
class Tokenized:
    """The documents with kept tokens, in order."""

    documents: NDArray[np.int64]
    """[D] numbers in the shuffled window."""
    pieces: NDArray[np.int64]
    """[D] the first kept piece of each."""
    tokens: NDArray[np.int64]
    """[D] kept tokens of each."""


class TokenizedWindow:
    """The shuffled documents of a window, cut into pieces, with the tokens of those that the next group may need.

    Documents are numbered in the shuffled order, pieces from the first of the window to its last.
    """

    def __init__(self, documents: Documents, key: Sequence[int], piece_edges: Callable[[str], list[int]]) -> None:
        order = keyed_generator(*key).permutation(len(documents.texts))
        texts = [documents.texts[text] for text in order.tolist()]
        self.offsets = np.array(documents.offsets, dtype=np.int64)[order]
        self.members = np.array(documents.members, dtype=np.int64)[order] if documents.members else None
        pieces = np.ones(len(order), dtype=np.int64)
        long = [number for number, text in enumerate(texts) if len(text) > PIECE_CHARACTERS]
        for number in reversed(long):
            edges = piece_edges(texts[number])
            pieces[number] = len(edges) - 1
            texts[number : number + 1] = [texts[number][begin:end] for begin, end in pairwise(edges)]
        self.first_pieces = np.append(0, np.cumsum(pieces))
        """First piece of each document, and the number of pieces."""
        self.characters_to = np.append(0, np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts))))
        """Characters before each piece, and of all."""
        self.text = ShuffledText(texts)
        """Of the pieces."""
        # Of the pieces from the one that a group begins with up to the first that is not tokenized:
        self.first = self.next = 0
        self.counts = np.empty(0, dtype=np.int64)  # tokens of each
        self.ids = [np.empty(0, dtype=np.int32)]  # in consecutive parts
        self.tokens = 0
        self._tokenized: Tokenized | None = None

    def __len__(self) -> int:
        """Documents."""
        return len(self.offsets)

    def begin_group(self, document: int, piece: int) -> None:
        """Drop the tokens before a piece of a document; tokenize from there on if none are kept."""
        first = self._piece(document, piece)
        if first > self.next:  # the first group after a resume
            self.text.take(self.characters_to[self.next : first + 1].tolist())
            self.next = first
        passed = first - self.first
        self.ids = [self.kept_ids()[int(self.counts[:passed].sum()) :]]
        self.tokens = len(self.ids[0])
        self.counts = self.counts[passed:]
        self.first, self._tokenized = first, None

    def kept_ids(self) -> NDArray[np.int32]:
        """The tokens of the pieces that are kept."""
        if len(self.ids) > 1:
            self.ids = [np.concatenate(self.ids)]
        return self.ids[0]

    def has(self, document: int, piece: int) -> bool:
        """Whether a group can begin with this piece of this document."""
        if document >= len(self):
            return document == piece == 0
        return self._piece(document, piece) < self._piece(document + 1, 0)

    def _piece(self, document: int, piece: int) -> int:
        return int(self.first_pieces[document]) + piece

    def _document_of(self, piece: int) -> int:
        return int(self.first_pieces.searchsorted(piece, side="right")) - 1

    @property
    def characters(self) -> int:
        """Of all documents."""
        return int(self.characters_to[-1])

    def characters_before(self, document: int, piece: int, token: int) -> int:
        """Approximate characters before a token of a piece of a document, which must be kept unless the token is its first."""
        begin = self._piece(document, piece)
        characters = int(self.characters_to[begin])
        if token:
            characters += int(self.characters_to[begin + 1] - characters) * token // int(self.counts[begin - self.first])
        return characters

    @property
    def has_more(self) -> bool:
        """Whether there are pieces that were not tokenized yet."""
        return self.next < len(self.characters_to) - 1

    @property
    def complete_documents(self) -> int:
        """Documents with kept tokens whose last piece is tokenized."""
        documents = self.tokenized().documents
        return len(documents) - int(self.has_more and self._document_of(self.next) in documents[-1:])

    def positions(self, framing: int) -> int:
        """Positions that the kept tokens need at least."""
        return self.tokens + framing * len(self.tokenized().documents)

    def next_texts(self, characters: int) -> tuple[list[Text], list[bool]]:
        """The next pieces to tokenize, of at least this number of characters in total; and which continue a document."""
        target = self.characters_to[self.next] + characters
        stop = min(max(self.next + 1, int(np.searchsorted(self.characters_to, target))), len(self.characters_to) - 1)
        pieces, self.next = np.arange(self.next, stop), stop
        texts = self.text.take(self.characters_to[pieces[0] : stop + 1].tolist())
        if len(self) == len(self.characters_to) - 1:
            return texts, []
        return texts, (self.first_pieces[np.searchsorted(self.first_pieces, pieces)] > pieces).tolist()

    def append(self, ids: NDArray[np.int32], counts: NDArray[np.int64], document_end: tuple[int, ...]) -> None:
        """Add the tokens of the last `next_texts`; document_end is appended to those of each document."""
        self.counts = np.concatenate([self.counts, counts])
        if document_end:
            ended = self._ended_with(len(counts))
            ends = np.cumsum(counts)[ended - (len(self.counts) - len(counts))]
            ids = np.insert(ids, np.repeat(ends, len(document_end)), np.tile(document_end, len(ended)))
            self.counts[ended] += len(document_end)
        self.ids.append(ids)
        self.tokens += len(ids)
        self._tokenized = None

    def _ended_with(self, count: int) -> NDArray[np.int64]:
        """The last pieces, as indices of kept ones, of the documents with tokens that end in the last `count` pieces."""
        before = self.next - count
        first, stop = np.searchsorted(self.first_pieces[1:], (before, self.next), side="right").tolist()
        begins = self.first_pieces[first:stop] - self.first
        ends = self.first_pieces[first + 1 : stop + 1] - self.first
        tokens_to = np.append(0, np.cumsum(self.counts))
        # A group begins within a document only if the group before had tokens of it.
        has_tokens = (begins < 0) | (tokens_to[ends] > tokens_to[np.maximum(begins, 0)])
        last: NDArray[np.int64] = ends[has_tokens] - 1
        return last

    def tokenized(self) -> Tokenized:
        """The documents that have kept tokens."""
        if self._tokenized is None:
            first, stop = (self._document_of(self.first), self._document_of(self.next - 1) + 1) if len(self.counts) else (0, 0)
            documents, pieces = np.arange(first, stop), np.maximum(self.first_pieces[first:stop], self.first)
            tokens = np.add.reduceat(self.counts, pieces - self.first) if len(pieces) else self.counts
            if not tokens.all():
                kept = tokens > 0
                documents, pieces, tokens = documents[kept], pieces[kept], tokens[kept]
            self._tokenized = Tokenized(documents, pieces, tokens)
        return self._tokenized

    def position_of(self, tokenized: Tokenized, index: int, token: int) -> tuple[int, int, int] | None:
        """Document, piece and token in it, of a token of the document at an index; None at the end of the window."""
        if index == len(tokenized.documents):
            assert not self.has_more
            return None
        document, piece = int(tokenized.documents[index]), int(tokenized.pieces[index])
        if token > 0:  # else the document begins with its first piece, which may have no tokens
            while token >= self.counts[piece - self.first]:
                token -= int(self.counts[piece - self.first])
                piece += 1
        return document, piece - int(self.first_pieces[document]), token

    def origins_of(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [D, 2] the shard of each document within the unit, and its offset there."""
        origins = np.zeros((len(documents), 2), dtype=np.int64)
        if self.members is not None:
            origins[:, 0] = self.members[documents]
        origins[:, 1] = self.offsets[documents]
        return origins

    def documents_without_tokens(
        self, tokenized: Tokenized, first: int, after: tuple[int, int, int] | None
    ) -> NDArray[np.int64]:
        """The documents without tokens, from the first up to `after`."""
        stop = len(self) if after is None else after[0]
        with_tokens = tokenized.documents[: np.searchsorted(tokenized.documents, stop)]
        if len(with_tokens) == stop - first:
            return with_tokens[:0]
        return np.setdiff1d(np.arange(first, stop), with_tokens, assume_unique=True)
