"""The files of recipes/launch: accelerate reads them, and two processes run to the end."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.other import get_free_port

from finetune import run_directory
from finetune.recipe import packaged

FOLDER = packaged.folder() / "launch"
# distributed_type and number of processes of each file.
FILES = {
    "cpu-2": ("MULTI_GPU", 2),
    "ddp": ("MULTI_GPU", 2),
    "fsdp2": ("FSDP", 2),
    "tpu": ("NO", 1),
    "two-nodes": ("MULTI_GPU", 16),
}


def test_every_launch_file_is_tested() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {*FILES}


@pytest.mark.parametrize("name", FILES)
def test_accelerate_reads_a_launch_file(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert (config.distributed_type.value, config.num_processes) == FILES[name]
    # The recipe decides about precision, compiler and accumulation.
    assert not config.mixed_precision
    assert not config.dynamo_config
    # An option of a nested section that the launcher does not have would be dropped.
    known = vars(launch_command_parser().parse_args(["script.py"]))
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {*given.get("fsdp_config", {})} <= {*known}


@pytest.mark.parametrize("name", FILES)
def test_a_launch_file_opens_with_its_command(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    comment = [line for line in text.splitlines() if line.startswith("# ")]
    (command,) = (line for line in comment if line.startswith("# accelerate launch"))
    assert f"--config_file recipes/launch/{name}.yaml " in command


def launch(name: str, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(FOLDER / f"{name}.yaml"), *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def finished(launched: "subprocess.Popen[str]") -> None:
    _, error = launched.communicate()
    assert launched.returncode == 0, error


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu-2", "ddp"])
def test_two_processes_run_to_the_end(tiny_recipe: Path, name: str) -> None:
    port = f"--main_process_port={get_free_port()}"
    finished(launch(name, port, "-m", "finetune", "train", str(tiny_recipe), "--max_steps", "2"))
    did = run_directory.Run("runs/tiny/seed-0").results()["accelerate"]
    assert (did["distributed_type"], did["processes"]) == ("MULTI_CPU", 2)


@pytest.mark.slow
def test_two_machines_run_to_the_end(tiny_recipe: Path) -> None:
    own = ["--main_process_ip=127.0.0.1", f"--main_process_port={get_free_port()}"]
    own += ["--num_processes=2"]
    train = ["-m", "finetune", "train", str(tiny_recipe), "--max_steps", "2"]
    both = [launch("two-nodes", *own, f"--machine_rank={rank}", *train) for rank in (0, 1)]
    for each in both:
        finished(each)
    assert run_directory.Run("runs/tiny/seed-0").results()["accelerate"]["processes"] == 2
