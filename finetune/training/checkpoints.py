"""Checkpoints on disk: written atomically, verified before use.

- A checkpoint is a folder ``checkpoint-STEP``. Its ``manifest.json`` has the size and SHA-256 of
  every other file.
- Files are written to a ``.tmp-`` folder, hashed and synced; one rename makes it the checkpoint. A
  process that is killed at any moment leaves only complete checkpoints, and at most a ``.tmp-``
  folder that the next process deletes.
- Arrays are stored as safetensors and everything else as JSON; nothing is pickled.
"""

import errno
import functools
import hashlib
import json
import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file, save_file

from finetune import run_directory

MANIFEST, FORMAT = "manifest.json", 2
# Tensors of at least so many bytes are not copied before they are written.
LARGE = 2**16
# Suffix of a checkpoint whose evaluation was interrupted; the same step without it is newer.
UNEVALUATED = "-unevaluated"
NAME = re.compile(rf"checkpoint-(\d+)({UNEVALUATED})?")
STAGED = re.compile(r"\.tmp-\d+-\d+")
# Errors of a disk. Flushing a folder fails with others where the system has no such operation.
BROKEN = {errno.EIO, errno.ENOSPC, errno.EDQUOT}


class InvalidCheckpoint(Exception):  # noqa: N818 - describes a folder
    """Raised for a folder that cannot be resumed from; the message completes "FOLDER ..."."""


@dataclass
class Checkpoint:
    """A verified checkpoint. ``best`` is the step of the best checkpoint, which it refers to."""

    folder: Path
    step: int
    best: int | None
    run: dict[str, Any]


def name(step: int, evaluated: bool = True) -> str:
    """Returns the name of a step's folder."""
    return f"checkpoint-{step}{'' if evaluated else UNEVALUATED}"


# --- state -------------------------------------------------------------------------------------


def write(folder: Path, part: str, tree: Any) -> None:
    """Writes a tree of dicts, lists, tuples, numbers, strings, tensors and numpy arrays.

    Arrays go to ``PART.safetensors``, everything else to ``PART.json``. A flat dict of tensors
    needs no JSON file.

    Raises:
        TypeError: a value has another type; the message has its path in the tree.
    """
    tensors: dict[str, torch.Tensor] = {}
    if _is_flat(tree):
        tensors = {key: value.detach().cpu().contiguous() for key, value in tree.items()}
    else:
        encoded = _encode(tree, "", tensors)
        (folder / f"{part}.json").write_text(json.dumps(encoded) + "\n", encoding="utf-8")
    if tensors:
        save_file(tensors, folder / f"{part}.safetensors", metadata={"format": "pt"})


def read(folder: Path, part: str) -> Any:
    """Returns what ``write`` wrote, bit for bit; tensors on the CPU."""
    arrays, values = folder / f"{part}.safetensors", folder / f"{part}.json"
    tensors = load_file(arrays) if arrays.is_file() else {}
    if not values.is_file():
        return tensors
    return _decode(json.loads(values.read_text("utf-8")), tensors)


def _is_flat(tree: Any) -> bool:
    return (
        isinstance(tree, dict)
        and bool(tree)
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in tree.items())
    )


