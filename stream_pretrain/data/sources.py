"""What is read: ids, folders, globs and URLs become a pinned, sorted list of shards.

    @FILE           one of the following a line, `#` starts a comment
    path            a local file, folder or glob
    scheme://...    a URL or glob that fsspec knows (https, s3, gs, hf, memory...): a file, a folder, a pattern
    org/name        a dataset on the Hub, resolved by `datasets` and pinned to a commit

Sizes and identities come from the one listing that finds the files; no shard is opened here, except for the first and
last bytes of local files.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import logging
import os
import posixpath
import re
import urllib.parse
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import fsspec
import yaml
from fsspec.utils import glob_translate

from stream_pretrain.config import DataConfig, storage_options
from stream_pretrain.data.listings import (
    files_below,
    is_run_among,
    is_run_below,
    matching_files,
    once,
    split_pattern,
    without_runs,
)
from stream_pretrain.data.shard_names import (
    BUILDERS,
    FORMATS,
    Format,
    count_kinds,
    ending_of,
    has_known_ending,
    is_shard,
    kind_of,
    names_split,
    of_most_frequent_kind,
    splits_by_name,
)
from stream_pretrain.data.threads import OneThread
from stream_pretrain.data.transport import (
    Compression,
    TransportOptions,
    answered,
    compression_of,
    identity_of,
    told_by_servers,
)
from stream_pretrain.errors import SourceError, TransportError
from stream_pretrain.names import escaped
from stream_pretrain.urls import on_web, unsigned, without_secrets

logger = logging.getLogger(__name__)

_BUILDER_OF_FORMAT = {"jsonl": "json", "text": "text", "parquet": "parquet"}

_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?", re.ASCII)
_HUB_URL = re.compile(r"hf://datasets/(?P<id>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:convert|pr)/\w+|[^/]+))?(?:/(?P<path>.+))?")
_ENDS = 64 * 1024


@dataclass(frozen=True)
class Shard:
    """One file of the corpus as its owner published it."""

    url: str
    """What fsspec opens: an absolute local path or a URL; Hub URLs hold the commit."""
    name: str
    """Path relative to the corpus: what messages show and what survives a move of the corpus."""
    size: int | None
    """Stored (compressed) bytes, where the listing says."""
    identity: str | None
    """`KIND:VALUE` that changes with the content, where the listing (or the ends of a local file) says."""
    format: Format
    compression: Compression
    builder: str | None = None
    """For format "examples": the builder of `datasets` that reads it."""


@dataclass(frozen=True)
class Corpus:
    """The pinned shards of a dataset, sorted by name: cursors hold indices into them."""

    dataset: str
    """As the user gave it."""
    revision: str | None
    """Commit of a Hub dataset."""
    shards: tuple[Shard, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, without the secrets of URLs, names that are not UTF-8 escaped."""
        shards = [{**dataclasses.asdict(shard), "url": escaped(without_secrets(shard.url))} for shard in self.shards]
        return {"dataset": escaped(without_secrets(self.dataset)), "revision": self.revision, "shards": shards}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Corpus:
        """Back from `to_json`."""
        return cls(value["dataset"], value["revision"], tuple(Shard(**shard) for shard in value["shards"]))


@dataclass(frozen=True)
class _Found:
    """What one id, path, glob or URL stands for: files by their path below `root`."""

    root: str
    files: dict[str, Shard]
    revision: str | None = None


def resolve(
    data: DataConfig, *, split: str | None = None, dataset: str | None = None, commits: Mapping[str, str] = MappingProxyType({})
) -> Corpus:
    """Find and pin the shards of `data.dataset`; `split` and `dataset` replace the configured ones (evaluation sets).

    commits: of Hub datasets, by id, that are pinned already; the others are pinned to where their revision is now.

    Raises: SourceError for what does not exist or holds no shards, TransportError for what cannot be reached.
    """
    if dataset is not None:  # the other options name parts of the configured dataset
        data = dataclasses.replace(
            data, dataset=dataset, name=None, split="train", revision=None, data_files=None, data_dir=None
        )
    if split is not None:
        data = dataclasses.replace(data, split=split, data_files=None)
    assert data.dataset is not None, "validated before"
    for kind in fsspec.registry.values():
        kind.clear_instance_cache()  # what was listed for another run of this process tells nothing of today

    if not data.dataset.startswith("@"):
        with OneThread("listing") as asking:
            found = _ask_for(data.dataset, data, commits, asking)
        return Corpus(data.dataset, found.revision, _sorted(found.files))
    with OneThread("listing") as asking:
        parts = [_ask_for(entry, data, commits, asking) for entry in _entries(Path(data.dataset[1:]))]
    revisions = {part.revision for part in parts}
    return Corpus(data.dataset, revisions.pop() if len(revisions) == 1 else None, _sorted(_merged(parts)))


