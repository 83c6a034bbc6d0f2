"""OUT/config.yaml: the options of a run, as `--config` takes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from stream_pretrain.config import GROUPS, Config, redacted
from stream_pretrain.redaction import printable
from stream_pretrain.training.files.atomic_files import replace_file, writing
from stream_pretrain.urls import HIDDEN

NAME = "config.yaml"
_OF_THE_START = ("run.output_dir", "run.resume", "train.skip_steps")


def write_options(config: Config, parent: str | None, out: Path) -> None:
    """Write the options to OUT. parent: the checkpoint that the run began from, by --resume. Raises: CheckpointError."""
    with writing(out / NAME):
        replace_file(out / NAME, [line.encode() + b"\n" for line in _lines(config, parent)])


def _lines(config: Config, parent: str | None) -> Iterator[str]:
    yield "# The options of this run, rewritten at each start. A new run with them: --config FILE --output-dir FOLDER"
    if parent is not None:
        yield f"# It began from a checkpoint: --resume {printable(parent)}"
    groups = {group: dataclasses.asdict(getattr(config, group)) for group in GROUPS}
    for group, options in groups.items():  # not from `flatten`, which escapes names
        yield f"{group}:"
        for option, value in options.items():
            name = f"{group}.{option}"
            if name not in _OF_THE_START:
                yield from (f"  {line}" for line in _option(name, value))


def _option(name: str, value: Any) -> Iterator[str]:
    short, option = name.partition(".")[2].replace("_", "-"), f"--{name.replace('_', '-')}"
    if name == "model.trust_remote_code":
        yield f"# {short}: {str(value).lower()}   # on the command line only: {option}"
        return
    if isinstance(value, str) and (shown := redacted(name, value)) != value:
        yield f"# {short}: {printable(shown)}   # a secret is left out: give {option}"
        return
    if isinstance(value, tuple):
        value = [{key: inner for key, inner in record.items() if inner is not None} for record in value]
        if not value:
            return  # YAML has no word for this default
        if (shown := redacted(name, value)) != value:
            yield f"# {HIDDEN} stands where a secret is left out: put it back, or give {option}"
            value = shown
    dumped = yaml.safe_dump({short: value}, allow_unicode=True, sort_keys=False, width=10_000)
    if printable(dumped, kept="\n") != dumped:  # YAML reads some line ends of Unicode as its own
        dumped = yaml.safe_dump({short: value}, sort_keys=False, width=10_000)
    yield from dumped.splitlines()
