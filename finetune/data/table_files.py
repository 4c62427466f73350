"""Finds the files of a table: kinds and compression, lists and patterns, the splits of a folder."""

import bz2
import glob
import gzip
import lzma
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from finetune.errors import UserError
from finetune.recipe import Data

DELIMITED = {".csv", ".tsv", ".tab"}
JSON = {".jsonl", ".json", ".ndjson"}
CONLL = {".conll", ".iob", ".iob2", ".bio"}
TEXT = {".txt", ".md"}
SUFFIXES = {*DELIMITED, *JSON, *CONLL, ".parquet", ".xlsx", ".arrow"}
COMPRESSED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
# What the hub and exports lay beside data.
METADATA = {
    *("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"),
    *("config.json", "metadata.json"),
}
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
# train.csv, train-00000-of-00004.parquet, train_1.csv
SHARD = re.compile(r"([a-z]+)([-_.]?\d+)?(-of-\d+)?")


def kind(path: Path) -> str:
    """Returns a file's suffix without that of its compression, for example ``.csv``."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in {*COMPRESSED, ".zip"} else suffix


def is_table(path: Path) -> bool:
    """Returns whether a name is that of a table, and not of something that lies beside one."""
    return kind(path) in SUFFIXES and path.name not in METADATA and not path.name.startswith(".")


def read_bytes(path: Path) -> bytes:
    """Returns the content of a file, decompressed if its name says that it is compressed.

    Raises:
        UserError: it is broken, or a zip file with more than one table.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in COMPRESSED:
            with COMPRESSED[suffix](path) as file:
                return file.read()
        if suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                return archive.read(_member(archive, path))
    except (OSError, EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: broken {suffix} file: {str(error)[:80]}") from None
    return path.read_bytes()


def read_start(path: Path, size: int) -> bytes:
    """Returns the first ``size`` bytes of a file, decompressed as in ``read_bytes``."""
    if path.suffix.lower() == ".zip":
        return read_bytes(path)[:size]
    try:
        with COMPRESSED.get(path.suffix.lower(), open)(path, "rb") as file:
            return file.read(size)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path}: broken file: {str(error)[:80]}") from None


def _member(archive: zipfile.ZipFile, path: Path) -> str:
    files = [name for name in archive.namelist() if not name.endswith("/")]
    files = [name for name in files if not name.startswith("__MACOSX") and name[:1] != "."]
    tables = [name for name in files if is_table(Path(name))]
    tables = tables or [name for name in files if kind(Path(name)) in TEXT]
    if len(tables) != 1:
        raise UserError(
            f"{path}: has {len(tables)} tables inside, it has to be one; unpack it and give the "
            "folder"
        )
    return tables[0]


def zipped_kind(path: Path) -> str:
    """Returns the kind of the table in a zip file.

    Raises:
        UserError: it is broken, or has more than one table.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return kind(Path(_member(archive, path)))
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: broken .zip file: {str(error)[:80]}") from None


# --- several files ---------------------------------------------------------------------------


def expand(given: str | Path | Sequence[str | Path]) -> list[Path]:
    """Returns the files and folders that a recipe names: one, a list, a,b or a pattern with *.

    Raises:
        UserError: a file does not exist, or no file matches a pattern.
    """
    if isinstance(given, Path) or (isinstance(given, str) and Path(given).exists()):
        paths = [Path(given)]
    elif isinstance(given, str) and "," in given:
        paths = [path for part in given.split(",") for path in expand(part.strip())]
    elif isinstance(given, str) and glob.has_magic(given):
        # Path.glob takes no pattern with a folder above it, or from the root.
        paths = [Path(name) for name in sorted(glob.glob(given, recursive=True))]  # noqa: PTH207
        if not paths:
            raise UserError(f"{given}: no file matches")
    elif isinstance(given, str):
        paths = [Path(given)]
    else:
        paths = [path for part in given for path in expand(part)]
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
    twice = [path for path in paths if paths.count(path) > 1]
    if twice:
        raise UserError(f"{twice[0]}: is given twice; a row would count twice")
    return paths


def is_file(given: str | Sequence[str] | None) -> bool:
    """Returns whether a value of the recipe names files, and not a split of a dataset."""
    if given is None:
        return False
    if not isinstance(given, str):
        return True
    if Path(given).exists() or kind(Path(given)) in {*SUFFIXES, *TEXT} or "*" in given:
        return True
    return "," in given and all(is_file(part.strip()) for part in given.split(","))


def unread(data: Data) -> str | None:
    """Returns the split of a dataset that ``untested`` leaves unread; None where there is none.

    It is that of the test, unless train or validation are other parts of it.
    """
    named = (data.train or "train", data.validation)
    bases = {str(name).partition("[")[0] for name in named if not is_file(name)}
    test = "test" if is_file(data.test) else str(data.test or "test").partition("[")[0]
    return test if data.untested and test not in bases else None


def inside(folder: Path) -> list[Path]:
    """Returns the tables in a folder or, if there are none, its texts."""
    files = sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))
    tables = [f for f in files if is_table(f)]
    return tables or [f for f in files if kind(f) in TEXT and f.stem.lower() != "readme"]


def split_files(folder: Path) -> list[tuple[str, list[Path]]]:
    """Returns the splits of a folder and the files or the folder of each, found by their names.

    Names are as on the hub: train.csv, train-00000-of-00004.parquet, a folder train, or the same
    in a folder data.
    """
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        stem = file.name if file.is_dir() else file.name.partition(".")[0]
        match = SHARD.fullmatch(stem.lower())
        usable = file.is_dir() or is_table(file) or kind(file) in TEXT
        for split, stems in SPLIT_NAMES.items():
            if match and match[1] in stems and usable:
                found.setdefault(split, []).append(file)
    if not found and (folder / "data").is_dir():
        return split_files(folder / "data")
    return [(split, found[split]) for split in SPLIT_NAMES if split in found]
