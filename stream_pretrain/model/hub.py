"""Models by name, here and on the Hub, and errors for names that lead to none.

One request checks the name before the libraries request file after file: without a connection, they retry each file for half a
minute, and they report a wrong name as a missing file.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from stream_pretrain.errors import ModelError, causes
from stream_pretrain.nearest_names import did_you_mean, nearest_path

ANSWER_SECONDS = 5.0
PAUSES = (0.5, 1.0)
"""Seconds between the attempts to reach the Hub."""
MOST_COMPARED = 100
_LFS = b"version https://git-lfs.github.com/spec/"


def only_cached(name: str, revision: str | None) -> bool:
    """Whether the model must come from the cache of this machine, since the Hub is unreachable, or offline mode is set.

    Raises: ModelError for a name that is no folder here and no model of the Hub, or for a revision that the model has not.
    """
    refuse_absent_folder(name)
    if os.path.exists(name):
        return False
    if constants.HF_HUB_OFFLINE:
        return True
    for pause in (*PAUSES, None):
        try:
            HfApi().model_info(name, revision=revision, timeout=ANSWER_SECONDS)
        except HFValidationError as error:
            raise _no_such_folder(name) from error
        except HfHubHTTPError as error:
            refuse_known(name, revision, error)
            if error.response is not None and error.response.status_code in (401, 403):
                raise ModelError(
                    f"{name}: the Hub refuses your token: set another HF_TOKEN, or log in with `hf auth login`"
                ) from error
            return False  # it is busy or out of order: the libraries retry
        except Exception as error:  # of an HTTP library, which the Hub's client has changed more than once
            faults = [cause for cause in causes(error) if isinstance(cause, OSError)]
            if not faults:
                raise
            if pause is None or any(isinstance(fault, TimeoutError) for fault in faults):
                return True
            time.sleep(pause)
        else:
            return False
    raise AssertionError("the last attempt returns")


def refuse_absent_folder(name: str) -> None:
    """Refuse a path that leads to no model, without asking the Hub. Raises: ModelError."""
    if os.path.exists(name):  # False for a name that is too long for a path, unlike Path.exists
        _refuse_run_folder(Path(name))
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        if page := re.fullmatch(r"https?://(?:huggingface|hf)\.co/([^/]+(?:/[^/]+)?)/?(?:tree/[^/]+/?)?", name):
            raise ModelError(f"{name} is a page of the Hub: give {page[1]}")
        raise _no_such_folder(name)


def refuse_no_model(name: str) -> None:
    """Refuse a folder without the configuration of a model. Raises: ModelError."""
    folder = Path(name)
    if not os.path.isdir(name):
        return
    try:
        settings = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError as error:
        raise ModelError(f"{name} is no model: {_in_place_of_a_model(folder)}") from error
    except OSError as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read ({error.strerror}): give another model") from error
    except ValueError as error:
        raise ModelError(f"{folder / 'config.json'} is not valid JSON ({error}): give another model") from error
    if not isinstance(settings, dict):
        raise ModelError(f"{folder / 'config.json'} is no JSON object: give another model")


def _in_place_of_a_model(folder: Path) -> str:
    """What a folder without a configuration is, or that it has none."""
    if (folder / "adapter_config.json").exists():
        return "it has an adapter (adapter_config.json), to be merged into its base model first"
    if any(folder.glob("*.gguf")):
        return "it has weights for llama.cpp (.gguf), which cannot be trained: give the model that they were made from"
    inside = sorted(path.parent for path in folder.glob("*/config.json"))
    return f"it has no config.json{did_you_mean(str(inside[0])) if len(inside) == 1 else ''}"


def refuse_known(name: str, revision: str | None, error: BaseException) -> None:
    """Raises: ModelError with advice for an error of the Hub, of the cache or of Git LFS, or for a model with its own code."""
    if (pointer := _pointer_of_lfs(Path(name))) is not None:
        raise ModelError(f"{pointer} is a pointer of Git LFS: get the file with `git lfs pull`") from error
    if "trust_remote_code" in str(error):
        raise ModelError(
            f"{name} needs Python code that comes with it (auto_map), which is not run: read it, then give"
            " --model.trust-remote-code on the command line, or choose another model"
        ) from error
    page = f"{constants.ENDPOINT}/{name}"
    for cause in causes(error):
        match cause:
            case GatedRepoError() if get_token() is None:
                raise ModelError(
                    f"{name} is gated: ask for access at {page}, then set HF_TOKEN, or log in with `hf auth login`"
                ) from error
            case GatedRepoError():
                raise ModelError(
                    f"{name} is gated, and the account of your HF_TOKEN has no access: ask for it at {page}"
                ) from error
            case RepositoryNotFoundError():
                near = _nearest_here(name) or _nearest_on_hub(name)
                raise ModelError(
                    f"{name} is neither a folder here nor a model on the Hub{did_you_mean(near) or ': check the name'}"
                    " (a private one needs HF_TOKEN)"
                ) from error
            case HFValidationError():
                raise _no_such_folder(name) from error
            case RevisionNotFoundError():
                raise ModelError(f"{name} has no revision {revision} on the Hub: check --model.revision") from error
            case LocalEntryNotFoundError() | OfflineModeIsEnabled():
                raise not_cached(name) from error


def not_cached(name: str) -> ModelError:
    """The error for a model that is neither here nor in the cache, while the Hub is unreachable."""
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"
    way_out = "unset it" if constants.HF_HUB_OFFLINE else "check the network"
    near = _nearest_here(name) or _nearest_cached(name)
    return ModelError(
        f"{name} is neither a folder here nor in the cache of this machine, and {reason}: {way_out}, "
        f"or give a folder{did_you_mean(near)}"
    )


def _pointer_of_lfs(folder: Path) -> Path | None:
    """A file of a model that Git has not fetched."""
    if not os.path.isdir(folder):
        return None
    for path in sorted(folder.glob("*")):
        with suppress(OSError):  # the error that is being answered says more than that of a file beside it
            if path.is_file():
                with path.open("rb") as file:
                    if file.read(len(_LFS)) == _LFS:
                        return path
    return None


def refuse_file(name: str) -> None:
    """Raises: ModelError where the name is that of a file, not of a folder."""
    if os.path.isfile(name):
        raise ModelError(f"{name} is a file: give the folder of the model or tokenizer that it belongs to")


def _no_such_folder(name: str) -> ModelError:
    at = re.fullmatch(r"([\w.-]+(?:/[\w.-]+)?)[@:]([\w./-]+)", name)
    way_out = f"; a revision is given apart: {at[1]} with --model.revision {at[2]}" if at else ""
    return ModelError(f"no such file or folder: {name}{did_you_mean(_nearest_here(name)) or way_out}")


def _refuse_run_folder(folder: Path) -> None:
    """Raises: ModelError for a folder of a run, or of its checkpoints, which contains models and is none."""
    if _is_model(folder):
        return
    patterns = ("model", "checkpoints/step-*", "best/step-*", "step-*")
    models = [path.parent for pattern in patterns for path in sorted(folder.glob(f"{pattern}/config.json"))]
    instead = f": give the model in it, {models[0] if models[0].name == 'model' else models[-1]}" if models else ""
    if (folder / "run.json").exists():
        raise ModelError(f"{folder} is the folder of a run{instead or ', without a model'}")
    if instead and models[-1].parent == folder:
        raise ModelError(f"{folder} has checkpoints in it{instead}")


def _nearest_here(name: str) -> str | None:
    found = nearest_path(Path(name))
    return str(found) if found is not None and _is_model(found) else None


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").exists() or (folder / "tokenizer.json").exists()


def _nearest_cached(name: str) -> str | None:
    folders = Path(constants.HF_HUB_CACHE).glob("models--*")
    return _most_alike(name, [folder.name.removeprefix("models--").replace("--", "/") for folder in folders])


def _nearest_on_hub(name: str) -> str | None:
    """The id of a popular model that is spelt like this one."""
    first, *more = re.split(r"[-_.]", name.rpartition("/")[2])
    search = first if more else first[: max(3, len(first) * 2 // 3)]
    try:
        found = [model.id for model in HfApi().list_models(search=search, sort="downloads", limit=MOST_COMPARED)]
    except HfHubHTTPError:  # the name is wrong all the same
        return None
    return _most_alike(name, found)


def _most_alike(name: str, known: list[str]) -> str | None:
    """The id that is most alike, by its last part where the name has no other."""
    parts = {one if "/" in name else one.rpartition("/")[2]: one for one in reversed(known)}
    near = difflib.get_close_matches(name, parts, 1, 0.7)
    return parts[near[0]] if near else None


def first_line(error: BaseException) -> str:
    if isinstance(error, KeyError):  # whose words are the key alone
        return f"transformers does not know {error}"
    return str(error).strip().partition("\n")[0].rstrip(".:") or type(error).__name__
