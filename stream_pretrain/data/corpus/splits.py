"""The splits that a dataset card or `datasets` names."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import yaml

from stream_pretrain.errors import SourceError


def has_configs(folder: Path) -> bool:
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


def patterns_of_card(folder: Path, config_name: str) -> dict[str, list[str]]:
    """The patterns of files of each split of a configuration, as the folder's card has them."""
    from datasets.data_files import sanitize_patterns

    for config in _configs_of_card(folder):
        if config.get("config_name", "default") == config_name and "data_files" in config:
            below = config.get("data_dir", "")
            patterns = sanitize_patterns(config["data_files"])
            return {split: [posixpath.join(below, pattern) for pattern in of] for split, of in patterns.items()}
    return {}


def splits_of(builder: Any) -> dict[str, list[str]]:
    """The files of each split."""
    return {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}
