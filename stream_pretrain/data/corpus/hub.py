"""Datasets of the Hub."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Any

from stream_pretrain.config import DataConfig, storage_options
from stream_pretrain.data.corpus.found import Found, of_other_kinds, refuse_parts, require, require_split, say_what_is_left_out
from stream_pretrain.data.corpus.listings import (
    is_run_among,
    without_runs,
)
from stream_pretrain.data.corpus.shard import BUILDER_OF_FORMAT, Corpus, builder_of, shard_at
from stream_pretrain.data.corpus.shard_names import (
    BUILDERS,
    is_shard,
)
from stream_pretrain.data.corpus.splits import splits_of
from stream_pretrain.data.corpus.stores import list_files
from stream_pretrain.errors import SourceError

HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?", re.ASCII)

HUB_URL = re.compile(r"hf://datasets/(?P<id>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:convert|pr)/\w+|[^/]+))?(?:/(?P<path>.+))?")


def commits_of(corpus: Corpus) -> dict[str, str]:
    """The commits that a corpus has its Hub datasets at, by id; one that it has at several is left out."""
    found: dict[str, set[str]] = {}
    for shard in corpus.shards:
        if hub := HUB_URL.fullmatch(shard.url):
            found.setdefault(hub["id"], set()).add(hub["revision"])
    return {dataset_id: commits.pop() for dataset_id, commits in found.items() if len(commits) == 1}


# The Hub


def find_on_hub(
    entry: str, dataset_id: str, revision: str | None, path: str | None, data: DataConfig, commits: Mapping[str, str]
) -> Found:
    """A Hub dataset, or the file, folder or pattern `path` in it, at its commit in `commits`, else the one `revision` is at."""
    from huggingface_hub import HfFileSystem  # here, because importing it takes a second and local corpora do without

    token = storage_options(data.storage_options).get("token")
    canonical_id, commit = pinned_revision(entry, dataset_id, commits.get(dataset_id, revision), token)
    commit = commits.get(canonical_id, commit)
    root = f"datasets/{canonical_id}@{commit}"
    # The instance `datasets` lists with, so that its listings are asked for once.
    filesystem: Any = HfFileSystem(token=token)
    builder = None
    if path is not None:
        refuse_parts(entry, data, "name", "data_files", "data_dir")
        files = list_files(filesystem, f"{root}/{path}", entry)
    elif data.data_files is not None:
        refuse_parts(entry, data, "name")
        files = list_files(filesystem, posixpath.join(root, data.data_dir or "", data.data_files), f"{entry}/{data.data_files}")
    else:
        location = f"hf://datasets/{canonical_id}"
        asked = builder_of(entry, location, data, data_dir=data.data_dir, revision=commit, token=token)
        builder = str(asked.name)
        splits = {split: [url.removeprefix(f"hf://{root}/") for url in urls] for split, urls in splits_of(asked).items()}
        below = f"{data.data_dir}/" if data.data_dir else ""
        known = _listed_on_hub(filesystem, root)
        shards = [n for n in without_runs(known, is_run_among(known)) if n.startswith(below) and is_shard(n)]
        if len(asked.builder_configs) > 1:  # the files of other configurations are not left out by mistake
            shards = []
        require_split(entry, data.split, splits, shards)
        say_what_is_left_out(entry, shards, splits, of_other_kinds(shards, splits))
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
        if is_shard(inner) or builder not in {None, *BUILDER_OF_FORMAT.values(), *BUILDERS.values()}:
            found[inner] = shard_at(f"hf://{name}", inner, info["size"], _hub_identity(info), data, builder)
    require(found, entry)
    return Found(f"hf://datasets/{canonical_id}", found, commit)


def _listed_on_hub(filesystem: Any, root: str) -> list[str]:
    """The files of a Hub dataset that its listings so far have told of, by their paths in it."""
    listed = (info["name"] for infos in filesystem.dircache.values() for info in infos)
    return [name.removeprefix(f"{root}/") for name in listed if name.startswith(f"{root}/")]


def pinned_revision(entry: str, dataset_id: str, revision: str | None, token: str | None) -> tuple[str, str]:
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
