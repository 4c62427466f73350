"""Merged adapters as files."""

import os
from pathlib import Path

from finetune import inference
from tests.conftest import train


def test_the_umask_decides_who_reads_the_files_of_a_run(tiny_recipe: Path) -> None:
    before = os.umask(0o027)
    try:
        run = train(tiny_recipe, "--method", "lora", "--max_steps", "1")
        inference.merge(run, run.folder / "merged")
    finally:
        os.umask(before)
    files = [path for path in run.folder.rglob("*") if path.is_file() and path.name != ".lock"]
    names = {path.name for path in files}
    assert {"adapter_model.safetensors", "model.safetensors", "optimizer.safetensors"} <= names
    assert not any(name.startswith(".mode") for name in names)
    assert {str(path): oct(path.stat().st_mode & 0o777) for path in files} == {
        str(path): oct(0o640) for path in files
    }