def _merged(parts: Iterable[_Found]) -> dict[str, Shard]:
    """The files of all parts, by their paths below the folder that holds them all; a file found twice counts once."""
    by_location: dict[str, Shard] = {}
    for part in parts:
        for name, shard in part.files.items():
            location = f"{part.root}/{name}"
            if by_location.setdefault(location, shard).url != shard.url:
                urls = " and ".join(without_secrets(url) for url in (by_location[location].url, shard.url))
                raise SourceError(f"{urls} are shards of one name, {without_secrets(location)}")
    folders = [location.split("/")[:-1] for location in by_location]
    levels = list(zip(*folders, strict=False))
    common = next((level for level, names in enumerate(levels) if len(set(names)) > 1), len(levels))
    return {"/".join(location.split("/")[common:]): shard for location, shard in by_location.items()}


def commits_of(corpus: Corpus) -> dict[str, str]:
    """The commits that a corpus has its Hub datasets at, by id; one that it has at several is left out."""
    found: dict[str, set[str]] = {}
    for shard in corpus.shards:
        if hub := _HUB_URL.fullmatch(shard.url):
            found.setdefault(hub["id"], set()).add(hub["revision"])
    return {dataset_id: commits.pop() for dataset_id, commits in found.items() if len(commits) == 1}


MOST_ASKED_AGAIN = 2000
"""Files on web servers that are asked for one by one at every start, which takes seconds; more are at the first alone."""


def described(corpus: Corpus, data: DataConfig, pinned: Corpus | None = None) -> Corpus:
    """A corpus with the sizes and identities of its files on web servers, which no listing tells.

    pinned: what the run began with. Of many files, those that it knows are not asked for again: each is compared with it
    when it is opened.
    Raises: TransportError for what cannot be had.
    """
    unknown = [shard.url for shard in corpus.shards if shard.size is None and on_web(shard.url)]
    if len(unknown) > MOST_ASKED_AGAIN:
        known = set() if pinned is None else {without_secrets(shard.url) for shard in pinned.shards}
        unknown = [url for url in unknown if without_secrets(url) not in known]
    if len(unknown) > MOST_ASKED_AGAIN:
        logger.warning(
            "%s: asking servers for the size and ETag of %d files, one by one: some hundreds a second",
            without_secrets(corpus.dataset),
            len(unknown),
        )
    if not unknown:
        return corpus
    options = TransportOptions(storage_options(data.storage_options), data.retry_deadline)
    told = dict(zip(unknown, told_by_servers(unknown, options), strict=True))
    shards = (
        dataclasses.replace(shard, size=told[shard.url][0], identity=told[shard.url][1]) if shard.url in told else shard
        for shard in corpus.shards
    )
    return dataclasses.replace(corpus, shards=tuple(shards))


def find_again(pinned: Corpus, data: DataConfig) -> Corpus:
    """A pinned corpus where it lies now. What its Hub datasets have become since does not matter.

    A shard has the URL of today, and where it has moved the identity too; its size stays as it was pinned, since dealing
    depends on it.
    Raises: SourceError where the corpus is not the one that was pinned.
    """
    found = described(resolve(data, commits=commits_of(pinned)), data, pinned)
    check_unchanged(pinned, found)
    shards = (
        dataclasses.replace(was, url=now.url, identity=now.identity if _has_moved(was, now) and now.identity else was.identity)
        for was, now in zip(pinned.shards, found.shards, strict=True)
    )
    return dataclasses.replace(pinned, dataset=found.dataset, shards=tuple(shards))


def _has_moved(was: Shard, now: Shard) -> bool:
    """Whether a shard lies elsewhere; a new signature leads to the same place."""
    return escaped(without_secrets(was.url)) != escaped(without_secrets(now.url))


