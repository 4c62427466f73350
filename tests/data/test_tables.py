"""Tables as people have them: what is read, how, and what is said about it."""

# ruff: noqa: RUF001 - some texts have the letters and dashes of other languages.

import bz2
import gzip
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from finetune import recipe
from finetune.data import corpus, dialects, excel, findings, readers, streaming, token_cache
from finetune.data.corpus import Corpus
from finetune.errors import UserError
from finetune.recipe import Data
from finetune.recipe.command_line import Parser, accept_training_keys, parse_overrides
from tests.conftest import sentences

SEVERAL = "multi_label_classification"


@pytest.fixture(autouse=True)
def here(workdir: Path) -> Path:
    return workdir


def write(content: str | bytes, name: str = "a.csv") -> str:
    Path(name).parent.mkdir(exist_ok=True, parents=True)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def refused(function: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) <= 300
    return message


def rows(name: str, **keys: Any) -> tuple[list[list[Any]], str]:
    """The cells of a table, and what is said about it."""
    table = readers.read_table(name, Data(**keys))
    return table.rows.to_numpy().tolist(), "; ".join(table.notes)


def load(**keys: Any) -> Corpus:
    return corpus.load(Data(**{"holdout": 4, "validation_size": 4, **keys}))


def everything(found: Corpus) -> pandas.DataFrame:
    return pandas.concat([found.train, found.validation, found.test])


def said(found: Corpus) -> str:
    return "; ".join(findings.describe(found.report))


def by_text(found: Corpus) -> dict[str, Any]:
    """The names of each row's label, by its text."""
    names = found.label_names
    out = {}
    for row in everything(found).itertuples():
        several = isinstance(row.label, list)
        out[row.text] = (
            [n for n, on in zip(names, row.label, strict=True) if on]
            if several
            else names[row.label]
        )
    return out


def labelled(labels: list[Any], name: str = "a.jsonl") -> str:
    """Forty rows whose labels are taken in turn."""
    lines = [{"text": f"row {i}", "label": labels[i % len(labels)]} for i in range(40)]
    return write("".join(json.dumps(line) + "\n" for line in lines), name)


GOOD = [["fine film", "1"], ["bad, film", "0"]]

# --- delimiters and quotes -------------------------------------------------------------------

