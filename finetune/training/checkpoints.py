"""Checkpoints on disk: staged, fsynced, hashed, renamed into place; verified before use.

A checkpoint is a folder ``checkpoint-STEP`` whose ``manifest.json`` has the size and SHA-256 of
every file in it. It comes into being by one rename of a folder that is complete, so a process that
is killed at any moment leaves whole checkpoints and, at most, a ``.tmp-`` folder that the next one
clears. State is safetensors for arrays and JSON for the rest; nothing is pickled.
"""

import hashlib
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file, save_file

MANIFEST, FORMAT = "manifest.json", 1
# Bytes from which on a tensor is not copied before it is written.
LARGE = 2**16
# A checkpoint from before its step was evaluated gives way to one from after.
UNEVALUATED = "-unevaluated"
NAME = re.compile(rf"checkpoint-(\d+)({UNEVALUATED})?")
STAGED = re.compile(r"\.tmp-\d+-\d+")


class Damaged(Exception):  # noqa: N818 - says what a folder is
    """Why a folder cannot be resumed from, in a few words."""


@dataclass
class Checkpoint:
    """A folder that verifies. ``best`` is the step of the checkpoint that it needs beside it."""

    folder: Path
    step: int
    best: int | None
    run: dict[str, Any]


def name(step: int, evaluated: bool = True) -> str:
    return f"checkpoint-{step}{'' if evaluated else UNEVALUATED}"


# --- values ------------------------------------------------------------------------------------


def write(folder: Path, part: str, tree: Any) -> None:
    """Write a tree of dicts, lists, tuples, numbers, strings, tensors and numpy arrays.

    Its arrays go to ``PART.safetensors``, the rest to ``PART.json``; a flat dict of tensors needs
    no JSON.

    Raises:
        TypeError: a value is of another type; names its place in the tree.
    """
    tensors: dict[str, torch.Tensor] = {}
    if _is_flat(tree):
        tensors = {key: value.detach().cpu().contiguous() for key, value in tree.items()}
    else:
        said = _packed(tree, "", tensors)
        (folder / f"{part}.json").write_text(json.dumps(said) + "\n", encoding="utf-8")
    if tensors:
        save_file(tensors, folder / f"{part}.safetensors", metadata={"format": "pt"})


def read(folder: Path, part: str) -> Any:
    """What ``write`` wrote, to the bit; tensors on the CPU."""
    arrays = folder / f"{part}.safetensors"
    tensors = load_file(arrays) if arrays.is_file() else {}
    said = folder / f"{part}.json"
    return _unpacked(json.loads(said.read_text("utf-8")), tensors) if said.is_file() else tensors


def _is_flat(tree: Any) -> bool:
    return (
        isinstance(tree, dict)
        and bool(tree)
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in tree.items())
    )


def _packed(value: Any, place: str, tensors: dict[str, torch.Tensor]) -> Any:
    """``value`` as JSON can say it; containers are tagged, because JSON has fewer of them."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value)
    if isinstance(value, torch.Tensor):
        whole = value.detach().cpu().contiguous()
        # safetensors takes no view of a larger tensor, and none twice; what is large and owns all
        # of its memory is an optimizer's, and stands in one place.
        if whole.nbytes < LARGE or whole.nbytes != whole.untyped_storage().nbytes():
            whole = whole.clone()
        tensors[place] = whole
        return {"tensor": place}
    if isinstance(value, numpy.ndarray):
        tensors[place] = torch.from_numpy(value.copy())
        return {"array": place}
    if isinstance(value, dict):
        pairs = value.items()
        return {"dict": [[k, _packed(v, f"{place}.{k}".lstrip("."), tensors)] for k, v in pairs]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        items = enumerate(value)
        return {kind: [_packed(v, f"{place}.{i}".lstrip("."), tensors) for i, v in items]}
    raise TypeError(f"{place}: {type(value).__name__} has no place in a checkpoint")


def _unpacked(said: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(said, dict):
        return said
    ((kind, value),) = said.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "array":
        return tensors[value].numpy()
    if kind == "dict":
        return {k: _unpacked(v, tensors) for k, v in value}
    items = [_unpacked(v, tensors) for v in value]
    return tuple(items) if kind == "tuple" else items


# --- folders -----------------------------------------------------------------------------------


def stage(parent: Path, step: int) -> Path:
    """An empty folder to write a checkpoint into; ``seal`` makes it one."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f".tmp-{step}-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def seal(staged: Path, final: str, best: int | None, run: dict[str, Any]) -> Path:
    """Make a staged folder the checkpoint of that name: all of it reaches the disk, or none.

    Args:
        best: step of the checkpoint that this one cannot do without, if it is not itself.
        run: what the run is of, for whoever resumes it.
    """
    files = [p for p in sorted(staged.rglob("*")) if p.is_file()]
    with ThreadPoolExecutor(4) as pool:
        digests = pool.map(_digest_and_sync, files)
        known = {
            p.relative_to(staged).as_posix(): {"size": p.stat().st_size, "sha256": digest}
            for p, digest in zip(files, digests, strict=True)
        }
    step = int(re.findall(r"\d+", final)[0])
    body = {"format": FORMAT, "step": step, "best": best, "run": run, "files": known}
    with (staged / MANIFEST).open("w", encoding="utf-8") as stream:
        stream.write(_rendered(body))
        stream.flush()
        os.fsync(stream.fileno())
    for folder in [*(p for p in staged.rglob("*") if p.is_dir()), staged]:
        _sync(folder)
    target = staged.parent / final
    if target.exists():
        # Nothing that verifies: that would have been resumed from, and its step not come again.
        _set_aside(target)
    staged.rename(target)
    _sync(staged.parent)
    return target