def _encode(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Returns ``value`` as JSON, with tagged containers, and adds its arrays to ``tensors``."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value)
    if isinstance(value, torch.Tensor):
        owned = value.detach().cpu().contiguous()
        # safetensors cannot write a view of a larger tensor, nor the same memory twice. Large
        # tensors that own all of their memory are an optimizer's, and occur once.
        if owned.nbytes < LARGE or owned.nbytes != owned.untyped_storage().nbytes():
            owned = owned.clone()
        tensors[path] = owned
        return {"tensor": path}
    if isinstance(value, numpy.ndarray):
        tensors[path] = torch.from_numpy(value.copy())
        return {"array": path}
    if isinstance(value, dict):
        pairs = value.items()
        return {"dict": [[k, _encode(v, f"{path}.{k}".lstrip("."), tensors)] for k, v in pairs]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        items = enumerate(value)
        return {kind: [_encode(v, f"{path}.{i}".lstrip("."), tensors) for i, v in items]}
    raise TypeError(f"{path}: {type(value).__name__} cannot be saved in a checkpoint")


def _decode(encoded: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(encoded, dict):
        return encoded
    ((kind, value),) = encoded.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "array":
        return tensors[value].numpy()
    if kind == "dict":
        return {k: _decode(v, tensors) for k, v in value}
    items = [_decode(v, tensors) for v in value]
    return tuple(items) if kind == "tuple" else items


# --- folders -----------------------------------------------------------------------------------


def stage(parent: Path, step: int) -> Path:
    """Creates an empty folder to write a checkpoint into; ``seal`` completes it."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f".tmp-{step}-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def seal(staged: Path, final: str, best: int | None, run: dict[str, Any]) -> Path:
    """Completes a staged folder: writes its manifest, syncs it and renames it to ``final``.

    Args:
        best: step of the best checkpoint, if it is another one: this one refers to it.
        run: identifies the run, to be compared when it is resumed.
    """
    run_directory.apply_umask(staged)
    files = [p for p in sorted(staged.rglob("*")) if p.is_file()]
    with ThreadPoolExecutor(4) as pool:
        digests = pool.map(_digest_and_sync, files)
        entries = {
            p.relative_to(staged).as_posix(): {"size": p.stat().st_size, "sha256": digest}
            for p, digest in zip(files, digests, strict=True)
        }
    step = int(re.findall(r"\d+", final)[0])
    body = {"format": FORMAT, "step": step, "best": best, "run": run, "files": entries}
    with (staged / MANIFEST).open("w", encoding="utf-8") as stream:
        stream.write(_render(body))
        stream.flush()
        os.fsync(stream.fileno())
    for folder in [*(p for p in staged.rglob("*") if p.is_dir()), staged]:
        _sync(folder)
    target = staged.parent / final
    if target.exists():
        # It is not valid: the run would have resumed from it, and not reached its step again.
        _set_aside(target)
    staged.rename(target)
    _sync(staged.parent)
    return target


def _digest_and_sync(path: Path) -> str:
    with path.open("r+b") as stream:
        os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    """Flushes the names in a folder to disk, where the system can do that.

    Windows cannot open a folder, and some network file systems cannot flush one.

    Raises:
        OSError: the disk is full or broken.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno in BROKEN:
            raise
        _report_no_sync(str(error.strerror))


@functools.cache
def _report_no_sync(reason: str) -> None:
    print(
        f"finetune: folders cannot be flushed to disk here ({reason}); after a power failure the "
        "newest checkpoint may be gone, and an older one is used",
        file=sys.stderr,
    )


def _render(body: dict[str, Any]) -> str:
    """Returns the manifest's text with its own checksum, so that every changed byte is noticed."""
    text = json.dumps(body, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({"manifest": body, "sha256": digest}, sort_keys=True, indent=1) + "\n"


def manifest(folder: Path) -> dict[str, Any]:
    """Reads a checkpoint's manifest.

    Raises:
        InvalidCheckpoint: it is missing, or its checksum is wrong.
    """
    try:
        text = (folder / MANIFEST).read_bytes().decode()
        body = json.loads(text)["manifest"]
    except FileNotFoundError:
        raise InvalidCheckpoint(
            f"has no {MANIFEST}: it is incomplete, or another program wrote it"
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise InvalidCheckpoint(f"{MANIFEST} cannot be read") from None
    if text != _render(body):
        raise InvalidCheckpoint(f"{MANIFEST} does not match its checksum")
    if body["format"] != FORMAT:
        raise InvalidCheckpoint(f"has format {body['format']}, and this program reads {FORMAT}")
    found = NAME.fullmatch(folder.name)
    if not found or int(found[1]) != body["step"]:
        raise InvalidCheckpoint(f"is of step {body['step']}")
    return body


def verify(folder: Path) -> Checkpoint:
    """Compares every file of a checkpoint with the manifest.

    Raises:
        InvalidCheckpoint: a file is missing or differs.
    """
    body = manifest(folder)
    for file, expected in body["files"].items():
        path = folder / file
        if not path.is_file():
            raise InvalidCheckpoint(f"{file} is missing")
        size = path.stat().st_size
        if size != expected["size"]:
            raise InvalidCheckpoint(f"{file} has {size} bytes, and should have {expected['size']}")
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected["sha256"]:
                raise InvalidCheckpoint(f"{file} does not match its checksum")
    return Checkpoint(folder, body["step"], body["best"], body["run"])


def candidates(parent: Path) -> list[Path]:
    """Returns the folders named like checkpoints, newest first, without symbolic links."""
    if not parent.is_dir():
        return []
    found = [
        (int(match[1]), not match[2], path)
        for path in parent.iterdir()
        if (match := NAME.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()
    ]
    return [path for *_, path in sorted(found, reverse=True)]


def newest(parent: Path) -> tuple[Checkpoint | None, list[str]]:
    """Finds the newest checkpoint that is valid and whose best checkpoint is valid, too.

    Returns:
        The checkpoint, or None; and for each newer folder one line: why it was skipped.
    """
    skipped = []
    for folder in candidates(parent):
        try:
            found = verify(folder)
            if found.best is not None:
                try:
                    verify(parent / name(found.best))
                except InvalidCheckpoint as why:
                    raise InvalidCheckpoint(f"needs {name(found.best)}, which {why}") from None
        except InvalidCheckpoint as why:
            skipped.append(f"{folder}: {why}")
        else:
            return found, skipped
    return None, skipped


def is_ours(folder: Path) -> bool:
    """Returns whether a folder has a valid manifest, and no file that is not in it."""
    try:
        files = {*manifest(folder)["files"], MANIFEST}
    except InvalidCheckpoint:
        return False
    return all(p.is_dir() or p.relative_to(folder).as_posix() in files for p in folder.rglob("*"))


def delete_except(parent: Path, keep: set[str]) -> None:
    """Deletes checkpoints that are not in ``keep``, and the ``.tmp-`` folders of killed processes.

    Keeps folders without a valid manifest, and those with files that it does not list.
    """
    if not parent.is_dir():
        return
    for folder in candidates(parent):
        if folder.name not in keep and is_ours(folder):
            # Renamed first: a half-deleted folder must not look like a checkpoint.
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
    """Returns the total size of a folder's files in bytes."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