WRITTEN = {
    "semicolon": ("text;label\nfine film;1\nbad, film;0\n", "semicolon"),
    "tab": ("text\tlabel\nfine film\t1\nbad, film\t0\n", "tab"),
    "pipe": ("text|label\nfine film|1\nbad, film|0\n", "pipe"),
    "sep=": ("sep=;\r\ntext;label\r\nfine film;1\r\nbad, film;0\r\n", "semicolon"),
    "trailing delimiters": (
        'text,label\nfine film,1,\n"bad, film",0\n',
        "trailing delimiters of 1",
    ),
    "empty columns": ('text,label,,,\nfine film,1,,,\n"bad, film",0,,,\n', "3 empty columns"),
    "empty rows": ('text,label\nfine film,1\n"bad, film",0\n,\n,\n', "2 empty rows"),
    "an index": (',text,label\n0,fine film,1\n1,"bad, film",0\n', "column 1, which has no name"),
    "an index without a name": ('text,label\n1,fine film,1\n2,"bad, film",0\n', "numbers of rows"),
    "blanks": ('text, label\n"fine film", "1"\n"bad, film", "0"\n', "blanks after the delimiter"),
    "blanks without quotes": ("text; label\nfine film; 1\nbad, film; 0\n", "blanks after"),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_how_a_table_is_written_is_found_and_said(case: str) -> None:
    content, says = WRITTEN[case]
    found, notes = rows(write(content))
    assert found == GOOD
    assert says in notes


def test_plain_csv_has_nothing_to_say() -> None:
    assert rows(write('text,label\nfine film,1\n"bad, film",0\n')) == (GOOD, "")


def test_lines_are_counted_from_the_first_of_the_file() -> None:
    table = readers.read_table(write("sep=;\ntext;label\na;1\n\nb;0\n"))
    assert list(table.rows.index) == [3, 5]


def test_a_delimiter_that_is_named_is_taken() -> None:
    name = write("text;label,stars\na;1,2\nb;0,3\n")
    assert list(readers.read_table(name, Data(delimiter=";")).rows) == ["text", "label,stars"]
    assert list(readers.read_table(name, Data(delimiter="comma")).rows) == ["text;label", "stars"]
    for wrong in (";;", "x", '"'):
        assert "delimiter" in refused(readers.read_table, name, Data(delimiter=wrong))


def test_backslash_escaped_quotes_are_read_and_said() -> None:
    content = 'text,label\n"he said \\"fine, film\\"",1\n"C:\\new",0\n'
    assert rows(write(content)) == (
        [['he said "fine, film"', "1"], ["C:\\new", "0"]],
        "a.csv read with backslash-escaped quotes",
    )


def test_a_backslash_before_a_quote_that_can_be_either_is_an_error() -> None:
    assert refused(rows, write('text\n"\\"\n0"\n')).startswith('a.csv:2: here \\" can be')
    assert rows(write('text,label\n"C:\\",1\nfine,0\n')) == ([["C:\\", "1"], ["fine", "0"]], "")


def spam(quoted: dict[int, str]) -> tuple[str, list[str]]:
    """400 lines as in the SMS spam collection, those in ``quoted`` with the text given there."""
    texts = [quoted.get(i, f"message number {i}, call now") for i in range(400)]
    lines = [f"{['ham', 'spam'][i % 2]}\t{text}\n" for i, text in enumerate(texts)]
    return "label\ttext\n" + "".join(lines), texts


STRAY = {
    "opens and closes in another row": {10: '"hello there', 22: 'good bye"'},
    "opens only": {10: '"hello there'},
    "closes only": {22: 'good bye"'},
    "in the middle": {10: 'say "hello" now', 22: '5" pipe'},
    "a whole cell beside an open one": {5: '"quoted"', 10: '"hello there'},
    "twice": {10: '"one', 12: 'two"', 100: '"three', 130: 'four"'},
}


@pytest.mark.parametrize("case", STRAY)
@pytest.mark.parametrize("delimiter", ["\t", ";"])
def test_quotes_that_are_part_of_texts_swallow_no_rows(case: str, delimiter: str) -> None:
    content, texts = spam(STRAY[case])
    name = write(content.replace("\t", delimiter), "a.tsv" if delimiter == "\t" else "a.csv")
    if case == "a whole cell beside an open one" and delimiter == ";":
        # The whole cell says that quotes do enclose cells.
        assert refused(readers.read_table, name).startswith(f"{name}:12: ")
        return
    table = readers.read_table(name)
    assert table.rows["text"].tolist() == texts
    assert list(table.rows.index) == list(range(2, 402))
    if case != "closes only" and case != "in the middle":
        assert "read without quoting" in "; ".join(table.notes)


def test_a_quoted_cell_may_span_lines_where_those_are_no_rows() -> None:
    content = 'text,label\n"Dear all,\nyours, me",1\nfine,0\n"a\n\nb ""c""",1\n'
    found, notes = rows(write(content))
    assert found == [["Dear all,\nyours, me", "1"], ["fine", "0"], ['a\n\nb "c"', "1"]]
    assert notes == ""


def test_a_quote_that_could_swallow_rows_is_an_error() -> None:
    message = refused(rows, write('a,b\n"x,1 y\nz",2 y\nfine,word\nmore,words\n'))
    assert message.startswith("a.csv:2: a quote opens here and closes in line 3")
    # In a file that quotes its names it would be a broken cell.
    content = '"text","label"\n' + "".join(f'"row {i}","{i % 2}"\n' for i in range(30))
    content += '"swallowed,1\nfine,0\nrow",0\n'
    assert refused(rows, write(content)).startswith("a.csv:32: a quote opens here")


def test_rows_of_another_width_are_an_error_that_names_the_delimiter() -> None:
    message = refused(rows, write("text;label\nfine;1\nwell; yes;1\n"))
    assert message.startswith("a.csv:3: 3 cells where the header has 2; quote texts")
    assert "semicolon" in message


# --- headers ---------------------------------------------------------------------------------


def headless(count: int = 40) -> str:
    return "".join(f'"a review, number {i}",{i % 2}\n' for i in range(count))


def test_a_table_without_a_header_is_said_and_read() -> None:
    name = write(headless())
    message = refused(corpus.load, Data(train=name))
    assert "the first line looks like data" in message
    assert "--header none" in message
    long = write('"' + "a very long review " * 200 + '",1\n' + headless(), "long.csv")
    assert "looks like data" in refused(corpus.load, Data(train=long))
    found = load(train=name, header="none", text="1", label="2")
    assert len(everything(found)) == 40
    assert "without a header" in said(found)


@pytest.mark.parametrize("header", ["text ,label", "Text,Label", " TEXT,label"])
def test_a_name_that_differs_in_case_or_blanks_is_taken_and_said(header: str) -> None:
    found = load(train=write(header + "\n" + headless()))
    assert len(everything(found)) == 40
    assert "names of columns" in said(found) or "taken for 'text'" in said(found)


def test_a_name_that_matches_two_columns_is_an_error() -> None:
    message = refused(corpus.load, Data(train=write("Text,TEXT,label\na,b,1\nc,d,0\n")))
    assert "no column 'text'" in message


def test_only_columns_that_are_used_have_to_be_unique() -> None:
    body = "".join(f"{i},row {i},x,{i % 2}\n" for i in range(40))
    found = load(train=write("note,text,note,label\n" + body))
    assert len(everything(found)) == 40
    message = refused(corpus.load, Data(train=write("text,text,note,label\n" + body)))
    assert "column 'text' occurs twice" in message


def test_a_message_shows_no_whole_row() -> None:
    names = ",".join(f"column number {i} with a very long name indeed" for i in range(60))
    cells = ",".join("x" for _ in range(60))
    message = refused(corpus.load, Data(train=write(f"{names}\n{cells}\n")))
    assert "… (60)" in message or "looks like data" in message


# --- encodings -------------------------------------------------------------------------------

LATIN = "text,label\nIt’s “très” bon – déjà 5 €,1\nVoilà, ça coûte cher,0\n"


@pytest.mark.parametrize(
    ("text", "encoding", "says"),
    [
        (LATIN, "cp1252", "cp1252 (for example"),
        (
            LATIN.replace("’", "").translate(dict.fromkeys(map(ord, "“”–€"), "-")),
            "latin-1",
            "cp1252",
        ),
        (LATIN, "utf-16", "utf-16"),
        (LATIN, "utf-16-le", "utf-16-le"),
        (LATIN, "utf-16-be", "utf-16-be"),
        (LATIN, "utf-8", ""),
        (LATIN, "utf-8-sig", ""),
        (
            "text,label\nОчень хороший фильм, мне понравилось,1\n".replace("м, м", "м м"),
            "cp1251",
            "cp1251",
        ),
        ("text,label\nZażółć gęślą jaźń bardzo dobre jedzenie,1\n", "cp1250", "cp1250"),
        ("text,label\nとても良い映画でした。また見たいです,1\n", "cp932", "cp932"),
    ],
)
def test_the_encoding_is_detected_and_said(text: str, encoding: str, says: str) -> None:
    text = text.replace("5 €,1", "5 €;1").replace("cher,0", "cher;0").replace("à, ç", "à ç")
    text = text.replace(";1", ",1").replace(";0", ",0")
    found, notes = rows(write(text.encode(encoding)))
    assert [",".join(row) for row in found] == text.splitlines()[1:]
    assert says in notes
    assert bool(notes) == bool(says)


@pytest.mark.parametrize("name", ["utf16le", "UTF-16LE", "utf_16_le", "utf-16-le"])
def test_an_encoding_may_be_named_in_any_spelling(name: str) -> None:
    file = write("text,label\né,1\n".encode("utf-16-le"))
    assert rows(file, encoding=name)[0] == [["é", "1"]]


def test_cp1252_that_is_read_as_latin1_is_a_warning() -> None:
    file = write("text,label\n“fine” – 5 €,1\n".encode("cp1252"))
    assert "warning: a.csv has 4 control characters" in rows(file, encoding="latin-1")[1]
    assert "warning" not in rows(file)[1]


def test_text_that_was_broken_before_is_a_warning() -> None:
    broken = "text,label\ncafé,1\n".encode().decode("cp1252")
    assert "such as 'Ã©'" in rows(write(broken))[1]


def test_a_file_that_mixes_encodings_is_an_error_and_no_mojibake() -> None:
    content = "text,label\nnaïve café,1\n".encode() * 5 + "déjà,1\n".encode("cp1252")
    message = refused(rows, write(content))
    assert "not utf-8 at byte" in message
    assert "the rest is" in message


@pytest.mark.parametrize("wrong", ["base64", "utf-9"])
def test_an_encoding_that_is_none_is_an_error(wrong: str) -> None:
    assert "is unknown" in refused(lambda: rows(write("text\na\n"), encoding=wrong))


# --- kinds of files --------------------------------------------------------------------------

PLAIN = 'text,label\nfine film,1\n"bad, film",0\n'


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zip"])
def test_a_compressed_table_is_read(suffix: str) -> None:
    name = f"a.csv{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(name, "w") as archive:
            archive.writestr("inside/a.csv", PLAIN)
            archive.writestr("__MACOSX/a.csv", "")
    else:
        write({".gz": gzip, ".bz2": bz2, ".xz": lzma}[suffix].compress(PLAIN.encode()), name)
    assert rows(name) == (GOOD, "")
    content = Path(name).read_bytes()
    write(content[: len(content) // 2], name)
    assert refused(rows, name).startswith(f"{name}: broken {suffix} file")


def test_a_zip_file_has_one_table() -> None:
    with zipfile.ZipFile("data.zip", "w") as archive:
        archive.writestr("a.jsonl", '{"text": "x"}\n')
    assert rows("data.zip")[0] == [["x"]]
    with zipfile.ZipFile("data.zip", "a") as archive:
        archive.writestr("b.csv", PLAIN)
    assert "has 2 tables" in refused(rows, "data.zip")


def test_an_excel_sheet_is_read() -> None:
    import openpyxl

    book = openpyxl.Workbook()
    book.active.append(["text", "label", None])
    for row in (["fine film", 1], [None, None], ["NA", 0], [" ", None]):
        book.active.append(row)
    book.create_sheet("notes").append(["other"])
    book.save("a.xlsx")
    table = readers.read_table("a.xlsx")
    assert table.rows.to_numpy().tolist() == [["fine film", 1], ["NA", 0]]
    assert list(table.rows.index) == [2, 4]
    notes = "; ".join(table.notes)
    assert "2 empty rows" in notes
    assert "sheet 'Sheet' read, not notes" in notes
    assert "not an Excel file" in refused(rows, write(b"x", "b.xlsx"))
    assert ".xls is not read; save it as .xlsx" in refused(rows, write(b"x", "b.xls"))


def test_excel_without_openpyxl_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(excel.importlib.util, "find_spec", lambda _: None)
    assert "finetune-recipes[excel]" in refused(rows, write(b"x", "a.xlsx"))


TWO = [{"text": "fine film", "label": "1"}, {"text": "bad, film", "label": "0"}]
COLUMNS = {"text": ["fine film", "bad, film"], "label": ["1", "0"]}


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(TWO),
        json.dumps(TWO, indent=2),
        json.dumps({"version": "1", "data": TWO}),
        json.dumps({"data": TWO}, indent=1),
        json.dumps(COLUMNS),
        json.dumps(COLUMNS, indent=2),
        json.dumps({k: dict(zip("01", v, strict=True)) for k, v in COLUMNS.items()}),
        "\n".join(map(json.dumps, TWO)),
        "\r\n\r\n".join(map(json.dumps, TWO)),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_json_is_rows_or_columns(content: str, name: str) -> None:
    assert rows(write(content, name))[0] == GOOD


def test_one_row_of_json_is_no_table_of_columns() -> None:
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    found, _ = rows(write(json.dumps(chat), "a.jsonl"))
    assert found == [[chat["messages"]]]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"text": ["x" * 5000, "b"], "label": [1]}),
        json.dumps({"text": ["x" * 5000] * 9, "nested": {"a": 1}}),
        "[" + json.dumps("x" * 5000),
        "[1, 2]",
        "nonsense " * 1000,
    ],
)
def test_json_that_is_no_table_is_one_short_line(content: str) -> None:
    assert refused(corpus.load, Data(train=write(content, "a.json"))).startswith("a.json:")


