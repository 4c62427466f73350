"""Corpora larger than memory: documents that stay on disk and are read as they are needed.

The files become Arrow tables once (in the cache of datasets), and those are mapped into memory.
Every row can still be reached at once, so shuffling is over the whole corpus, and a run that goes
on finds its place without reading what came before.
"""

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pandas
from accelerate import PartialState
from datasets import Dataset, Features, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from finetune.data import chats, corpus, readers, sources
from finetune.data.corpus import Corpus
from finetune.errors import UserError
from finetune.recipe import Data

# What datasets calls the kinds of files.
BUILDERS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
# Rows looked at together.
WINDOW = 1000


def load(data: Data, content: str = corpus.TEXTS, labelled: bool = False) -> Corpus:
    """What ``corpus.load`` does for rows without labels, with those for training on disk.

    ``train`` is a ``Dataset`` with a column for each part of a document. Test and validation rows,
    where they are taken from it, are drawn from the documents that occur once.

    Raises:
        UserError: anything of which a run would lie or fail: see the messages.
    """
    assert not labelled
    tables, source, commit = corpus.splits(data, lambda file: _read(Path(file), data), _dataset)
    rows = tables["train"]
    parts = corpus.content_columns(rows.column_names, data, content)
    for key, name in parts.items():
        if name not in rows.column_names:
            corpus.refuse_name(source, "column", name, rows.column_names, key)
    rows = rows.select_columns(list(parts.values())).rename_columns(
        {name: key for key, name in parts.items()}
    )
    found, rejected = _digests(rows)
    usable = numpy.flatnonzero(found)
    if len(rejected) > corpus.MOST_REJECTED * len(rows):
        raise UserError(
            f"{source}: {rejected[0]['reason']} (row {rejected[0]['line']}); {len(rejected)} of "
            f"{len(rows)} rows cannot be used, mend the file"
        )
    draw = numpy.random.default_rng(data.split_seed)
    values, first, counts = numpy.unique(found[usable], return_index=True, return_counts=True)
    single = draw.permutation(numpy.sort(usable[first[counts == 1]]))
    held = {}
    for name, size, most in (
        ("test", data.holdout, data.max_test_samples),
        ("validation", data.validation_size, None),
    ):
        if name in tables:
            given = readers.Table(tables[name].to_pandas(), f"{source} [{name}]")
            held[name] = corpus.rows_of(given, name, data, content, False)
            if most and most < len(held[name]):
                held[name] = held[name].sample(most, random_state=data.split_seed).sort_index()
            continue
        count = round(size * len(usable)) if size < 1 else round(size)
        if count > len(single) - 1 or (name == "test" and not count):
            raise UserError(
                f"{source}: {size:g} of {len(usable)} documents cannot be taken for {name}; write "
                "a share such as 0.01, or bring more"
            )
        chosen, single = single[:count], single[count:]
        usable = numpy.setdiff1d(usable, chosen, assume_unique=True)
        held[name] = _frame(rows, numpy.sort(chosen[:most]))
    if data.max_train_samples and data.max_train_samples < len(usable):
        usable = numpy.sort(draw.choice(usable, data.max_train_samples, replace=False))
    shared = [
        row.id
        for row in held["test"].itertuples(index=False)
        if numpy.isin(_digest([str(cell) for cell in row[1:]]), values)
    ]
    shared = shared if "test" in tables else []
    corpus.refuse_overlap(source, len(shared), shared, len(held["test"]), data)
    return Corpus(
        rows.select(usable) if len(usable) < len(rows) else rows,
        held["validation"],
        held["test"],
        label_names=[],
        problem_type=corpus.UNLABELLED,
        source=source,
        revision=commit,
        test_is="given" if "test" in tables else "holdout",
        report={
            "duplicates_in_train": int(len(usable) - len(numpy.unique(found[usable]))),
            "contradictions_in_train": 0,
            "contradicting_rows": [],
            "test_texts_in_train": len(shared),
            "overlapping_rows": shared[:20],
            "rejected": len(rejected),
            "fixed": {},
        },
        rejected=rejected,
        train_digest=hashlib.sha256(found[usable].tobytes()).hexdigest(),
    )