def check_unchanged(pinned: Corpus, found: Corpus) -> None:
    """Refuse a corpus that is not the one the run began with; the same content at another place passes.

    Raises: SourceError with the first shards that are missing, new or changed.
    """
    before = {shard.name: shard for shard in pinned.shards}
    now = {shard.name: shard for shard in found.shards}
    differences = [
        *(f"{name} is missing" for name in before if name not in now),
        *(f"{name} is new" for name in now if name not in before),
        *(f"{name} changed" for name in before if name in now and _changed(before[name], now[name])),
    ]
    if differences:
        shown = ", ".join(differences[:3]) + (f" and {len(differences) - 3} more" if len(differences) > 3 else "")
        dataset = without_secrets(found.dataset)
        raise SourceError(f"{dataset} is not the corpus this run began with: {shown}; restore it or start a new run")


def _changed(before: Shard, now: Shard) -> bool:
    """Whether two shards of one name are known to differ."""
    if None not in (before.size, now.size) and before.size != now.size:
        return True
    if before.identity is None or now.identity is None:
        return False
    kind = before.identity.partition(":")[0]
    if kind != now.identity.partition(":")[0]:
        return False  # moved to another kind of store: only the sizes can be compared
    if kind == "etag" and _has_moved(before, now):
        return False  # an ETag depends on how the object was uploaded: a copy may have another one
    return before.identity != now.identity


def _sorted(files: Mapping[str, Shard]) -> tuple[Shard, ...]:
    """The shards by name; one that is not UTF-8 is escaped, since it is written into records and checkpoints."""
    by_name: dict[str, Shard] = {}
    for name, shard in files.items():
        if by_name.setdefault(escaped(name), shard) is not shard:
            raise SourceError(f"two files have a name that is shown as {escaped(name)}: rename one")
    return tuple(dataclasses.replace(by_name[name], name=name) for name in sorted(by_name))


def _entries(file: Path) -> list[str]:
    """The lines of @FILE without comments."""
    if not file.is_file():
        raise SourceError(f"@{file}: there is no such file")
    try:
        content = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"@{file}: is not UTF-8 text ({error.reason} at byte {error.start}): a list has one dataset a line"
        ) from error
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in content.splitlines()]
    if not any(lines):
        raise SourceError(f"@{file}: names no dataset")
    return [line for line in lines if line]


LEAST_PATIENCE = 60.0
"""Seconds that a listing may take however short the deadline of a retry is."""


def _ask_for(entry: str, data: DataConfig, commits: Mapping[str, str], asking: OneThread) -> _Found:
    """What `entry` stands for; asked again where a store is busy or a connection breaks."""
    scheme, separator, rest = entry.partition("://")
    url = scheme.lower() + separator + rest if separator else entry

    def ask() -> _Found:
        """In a thread: a library may wait without end, as where headers drip in."""
        answer = asking.call(lambda: _find(url, data, commits))
        patience = max(data.retry_deadline, LEAST_PATIENCE)
        try:
            return answer.result(patience)
        except TimeoutError:
            if answer.done():  # its own
                raise
            raise TransportError(
                f"{without_secrets(url)}: no answer for {patience:g} s; check the network and the server, "
                f"or raise --data.retry-deadline (now {data.retry_deadline:g} s)"
            ) from None

    found = answered(ask, without_secrets(url), data.retry_deadline)
    _say_mixture(without_secrets(url), list(found.files))
    return found


def _say_mixture(entry: str, names: Sequence[str]) -> None:
    """Files of two kinds in one place: some may lie there by chance."""
    counts = count_kinds(names)
    most = min(counts, key=lambda kind: (-counts[kind], kind))
    if few := [name for name in names if kind_of(name) != most]:
        logger.warning(
            "%s: files of several formats are read (%s): is %s meant? --data.data-files or a glob chooses",
            entry,
            in_words(counts),
            _shown(few),
        )


def in_words(kinds: Mapping[str, int]) -> str:
    """How many files are of each kind, the most frequent first."""
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0])))