def test_a_key_that_is_given_twice_is_an_error_with_its_line() -> None:
    line = '{"text": "a", "label": 1, "text": "b"}'
    message = refused(rows, write('{"text": "x", "label": 0}\n' + line + "\n", "a.jsonl"))
    assert message.startswith("a.jsonl:2: key 'text' is given twice")
    array = '[\n{"text": "x",\n "label": 0},\n{"text": "a",\n "label": 1,\n "label": 2}\n]'
    assert refused(rows, write(array, "a.json")).startswith("a.json:6: key 'label' is given twice")


def test_half_of_a_surrogate_pair_is_replaced_and_counted() -> None:
    lines = [f'{{"text": "row {i} \\ud83d", "label": "{i % 2}"}}\n' for i in range(40)]
    lines[0] = '{"text": "whole \\ud83d\\ude00", "label": "0"}\n'
    found = load(train=write("".join(lines), "a.jsonl"))
    assert "half of a surrogate pair: 39 x" in said(found)
    texts = set(everything(found)["text"])
    assert {"whole 😀", "row 1 \N{REPLACEMENT CHARACTER}"} <= texts
    Dataset.from_pandas(everything(found)[["text"]])


# --- several files, folders, parts of splits -------------------------------------------------


@pytest.mark.parametrize(
    "given", ["data/*.csv", "data/a.csv,data/b.csv", ["data/a.csv", "data/b.csv"]]
)
def test_several_files_are_one_table(given: Any) -> None:
    write("text,label\n" + "".join(f"a {i},{i % 2}\n" for i in range(20)), "data/a.csv")
    write("label,text\n" + "".join(f"{i % 2},b {i}\n" for i in range(20)), "data/b.csv")
    found = load(train=given)
    assert len(everything(found)) == 40
    assert by_text(found)["b 3"] == "1"
    assert "columns in another order" in said(found)
    table = readers.read_table(given, Data())
    assert table.at(table.rows.index[-1]) == "data/b.csv:21"


