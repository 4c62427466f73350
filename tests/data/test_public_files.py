"""Forty files as they are published and exported: read, or refused in one line."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pandas
import pytest
from datasets import Dataset, DatasetDict

from finetune.data import corpus
from finetune.errors import UserError
from finetune.recipe import Data

COUNT = 40
TEXTS = [f"review number {i}: the film, it was {'fine' if i % 2 else 'bad'}" for i in range(COUNT)]
LABELS = [str(i % 2) for i in range(COUNT)]
FRAME = pandas.DataFrame({"text": TEXTS, "label": LABELS})
ROWS = FRAME.to_dict("records")
PLAIN = FRAME.to_csv(index=False)


def joined(sign: str, end: str = "\n", header: str | None = None) -> str:
    """Lines without quotes, whose texts do not have the sign."""
    lines = [f"text{sign}label" if header is None else header]
    lines += [f"{t.replace(sign, '')}{sign}{v}" for t, v in zip(TEXTS, LABELS, strict=True)]
    return end.join(line for line in lines if line) + end


def excel(**keys: Any) -> bytes:
    stream = io.BytesIO()
    FRAME.to_excel(stream, index=False, **keys)
    return stream.getvalue()


def excel_with_empty_rows() -> bytes:
    book = openpyxl.Workbook()
    for row in [[None], ["text", "label"], *FRAME.to_numpy().tolist(), [None, None], [" ", None]]:
        book.worksheets[0].append(row)
    stream = io.BytesIO()
    book.save(stream)
    return stream.getvalue()


def zipped(**files: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("_csv", ".csv"), content)
    return stream.getvalue()


def parquet() -> bytes:
    stream = io.BytesIO()
    FRAME.to_parquet(stream)
    return stream.getvalue()


def saved(folder: Path) -> None:
    DatasetDict({"train": Dataset.from_pandas(FRAME)}).save_to_disk(str(folder))


def shards(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    for i in range(2):
        FRAME.iloc[i * 20 : i * 20 + 20].to_parquet(
            folder / f"data/train-0000{i}-of-00002.parquet", index=False
        )
    (folder / "dataset_infos.json").write_text("{}", encoding="utf-8")


def parts(folder: Path) -> None:
    folder.mkdir()
    FRAME.iloc[:20].to_csv(folder / "part-0.csv", index=False)
    FRAME.iloc[20:].to_csv(folder / "part-1.csv.gz", index=False)


SPAM = (
    joined("\t")
    .replace("review number 4:", '"review number 4:')
    .replace("9: the film", '9: "film"')
)
ACCENTS = PLAIN.replace("fine", "très “bon”")
SPLIT = FRAME.to_dict("split", index=False)
BACKSLASH = "text,label\n" + "".join(
    f'"he said \\"{t}\\"",{v}\n' for t, v in zip(TEXTS, LABELS, strict=True)
)
Content = str | bytes | Callable[[Path], None]

# name: file, content, keys, and how the message of a refusal ends or what it says (None: all rows)
FILES: dict[str, tuple[str, Content, dict[str, Any], str | None]] = {
    "plain CSV": ("a.csv", PLAIN, {}, None),
    "CSV with carriage returns": ("a.csv", PLAIN.replace("\n", "\r\n"), {}, None),
    "CSV of an old Mac": ("a.csv", PLAIN.replace("\n", "\r"), {}, None),
    "CSV without a last line end": ("a.csv", PLAIN.rstrip("\n"), {}, None),
    "semicolons": ("a.csv", joined(";"), {}, None),
    "tabs in a .csv": ("a.csv", joined("\t"), {}, None),
    "pipes": ("a.csv", joined("|"), {}, None),
    "sep=;": ("a.csv", "sep=;\n" + joined(";"), {}, None),
    "a named delimiter": ("a.csv", joined("~"), {"delimiter": "~"}, None),
    "TSV": ("a.tsv", joined("\t"), {}, None),
    "TSV with stray quotes": ("a.tsv", SPAM, {}, None),
    "a .tab of Mac Excel": ("a.tab", joined("\t", "\r"), {}, None),
    "backslash-escaped quotes": ("a.csv", BACKSLASH, {}, None),
    "an index": ("a.csv", FRAME.to_csv(), {}, None),
    "empty columns and rows": ("a.csv", PLAIN.replace("\n", ",,\n") + ",,,\n" * 20, {}, None),
    "no header": (
        "a.csv",
        joined("|", header=""),
        {"header": "none", "text": "1", "label": "2"},
        None,
    ),
    "no header, not said": ("a.csv", joined("|", header=""), {}, "--header none"),
    "names in capitals": ("a.csv", PLAIN.replace("text,label", "Text,Label"), {}, None),
    "other names": ("a.csv", PLAIN.replace("text,label", "review,stars"), {}, "(set `text:`)"),
    "UTF-8 with a mark": ("a.csv", ACCENTS.encode("utf-8-sig"), {}, None),
    "UTF-16": ("a.csv", ACCENTS.encode("utf-16"), {}, None),
    "UTF-16 without a mark": ("a.csv", ACCENTS.encode("utf-16-le"), {}, None),
    "Windows-1252": ("a.csv", ACCENTS.encode("cp1252"), {}, None),
    "latin-1": ("a.csv", ACCENTS.translate({0x201C: 39, 0x201D: 39}).encode("latin-1"), {}, None),
    "two encodings": (
        "a.csv",
        ACCENTS.encode() + "déjà,1\n".encode("cp1252"),
        {},
        "but the rest is",
    ),
    "gzip": ("a.csv.gz", gzip.compress(PLAIN.encode()), {}, None),
    "bz2": ("a.tsv.bz2", bz2.compress(joined("\t").encode()), {}, None),
    "xz": ("a.jsonl.xz", lzma.compress("\n".join(map(json.dumps, ROWS)).encode()), {}, None),
    "zip": ("archive.zip", zipped(a_csv=PLAIN), {}, None),
    "zip of two tables": (
        "archive.zip",
        zipped(a_csv=PLAIN, b_csv=PLAIN),
        {},
        "has 2 tables inside",
    ),
    "Excel": ("a.xlsx", excel(), {}, None),
    "Excel with empty rows": ("a.xlsx", excel_with_empty_rows(), {}, None),
    "old Excel": ("a.xls", b"\xd0\xcf\x11\xe0", {}, "save it as .xlsx"),
    "JSON lines": ("a.ndjson", FRAME.to_json(orient="records", lines=True), {}, None),
    "a JSON array": ("a.json", FRAME.to_json(orient="records", indent=2), {}, None),
    "JSON under data": ("a.json", json.dumps({"version": 1, "data": ROWS}), {}, None),
    "JSON of pandas": ("a.json", FRAME.to_json(), {}, None),
    "JSON of columns": ("a.json", json.dumps(FRAME.to_dict("list"), indent=1), {}, None),
    "JSON of pandas, split": ("a.json", json.dumps(SPLIT), {}, None),
    "Parquet": ("a.parquet", parquet(), {}, None),
    "a page of HTML": ("a.csv", "<!doctype html>\n<p>Not, found</p>\n" * 9, {}, ""),
    "an image": ("a.csv", bytes(range(256)) * 20, {}, ""),
    "a folder of parts": ("parts", parts, {}, None),
    "a pattern": ("parts", parts, {"train": "parts/*"}, None),
    "a folder of the hub": ("hub", shards, {"dataset": "hub", "train": None}, None),
    "a saved data set": ("saved", saved, {"dataset": "saved", "train": None}, None),
    "plain text": ("a.txt", "\n".join(TEXTS), {}, "no column 'label'; it has text"),
    "a Word file": ("a.docx", b"PK", {}, ".docx is not read"),
}


def test_there_are_forty() -> None:
    assert len(FILES) >= 40


@pytest.mark.parametrize("case", FILES)
def test_a_file_is_read_or_refused_in_one_line(case: str, workdir: Path) -> None:
    name, content, keys, says = FILES[case]
    if callable(content):
        content(Path(name))
    else:
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    data = Data(**{"train": name, "holdout": 4, "validation_size": 4, **keys})
    if says is not None:
        with pytest.raises(UserError) as caught:
            corpus.load(data)
        message = str(caught.value)
        assert says in message
        assert "\n" not in message
        assert len(message) <= 300
        return
    found = corpus.load(data)
    assert found.label_names == ["0", "1"]
    rows = pandas.concat([found.train, found.validation, found.test])
    numbers = sorted(int(text.split("number ")[1].split(":")[0]) for text in rows["text"])
    assert numbers == list(range(COUNT))
    for row in rows.itertuples():
        assert str(row.label) == LABELS[int(str(row.text).split("number ")[1].split(":")[0])]
