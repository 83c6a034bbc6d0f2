"""Datasets on the Hub, each pinned to a commit."""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any

from stream_pretrain.config import DataConfig, storage_options
from stream_pretrain.data.corpus.corpus_files import is_run_among, is_shard, without_runs
from stream_pretrain.data.corpus.file_formats import FILE_FORMATS
from stream_pretrain.data.corpus.listings import Listing, at_least_one, refuse_options
from stream_pretrain.data.corpus.remote_files import list_files
from stream_pretrain.data.corpus.shard import Corpus, shard_at
from stream_pretrain.data.corpus.splits import Splits, choose_split, dataset_builder, of_other_formats, splits_of_builder
from stream_pretrain.errors import SourceError

logger = logging.getLogger(__name__)

HUB_ID = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?", re.ASCII)

HUB_URL = re.compile(r"hf://datasets/(?P<id>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:convert|pr)/\w+|[^/]+))?(?:/(?P<path>.+))?")


def commits_of(corpus: Corpus) -> dict[str, str]:
    """The commit of each Hub dataset of a corpus, by id; without datasets that it has at several commits."""
    found: dict[str, set[str]] = {}
    for shard in corpus.shards:
        if hub := HUB_URL.fullmatch(shard.url):
            found.setdefault(hub["id"], set()).add(hub["revision"])
    return {dataset_id: commits.pop() for dataset_id, commits in found.items() if len(commits) == 1}


def list_hub_dataset(
    entry: str, dataset_id: str, revision: str | None, path: str | None, data: DataConfig, commits: Mapping[str, str]
) -> Listing:
    """A Hub dataset, or the file, folder or pattern `path` in it, at its commit in `commits`, otherwise at `revision`."""
    from huggingface_hub import HfFileSystem  # takes a second to import, which local corpora save

    token = hub_token(data)
    canonical_id, commit = _id_and_commit(entry, dataset_id, revision, commits, token)
    root = f"datasets/{canonical_id}@{commit}"
    # The instance that `datasets` lists with, so that each listing is requested once.
    filesystem: Any = HfFileSystem(token=token)
    builder = None
    if path is not None:
        refuse_options(entry, data, "name", "data_files", "data_dir")
        files = list_files(filesystem, f"{root}/{path}", entry)
    elif data.data_files is not None:
        refuse_options(entry, data, "name")
        files = list_files(filesystem, posixpath.join(root, data.data_dir or "", data.data_files), f"{entry}/{data.data_files}")
    else:
        location = f"hf://datasets/{canonical_id}"
        chosen = dataset_builder(entry, location, data, data_dir=data.data_dir, revision=commit, token=token)
        builder = str(chosen.name)
        names = choose_split(entry, data.split, _splits_on_hub(chosen, filesystem, root, data.data_dir))
        files = _infos_of(filesystem, [f"{root}/{name}" for name in names])
    paths = {path.removeprefix(f"{root}/"): path for path in files}
    builders = {None, *(file_format.builder for file_format in FILE_FORMATS)}
    shards = {}
    for name in without_runs(paths, is_run_among(_listed_on_hub(filesystem, root))):
        # Unknown endings are left to the builder that `datasets` has chosen.
        if is_shard(name) or builder not in builders:
            info = files[paths[name]]
            identity = f"sha256:{info['lfs']['sha256']}" if info["lfs"] else f"git:{info['blob_id']}"
            shards[name] = shard_at(f"hf://{paths[name]}", name, info["size"], identity, data, builder)
    at_least_one(shards, entry)
    return Listing(f"hf://datasets/{canonical_id}", shards, commit)


def hub_token(data: DataConfig) -> str | None:
    """The token in the options of a dataset; None for the default of the client."""
    token: str | None = storage_options(data.storage_options).get("token")
    return token


def _splits_on_hub(builder: Any, filesystem: Any, root: str, data_dir: str | None) -> Splits:
    splits = splits_of_builder(builder, f"hf://{root}")
    below = f"{data_dir}/" if data_dir else ""
    listed = _listed_on_hub(filesystem, root)
    shards = [name for name in without_runs(listed, is_run_among(listed)) if name.startswith(below) and is_shard(name)]
    # With several configurations, files are left out on purpose.
    left_out = set(shards).difference(*splits.values()) if len(builder.builder_configs) == 1 else set()
    return Splits(splits, left_out, of_other_formats(shards, splits))


def _infos_of(filesystem: Any, paths: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The entries of some files in the listings of their folders."""
    listed = {
        info["name"]: info
        for folder in sorted({posixpath.dirname(path) for path in paths})
        for info in filesystem.ls(folder, detail=True)
    }
    return {path: listed[path] for path in paths}


def _listed_on_hub(filesystem: Any, root: str) -> list[str]:
    """The files in the listings of a Hub dataset so far, by their paths in it."""
    listed = (info["name"] for infos in filesystem.dircache.values() for info in infos)
    return [name.removeprefix(f"{root}/") for name in listed if name.startswith(f"{root}/")]


def _id_and_commit(
    entry: str, dataset_id: str, revision: str | None, commits: Mapping[str, str], token: str | None
) -> tuple[str, str]:
    """The current id, and the commit in `commits`, unless it is gone: the files may be the same after a squashed history."""
    from huggingface_hub.errors import RevisionNotFoundError

    pinned = commits.get(dataset_id)
    try:
        canonical_id, commit = pinned_revision(entry, dataset_id, pinned or revision, token)
    except SourceError as error:
        if pinned is None or not isinstance(error.__cause__, RevisionNotFoundError):
            raise
        canonical_id, commit = pinned_revision(entry, dataset_id, revision, token)
        logger.warning("%s: commit %s, with which the run began, is gone; comparing the files of %s", entry, pinned, commit)
        return canonical_id, commit
    if pinned is None and canonical_id in commits:  # the dataset was renamed
        return _id_and_commit(entry, canonical_id, revision, commits, token)
    return canonical_id, commit


def pinned_revision(entry: str, dataset_id: str, revision: str | None, token: str | None) -> tuple[str, str]:
    """The current id, since datasets are renamed, and the commit of a branch, a tag or the default branch."""
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