def test_several_files_of_different_folders_know_their_path() -> None:
    names = [write("text\nx\n", "one/a.csv"), write("text\ny\n", "two/a.csv")]
    table = readers.read_table(names)
    assert [table.at(i) for i in table.rows.index] == ["one/a.csv:2", "two/a.csv:2"]


def test_many_files_are_named_in_short() -> None:
    names = [write(f"text,label\nrow {i},1\n", f"a file number {i}.csv") for i in range(40)]
    message = refused(corpus.load, Data(train=names))
    assert message.startswith("a file number 0.csv, a file number 1.csv, ")
    assert "every label is '1'" in message


def test_files_that_cannot_be_one_table_are_an_error() -> None:
    a, b = write("text,label\nx,1\n"), write("text,stars\ny,2\n", "b.csv")
    assert refused(readers.read_table, [a, b]).startswith("b.csv:1: columns text, stars differ")
    assert "is given twice" in refused(readers.read_table, [a, a])
    assert refused(readers.read_table, "none/*.csv") == "none/*.csv: no file matches"
    assert refused(readers.read_table, f"{a},c.csv").startswith("c.csv: no such file")


def jsonl(count: int, kind: str) -> str:
    lines = [{"text": f"{kind} {i}", "label": ["a", "b"][i % 2]} for i in range(count)]
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.mark.parametrize("below", ["hub", "hub/data"])
def test_a_folder_is_read_by_the_hubs_names(below: str) -> None:
    for i in range(2):
        frame = pandas.read_json(write(jsonl(20, f"train{i}"), "x.jsonl"), lines=True)
        Path(below).mkdir(parents=True, exist_ok=True)
        frame.to_parquet(f"{below}/train-0000{i}-of-00002.parquet")
    pandas.read_json(write(jsonl(8, "test"), "x.jsonl"), lines=True).to_parquet(
        f"{below}/test-00000-of-00001.parquet"
    )
    write('{"default": {}}', f"{below}/dataset_infos.json")
    write("# about", f"{below}/README.md")
    found = load(dataset="hub")
    assert (len(found.test), len(found.train) + len(found.validation)) == (8, 40)
    assert found.test_is == "given"


