"""The launch files start what they say, and go by run.json when it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.forks import ENVIRONMENT, trainers

LAUNCH = Path(__file__).resolve().parents[1] / "configs" / "launch"


def stub(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


def batch_script(folder: Path, torchrun: str) -> subprocess.Popen[str]:
    """The Slurm job with the commands of Slurm, and torchrun, replaced; it writes to OUT = folder/out."""
    commands, out = folder / "bin", folder / "out"
    out.mkdir(exist_ok=True)
    stub(commands, "srun", 'shift; exec "$@"')
    stub(commands, "scontrol", f'echo "$@" >> {folder}/scontrol; echo first-machine')
    stub(commands, "torchrun", torchrun.format(run=out / "run.json"))
    environment = {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
    }
    return subprocess.Popen(
        ["bash", str(LAUNCH / "slurm.sbatch"), str(out), "--max-steps", "5"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


ENDS = [
    ('"state": "finished",\n  "exit_code": 0', 0),
    ('"state": "failed",\n  "exit_code": 1', 1),
    ('"state": "failed",\n  "exit_code": 75', 75),
    ('"state": "preempted",\n  "exit_code": 75', 75),
    ('"state": "preempted",\n  "exit_code": 130', 130),
    ('"state": "running",\n  "exit_code": null', 75),
]
"""What run.json says, and the exit code."""


@pytest.mark.parametrize(("recorded", "code"), ENDS)
def test_a_slurm_job_ends_as_the_run_does_and_is_queued_again_where_the_same_command_resumes(
    tmp_path: Path, recorded: str, code: int
) -> None:
    job = batch_script(tmp_path, f"echo \"$@\"; printf '{{{{\n  {recorded}\n}}}}\n' > {{run}}; exit 1")
    said, _ = job.communicate(timeout=300)
    assert job.returncode == code, said
    assert "--rdzv-endpoint first-machine:29400" in said
    assert "-m stream_pretrain --output-dir" in said
    assert ("requeue 7" in (tmp_path / "scontrol").read_text()) == (code in (75, 130))


def test_a_slurm_job_that_was_refused_is_not_queued_again_whatever_the_run_before_it_came_to(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text('{\n  "state": "preempted"\n}\n')
    job = batch_script(tmp_path, "exit 1")
    said, _ = job.communicate(timeout=300)
    assert job.returncode == 1, said
    assert "requeue" not in (tmp_path / "scontrol").read_text()


def test_a_slurm_job_that_is_told_to_stop_before_the_run_has_begun_is_queued_again(tmp_path: Path) -> None:
    job = batch_script(tmp_path, "echo ready; for i in {{1..300}}; do sleep 0.1; done; exit 1")
    assert job.stdout is not None
    assert job.stdout.readline() == "ready\n"
    job.send_signal(10)
    said, _ = job.communicate(timeout=300)
    assert job.returncode == 75, said
    assert "requeue 7" in (tmp_path / "scontrol").read_text()


def test_the_notice_of_slurm_reaches_the_ranks_and_is_waited_for(tmp_path: Path) -> None:
    save = 'trap \'sleep 0.3; printf "{{\\n  \\"state\\": \\"preempted\\"\\n}}\\n" > {run}; exit 0\' USR1; echo ready'
    job = batch_script(tmp_path, save + "; for i in {{1..300}}; do sleep 0.1; done; exit 1")
    assert job.stdout is not None
    assert job.stdout.readline() == "ready\n"
    job.send_signal(10)
    said, _ = job.communicate(timeout=300)
    assert job.returncode == 75, said
    assert "preempted" in said
    assert "requeue 7" in (tmp_path / "scontrol").read_text()


def test_the_kubernetes_job_is_yaml_whose_script_is_bash() -> None:
    job = yaml.safe_load((LAUNCH / "kubernetes_job.yaml").read_text())
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert job["kind"] == "Job"
    assert container["name"] == job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"]
    subprocess.run(["bash", "-n", "-c", container["args"][0]], check=True)


@pytest.mark.parametrize("name", ["single_node.sh", "two_nodes.sh"])
def test_a_launcher_passes_its_options_on(tmp_path: Path, name: str) -> None:
    stub(tmp_path / "bin", "torchrun", 'echo "$@"')
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PROCESSES": "2", "HEAD": "127.0.0.1"}
    done = subprocess.run(
        ["bash", str(LAUNCH / name), str(tmp_path), "--max-steps", "5"],
        env=environment, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    command, ended = done.stdout.splitlines()
    assert "--nproc-per-node 2" in command
    assert ("--standalone" in command) == (name == "single_node.sh")
    assert ("--nnodes 2 " in command and "--rdzv-endpoint 127.0.0.1:29400" in command) == (name == "two_nodes.sh")
    assert "--signals-to-handle SIGTERM,SIGINT,SIGQUIT,SIGUSR1,SIGHUP " in command
    assert command.endswith(f"-m stream_pretrain --output-dir {tmp_path} --max-steps 5")
    assert (ended, done.returncode) == (f"run {tmp_path}: refused, exit code 1", 1)


def test_a_run_whose_folder_was_taken_away_is_not_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text('{\n  "state": "preempted"\n}\n')
    stub(tmp_path / "bin", "torchrun", f"rm -r {tmp_path / 'out'}; exit 1")
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(LAUNCH / "single_node.sh"), str(tmp_path / "out")], env=environment, check=False)
    assert done.returncode == 1


def test_under_nohup_the_end_of_the_terminal_stays_ignored(tmp_path: Path) -> None:
    stub(tmp_path / "bin", "torchrun", 'echo "$@"; trap -p HUP')
    done = subprocess.run(
        ["nohup", "bash", str(LAUNCH / "single_node.sh"), str(tmp_path)],
        env={"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, check=False,
    )  # fmt: skip
    command, ignored, _ = done.stdout.splitlines()
    assert "--signals-to-handle SIGTERM,SIGINT,SIGQUIT,SIGUSR1 -m" in command
    assert ignored == "trap -- '' SIGHUP"


@pytest.mark.parametrize(("recorded", "code"), ENDS)
def test_the_launcher_of_one_machine_ends_as_the_run_did(tmp_path: Path, recorded: str, code: int) -> None:
    assert launched(tmp_path, f"printf '{{\n  {recorded}\n}}\n' > {tmp_path / 'run.json'}; exit 1") == code


@pytest.mark.parametrize("code", [1, 2, 75])
def test_a_start_that_was_refused_ends_as_its_ranks_did(tmp_path: Path, code: int) -> None:
    (tmp_path / "run.json").write_text('{\n  "state": "preempted",\n  "exit_code": 75\n}\n')
    program = f"from stream_pretrain.training.ranks.launcher import tell_launcher; tell_launcher('why', {code})"
    told = 'while [ "$1" != --log-dir ]; do shift; done; mkdir "$2/0"; export TORCHELASTIC_ERROR_FILE="$2/0/error.json"'
    rank = f'{told}; {sys.executable} -c "{program}"; exit 1'
    assert launched(tmp_path, rank) == code


def test_a_run_that_had_finished_before_ends_so_again(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{\n  "state": "finished",\n  "exit_code": 0\n}\n')
    assert launched(tmp_path, "exit 0") == 0
    assert launched(tmp_path, "exit 1") == 1


def test_ctrl_c_before_the_run_has_begun_ends_the_launcher_with_its_code(tmp_path: Path) -> None:
    assert launched(tmp_path, "kill -INT $PPID; sleep 0.2; exit 1") == 130
    assert launched(tmp_path, "kill -TERM $PPID; sleep 0.2; exit 1") == 75


def launched(out: Path, torchrun: str) -> int:
    """The exit code of the launch file for one machine, with torchrun replaced."""
    stub(out / "bin", "torchrun", torchrun)
    environment = {**os.environ, "PATH": f"{out / 'bin'}:{os.environ['PATH']}"}
    return subprocess.run(["bash", str(LAUNCH / "single_node.sh"), str(out)], env=environment, check=False).returncode


def test_the_options_of_torchrun_in_the_launch_files_exist() -> None:
    known = trainers().run(["-m", "torch.distributed.run", "--help"], ENVIRONMENT).stdout
    for option in ("--signals-to-handle", "--rdzv-endpoint", "--rdzv-backend", "--rdzv-id", "--standalone", "--nproc-per-node"):
        assert option in known
