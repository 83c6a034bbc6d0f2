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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import fsspec
from fsspec.utils import glob_translate

from stream_pretrain.config import DataConfig, storage_options
from stream_pretrain.data.transport import (
    Compression,
    TransportOptions,
    answered,
    compression_of,
    identity_of,
    told_by_servers,
)
from stream_pretrain.errors import SourceError
from stream_pretrain.urls import on_web, unsigned, without_secrets

Format = Literal["jsonl", "text", "parquet", "examples"]

logger = logging.getLogger(__name__)

FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".text": "text",
    ".parquet": "parquet",
}
"""Endings our own reader knows, each also with the ending of a compression."""

BUILDERS = {".csv": "csv", ".tsv": "csv", ".arrow": "arrow", ".tar": "webdataset"}
"""Further endings: the builder of `datasets` that reads them."""

_BUILDER_OF_FORMAT = {"jsonl": "json", "text": "text", "parquet": "parquet"}

# Files that lie beside the shards of a corpus and have a shard's ending.
_NOT_SHARDS = re.compile(
    r"(readme|licen[cs]e|notice|changelog)(\..*)?|(config|state|dataset_infos?|dataset_dict)\.json", re.IGNORECASE
)
# What `datasets` takes for the name of a split in a folder or file name.
_SPLIT_WORD = re.compile(
    r"(?:^|[-._ 0-9])(?:train|training|validation|valid|dev|val|test|testing|eval|evaluation)(?:[-._ 0-9]|$)"
)
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
        """As plain JSON values, without the secrets of URLs."""
        shards = [{**dataclasses.asdict(shard), "url": without_secrets(shard.url)} for shard in self.shards]
        return {"dataset": without_secrets(self.dataset), "revision": self.revision, "shards": shards}

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
        found = _ask_for(data.dataset, data, commits)
        return Corpus(data.dataset, found.revision, _sorted(found.files))
    parts = [_ask_for(entry, data, commits) for entry in _entries(Path(data.dataset[1:]))]
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
    return without_secrets(was.url) != without_secrets(now.url)


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
    return tuple(dataclasses.replace(files[name], name=name) for name in sorted(files))


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


def _ask_for(entry: str, data: DataConfig, commits: Mapping[str, str]) -> _Found:
    """What `entry` stands for; asked again where a store is busy or a connection breaks."""
    scheme, separator, rest = entry.partition("://")
    url = scheme.lower() + separator + rest if separator else entry
    return answered(lambda: _find(url, data, commits), without_secrets(url), data.retry_deadline)


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
        root, pattern = _split_pattern(path.as_posix())
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
    ending = _ending(name)
    file_format = FORMATS.get(ending, "examples")
    if file_format == "examples":
        return Shard(url, name, size, identity, file_format, compression, BUILDERS.get(ending, builder))
    if data.reader == "datasets":
        return Shard(url, name, size, identity, "examples", compression, _BUILDER_OF_FORMAT[file_format])
    return Shard(url, name, size, identity, file_format, compression)


def _ending(name: str) -> str:
    """The ending that says the format, below the one of a compression."""
    stem = name if compression_of(name) == "none" else posixpath.splitext(name)[0]
    return posixpath.splitext(stem)[1].lower()


def _has_known_ending(name: str) -> bool:
    return _ending(name) in {*FORMATS, *BUILDERS}


def _is_shard(name: str) -> bool:
    """Whether a file of a folder or glob belongs to the corpus, by its path in it."""
    parts = name.split("/")
    hidden = any(part.startswith(".") for part in parts)
    return not hidden and not _NOT_SHARDS.fullmatch(parts[-1]) and _has_known_ending(name)


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
    kept = _require((name for name in names if chosen or _is_shard(name)), entry)
    if chosen:
        _require(filter(_has_known_ending, kept), entry, "the ending says no format")
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
    parts = Path(pattern).parts
    if "**" in parts:
        first = parts.index("**")
        # As for a shell, two stars are one where they are only a part of a name.
        below = "/".join(part if part == "**" else re.sub(r"\*+", "*", part) for part in parts[first:])
        matches = re.compile(glob_translate(below)).match
        folders = sorted(glob.glob(f"{Path(*parts[:first])}/", root_dir=root))
        found = [Path(folder, name) for folder in folders for name in _files_below(root / folder) if matches(name)]
    else:
        found = [path for path in map(Path, glob.glob(pattern, root_dir=root)) if not (root / path).is_dir()]
    return _local(entry, root, _require((path.as_posix() for path in found), entry, "no file matches"), data)


def _files_below(root: Path) -> Iterator[str]:
    """The files below a folder but for hidden ones, by their paths in it. Links are followed where they lead to no circle.

    Raises: SourceError for a folder that cannot be read: its shards would be missing.
    """

    def refuse(error: OSError) -> None:
        raise SourceError(f"{error.filename}: cannot be read: {error.strerror}") from error

    root = Path(os.path.abspath(root))
    for place, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        here = Path(place)
        kept = (name for name in folders if not name.startswith(".") and name != "lost+found")  # root's own on each disk
        folders[:] = sorted(name for name in kept if not _leads_back(here / name))
        yield from ((here / name).relative_to(root).as_posix() for name in files)


def _leads_back(folder: Path) -> bool:
    """Whether a link leads to a folder that it lies in."""
    return folder.is_symlink() and any(map(folder.samefile, folder.parents))