def _digest_and_sync(path: Path) -> str:
    with path.open("r+b") as stream:
        os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rendered(body: dict[str, Any]) -> str:
    """The manifest's one possible text, with its own checksum: a changed byte cannot go unseen."""
    text = json.dumps(body, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({"manifest": body, "sha256": digest}, sort_keys=True, indent=1) + "\n"


def manifest(folder: Path) -> dict[str, Any]:
    """A checkpoint's manifest; the files it lists are not read.

    Raises:
        Damaged: there is none, or it is not as it was written.
    """
    try:
        text = (folder / MANIFEST).read_bytes().decode()
        body = json.loads(text)["manifest"]
    except FileNotFoundError:
        raise Damaged(f"has no {MANIFEST}; it is not whole, or not of this program") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise Damaged(f"{MANIFEST} cannot be read") from None
    if text != _rendered(body):
        raise Damaged(f"{MANIFEST} is not as it was written")
    if body["format"] != FORMAT:
        raise Damaged(f"has format {body['format']}, and this program reads {FORMAT}")
    found = NAME.fullmatch(folder.name)
    if not found or int(found[1]) != body["step"]:
        raise Damaged(f"is of step {body['step']}")
    return body


def verify(folder: Path) -> Checkpoint:
    """Read every file of a checkpoint and compare it with the manifest.

    Raises:
        Damaged: something is missing or differs.
    """
    body = manifest(folder)
    for file, said in body["files"].items():
        path = folder / file
        if not path.is_file():
            raise Damaged(f"{file} is missing")
        if path.stat().st_size != said["size"]:
            raise Damaged(f"{file} has {path.stat().st_size} bytes, and should have {said['size']}")
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != said["sha256"]:
                raise Damaged(f"{file} is not as it was written")
    return Checkpoint(folder, body["step"], body["best"], body["run"])


def candidates(parent: Path) -> list[Path]:
    """The folders that are named like checkpoints, newest first; links are not ours."""
    if not parent.is_dir():
        return []
    found = [
        (int(match[1]), not match[2], path)
        for path in parent.iterdir()
        if (match := NAME.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()
    ]
    return [path for *_, path in sorted(found, reverse=True)]


def newest(parent: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, with the best one it needs; and why newer ones do not.

    Returns:
        The checkpoint, or None; for each folder skipped, one line.
    """
    skipped = []
    for folder in candidates(parent):
        try:
            found = verify(folder)
            if found.best is not None:
                try:
                    verify(parent / name(found.best))
                except Damaged as why:
                    raise Damaged(f"needs {name(found.best)}, which {why}") from None
        except Damaged as why:
            skipped.append(f"{folder}: {why}")
        else:
            return found, skipped
    return None, skipped


def is_ours(folder: Path) -> bool:
    """Whether a folder has nothing in it but what this program wrote there."""
    try:
        known = {*manifest(folder)["files"], MANIFEST}
    except Damaged:
        return False
    return all(p.is_dir() or p.relative_to(folder).as_posix() in known for p in folder.rglob("*"))


def clear(parent: Path, keep: set[str]) -> None:
    """Delete checkpoints that are not to be kept, and what killed processes staged.

    A folder without our manifest, or with a file that the manifest does not list, stays.
    """
    if not parent.is_dir():
        return
    for folder in candidates(parent):
        if folder.name not in keep and is_ours(folder):
            # Renamed first: what is deleted by half must not look like a checkpoint.
            gone = parent / f".tmp-{NAME.fullmatch(folder.name)[1]}-{os.getpid()}"  # pyright: ignore
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
    for folder in parent.iterdir():
        if STAGED.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


def _set_aside(folder: Path) -> None:
    count = 1
    while (aside := folder.with_name(f"{folder.name}.aside-{count}")).exists():
        count += 1
    folder.rename(aside)


def size(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