def batches(rows: Dataset | pandas.DataFrame) -> Iterator[list[list[str]]]:
    """The columns of some rows after others, each cell as text."""
    for start in range(0, len(rows), WINDOW):
        if isinstance(rows, Dataset):
            columns = as_text(rows[start : start + WINDOW])
        else:
            columns = rows.drop(columns="id").iloc[start : start + WINDOW].to_dict("list")
        yield list(columns.values())


def as_text(columns: dict[str, list[Any]]) -> dict[str, list[str]]:
    """Cells as ``Corpus`` has them: texts, and chats as JSON."""
    return {
        name: [chats.as_text(c) if name == "messages" else str(c) for c in cells]
        for name, cells in columns.items()
    }


def _read(path: Path, data: Data) -> Dataset:
    """The rows of a file, or of all files of a folder, on disk."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    inside = sorted(f for f in path.iterdir() if f.suffix in BUILDERS) if path.is_dir() else [path]
    kinds = {f.suffix for f in inside}
    if len(kinds) != 1 or not kinds <= set(BUILDERS):
        raise UserError(
            f"{path}: holds {', '.join(sorted(kinds)) or 'no tables'}; give files of one kind: "
            f"{', '.join(BUILDERS)}"
        )
    suffix = kinds.pop()
    kind = BUILDERS[suffix]
    options: dict[str, Any] = {} if kind == "parquet" else {"encoding": data.encoding}
    if kind == "csv":
        # All cells stay text: "NA" and "007" are what the user wrote.
        options |= {"sep": "\t" if suffix == ".tsv" else ",", "keep_default_na": False}
        with inside[0].open(encoding=data.encoding, newline="") as file:
            header = next(csv.reader(file, delimiter=options["sep"]), [])
        options["features"] = Features({name: Value("string") for name in header})
    names = [str(f.resolve()) for f in inside]
    try:
        # One process of a machine reads the files; the others find them read.
        with PartialState().local_main_process_first():
            return load_dataset(kind, data_files=names, split="train", **options)
    except (DatasetGenerationError, ValueError) as error:
        said = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"{path}: cannot be read as {kind}: {said[:200]}") from None


def _dataset(data: Data) -> tuple[dict[str, Dataset], str | None]:
    """All splits of a named dataset, and the hub commit they came from if any."""
    name = str(data.dataset)
    if name.startswith("embedded:"):
        tables, commit = readers.dataset(name, None, None, data.label, data.encoding)
        return {k: Dataset.from_pandas(t.rows, preserve_index=False) for k, t in tables.items()}, (
            commit
        )
    if Path(name).is_dir():
        return {split: _read(file, data) for split, file in readers.split_files(Path(name))}, None
    folder = sources.snapshot(name, data.dataset_revision, "dataset", readers.PATTERNS)
    loaded = readers.from_snapshot(folder, data.dataset_config, name)
    return {str(split): rows for split, rows in loaded.items()}, folder.name


def _digest(cells: list[str]) -> int:
    """64 bits of a document's parts, never 0."""
    joined = "\0".join(cell.strip() for cell in cells).encode()
    return int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "big") | 1


def _digests(rows: Dataset) -> tuple[numpy.ndarray, list[dict[str, Any]]]:
    """Each row's digest (N,) uint64, 0 where it cannot be used, and the rows set aside.

    A blank text is no mistake: nothing is lost with it.
    """
    found, rejected, at = numpy.zeros(len(rows), dtype=numpy.uint64), [], 0
    for batch in rows.iter(WINDOW):
        assert isinstance(batch, dict)
        for row in zip(*batch.values(), strict=True):
            cells, reason = list(row), None
            if "messages" in batch:
                reason = chats.fault(cells[0])
            elif len(cells) > 1 and any(c is None or not str(c).strip() for c in cells):
                reason = "an empty prompt or completion"
            if reason:
                rejected.append({"source": "train", "line": at + 1, "reason": reason})
            elif cells[0] is not None and str(cells[0]).strip():
                texts = as_text({k: [c] for k, c in zip(batch, cells, strict=True)})
                found[at] = _digest([column[0] for column in texts.values()])
            at += 1
    return found, rejected


def _frame(rows: Dataset, chosen: numpy.ndarray) -> pandas.DataFrame:
    columns = as_text(rows.select(chosen)[:] if len(chosen) else {n: [] for n in rows.column_names})
    return pandas.DataFrame({"id": [f"train-{i}" for i in chosen], **columns}, dtype=object)