def test_a_saved_data_set_is_read() -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})

    def made(count: int, kind: str) -> Dataset:
        cells = {"text": [f"{kind} {i}" for i in range(count)], "label": [0, 1] * (count // 2)}
        return Dataset.from_dict(cells, features=features)

    made(40, "a").save_to_disk("one")
    DatasetDict({"train": made(40, "a"), "test": made(10, "b")}).save_to_disk("several")
    for keys in ({"train": "one"}, {"dataset": "one"}, {"dataset": "several"}):
        found = load(**keys)
        assert found.label_names == ["no", "yes"]
        assert by_text(found)["a 3"] == "yes"
    assert len(load(dataset="several").test) == 10
    assert "give it as `dataset:`" in refused(corpus.load, Data(train="several"))
    (arrow,) = Path("one").glob("*.arrow")
    assert len(readers.read_table(arrow).rows) == 40
    assert "not Arrow" in refused(rows, write(b"x", "b.arrow"))


@pytest.fixture
def splits() -> str:
    for split, count in (("train", 100), ("validation", 60), ("test", 20)):
        write(jsonl(count, split), f"glue/{split}.jsonl")
    return "glue"


def test_a_split_serves_once(splits: str) -> None:
    found = load(dataset=splits, test="validation")
    assert set(found.test["text"]) == {f"validation {i}" for i in range(60)}
    assert all(text.startswith("train") for text in found.validation["text"])
    assert "split validation serves as test, validation is taken from train" in said(found)


@pytest.mark.parametrize(
    ("keys", "sizes"),
    [
        ({"train": "train[:50%]"}, (50, 60, 20)),
        ({"train": "train[:30]", "test": "test[10:]"}, (30, 60, 10)),
        ({"train": "train[:80%]", "validation": "train[80%:]"}, (80, 20, 20)),
        ({"train": "train[-10:]"}, (10, 60, 20)),
    ],
)
def test_a_part_of_a_split(splits: str, keys: dict[str, str], sizes: tuple[int, ...]) -> None:
    found = load(dataset=splits, **keys)
    assert (len(found.train), len(found.validation), len(found.test)) == sizes


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"validation": "train"}, "train and validation both use rows of train"),
        ({"validation": "train[90%:]"}, "train and validation both use rows of train"),
        ({"validation": "test", "test": "test"}, "validation and test both use rows of test"),
        ({"train": "train[:50%"}, "is no part of a split"),
        ({"train": "train[x]"}, "is no part of a split"),
        ({"train": "trian[:5]"}, "no split 'trian'; it has train"),
        ({"train": "train[50:50]"}, "has no rows"),
    ],
)
def test_parts_that_cannot_be(splits: str, keys: dict[str, str], says: str) -> None:
    assert says in refused(corpus.load, Data(dataset=splits, **keys))


