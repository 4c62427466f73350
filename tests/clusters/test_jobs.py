"""Jobs for clusters: what they ask for, and what they do when the time runs out."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune import cli, run_directory
from finetune.recipe.strict_yaml import parse_yaml, plain

# Stand-ins for Slurm's programs: one machine with one process.
SRUN = """\
#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] && shift
SLURM_PROCID=0 SLURM_LOCALID=0 exec "$@"
"""
SCONTROL = """\
#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$*" >> requeued; fi
"""


def launch(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    cli.main(["launch", *words])
    return capsys.readouterr().out


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main(["launch", *words])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("finetune: ")


def asked(script: str) -> dict[str, str]:
    """What a batch file asks Slurm for."""
    lines = [line[10:] for line in script.splitlines() if line.startswith("#SBATCH --")]
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def check(script: str) -> None:
    """Reads a batch file as bash does, and with shellcheck, which is among the packages of dev."""
    for words in (["bash", "-n"], [Path(sys.executable).with_name("shellcheck"), "-"]):
        done = subprocess.run(words, input=script, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_batch_file_asks_for_machines_and_trains_with_a_process_a_gpu(
    tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--on", "slurm", "--nodes", "2", "--gpus", "h100:8", "--time", "04:00:00"]
    script = launch(capsys, str(tiny_recipe), *where, "--text", "a column", "--dry_run")
    check(script)
    assert asked(script) == {
        "job-name": "tiny",
        "nodes": "2",
        "ntasks-per-node": "8",
        "gpus-per-node": "h100:8",
        "time": "04:00:00",
        "output": "%x-%j.out",
        "open-mode": "append",
        "requeue": "",
        # Only the shell gets it, and passes it on.
        "signal": "B:USR1@300",
    }
    (line,) = (line for line in script.splitlines() if "finetune train" in line)
    words = shlex.split(line.removesuffix("&"))
    assert words == [
        *(sys.executable, "-m", "finetune", "train", str(tiny_recipe), "--resume"),
        "--text=a column",
    ]
    assert not list(Path().glob("*.sbatch"))


@pytest.mark.parametrize(
    ("given", "folder"), [([], "runs/tiny/seed-"), (["--output_dir", "/my runs"], "/my runs/seed-")]
)
def test_seeds_are_the_tasks_of_an_array(
    tiny_recipe: Path, capsys: pytest.CaptureFixture[str], given: list[str], folder: str
) -> None:
    words = [str(tiny_recipe), "--on", "slurm", "--seeds", "0,7", *given, "--dry_run"]
    script = launch(capsys, *words)
    check(script)
    assert asked(script)["array"] == "0,7"
    assert asked(script)["output"] == "%x-%A_%a.out"
    assert "time" not in asked(script)
    (line,) = (line for line in script.splitlines() if "finetune train" in line)
    echo = ["bash", "-c", f"printf '%s\\n' {line.strip().removesuffix('&')}"]
    shown = subprocess.run(
        echo, capture_output=True, text=True, env={**os.environ, "SLURM_ARRAY_TASK_ID": "7"}
    )
    assert shown.stdout.splitlines()[-2:] == ["--seed=7", f"--output_dir={folder}7"]


@pytest.mark.slow
def test_a_job_saves_before_its_time_limit_and_goes_on_when_it_is_requeued(
    tiny_recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = Path("programs")
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text, encoding="utf-8")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs.resolve()}:{os.environ['PATH']}")
    for name, value in (("JOB_ID", "4711"), ("NTASKS", "1"), ("JOB_NODELIST", "here")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    flags = ["--num_train_epochs", "50", "--eval_strategy", "no"]
    where = ["--on", "slurm", "--gpus", "0", "--time", "00:10:00"]
    shown = launch(capsys, str(tiny_recipe), *where, *flags)
    assert shown == "finetune: wrote tiny.sbatch; submit it: sbatch tiny.sbatch\n"
    assert "gpus-per-node" not in asked(Path("tiny.sbatch").read_text("utf-8"))

    job = subprocess.Popen(["bash", "tiny.sbatch"], stderr=subprocess.PIPE, text=True)
    history = Path("runs/tiny/seed-0/history.jsonl")
    while job.poll() is None and not history.is_file():
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    _, first = job.communicate()
    assert job.returncode == 143, first
    assert "is saved; `finetune resume` goes on there" in first
    assert Path("requeued").read_text("utf-8") == "requeue 4711\n"
    assert not run_directory.Run("runs/tiny/seed-0").is_finished

    again = subprocess.run(["bash", "tiny.sbatch"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "resumes runs/tiny/seed-0 from checkpoint-" in again.stderr
    assert run_directory.Run("runs/tiny/seed-0").results()["steps"] == 300
    # A job that fails, or is finished, is not put back.
    assert Path("requeued").read_text("utf-8") == "requeue 4711\n"


def test_a_task_of_skypilot(tiny_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--on", "skypilot", "--nodes", "2", "--gpus", "H100:8", "--output_dir", "/shared/run"]
    assert launch(capsys, str(tiny_recipe), *where) == (
        "finetune: wrote tiny.sky.yaml; submit it: sky launch --yes tiny.sky.yaml\n"
    )
    task = plain(parse_yaml(Path("tiny.sky.yaml").read_text("utf-8"), "tiny.sky.yaml"), True)
    assert (task["name"], task["num_nodes"], task["workdir"]) == ("tiny", 2, ".")
    assert task["resources"] == {"accelerators": "H100:8"}
    assert task["setup"].startswith("pip install finetune-recipes==")
    check("#!/bin/bash\n" + task["run"])
    words = shlex.split(task["run"])
    assert words[-5:] == [
        "finetune",
        "train",
        str(tiny_recipe),
        "--resume",
        "--output_dir=/shared/run",
    ]
    assert words[words.index("--nproc_per_node") + 1] == "$SKYPILOT_NUM_GPUS_PER_NODE"


def test_a_job_of_ray(tiny_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--on", "ray", "--gpus", "8", "--output_dir", "/shared/run"]
    command = launch(capsys, str(tiny_recipe), *where, "--dry_run")
    before, _, after = command.partition(" -- ")
    assert before == "ray job submit --working-dir . --entrypoint-num-gpus 8"
    assert shlex.split(after) == [
        *("torchrun", "--standalone", "--nproc_per_node", "8", "-m", "finetune", "train"),
        *(str(tiny_recipe), "--resume", "--output_dir=/shared/run"),
    ]


def test_a_job_is_submitted(
    tiny_recipe: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(tiny_recipe), "--on", "slurm", "--submit"]
    assert (
        error_of(capfd, *words) == "sbatch is not installed here; where it is: sbatch tiny.sbatch"
    )
    Path("sbatch").write_text("#!/bin/bash\necho $*; exit $STATUS\n", encoding="utf-8")
    Path("sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path.cwd()}:{os.environ['PATH']}")
    monkeypatch.setenv("STATUS", "0")
    assert launch(capfd, *words) == "tiny.sbatch\n"
    monkeypatch.setenv("STATUS", "3")
    assert error_of(capfd, *words) == "sbatch ended with 3: sbatch tiny.sbatch"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--on", "slurm", "--gpus", "many"], "--gpus many: takes a number, or a kind with one"),
        (["--on", "slurm", "--nodes", "0"], "--nodes 0 has to be at least 1"),
        (["--on", "slurm", "--time", "4"], "--time 4: takes hours, minutes, seconds: 04:00:00"),
        (["--on", "slurm", "--seeds", "x"], "--seeds x: takes a number of seeds"),
        (["--on", "slurm", "--seeds", "3", "--seed", "1"], "--seeds and --seed contradict"),
        (["--on", "slurm", "--learning_rat", "1"], "did you mean 'learning_rate'?"),
        (["--on", "ray"], "--on ray copies the working directory, and a run in the copy"),
        (["--on", "ray", "--seeds", "3", "--output_dir", "/r"], "--seeds is for --on slurm"),
        (["--on", "ray", "--time", "1:00:00", "--output_dir", "/r"], "--time is for --on slurm"),
        (["--on", "ray", "--nodes", "2", "--output_dir", "/r"], "--on ray: the command of a Ray"),
        (["--on", "skypilot", "--output_dir", "/r"], "--on skypilot needs the kind of GPU"),
    ],
)
def test_what_a_scheduler_has_not_is_one_line(
    tiny_recipe: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    assert reason in error_of(capsys, str(tiny_recipe), *words, "--dry_run")


def test_a_recipe_of_the_package_needs_no_file(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = launch(capsys, "imdb/minilm", "--on", "slurm", "--dry_run")
    assert asked(script)["job-name"] == "imdb-minilm"
    assert " finetune train imdb/minilm --resume" in script
