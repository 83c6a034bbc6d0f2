"""A probe at every start: a text must always have the same ids, on all ranks and as when the run began."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import tokenizers

from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.engine import Engine
from stream_pretrain.errors import CheckpointError, ModelError


@dataclass(frozen=True)
class EngineRecord:
    """The engine, its version, and a hash of its ids for the probe texts: kept in checkpoints."""

    name: str
    version: str
    texts: str
    """Hash of the probe texts, which may change with the version of this program."""
    ids: str
    tokenizers: str
    """Version of `tokenizers`, whose ids they are."""


def probed(encoder: Encoder, name: str) -> EngineRecord:
    """Tokenize the probe texts twice. name: of the tokenizer. Raises: ModelError where the ids differ."""
    engine, texts = encoder.build(), probe_texts()
    first = _ids(engine, texts)
    engine.forget()  # a cache would hide randomness
    if _ids(engine, texts) != first:
        raise ModelError(
            f"tokenizer {name} is random: a text has other ids each time, so no run could resume; use a deterministic one"
        )
    return EngineRecord(engine.name, engine.version, _digest(repr(texts).encode()), _digest(first), tokenizers.__version__)


def note_on_engine(engine: EngineRecord, recorded: EngineRecord) -> str | None:
    """A note on another engine than that of the checkpoint, `recorded`. Raises: CheckpointError where its ids differ."""
    was, now = (f"{record.name} {record.version}" for record in (recorded, engine))
    if recorded.texts != engine.texts:
        return f"ids of {was} at the start of the run cannot be compared with those of {now}: the probe has other texts"
    if recorded.ids != engine.ids:
        before = "before" if was == now else f"{was}, which the run began with"
        raise CheckpointError(
            f"{now} gives other ids than {before}: install tokenizers=={recorded.tokenizers}, or start a new run with another "
            "--output-dir"
        )
    return None if was == now else f"the run began with {was}, and resumes with {now}: the ids are the same"


def refuse_mismatch(engines: Sequence[EngineRecord]) -> None:
    """Refuse ranks whose ids differ. Raises: ModelError."""
    for rank, engine in enumerate(engines):
        if engine.ids != engines[0].ids:
            raise ModelError(
                f"{engine.name} {engine.version} of rank {rank} gives other ids than {engines[0].version} of rank 0: "
                "install the same version everywhere"
            )


def _ids(engine: Engine, texts: Sequence[str]) -> bytes:
    """The ids and lengths of some texts, as documents and as pieces that continue one, as bytes."""
    answers = [engine.encode(texts)]
    if engine.depends_on_start:
        answers.append(engine.encode(texts[:_WRITTEN], [True] * _WRITTEN))
    return b"".join(ids.tobytes() + lengths.tobytes() for ids, lengths in answers)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@cache
def probe_texts() -> tuple[str, ...]:
    """Texts in every script, and characters that a new version of Unicode may have changed."""
    return (*_TEXTS, *_sweep())


_TEXTS = (
    "The quick brown fox jumps over the lazy dog; it's 12,345.67 metres (≈ 7.7 mi) -- isn't it? “Yes…” ‘No’",
    "straße Ærø naïve façade ŁÓDŹ İstanbul ıĞŞ ǅ ﬁ ﬂ Ǆ ẞ",
    "e\u0301 a\u030a o\u0308\u0323 A\u0301\u0327 n\u0303\u0303 x\u0338 \u0344",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία ΟΔΥΣΣΕΎΣ",
    "Съешь же ещё этих мягких французских булок, Їжак ґедзь",
    "Յուրաքանչյուր ոք ჩვენ ვართ ქართველები ⴀⴁ ᏣᎳᎩ",
    "עברית שָׁלוֹם עולם العربيّة مرحبا بالعالم ﷺ ܫܠܡܐ ދިވެހި ߒߞߏ",
    "नमस्ते क्षत्रिय हिन्दी বাংলা ক্ষ ਪੰਜਾਬੀ ગુજરાતી ଓଡ଼ିଆ தமிழ் తెలుగు ಕನ್ನಡ മലയാളം සිංහල",
    "สวัสดีชาวโลก ภาษาไทย น้ำ ພາສາລາວ བོད་སྐད་ မြန်မာဘာသာ ភាសាខ្មែរ",
    "አማርኛ ሰላም ᠮᠣᠩᠭᠣᠯ ⵜⴰⵎⴰⵣⵉⵖⵜ ꦗꦮ ᮞᮥᮔ᮪ᮓ ꯃꯤꯇꯩ",
    "中文简体繁體漢字，標點。日本語ひらがなカタカナﾊﾝｶｸ ガ 한국어 \u1112\u1161\u11ab ㄅㄆㄇ 𠀀𪚥 豈",
    "x\u2e43x x\u0a76x x\u166dx x\u2e5dx x\u061dx x\u1b7dx",
    "👩\u200d👩\u200d👧\u200d👦 👍🏽 🇩🇪🇫🇷 ❤\ufe0f 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f 🫠",
    "\x00 a\x00b \x01\x02\x07\x08\x0b\x0c\x1b\x1f\x7f\x80\x85\x9f \ufeff\ufffd\ufffe\u200b\u200e\u202e\u2028\u2029\u00ad",
    "a\tb\r\nc\rd\n\n\n  e   f\u00a0g\u2003h\u3000i ",
    "[CLS] [SEP] [MASK] [PAD] [UNK] <s></s><pad><mask><unk> <|endoftext|> [unused1] <0x0A> ##ing ▁ ▁▁ Ġ Ċ",
    "def f(x):\n    return {'a': [1, 2.5e-3, 0xFF], \"b\": x != None}  # comment\n\t<div class='c'>&amp;</div>",
    "https://example.org/a_b-c?d=e&f=%20#g user@example.org C:\\dir\\file.txt 2024-02-29T12:34:56Z 1/2 ½ x² H₂O",
    "x" * 300 + " " + "ab" * 150 + " " + "0" * 120 + " " + "สวัสดี" * 40 + " " + "!?" * 60 + " " * 70,
    "",
)

_WRITTEN = len(_TEXTS)


def _sweep() -> Iterator[str]:
    """All characters that were neither letter nor number in Unicode 3.2, and a sample of the others, 16 to a word."""
    known = unicodedata.ucd_3_2_0
    alone = (range(0x21, 0x3400), range(0xA4D0, 0xAC00), range(0xFB00, 0x10000))
    some = (range(0x21, 0x3400, 17), range(0x3400, 0xA4D0, 251), range(0xAC00, 0xD7A4, 251), range(0x10000, 0x32000, 61))
    points = [point for block in alone for point in block if known.category(chr(point))[0] not in "LN"]
    points += [point for block in some for point in block]
    words = ["".join(f"a{chr(point)}" for point in points[first : first + 16]) for first in range(0, len(points), 16)]
    return (" ".join(words[first : first + 16]) for first in range(0, len(words), 16))