@pytest.mark.parametrize(
    "pair", [("validation", "train"), ("test", "train"), ("test", "validation")]
)
def test_no_two_splits_share_rows(pair: tuple[str, str]) -> None:
    files = {s: write(jsonl(40, s), f"{s}.jsonl") for s in ("train", "validation", "test")}
    split, other = pair
    write(jsonl(40, split) + jsonl(2, other), files[split])
    message = refused(corpus.load, Data(**files))
    assert f"2 of 42 {split} rows are also in {other}, the first is {split}-41" in message
    found = corpus.load(Data(**files, allow_overlap=True))
    assert f"2 {split} rows that are also in {other}" in said(found)


# --- text files ------------------------------------------------------------------------------


def test_a_text_file_is_a_row_a_line_and_a_folder_a_document_a_file() -> None:
    write("first line\n\nsecond line\n", "a.txt")
    for i in range(3):
        write(f"# Title {i}\n\nA text.\n", f"docs/{i}.md")
    write("about", "docs/README.md")
    assert rows("a.txt")[0] == [["first line"], [""], ["second line"]]
    assert rows("a.txt", sample_by="document")[0] == [["first line\n\nsecond line\n"]]
    assert rows("a.txt", sample_by="paragraph")[0] == [["first line"], ["second line"]]
    found, notes = rows("docs")
    assert found == [[f"# Title {i}\n\nA text.\n"] for i in range(3)]
    assert "each document" in notes
    many = write("\n".join(f"line {i}" for i in range(40)), "many.txt")
    assert len(everything(corpus.load(Data(train=many), corpus.DOCUMENTS, False))) == 40


# --- labels ----------------------------------------------------------------------------------


def test_a_list_of_one_label_is_the_label() -> None:
    found = load(train=labelled([["pos"], ["neg"]]))
    assert found.label_names == ["neg", "pos"]
    assert "are lists of one" in said(found)
    body = "".join(f"row {i},\"['{['pos', 'neg'][i % 2]}']\"\n" for i in range(40))
    assert load(train=write("text,label\n" + body)).label_names == ["neg", "pos"]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([["a"], ["a", "b"]], SEVERAL),
        (["['a', 'b']", "['a']"], SEVERAL),
        ([{"pos": 1.0}, {"neg": 1.0}], "an object with pos"),
        ([[{"label": "pos", "score": 0.9}]], "an object with label, score"),
        (["{'pos': 1}"], "an object with pos"),
    ],
)
def test_labels_that_are_no_classes_are_an_error(labels: list[Any], says: str) -> None:
    message = refused(corpus.load, Data(train=labelled(labels)))
    assert message.startswith("a.jsonl:")
    assert says in message


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["True", "true", "TRUE", "False"], ["False", "TRUE"]),
        (["1", "1.0", "0", "1"], ["0", "1"]),
        ([1, 1.0, 0, 1], ["0", "1"]),
        (["01", "1"], ["01", "1"]),
    ],
)
def test_numbers_and_booleans_are_one_class_however_written(
    labels: list[Any], names: list[str]
) -> None:
    found = load(train=labelled(labels))
    assert found.label_names == names
    assert ("are one class" in said(found)) == (len(set(map(str, labels))) > 2)


def test_names_that_differ_only_in_case_are_a_warning_and_can_be_joined(
    capsys: pytest.CaptureFixture[str],
) -> None:
    train = labelled(["Neg", "neg", "pos", "pos ", "neg"])
    found = load(train=train)
    assert found.label_names == ["Neg", "neg", "pos", "pos "]
    assert "warning: labels 'neg' (16), 'Neg' (8) differ only in case" in said(found)
    assert capsys.readouterr().out.startswith("warning: labels 'neg' (16), 'Neg' (8)")
    joined = load(train=train, label_case="fold")
    assert joined.label_names == ["neg", "pos"]
    assert "labels 'neg' (16), 'Neg' (8) are one class" in said(joined)