def _shown(names: Collection[str]) -> str:
    """Some names, and how many more there are."""
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _find(entry: str, data: DataConfig, commits: Mapping[str, str]) -> _Found:
    """What `entry` stands for: a local path first, then a URL, then a Hub id."""
    if hub := _HUB_URL.fullmatch(entry.rstrip("/")):
        revision = urllib.parse.unquote(hub["revision"] or "") or data.revision
        return _find_on_hub(entry, hub["id"], revision, hub["path"], data, commits)
    if "://" in entry and not entry.startswith("file://"):
        return _find_url(entry, data)
    path = Path(os.path.expanduser(entry.removeprefix("file://")))
    if os.path.isfile(path):  # Path itself raises for a name that is too long, and above for a user who is not there
        _refuse_parts(entry, data, "name", "revision", "data_files", "data_dir")
        return _local(entry, path.parent, [path.name], data, chosen=True)
    if os.path.isdir(path):
        return _find_folder(entry, path, data)
    if glob.has_magic(entry):
        _refuse_parts(entry, data, "name", "revision", "data_files", "data_dir")
        root, pattern = split_pattern(path.as_posix())
        return _find_local_glob(entry, Path(root), pattern, data)
    if not _HUB_ID.fullmatch(entry):
        raise SourceError(f"{entry}: there is no such file or folder")
    return _find_on_hub(entry, entry, data.revision, None, data, commits)


def _refuse_parts(entry: str, data: DataConfig, *options: str) -> None:
    """Refuse options that choose a part of a dataset where there are no such parts."""
    for option in options:
        if getattr(data, option) is not None:
            raise SourceError(f"{entry}: --data.{option.replace('_', '-')} has no meaning for it, leave the option out")
    if data.split != "train" and data.data_files is None:
        raise SourceError(f"{entry}: there is no split {data.split!r}, only train")


def _shard(url: str, name: str, size: int | None, identity: str | None, data: DataConfig, builder: str | None = None) -> Shard:
    """The shard at `url`; its ending says how it is read, else `builder` does."""
    compression = compression_of(name)
    ending = ending_of(name)
    file_format = FORMATS.get(ending, "examples")
    if file_format == "examples":
        return Shard(url, name, size, identity, file_format, compression, BUILDERS.get(ending, builder))
    if data.reader == "datasets":
        return Shard(url, name, size, identity, "examples", compression, _BUILDER_OF_FORMAT[file_format])
    return Shard(url, name, size, identity, file_format, compression)


def _require(names: Iterable[str], entry: str, what: str = "no shard") -> list[str]:
    """The names, of which there must be some."""
    found = list(names)
    if not found:
        raise SourceError(f"{entry}: {what} there; shards end in {' '.join([*FORMATS, *BUILDERS])}, compressed or not")
    return found


# Local files


def _local(entry: str, root: Path, names: Iterable[str], data: DataConfig, *, chosen: bool = False) -> _Found:
    """Local files by their paths below `root`; `chosen` ones only need a known ending."""
    base = Path(os.path.abspath(root))
    kept = _require((name for name in names if chosen or is_shard(name)), entry)
    if chosen:
        _require(filter(has_known_ending, kept), entry, "the ending says no format")
    return _Found(base.as_posix(), {name: _local_shard(base / name, name, data) for name in kept})


def _local_shard(path: Path, name: str, data: DataConfig) -> Shard:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            ends = file.read(_ENDS)
            file.seek(max(0, size - _ENDS))
            ends += file.read(_ENDS)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
    return _shard(str(path), name, size, f"ends:{size}:{hashlib.sha256(ends).hexdigest()}", data)


def _find_local_glob(entry: str, root: Path, pattern: str, data: DataConfig) -> _Found:
    found = _require(matching_files(root, pattern), entry, "no file matches")
    found = _require(without_runs(found, is_run_below(root)), entry, "nothing but what a run has left matches")
    return _local(entry, root, once(root, found).values(), data)


