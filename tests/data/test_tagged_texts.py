"""Texts with entities: CoNLL columns, tokens with tags, spans; and every kind of bad row."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from finetune.data import corpus, readers, tagged_texts
from finetune.errors import UserError
from finetune.recipe import Data

SPAN = {"start": 0, "end": 12, "label": "PER"}
ADA = {"tokens": ["Ada", "Lovelace", "wrote"], "tags": ["B-PER", "I-PER", "O"]}
PLACE = {"tokens": ["In", "Paris"], "tags": ["O", "B-LOC"]}


def rows_of(path: Path, **changes: Any) -> tuple[list[dict], readers.Table]:
    """The usable rows of a file, and its table with what was rejected."""
    data = Data(**{"text": "tokens", "label": "tags", **changes})
    table = readers.read_table(path, data)
    frame = tagged_texts.read(table, data, labelled=True)
    return frame.to_dict("records"), table


def lines(folder: Path, *rows: object, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def conll(folder: Path, text: str) -> Path:
    path = folder / "rows.conll"
    path.write_text(text, encoding="utf-8")
    return path


def test_conll_columns_are_read(tmp_path: Path) -> None:
    text = (
        "-DOCSTART- -X- -X- O\n\nAda NNP I-NP B-PER\nLovelace NNP I-NP I-PER\n. . O O\n\n\n"
        "Hi UH O O\n"
    )
    rows, table = rows_of(conll(tmp_path, text))
    assert [row["text"] for row in rows] == ["Ada Lovelace .", "Hi"]
    assert rows[0]["label"] == [SPAN]
    assert json.loads(rows[0]["words"]) == [[0, 3], [4, 12], [13, 14]]
    assert rows[1]["label"] == []
    assert list(table.rows.index) == [3, 8]
    assert not table.rejected


def test_two_columns_with_tabs_and_tokens_with_blanks(tmp_path: Path) -> None:
    rows, _ = rows_of(conll(tmp_path, "New York\tB-LOC\r\nrules\u2028now\tO\r\n\t\r\nHi\tO"))
    assert [row["text"] for row in rows] == ["New York rules\u2028now", "Hi"]
    assert rows[0]["label"] == [{"start": 0, "end": 8, "label": "LOC"}]


def test_tokens_with_names_and_spans_give_the_same_row(tmp_path: Path) -> None:
    spans = {"text": "Ada Lovelace wrote", "spans": [SPAN]}
    # A single line of lists of one length would be a table, a list for each column.
    rows, _ = rows_of(lines(tmp_path, ADA, ADA))
    others, _ = rows_of(lines(tmp_path, spans, spans, name="s.jsonl"), text="text", label="spans")
    assert rows == others


def test_ids_with_label_names(tmp_path: Path) -> None:
    names = ["O", "B-PER", "I-PER"]
    given = {"tokens": ADA["tokens"], "tags": [1, 2, 0]}
    rows, _ = rows_of(lines(tmp_path, given, given), label_names=names)
    assert rows[0]["label"] == [SPAN]
    # Names of the data set itself, as the hub has them.
    features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=names))})
    Dataset.from_list([given], features=features).save_to_disk(str(tmp_path / "saved"))
    rows, _ = rows_of(tmp_path / "saved")
    assert rows[0]["label"] == [SPAN]
    with pytest.raises(UserError, match=r"rows.jsonl:1: tags are numbers; name them"):
        rows_of(lines(tmp_path, given, given))


def test_types_keep_the_order_of_their_names(tmp_path: Path) -> None:
    # More rows than one, or nothing could be held out.
    given = [{"tokens": ["a", f"{i}"], "tags": ["B-PER", "B-LOC"]} for i in range(20)]
    data = Data(train=str(lines(tmp_path, *given)), text="tokens", label="tags")
    assert corpus.load(data, corpus.TAGGED).label_names == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    data = Data(train=data.train, text="tokens", label="tags", label_names=names)
    assert corpus.load(data, corpus.TAGGED).label_names == names


def test_broken_tags_are_mended_and_counted_or_the_row_is_rejected(tmp_path: Path) -> None:
    broken = {"tokens": ["In", "Paris"], "tags": ["O", "I-LOC"]}
    path = lines(tmp_path, ADA, broken)
    rows, table = rows_of(path)
    assert table.fixed == {"broken tags mended": 1}
    assert rows[1]["label"] == [{"start": 3, "end": 8, "label": "LOC"}]
    rows, table = rows_of(path, broken_tags="reject")
    assert [row["text"] for row in rows] == ["Ada Lovelace wrote"]
    assert [(row["line"], row["reason"][:15]) for row in table.rejected] == [(2, "tags break IOB2")]


def test_another_scheme_is_read_and_noted(tmp_path: Path) -> None:
    rows, table = rows_of(lines(tmp_path, {**ADA, "tags": ["B-PER", "E-PER", "O"]}, PLACE))
    assert rows[0]["label"] == [SPAN]
    assert table.notes == ["IOBES tags read, IOB2 kept"]
    # In IOBES, B-LOC has to go on; of one word it is an entity all the same.
    assert rows[1]["label"] == [{"start": 3, "end": 8, "label": "LOC"}]
    assert table.fixed == {"broken tags mended": 1}


def test_spans_inside_of_words_are_widened_and_counted(tmp_path: Path) -> None:
    row = {"text": "Londoners, all", "spans": [{"start": 0, "end": 6, "label": "LOC"}]}
    rows, table = rows_of(lines(tmp_path, row), text="text", label="spans")
    assert rows[0]["label"] == [{"start": 0, "end": 9, "label": "LOC"}]
    assert table.fixed == {tagged_texts.WIDENED: 1}
    blank = {"text": "Ada Lovelace wrote", "spans": [{**SPAN, "end": 13}]}
    rows, table = rows_of(lines(tmp_path, blank), text="text", label="spans")
    assert rows[0]["label"] == [SPAN]
    assert not table.fixed


def test_letters_of_a_script_without_blanks_are_words(tmp_path: Path) -> None:
    row = {"text": "我在北京", "spans": [{"start": 2, "end": 4, "label": "LOC"}]}
    rows, table = rows_of(lines(tmp_path, row), text="text", label="spans")
    assert rows[0]["label"] == row["spans"]
    assert not table.fixed


BAD = {
    "5 is beyond": ({"text": "Ada", "spans": [{"start": 0, "end": 5, "label": "PER"}]}, "beyond"),
    "overlap": (
        {
            "text": "Ada Lovelace",
            "spans": [SPAN, {"start": 4, "end": 12, "label": "LOC"}],
        },
        "spans 0 to 12 and 4 to 12 overlap",
    ),
    "empty span": ({"text": "Ada", "spans": [{"start": 2, "end": 2, "label": "PER"}]}, "is empty"),
    "before": ({"text": "Ada", "spans": [{"start": -1, "end": 2, "label": "P"}]}, "before the"),
    "no label": ({"text": "Ada", "spans": [{"start": 0, "end": 2}]}, "start, end and label"),
    "a text": ({"text": "Ada", "spans": [{**SPAN, "start": "0"}]}, "numbers for start and end"),
    "blank span": ({"text": "a  b", "spans": [{"start": 1, "end": 3, "label": "P"}]}, "no word"),
    "one word": (
        {
            "text": "Ada",
            "spans": [{"start": 0, "end": 1, "label": "P"}, {"start": 2, "end": 3, "label": "P"}],
        },
        "in the same word",
    ),
    "blank text": ({"text": " ", "spans": []}, "no words"),
    "no list": ({"text": "Ada", "spans": "PER"}, "not a list"),
    "of another scheme": ({"tokens": ["Ada"], "tags": ["NNP"]}, "tag 'NNP' is neither O nor B-"),
    "another length": ({"tokens": ["Ada"], "tags": ["O", "O"]}, "1 tokens and 2 tags"),
    "no tokens": ({"tokens": [], "tags": []}, "no words"),
    "blank token": ({"tokens": ["Ada", " "], "tags": ["O", "O"]}, "token 2 is ' ', not a word"),
    "no tags": ({"tokens": ["Ada"], "tags": None}, "tags are None, not a list"),
    "no such id": ({"tokens": ["Ada"], "tags": [7]}, "tag 7 is outside 0 to 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_rejected_with_their_line(tmp_path: Path, name: str) -> None:
    row, reason = BAD[name]
    good = ADA if "tokens" in row else {"text": "Ada Lovelace wrote", "spans": [SPAN]}
    columns = {} if "tokens" in row else {"text": "text", "label": "spans"}
    names = {"label_names": ["O", "B-PER", "I-PER"]}
    rows, table = rows_of(lines(tmp_path, good, row), **columns, **names)
    assert [row["label"] for row in rows] == [[SPAN]]
    assert [each["line"] for each in table.rejected] == [2]
    assert reason in table.rejected[0]["reason"]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("Ada B-PER\n\nHi\n", 3, "1 columns; a token and its tag are needed"),
        ("Ada B-PER\n\nHi O\nthere now O\n", 4, "3 columns after 2"),
    ],
)
def test_sentences_with_other_columns_are_rejected(
    tmp_path: Path, text: str, line: int, reason: str
) -> None:
    rows, table = rows_of(conll(tmp_path, text))
    assert [row["text"] for row in rows] == ["Ada"]
    assert table.rejected == [
        {"source": str(tmp_path / "rows.conll"), "line": line, "reason": reason}
    ]


def test_a_type_that_train_has_not_is_an_error(tmp_path: Path) -> None:
    train = lines(tmp_path, *({**ADA, "tokens": [*"ab", str(i)]} for i in range(20)))
    test = lines(tmp_path, ADA, PLACE, name="test.jsonl")
    data = Data(train=str(train), test=str(test), text="tokens", label="tags")
    with pytest.raises(UserError, match=r"test.jsonl:2: entity type 'LOC' does not occur in train"):
        corpus.load(data, corpus.TAGGED)


def test_data_without_any_entity_is_an_error(tmp_path: Path) -> None:
    rows = [{"tokens": ["Hi", str(i)], "tags": ["O", "O"]} for i in range(20)]
    data = Data(train=str(lines(tmp_path, *rows)), text="tokens", label="tags")
    with pytest.raises(UserError, match="no row has an entity"):
        corpus.load(data, corpus.TAGGED)


def test_columns_in_a_text_file_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("Ada B-PER\n\nHi O\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"is read as plain text; call a file of CoNLL columns"):
        rows_of(path)


def test_the_embedded_tweets() -> None:
    data = Data(dataset="embedded:wnut16", text="tokens", label="tags")
    found = corpus.load(data, corpus.TAGGED)
    rows = sum(len(frame) for frame in (found.train, found.validation, found.test))
    assert rows == 2394
    entities = [
        e for f in (found.train, found.validation, found.test) for r in f["label"] for e in r
    ]
    assert len(entities) == 1496
    assert len(found.label_names) == 21