HOT = [[0, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    "written", [HOT, [str(row) for row in HOT], ["0,1,0", "1,1,0", "0,0,1", "0,0,0"]]
)
def test_multi_hot_labels_are_decoded(written: list[Any]) -> None:
    found = load(train=labelled(written), problem_type=SEVERAL)
    assert found.label_names == ["0", "1", "2"]
    assert [by_text(found)[f"row {i}"] for i in range(4)] == [["1"], ["0", "1"], ["2"], []]
    assert "labels read as 3 places of 0 or 1, `label_names:` names them" in said(found)
    keys = {"problem_type": SEVERAL, "train": "a.jsonl"}
    named = load(**keys, label_names=["joy", "anger", "fear"])
    assert named.label_names == ["joy", "anger", "fear"]
    assert by_text(named)["row 1"] == ["joy", "anger"]
    message = refused(corpus.load, Data(**keys, label_names=["joy", "anger"]))
    assert "lists of 3, label_names has 2 names" in message


def test_label_names_name_the_numbers_of_classes() -> None:
    found = load(train=labelled(["1", "0"]), label_names=["bad", "good"])
    assert (found.label_names, by_text(found)["row 0"]) == (["bad", "good"], "good")
    message = refused(corpus.load, Data(train="a.jsonl", label_names=["bad"] * 2))
    assert "is given twice" in message
    message = refused(corpus.load, Data(train=labelled(["2", "0"]), label_names=["bad", "good"]))
    assert "label 2 is outside 0 to 1" in message


@pytest.mark.parametrize("label", [["joy", "anger"], "joy,anger", "joy, anger"])
def test_several_columns_of_0_and_1_are_labels(label: Any) -> None:
    body = "".join(f"row {i},{i % 2},{['true', 'False'][i % 2]}\n" for i in range(40))
    train = write("text,joy,anger\n" + body)
    found = load(train=train, label=label, problem_type=SEVERAL)
    assert found.label_names == ["joy", "anger"]
    assert (by_text(found)["row 0"], by_text(found)["row 1"]) == (["anger"], ["joy"])
    assert SEVERAL in refused(corpus.load, Data(train=train, label=label))
    write("text,joy,anger\n" + body + "row 40,2,0\n")
    message = refused(corpus.load, Data(train=train, label=label, problem_type=SEVERAL))
    assert message == "a.csv:42: joy is '2'; each of several label columns has 0 or 1"


@pytest.mark.parametrize("sign", [";", "|"])
def test_labels_with_another_separator_are_an_error_that_names_it(sign: str) -> None:
    train = labelled(["joy", f"joy{sign}anger", "anger"])
    message = refused(corpus.load, Data(train=train, problem_type=SEVERAL))
    assert message.startswith("a.jsonl:2: ")
    assert f"`label_separator: '{sign}'`" in message
    found = load(train=train, problem_type=SEVERAL, label_separator=sign)
    assert found.label_names == ["anger", "joy"]


def test_a_decimal_comma_is_read_when_named() -> None:
    train = labelled(["0,5", "1,25", "-3"])
    keys = {"train": train, "problem_type": "regression"}
    assert "set `--decimal ,`" in refused(corpus.load, Data(**keys))
    found = load(**keys, decimal=",")
    assert set(everything(found)["label"]) == {0.5, 1.25, -3.0}
    for odd in ("$0.50", "1,000.5", "1.000,5"):
        labelled([odd, "1"])
        assert "is not a number" in refused(corpus.load, Data(**keys))
        assert "is not a number" in refused(lambda: corpus.load(Data(**keys, decimal=",")))


def test_a_test_file_without_labels_is_to_be_predicted() -> None:
    train = labelled(["a", "b"])
    for name, content in (
        ("kaggle.csv", "id,text\n1,x\n2,y\n"),
        ("glue.csv", "text,label\nx,-1\ny,-1\n"),
        ("empty.csv", "text,label\nx,\ny,\n"),
    ):
        message = refused(corpus.load, Data(train=train, test=write(content, name)))
        assert "`finetune predict RUN --file FILE`" in message


# --- rows ------------------------------------------------------------------------------------


def test_a_few_unusable_rows_are_set_aside_whatever_their_share() -> None:
    body = "".join(f"row {i},{i % 2 if i else ''}\n" for i in range(60))
    found = load(train=write("text,label\n" + body))
    assert (len(everything(found)), len(found.rejected)) == (59, 1)
    assert "max_rejected" in refused(corpus.load, Data(train="a.csv", max_rejected=0))
    body = "".join(f"row {i},{i % 2 if i % 2 else ''}\n" for i in range(60))
    write("text,label\n" + body)
    assert "30 of 60 rows cannot be used" in refused(corpus.load, Data(train="a.csv"))
    message = refused(lambda: corpus.load(Data(train="a.csv", max_rejected=30)))
    assert "every label is '1'" in message


def test_a_text_that_is_a_list_of_words_is_joined_and_one_of_objects_an_error() -> None:
    lines = [{"text": ["row", str(i)], "label": i % 2} for i in range(40)]
    found = load(train=write("\n".join(map(json.dumps, lines)), "a.jsonl"))
    assert "row 3" in set(everything(found)["text"])
    assert "list of words as a text: 40 x" in said(found)
    for odd in ({"body": "x"}, [{"role": "user"}], [1, 2]):
        lines[2]["text"] = odd
        message = refused(
            corpus.load, Data(train=write("\n".join(map(json.dumps, lines)), "a.jsonl"))
        )
        assert message.startswith("a.jsonl:3: text is ")


def test_an_empty_second_text_is_legal_and_empty() -> None:
    lines = [
        {
            "text": f"row {i}",
            "text_pair": f"pair {i}" if i % 6 else [None, "", " "][i % 3],
            "label": i % 2,
        }
        for i in range(60)
    ]
    train = write("\n".join(map(json.dumps, lines)), "a.jsonl")
    found = load(train=train, text_pair="text_pair")
    assert len(everything(found)) == 60
    assert "empty second text: 10 x" in said(found)
    assert set(everything(found)["text_pair"]) & {"None", "nan"} == set()
    (pairs,) = readers.read_columns(Path(train), ["text_pair"], Data())
    assert pairs[:2] == ["", "pair 1"]


def test_a_class_of_one_row_stays_in_train_and_the_others_are_stratified() -> None:
    labels = ["rare", *(["often"] * 9 + ["seldom"]) * 100]
    body = "".join(f"row {i},{label}\n" for i, label in enumerate(labels))
    found = load(train=write("text,label\n" + body), holdout=100, validation_size=50)
    names = found.label_names
    for frame, expected in ((found.test, 10), (found.validation, 5)):
        counts = [names[i] for i in frame["label"]]
        assert (counts.count("seldom"), counts.count("rare")) == (expected, 0)
    assert [names[i] for i in found.train["label"]].count("rare") == 1
    assert "1 classes with a single row" in said(found)
    some = load(train="a.csv", max_train_samples=100)
    assert [names[i] for i in some.train["label"]].count("rare") == 1


def test_the_usual_table_reads_as_before() -> None:
    body = "".join(f"{text},{label}\n" for text, label in sentences(60))
    found = load(train=write("text,label\n" + body))
    assert found.report["notes"] == []
    assert not found.report["fixed"]


def test_a_delimiter_is_sniffed_beside_escaped_quotes(workdir: Path) -> None:
    Path("a.csv").write_text('a;b;c\n"\\"\n0";"1";"2"\n', encoding="utf-8")
    rows = readers.read_table("a.csv", Data()).rows
    assert rows.to_numpy().tolist() == [['"\n0', "1", "2"]]


def test_a_delimiter_is_sniffed_from_a_bounded_sample() -> None:
    lines = ["a;b\n", *["1;2\n"] * 1_000_000]
    assert dialects.sniff(lines, ",") == ";"


# --- the recipe ------------------------------------------------------------------------------


def test_the_files_of_an_unquoted_pattern_are_one_value() -> None:
    words = ["--train", "data/a.csv", "data/b.csv", "mine.yaml", "--text", "body"]
    accepted = accept_training_keys(Parser(), words)
    assert accepted == ["--train", "data/a.csv,data/b.csv", "mine.yaml", "--text", "body"]
    assert parse_overrides(words[:3])["train"] == "data/a.csv,data/b.csv"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("data/*.csv", "data/r"),
        ("a.csv,b.csv", "a/r"),
        ("[a.csv, b.csv]", "a/r"),
        ("mine.csv.gz", "mine/r"),
    ],
)
def test_a_run_on_several_files_has_a_name(given: str, name: str) -> None:
    write("task: text-classification\nmodel: {checkpoint: x}\ndata: {train: x.csv}\n", "r.yaml")
    read = recipe.read("r.yaml", {"train": given})
    assert read.name == name