def _find_folder(entry: str, folder: Path, data: DataConfig) -> _Found:
    """A folder: one that names splits has those, any other is one split with all shards below it."""
    root = folder / (data.data_dir or "")
    if not root.is_dir():
        raise SourceError(f"{entry}: there is no folder {data.data_dir} in it")
    if data.data_files is not None:
        _refuse_parts(entry, data, "name", "revision")
        return _find_local_glob(f"{entry}/{data.data_files}", root, data.data_files, data)
    shards = _require(filter(is_shard, without_runs(files_below(root), is_run_below(root))), entry)
    several = False
    if data.name is not None or _has_configs(root):
        splits, several = _splits_of_card(entry, root, shards, data)
        in_split = _of_other_kinds(shards, splits)
    elif any(map(names_split, shards)):
        named = splits_by_name(shards)
        splits = {split: of_most_frequent_kind(files) for split, files in named.items()}
        in_split = {name for files in named.values() for name in files}
    else:
        _refuse_parts(entry, data, "revision")
        return _local(entry, root, once(root, shards).values(), data)
    if several:  # the files of other configurations are not left out by mistake
        shards = [name for files in splits.values() for name in files]
    _require_split(entry, data.split, splits, shards)
    read = once(root, (name for files in splits.values() for name in files))  # over another way, perhaps
    left_out = [name for place, name in once(root, shards).items() if place not in read]
    _say_what_is_left_out(entry, left_out, splits, in_split)
    return _local(entry, root, once(root, splits[data.split]).values(), data)


def _splits_of_card(entry: str, root: Path, shards: Sequence[str], data: DataConfig) -> tuple[dict[str, list[str]], bool]:
    """The files of each split, as the folder's card has them, and whether it has several configurations."""
    base = root.resolve()  # as `datasets` names the files in it
    builder = _builder(entry, str(base), data)
    splits = {split: [Path(url).relative_to(base).as_posix() for url in urls] for split, urls in _splits(builder).items()}
    # `datasets` follows no link to a folder: the patterns of the card are asked about our listing too.
    for split, patterns in _patterns_of_card(root, builder.config.name).items():
        matches = [re.compile(glob_translate(posixpath.normpath(pattern))).match for pattern in patterns]
        splits[split] += [name for name in shards if name not in splits[split] and any(match(name) for match in matches)]
    return splits, len(builder.builder_configs) > 1


def _require_split(entry: str, split: str, splits: Mapping[str, Sequence[str]], shards: Sequence[str]) -> None:
    """Refuse a split that no name is of, and say which files are of none."""
    if split in splits:
        return
    left_out = sorted(set(shards).difference(*splits.values()))
    only = ", ".join(f"{name} ({_shown(files)})" if left_out else name for name, files in splits.items()) or "none"
    rest = f"; {_shown(left_out)} in none: name the files to read with --data.data-files" if left_out else ""
    raise SourceError(f"{entry}: there is no split {split!r}, only {only}{rest}")


def _of_other_kinds(names: Iterable[str], splits: Mapping[str, Sequence[str]]) -> set[str]:
    """Of files in several formats, `datasets` takes those of one."""
    kinds = count_kinds(name for files in splits.values() for name in files)
    return {name for name in names if kind_of(name) not in kinds}


def _say_what_is_left_out(
    entry: str, names: Iterable[str], splits: Mapping[str, Sequence[str]], in_split: Collection[str]
) -> None:
    """Files in no split, and files that are in one but not of the kind that most of it are of."""
    kinds = in_words(count_kinds(name for files in splits.values() for name in files))
    left_out = set(names).difference(*splits.values())
    for what, these in (
        ("in no split", left_out.difference(in_split)),
        (f"of another kind than {kinds}", left_out.intersection(in_split)),
    ):
        if these:
            number, verb = ("1 file", "is") if len(these) == 1 else (f"{len(these):,} files", "are")
            logger.warning(
                "%s: %s %s %s and %s not read: %s; --data.data-files names files in place of a split",
                *(entry, number, verb, what, verb, _shown(these)),
            )


def _has_configs(folder: Path) -> bool:
    """Whether the folder's card says which files are which configuration."""
    return (folder / ".huggingface.yaml").is_file() or bool(_configs_of_card(folder))


def _configs_of_card(folder: Path) -> list[dict[str, Any]]:
    """The configurations in the header of the folder's card."""
    card = folder / "README.md"
    header = re.match(r"---\n(.*?)\n---", card.read_text("utf-8", "replace"), re.DOTALL) if card.is_file() else None
    if header is None or "\nconfigs:" not in f"\n{header[1]}":
        return []
    try:
        configs = yaml.safe_load(header[1])["configs"]
    except yaml.YAMLError as error:
        raise SourceError(f"{card}: its header is not YAML: {' '.join(str(error).split())}") from error
    return [config for config in configs if isinstance(config, dict)] if isinstance(configs, list) else []


