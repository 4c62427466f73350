"""Reading tables and folders of tables, and the one-line errors for those that are invalid."""

import pandas
import pyarrow
import pytest
from pyarrow import parquet

from finetune.data import readers
from finetune.errors import UserError
from finetune.recipe import Data


def error_of(function, *args) -> str:
    with pytest.raises(UserError) as caught:
        function(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- tables ------------------------------------------------------------------------------------

TABLES = {
    "csv": b'text,label\nfine,1\n"two, or\nmore",0\n\nNA,1\n',
    "tsv": b'text\tlabel\nfine\t1\n"two, or\nmore"\t0\n\nNA\t1\n',
    "jsonl": (
        b'{"text": "fine", "label": "1"}\n{"text": "two, or\\nmore", "label": "0"}\n'
        b'\n\n{"text": "NA", "label": "1"}\n'
    ),
}


@pytest.mark.parametrize("suffix", TABLES)
def test_a_table_keeps_texts_and_line_numbers(tmp_path, suffix):
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(TABLES[suffix])
    rows = readers.read_table(file).rows
    assert rows["text"].tolist() == ["fine", "two, or\nmore", "NA"]
    assert rows["label"].tolist() == ["1", "0", "1"]
    lines = [1, 2, 5] if suffix == "jsonl" else [2, 3, 6]
    assert rows.index.tolist() == lines


def test_parquet_keeps_whole_numbers_beside_a_missing_one(tmp_path):
    file = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["a", "b", "c"], "label": pyarrow.array([1, None, 0])})
    parquet.write_table(table, file)
    rows = readers.read_table(file).rows
    assert rows["label"].tolist() == [1, None, 0]
    assert [type(v) for v in rows["label"]] == [int, type(None), int]
    assert rows.index.tolist() == [1, 2, 3]


def test_a_folder_of_files_is_one_table_whose_rows_know_their_file(tmp_path):
    (tmp_path / "b.csv").write_text("text,label\nthree,1\n", encoding="utf-8")
    (tmp_path / "a.csv").write_text("text,label\none,0\ntwo,1\n", encoding="utf-8")
    (tmp_path / "notes.md").write_text("not a table", encoding="utf-8")
    table = readers.read_table(tmp_path)
    assert table.rows["text"].tolist() == ["one", "two", "three"]
    assert [table.at(i) for i in table.rows.index] == [
        f"{tmp_path}/a.csv:2",
        f"{tmp_path}/a.csv:3",
        f"{tmp_path}/b.csv:2",
    ]


def test_a_folder_of_unlike_files_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\none,0\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("label,body\n1,three\n", encoding="utf-8")
    message = error_of(readers.read_table, tmp_path)
    assert message.startswith(f"{tmp_path}/b.csv:1: ")
    assert "a.csv" in message


