"""Where a start resumes from, and what it refuses."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from stream_pretrain.config import RunConfig, fixed_options
from stream_pretrain.errors import CheckpointError
from tests.training.checkpoints import flip_a_bit
from tests.training.run_folders import place, run_json
from tests.training.starts import COMMAND, config, save, start


def test_auto_begins_in_an_empty_folder_and_goes_on_in_a_used_one(tmp_path: Path) -> None:
    assert place(start(tmp_path)) == (None, None)
    save(tmp_path, 5)
    newest = save(tmp_path, 10)
    assert place(start(tmp_path)) == (newest, None)
    assert place(start(tmp_path, replace(config(), run=RunConfig(save_every=3)))) == (newest, None)


def test_auto_reports_a_damaged_checkpoint_and_takes_the_one_before(tmp_path: Path) -> None:
    older, newest = save(tmp_path, 5), save(tmp_path, 10)
    flip_a_bit(newest / "model.safetensors")
    lines: list[str] = []
    assert place(start(tmp_path, report=lines.append)) == (older, None)
    assert len(lines) == 1
    assert run_json(tmp_path)["step"] == 5


def test_no_refuses_a_used_folder_and_accepts_one_that_holds_nothing_yet(tmp_path: Path) -> None:
    start(tmp_path)
    assert place(start(tmp_path, config(resume="no"))) == (None, None)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(CheckpointError, match="has a run: resume it with --resume auto"):
        start(tmp_path, config(resume="no"))
    (tmp_path / "metrics.jsonl").unlink()
    save(tmp_path, 5)
    with pytest.raises(CheckpointError, match="has a run"):
        start(tmp_path, config(resume="no"))


def test_a_path_begins_a_new_run_that_the_same_command_goes_on_with(tmp_path: Path) -> None:
    given, out = save(tmp_path / "first", 5), tmp_path / "second"
    of = config(resume=str(given))
    assert place(start(out, of)) == (given, str(given))
    assert [run_json(out)[name] for name in ("step", "parent")] == [5, str(given)]
    assert place(start(out, of)) == (given, str(given))
    assert place(start(out)) == (given, str(given))
    own = save(out, 10)
    assert place(start(out, of)) == (own, str(given))
    assert place(start(out)) == (own, str(given))


def test_a_path_is_refused_in_a_folder_that_holds_another_run(tmp_path: Path) -> None:
    given = save(tmp_path, 5)
    start(tmp_path)
    with pytest.raises(CheckpointError, match=r"has another run, and --resume \S+ begins a new one: give another --output-dir"):
        start(tmp_path, config(resume=str(given)))


def test_a_path_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "first", 5)
    for path in (tmp_path / "first", tmp_path / "nothing"):
        with pytest.raises(CheckpointError, match="is not a checkpoint: give auto, no, or a folder such as"):
            start(tmp_path / "second", config(resume=str(path)))


def test_a_model_folder_that_no_run_wrote_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(CheckpointError, match="model would be replaced, but no run wrote it"):
        start(tmp_path)
    save(tmp_path, 5)
    start(tmp_path)


def test_a_finished_run_whose_checkpoints_were_deleted_does_not_begin_again_over_its_model(tmp_path: Path) -> None:
    save(tmp_path, 5)
    start(tmp_path)
    (tmp_path / "model").mkdir()
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match=r"none of its checkpoints: the run would begin again at step 0 and replace that"):
        start(tmp_path)


def test_a_changed_option_is_refused_with_a_diff_and_the_command_for_a_new_run(tmp_path: Path) -> None:
    out = tmp_path / "OUT"
    newest = save(out, 5)
    (tmp_path / "OUT-2").mkdir()
    changed = config(seed=1, learning_rate=1, micro_batch_size=1)
    changed = replace(changed, data=replace(changed.data, sequence_length=128, workers=3))
    with pytest.raises(CheckpointError) as caught:
        start(out, changed, command=[*COMMAND, "--model.init-from", "old weights"])
    assert str(caught.value).splitlines() == [
        f"{newest} was trained with options that must not change in a run:",
        "  --data.sequence-length: was 512, is 128",
        "  --train.seed: was 0, is 1",
        "put them back, or start a new run from its weights: "
        f"stream-pretrain --dataset org/texts --seed=1 --init-from {newest} --output-dir {out}-3",
    ]


def test_the_command_for_a_new_run_from_a_path_keeps_the_folder_that_is_still_free(tmp_path: Path) -> None:
    given = save(tmp_path / "first", 5)
    command = ["stream-pretrain", f"--resume={given}", "--run.output_dir", "x", "--seed", "1"]
    with pytest.raises(CheckpointError) as caught:
        start(tmp_path / "OUT", config(resume=str(given), seed=1), command=command)
    assert str(caught.value).splitlines()[1:] == [
        "  --train.seed: was 0, is 1",
        "put them back, or start a new run from its weights: "
        f"stream-pretrain --seed 1 --resume auto --init-from {given} --output-dir {tmp_path / 'OUT'}",
    ]


def recorded_options(out: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Change what a checkpoint says it was trained with, as another version would have written it."""
    fixed = fixed_options(config())
    change(fixed)
    save(out, 5, fixed=fixed)


def test_options_of_other_versions_are_compared_with_their_defaults(tmp_path: Path) -> None:
    def by_an_older_version(fixed: dict[str, object]) -> None:
        del fixed["data.packing"]
        fixed["data.workers"] = 9  # did not count as changeable then

    recorded_options(tmp_path / "older", by_an_older_version)
    assert start(tmp_path / "older", report=lambda _: None).checkpoint is not None
    other = config()
    with pytest.raises(CheckpointError, match=r"--data\.packing: was best_fit, is concat"):
        start(tmp_path / "older", replace(other, data=replace(other.data, packing="concat")))

    recorded_options(tmp_path / "newer", lambda fixed: fixed.update({"data.reorder": True}))
    with pytest.raises(CheckpointError, match=r"--data\.reorder: was true, is none"):
        start(tmp_path / "newer")


@pytest.mark.parametrize("version", [1, 3, 4, 6])
def test_a_checkpoint_with_cursors_of_another_version_is_refused_before_anything_else_is_done_with_it(
    tmp_path: Path, version: int
) -> None:
    newest = save(tmp_path / "out", 10, config(seed=1), version=version)  # the options differ as well
    with pytest.raises(CheckpointError) as error:
        start(tmp_path / "out")
    assert str(error.value) == (
        f"{newest} has cursors of version {version}, this program reads version 5: resume with the stream_pretrain "
        "that wrote it, or start a new run from its weights: stream-pretrain --dataset org/texts --seed=1 "
        f"--init-from {newest} --output-dir {tmp_path / 'out-2'}"
    )
    assert not (tmp_path / "out" / "run.json").exists()
    with pytest.raises(CheckpointError, match=f"cursors of version {version}, this program reads version 5: .*/new$"):
        start(tmp_path / "new", config(resume=str(newest)))