def _patterns_of_card(folder: Path, config_name: str) -> dict[str, list[str]]:
    """The patterns of files of each split of a configuration, as the folder's card has them."""
    from datasets.data_files import sanitize_patterns

    for config in _configs_of_card(folder):
        if config.get("config_name", "default") == config_name and "data_files" in config:
            below = config.get("data_dir", "")
            patterns = sanitize_patterns(config["data_files"])
            return {split: [posixpath.join(below, pattern) for pattern in of] for split, of in patterns.items()}
    return {}


# The Hub


def _find_on_hub(
    entry: str, dataset_id: str, revision: str | None, path: str | None, data: DataConfig, commits: Mapping[str, str]
) -> _Found:
    """A Hub dataset, or the file, folder or pattern `path` in it, at its commit in `commits`, else the one `revision` is at."""
    from huggingface_hub import HfFileSystem  # here, because importing it takes a second and local corpora do without

    token = storage_options(data.storage_options).get("token")
    canonical_id, commit = _pin(entry, dataset_id, commits.get(dataset_id, revision), token)
    commit = commits.get(canonical_id, commit)
    root = f"datasets/{canonical_id}@{commit}"
    # The instance `datasets` lists with, so that its listings are asked for once.
    filesystem: Any = HfFileSystem(token=token)
    builder = None
    if path is not None:
        _refuse_parts(entry, data, "name", "data_files", "data_dir")
        files = _list(filesystem, f"{root}/{path}", entry)
    elif data.data_files is not None:
        _refuse_parts(entry, data, "name")
        files = _list(filesystem, posixpath.join(root, data.data_dir or "", data.data_files), f"{entry}/{data.data_files}")
    else:
        location = f"hf://datasets/{canonical_id}"
        asked = _builder(entry, location, data, data_dir=data.data_dir, revision=commit, token=token)
        builder = str(asked.name)
        splits = {split: [url.removeprefix(f"hf://{root}/") for url in urls] for split, urls in _splits(asked).items()}
        below = f"{data.data_dir}/" if data.data_dir else ""
        known = _listed_on_hub(filesystem, root)
        shards = [n for n in without_runs(known, is_run_among(known)) if n.startswith(below) and is_shard(n)]
        if len(asked.builder_configs) > 1:  # the files of other configurations are not left out by mistake
            shards = []
        _require_split(entry, data.split, splits, shards)
        _say_what_is_left_out(entry, shards, splits, _of_other_kinds(shards, splits))
        wanted = [f"{root}/{name}" for name in splits[data.split]]
        listed = {
            info["name"]: info
            for folder in sorted({posixpath.dirname(name) for name in wanted})
            for info in filesystem.ls(folder, detail=True)
        }
        files = {name: listed[name] for name in wanted}
    inner_names = {name.removeprefix(f"{root}/"): name for name in files}
    found = {}
    for inner in without_runs(inner_names, is_run_among(_listed_on_hub(filesystem, root))):
        name, info = inner_names[inner], files[inner_names[inner]]
        # Endings this module does not know are left to the builder that `datasets` chose for them.
        if is_shard(inner) or builder not in {None, *_BUILDER_OF_FORMAT.values(), *BUILDERS.values()}:
            found[inner] = _shard(f"hf://{name}", inner, info["size"], _hub_identity(info), data, builder)
    _require(found, entry)
    return _Found(f"hf://datasets/{canonical_id}", found, commit)


def _listed_on_hub(filesystem: Any, root: str) -> list[str]:
    """The files of a Hub dataset that its listings so far have told of, by their paths in it."""
    listed = (info["name"] for infos in filesystem.dircache.values() for info in infos)
    return [name.removeprefix(f"{root}/") for name in listed if name.startswith(f"{root}/")]