def test_a_recipe_may_list_files_and_columns() -> None:
    write(
        "task: text-classification\nmodel: {checkpoint: x}\n"
        "data:\n  train: [a.csv, b.csv]\n  label: [joy, anger]\n  header: none\n",
        "r.yaml",
    )
    read = recipe.read("r.yaml")
    assert (read.data.train, read.data.label) == (["a.csv", "b.csv"], ["joy", "anger"])
    write(read.dump(), "again.yaml")
    assert recipe.read("again.yaml").data == read.data


def test_columns_of_texts_may_exceed_the_reach_of_32_bits(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    seen = []

    def recorded(self: Dataset, *_: Any, **__: Any) -> Dataset:
        seen.append(self.data.schema.field("text").type)
        return self

    monkeypatch.setattr(Dataset, "map", recorded)
    frame = pandas.DataFrame({"id": ["a"], "text": ["good film"]}, dtype=object)
    token_cache.once(frame, "", AutoTokenizer.from_pretrained(tiny_bert), lambda rows: rows)
    assert seen == [pyarrow.large_string()]


def test_a_streamed_file_is_detected_too() -> None:
    body = "".join(f"row {i}, très “bon”;{i}\n" for i in range(40))
    train = write(("text;number\n" + body).encode("cp1252"))
    found = streaming.load(Data(train=train, holdout=4, validation_size=0))
    assert len(found.train) == 36
    assert all("très “bon”" in text for text in found.train["text"])
    assert found.train.features["text"] == Value("large_string")
    assert "read as cp1252" in said(found)
    assert "read with semicolon" in said(found)