def _split_pattern(pattern: str) -> tuple[str, str]:
    """The folders of a pattern before the first wildcard, and the rest."""
    parts = pattern.split("/")
    fixed = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return "/".join(parts[:fixed]) or ("/" if pattern.startswith("/") else ""), "/".join(parts[fixed:])


def _find_folder(entry: str, folder: Path, data: DataConfig) -> _Found:
    """A folder: `datasets` knows the splits of one that has them, any other is one split with all shards below it."""
    root = folder / (data.data_dir or "")
    if not root.is_dir():
        raise SourceError(f"{entry}: there is no folder {data.data_dir} in it")
    if data.data_files is not None:
        _refuse_parts(entry, data, "name", "revision")
        return _find_local_glob(f"{entry}/{data.data_files}", root, data.data_files, data)
    shards = _require(filter(_is_shard, _files_below(root)), entry)
    if data.name is None and not _has_configs(root) and not any(map(_names_split, shards)):
        _refuse_parts(entry, data, "revision")
        return _local(entry, root, shards, data)
    base = root.resolve()  # as `datasets` names the files in it
    splits, _ = _splits(entry, str(base), data)
    by_split = {split: [Path(url).relative_to(base).as_posix() for url in urls] for split, urls in splits.items()}
    if data.name is None:  # else the files of other configurations
        _say_what_is_left_out(entry, shards, by_split)
    return _local(entry, base, by_split[data.split], data)


def _say_what_is_left_out(entry: str, shards: Iterable[str], splits: Mapping[str, Sequence[str]]) -> None:
    """Of files in several formats, `datasets` takes those of one."""
    if left_out := sorted(set(shards).difference(*splits.values())):
        logger.warning(
            "%s: %d files are in no split and are not read, for example %s; --data.data-files names files in place of a split",
            entry,
            len(left_out),
            left_out[0],
        )


def _names_split(name: str) -> bool:
    return any(_SPLIT_WORD.search(part) for part in name.split("/"))


def _has_configs(folder: Path) -> bool:
    """Whether the folder's card says which files are which configuration."""
    card = folder / "README.md"
    header = re.match(r"---\n(.*?)\n---", card.read_text("utf-8", "replace"), re.DOTALL) if card.is_file() else None
    return (folder / ".huggingface.yaml").is_file() or (header is not None and "\nconfigs:" in f"\n{header[1]}")


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
        splits, builder = _splits(entry, location, data, data_dir=data.data_dir, revision=commit, token=token)
        wanted = [url.removeprefix("hf://") for url in splits[data.split]]
        listed = {
            info["name"]: info
            for folder in sorted({posixpath.dirname(name) for name in wanted})
            for info in filesystem.ls(folder, detail=True)
        }
        files = {name: listed[name] for name in wanted}
        if data.name is None:  # else the files of other configurations
            by_split = {split: [url.removeprefix(f"hf://{root}/") for url in urls] for split, urls in splits.items()}
            below = f"{root}/{data.data_dir}/" if data.data_dir else f"{root}/"
            known = (info["name"] for infos in filesystem.dircache.values() for info in infos if info["name"].startswith(below))
            _say_what_is_left_out(entry, filter(_is_shard, (name.removeprefix(f"{root}/") for name in known)), by_split)
    shards = {}
    for name, info in files.items():
        inner = name.removeprefix(f"{root}/")
        # Endings this module does not know are left to the builder that `datasets` chose for them.
        if _is_shard(inner) or builder not in {None, *_BUILDER_OF_FORMAT.values(), *BUILDERS.values()}:
            shards[inner] = _shard(f"hf://{name}", inner, info["size"], _hub_identity(info), data, builder)
    _require(shards, entry)
    return _Found(f"hf://datasets/{canonical_id}", shards, commit)


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


def _splits(entry: str, location: str, data: DataConfig, **chosen: str | None) -> tuple[Mapping[str, list[str]], str]:
    """Ask `datasets` for the files of each split, the configured one among them, and the builder it reads them with."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(location, data.name, **chosen)
    except datasets.exceptions.DatasetNotFoundError as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise SourceError(f"{entry}: {said}; the token of an account that may read it goes into HF_TOKEN") from error
    except (FileNotFoundError, ValueError, RuntimeError) as error:  # the last for a dataset with a script of its own
        raise SourceError(f"{entry}: {' '.join(str(error).split())}") from error
    splits: Mapping[str, list[str]] = {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}
    if data.split not in splits:
        raise SourceError(f"{entry}: there is no split {data.split!r}, only {', '.join(splits) or 'none'}")
    return splits, str(builder.name)


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
        _require(filter(_has_known_ending, [name]), entry, "the ending says no format")
        return _Found(entry.rpartition("/")[0], {name: _shard(url, name, None, None, data)})
    try:
        filesystem, path = fsspec.url_to_fs(url, **storage_options(data.storage_options))
    except (ImportError, ValueError, TypeError) as error:
        raise SourceError(f"{entry}: cannot be opened: {error}") from error
    files = _list(filesystem, path.rstrip("/"), entry)
    single = list(files) == [path]
    root = posixpath.dirname(path) if single else _split_pattern(path)[0] if glob.has_magic(path) else path.rstrip("/")
    names = {file.removeprefix(root).lstrip("/"): file for file in files}
    kept = _require((name for name in names if _is_shard(name) or (single and _has_known_ending(name))), entry)
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