def _pin(entry: str, dataset_id: str, revision: str | None, token: str | None) -> tuple[str, str]:
    """The id (an old name may lead to a new one) and the commit that a branch, a tag or nothing is at now."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi(token=token).dataset_info(dataset_id, revision=revision)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise SourceError(
            f"{entry}: neither a file or folder here nor a dataset on the Hub that can be read; a private one needs HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise SourceError(f"{entry}: has no revision {revision!r} on the Hub") from error
    assert info.sha is not None
    return info.id, info.sha


def _hub_identity(info: Mapping[str, Any]) -> str:
    return f"sha256:{info['lfs']['sha256']}" if info["lfs"] else f"git:{info['blob_id']}"


def _builder(entry: str, location: str, data: DataConfig, **chosen: str | None) -> Any:
    """What `datasets` reads a folder or a Hub dataset with: it knows their configurations and splits."""
    import datasets

    try:
        return datasets.load_dataset_builder(location, data.name, **chosen)
    except datasets.exceptions.DatasetNotFoundError as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise SourceError(f"{entry}: {said}; the token of an account that may read it goes into HF_TOKEN") from error
    except (FileNotFoundError, ValueError, RuntimeError) as error:  # the last for a dataset with a script of its own
        raise SourceError(f"{entry}: {' '.join(str(error).split())}") from error


def _splits(builder: Any) -> dict[str, list[str]]:
    """The files of each split."""
    return {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}


# Other stores


def _find_url(url: str, data: DataConfig) -> _Found:
    """A file, a folder or a pattern at a URL."""
    entry = without_secrets(url)
    _refuse_parts(entry, data, "name", "revision", "data_files", "data_dir")
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise SourceError(f"{entry}: is not a URL: {error}") from error
    if on_web(url) and "*" not in unsigned(url):  # a web server has no listings
        name = posixpath.basename(urllib.parse.unquote(parts.path))
        _require(filter(has_known_ending, [name]), entry, "the ending says no format")
        return _Found(entry.rpartition("/")[0], {name: _shard(url, name, None, None, data)})
    try:
        filesystem, path = fsspec.url_to_fs(url, **storage_options(data.storage_options))
    except (ImportError, ValueError, TypeError) as error:
        raise SourceError(f"{entry}: cannot be opened: {error}") from error
    files = _list(filesystem, path.rstrip("/"), entry)
    single = list(files) == [path]
    root = posixpath.dirname(path) if single else split_pattern(path)[0] if glob.has_magic(path) else path.rstrip("/")
    names = {file.removeprefix(root).lstrip("/"): file for file in files}
    names = {name: names[name] for name in without_runs(names, is_run_among(names))}
    kept = _require((name for name in names if is_shard(name) or (single and has_known_ending(name))), entry)
    shards = {
        name: _shard(
            filesystem.unstrip_protocol(names[name]), name, files[names[name]].get("size"), _identity(files[names[name]]), data
        )
        for name in kept
    }
    return _Found(filesystem.unstrip_protocol(root), shards)


def _identity(info: Mapping[str, Any]) -> str | None:
    """`KIND:VALUE` of a listed object."""
    return next((f"{kind}:{value}" for kind, value in identity_of(info).items()), None)


def _list(filesystem: Any, path: str, entry: str) -> dict[str, dict[str, Any]]:
    """The files that a path or pattern stands for, from listings alone."""
    try:
        found: dict[str, dict[str, Any]] = filesystem.glob(path, detail=True) if glob.has_magic(path) else {}
        files = {name: info for name, info in found.items() if info["type"] == "file"} or _list_literally(filesystem, path)
    except ValueError as error:  # what a store says of a name it cannot have
        raise SourceError(f"{entry}: cannot be listed: {' '.join(str(error).split())}") from error
    except TypeError as error:  # some file systems take any option, and meet one that is unknown when they connect
        raise SourceError(f"{entry}: cannot be listed with --data.storage-options: {error}") from error
    if not files:
        raise SourceError(f"{entry}: no file matches")
    return files


def _list_literally(filesystem: Any, path: str) -> dict[str, dict[str, Any]]:
    """The file at `path`, or all files below it. Asks for its folder, which the file system remembers for the next."""
    parent = posixpath.dirname(path)
    try:
        siblings = {info["name"].rstrip("/"): info for info in filesystem.ls(parent, detail=True)} if parent.strip("/") else {}
    except FileNotFoundError:
        return {}
    except PermissionError:
        if glob.has_magic(path):
            raise
        return {path: {"type": "file"}}  # a bucket may let everybody read its objects and nobody list them
    if path in siblings and siblings[path]["type"] == "file":
        return {path: siblings[path]}
    return dict(filesystem.find(path, detail=True))