def test_a_byte_order_mark_is_taken_off_and_counted(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(b"\xef\xbb\xbftext,label\nfine,1\n")
    table = readers.read_table(file)
    assert list(table.rows.columns) == ["text", "label"]
    assert table.fixed == {"byte-order mark": 1}


def test_another_encoding_is_read_when_named(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes("text,label\ncafé,1\n".encode("latin-1"))
    assert readers.read_table(file, Data(encoding="latin-1")).rows["text"].tolist() == ["café"]
    assert "utf-9" in error_of(readers.read_table, file, Data(encoding="utf-9"))


STOPPED = {
    "missing file": (None, "", "no such file"),
    "empty file": (b"", "", "no rows"),
    "header only": (b"text,label\n", "", "no rows"),
    "partly UTF-8": (
        "text,label\nnaïve café,1\n".encode() + b"caf\xe9,1\n",
        "",
        "at byte 29 (line 3)",
    ),
    "not UTF-8 after a mark": (b"\xef\xbb\xbftext\ncaf\xe9\n", "", "at byte 11"),
    "ragged row, too long": (b"text,label\nok,1\nwell, yes,1\n", ":3", "3 cells"),
    "ragged row, too short": (b"text,label\nok\n", ":2", "1 cells where the header has 2"),
    "open quote": (b'text,label\n"ok",1\n"never,1\nok,1\n', ":3", "not CSV"),
    "open quote in the header": (b'"text,label\nok,1\n', ":1", "not CSV"),
}


@pytest.mark.parametrize("case", STOPPED)
def test_a_broken_table_is_refused_with_its_line(tmp_path, case):
    content, line, says = STOPPED[case]
    file = tmp_path / "a.csv"
    if content is not None:
        file.write_bytes(content)
    message = error_of(readers.read_table, file)
    assert message.startswith(f"{file}{line}: ")
    assert says in message


def test_duplicated_parquet_column_and_broken_parquet_are_refused(tmp_path):
    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table([["a"], ["b"]], names=["text", "text"]), file)
    table = readers.read_table(file)
    assert "column 'text' occurs twice" in error_of(table.column, "text", "text")
    file.write_bytes(b"PAR1 and nothing else")
    assert error_of(readers.read_table, file).startswith(f"{file}: not Parquet")


def test_a_broken_json_line_is_set_aside(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n{"text": \n[1]\n{"text": "b"}\n', encoding="utf-8")
    table = readers.read_table(file)
    assert table.rows["text"].tolist() == ["a", "b"]
    assert [(row["source"], row["line"]) for row in table.rejected] == [
        (str(file), 2),
        (str(file), 3),
    ]
    assert table.rejected[0]["reason"].startswith("not JSON: ")
    assert table.rejected[1]["reason"] == "not a JSON object"


def test_json_lines_without_a_single_row_are_refused_by_their_first_line(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("[\n1]\n", encoding="utf-8")
    assert error_of(readers.read_table, file).startswith(f"{file}:1: not a JSON object")


def test_an_unknown_kind_of_file_is_refused(tmp_path):
    file = tmp_path / "a.docx"
    file.write_bytes(b"x")
    message = error_of(readers.read_table, file)
    assert message.startswith(f"{file}: .docx is not read; .arrow, ")


# --- datasets ----------------------------------------------------------------------------------


def test_a_folder_with_train_and_test_is_a_dataset(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,0\nb,1\n", encoding="utf-8")
    (tmp_path / "test.csv").write_text("text,label\nc,0\n", encoding="utf-8")
    (tmp_path / "dev.jsonl").write_text('{"text": "d", "label": 1}\n', encoding="utf-8")
    tables, commit = readers.dataset(Data(dataset=str(tmp_path)))
    assert {split: len(table.rows) for split, table in tables.items()} == {
        "train": 2,
        "validation": 1,
        "test": 1,
    }
    assert commit is None


def test_a_folder_with_folders_of_files_is_a_dataset(tmp_path):
    for split, text in (("train", "a"), ("test", "b")):
        (tmp_path / split).mkdir()
        (tmp_path / split / "part.csv").write_text(f"text,label\n{text},0\n", encoding="utf-8")
    tables, _ = readers.dataset(Data(dataset=str(tmp_path)))
    assert tables["train"].rows["text"].tolist() == ["a"]
    assert tables["test"].at("part.csv:2") == f"{tmp_path}/test/part.csv:2"


def test_wrong_datasets_are_refused(tmp_path):
    file = tmp_path / "reviews.csv"
    file.write_text("text,label\na,0\n", encoding="utf-8")
    assert "train.csv" in error_of(readers.dataset, Data(dataset=str(tmp_path)))
    assert "`train:`" in error_of(readers.dataset, Data(dataset=str(file)))
    message = error_of(readers.dataset, Data(dataset="embedded:imbd"))
    assert message == "embedded dataset 'imbd' is unknown; did you mean 'imdb'?"
    message = error_of(readers.dataset, Data(dataset="./no/such/folder"))
    assert message.startswith("./no/such/folder: no such folder")


def test_embedded_tables_have_text_and_label_only():
    tables, _ = readers.dataset(Data(dataset="embedded:rotten_tomatoes"))
    assert list(tables) == ["train"]
    table = tables["train"]
    assert list(table.rows.columns) == ["text", "label"]
    assert table.label_names == ["negative", "positive"]
    assert isinstance(table.rows, pandas.DataFrame)
    assert set(table.rows["label"]) == {0, 1}
