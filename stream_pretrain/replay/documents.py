"""Documents of a run by their place in the corpus: names, texts, and why one is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from stream_pretrain.config import suggestion
from stream_pretrain.data.documents.document import Documents
from stream_pretrain.data.documents.filters import is_heldout
from stream_pretrain.data.documents.reader import windows_of_unit
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.errors import ConfigError, ContentError, SourceError


def texts_of(plan: StreamPlan, wanted: set[tuple[int, int]], report: Callable[[str], None]) -> dict[tuple[int, int], str]:
    """The texts of documents by shard and offset. Reads their shards up to them. Raises: SourceError."""
    found: dict[tuple[int, int], str] = {}
    for number in sorted({shard for shard, _ in wanted}):
        missing = {offset for shard, offset in wanted if shard == number}
        for window in _windows(plan, [number], report):
            for text, offset in zip(window.texts, window.offsets, strict=True):
                if offset in missing:
                    found[number, offset] = text
                    missing.discard(offset)
            if not missing:
                break
        if missing:
            raise SourceError(f"no document begins at {plan.shards[number].name}:{min(missing)}: was the shard changed?")
    return found


def why_not_trained_on(plan: StreamPlan, number: int, offset: int, report: Callable[[str], None]) -> str | None:
    """Why a run trains on no document at this offset of a shard, in words; None where it does, sooner or later.

    Reads the shard up to it, or the bundle that it is in. Raises: SourceError.
    """
    source, before = plan.source_of(number), None
    unit = next(unit for unit in source.units if number - source.first_shard in unit)
    member = number - source.first_shard - unit.start
    shortest, longest = source.read.min_characters, source.read.max_characters
    try:
        for window in _windows(plan, [source.first_shard + shard for shard in unit], report):
            found = [(of, window.offsets[of]) for of in range(len(window.texts)) if window.origin_of(of)[0] == member]
            for index, there in found:
                if there != offset:
                    continue
                text = window.texts[index]
                if len(text) < shortest or (longest is not None and len(text) > longest):
                    return f"left out for its length, {len(text):,} characters"
                if source.read.drop_duplicates and text in window.texts[:index]:
                    where = "bundle of small shards" if len(unit) > 1 else "window"
                    return f"left out as a duplicate of one before it in its {where}"
                if is_heldout(text, source.heldout_fraction):
                    return "held out for evaluation"
                return None if plan.encoder.build().encode([text])[1][0] else "not used: nothing of its text is a token"
            skips = [skip for skip in (*window.skips, *window.empty) if skip.member == member]
            for skip in skips:
                if skip.offset == offset:
                    return f"not used: {skip.reason}"
            for damage in window.damaged:
                if damage.member == member and damage.offset <= offset:
                    return f"not used: after damage in its shard ({damage.error})"
            known = [*(there for _, there in found), *(skip.offset for skip in skips)]
            before = max([one for one in known if one < offset], default=before)
            if any(one > offset for one in known):
                break
    except ContentError as error:
        return f"not read here: after damage in its shard ({error}); quarantine.jsonl of the run names what was skipped for it"
    nearest = "" if before is None else f"; the one before it begins at {before}"
    return f"no document with text begins there{nearest}"


def _windows(plan: StreamPlan, numbers: Sequence[int], report: Callable[[str], None]) -> Iterator[Documents]:
    """The windows of a shard or bundle with all documents that have text: also too short or long ones, and duplicates."""
    every = replace(plan.source_of(numbers[0]).read, min_characters=0, max_characters=None, drop_duplicates=False)
    for count, window in enumerate(windows_of_unit([plan.shards[number] for number in numbers], every), start=1):
        report(f"{plan.shards[numbers[0]].name}, window {count}")
        yield window


def document_name(plan: StreamPlan, number: int, offset: int) -> str:
    """SHARD:OFFSET, prefixed with SOURCE: where there are several."""
    return ":".join([*plan.named(number).values(), str(offset)])


def place_of(plan: StreamPlan, name: str) -> tuple[int, int]:
    """Shard and offset of [SOURCE:]SHARD:OFFSET. Raises: ConfigError."""
    option = f"--ledger.document {name}"
    wanted, _, offset = name.rpartition(":")
    if not offset.isdecimal() or not wanted:
        raise ConfigError(f"{option}: give SHARD:OFFSET, as --ledger.step shows it")
    names = {document_name(plan, number, int(offset)): number for number in range(len(plan.shards))}
    numbers = [names[name]] if name in names else [at for at, shard in enumerate(plan.shards) if shard.name == wanted]
    if not numbers:
        near = suggestion(name, list(names)) or f"; the first one is {plan.shards[0].name}"
        raise ConfigError(f"{option}: the run has no shard of this name{near}")
    if len(numbers) > 1:
        raise ConfigError(f"{option}: several sources have this shard: give {document_name(plan, numbers[0], int(offset))}")
    return numbers[0], int(offset)
