"""Loading a corpus: what raises an error, which rows are rejected, labels, and splits."""

import json
from pathlib import Path

import numpy
import pandas
import pytest

from finetune.data import corpus, readers
from finetune.data.corpus import Corpus
from finetune.errors import UserError
from finetune.recipe import Data


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_of(data: Data) -> str:
    with pytest.raises(UserError) as caught:
        corpus.load(data)
    message = str(caught.value)
    assert "\n" not in message
    return message


def table(rows: list[tuple[str, str]], name: str = "train.csv") -> str:
    pandas.DataFrame(rows, columns=["text", "label"]).to_csv(name, index=False)
    return name


def lines(rows: list[dict], name: str = "train.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def reviews(count: int, start: int = 0, names: tuple[str, ...] = ("bad", "good")):
    return [(f"review number {i}", names[i % len(names)]) for i in range(start, start + count)]


def texts(frame: pandas.DataFrame) -> set[str]:
    return set(frame["text"])


def everything(found: Corpus) -> pandas.DataFrame:
    return pandas.concat([found.train, found.validation, found.test])


# --- STOP --------------------------------------------------------------------------------------


def with_row(row: str, header: str = "text,label") -> str:
    """A CSV of twenty good rows, then ``row`` in line 22."""
    good = "".join(f"review number {i},{i % 2}\n" for i in range(20))
    return f"{header}\n{good}{row}\n"


def with_line(row: dict) -> str:
    good = [{"text": f"review number {i}", "label": i % 2} for i in range(20)]
    return "".join(json.dumps(r) + "\n" for r in [*good, row])


# case: file, content, options, where the message begins, what it says
STOPPED = {
    "missing file": ("a.csv", None, {}, "a.csv: ", "no such file"),
    "empty file": ("a.csv", "", {}, "a.csv: ", "no rows"),
    "header only": ("a.csv", "text,label\n", {}, "a.csv: ", "no rows"),
    "not as named": (
        "a.csv",
        b"text,label\n\xe9,1\n",
        {"encoding": "utf-8"},
        "a.csv: ",
        "byte 11; leave `encoding` out",
    ),
    "missing column": (
        "a.csv",
        with_row("x,1", "txt,label"),
        {},
        "a.csv: ",
        "it has txt, label (set `text:`; did you mean 'txt'?)",
    ),
    "missing label column": (
        "a.csv",
        with_row("x,1", "text,stars"),
        {},
        "a.csv: ",
        "no column 'label'; it has text, stars (set `label:`",
    ),
    "duplicated column": ("a.csv", with_row("x,1", "text,text"), {}, "a.csv: ", "rename one"),
    "ragged CSV row": ("a.csv", with_row("x,y,1"), {}, "a.csv:22: ", "quote texts"),
    "labels of mixed types": (
        "a.jsonl",
        with_line({"text": "x", "label": "1"}),
        {},
        "a.jsonl:21: ",
        "label '1' is str where the rows before have int",
    ),
    "label -1": ("a.csv", with_row("x,-1"), {}, "a.csv:22: ", "means unlabelled"),
    "label -1 among numbers": (
        "a.jsonl",
        with_line({"text": "x", "label": -1}),
        {},
        "a.jsonl:21: ",
        "means unlabelled",
    ),
    "one class only": (
        "a.csv",
        "text,label\na,1\nb,1\nc,1\n",
        {},
        "a.csv: ",
        "every label is '1'; a classifier needs two classes",
    ),
    "not a number": (
        "a.csv",
        with_row("x,high"),
        {"problem_type": "regression"},
        "a.csv:22: ",
        "label 'high' is not a number",
    ),
    "NaN for a number": (
        "a.csv",
        with_row("x,nan"),
        {"problem_type": "regression"},
        "a.csv:22: ",
        "label 'nan' is not a number",
    ),
    "holdout too large": ("a.csv", with_row("x,1"), {"holdout": 20}, "a.csv: holdout", "a share"),
    "no holdout": ("a.csv", with_row("x,1"), {"holdout": 0}, "a.csv: holdout", "give `test`"),
}


@pytest.mark.parametrize("case", STOPPED)
def test_stopped_with_file_line_and_fix(here, case):
    file, content, options, begins, says = STOPPED[case]
    if content is not None:
        Path(file).write_bytes(content if isinstance(content, bytes) else content.encode())
    message = error_of(Data(train=file, **options))
    assert message.startswith(begins)
    assert says in message


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_label_only_in_another_split_is_stopped(here, split):
    rest = table([*reviews(8, start=100), ("a new one", "god")], f"{split}.csv")
    message = error_of(Data(**{"train": table(reviews(40)), split: rest}))
    assert message == (f"{split}.csv:10: label 'god' does not occur in train; did you mean 'good'?")


def test_a_test_split_labelled_differently_is_stopped(here):
    rest = table(reviews(10, start=100, names=("0", "1")), "test.csv")
    message = error_of(Data(train=table(reviews(40)), test=rest))
    assert message.startswith("test.csv:2: label '0' does not occur in train; it can be bad, good")


def given(monkeypatch, labels: list, names: list[str] | None, **splits: list) -> Data:
    """A named dataset with ``ClassLabel`` names, as the hub gives it."""

    def rows(values: list, start: int) -> pandas.DataFrame:
        made = {"text": [f"text {start + i}" for i in range(len(values))], "label": values}
        return pandas.DataFrame(made, dtype=object, index=range(1, len(values) + 1))

    tables = {"train": readers.Table(rows(labels, 0), "a/b [train]", names)}
    for n, (split, values) in enumerate(splits.items(), 1):
        tables[split] = readers.Table(rows(values, 1000 * n), f"a/b [{split}]", names)
    monkeypatch.setattr(readers, "dataset", lambda *_: (tables, "commit"))
    return Data(dataset="a/b")


def test_a_label_outside_the_label_map_is_stopped(monkeypatch):
    message = error_of(given(monkeypatch, [0, 1] * 10 + [2], ["no", "yes"]))
    assert message.startswith("a/b [train]:21: label 2 is outside 0 to 1")


def test_a_label_of_minus_one_with_a_fraction_is_stopped(monkeypatch):
    data = given(monkeypatch, [0.0, 1.0] * 60, None, test=[0.0, -1.0])
    assert error_of(data).startswith("a/b [test]:2: label -1 means unlabelled")


def test_an_unlabelled_test_split_is_stopped(monkeypatch):
    message = error_of(given(monkeypatch, [0, 1] * 10, ["no", "yes"], test=[-1] * 5))
    assert message.startswith("a/b [test]:1: label -1 means unlabelled")


def test_one_class_of_a_label_map_only_is_stopped(monkeypatch):
    message = error_of(given(monkeypatch, [1] * 10, ["no", "yes"]))
    assert message == "a/b [train]: every label is 'yes'; a classifier needs two classes"


@pytest.mark.parametrize(
    ("wanted", "key"), [({"train": "trian"}, "train"), ({"test": "tset"}, "test")]
)
def test_a_wrong_split_name_is_stopped_with_the_splits_that_exist(monkeypatch, wanted, key):
    data = given(monkeypatch, [0, 1] * 10, None, test=[0, 1], extra=[0, 1])
    message = error_of(Data(dataset=data.dataset, **wanted))
    assert f"no split '{wanted[key]}'; it has train, test, extra" in message
    assert f"(set `{key}:`; did you mean '{key}'?)" in message


def test_the_same_text_in_train_and_test_is_counted_and_stopped(here):
    train = table(reviews(40))
    test = table([*reviews(9, start=100), ("review number 3 ", "good")], "test.csv")
    message = error_of(Data(train=train, test=test))
    assert message.startswith("train.csv, test.csv: 1 of 10 test rows are also in train")
    assert "test-11" in message
    assert "allow_overlap" in message
    found = corpus.load(Data(train=train, test=test, allow_overlap=True, validation_size=0))
    assert found.report["test_texts_in_train"] == 1
    assert found.report["overlapping_rows"] == ["test-11"]


def test_a_thousandth_of_overlap_is_counted_only(here):
    test = table([*reviews(999, start=1000), ("review number 3", "good")], "test.csv")
    found = corpus.load(Data(train=table(reviews(40)), test=test, validation_size=0))
    assert found.report["test_texts_in_train"] == 1


# --- ROW ---------------------------------------------------------------------------------------

REJECTED = {
    "missing label": ({"text": "fine"}, "empty label"),
    "null label": ({"text": "fine", "label": None}, "empty label"),
    "empty text": ({"text": "", "label": "good"}, "empty text"),
    "blank text": ({"text": " \n\t", "label": "good"}, "empty text"),
    "null text": ({"text": None, "label": "good"}, "empty text"),
    "empty row": ({}, "empty text and label"),
    "broken JSON line": ('{"text": "fine", "lab', "not JSON: "),
    "not an object": ('["fine", "good"]', "not a JSON object"),
}


def spoiled(bad: int, total: int, row: dict | str) -> str:
    good = [{"text": t, "label": v} for t, v in reviews(total - bad)]
    written = [json.dumps(r) for r in good] + [
        row if isinstance(row, str) else json.dumps(row)
    ] * bad
    Path("train.jsonl").write_text("\n".join(written) + "\n", encoding="utf-8")
    return "train.jsonl"


@pytest.mark.parametrize("case", REJECTED)
def test_a_row_is_rejected_with_its_reason(here, case):
    row, reason = REJECTED[case]
    found = corpus.load(Data(train=spoiled(1, 100, row)))
    assert len(everything(found)) == 99
    assert len(found.rejected) == found.report["rejected"] == 1
    rejected = found.rejected[0]
    assert (rejected["source"], rejected["line"]) == ("train.jsonl", 100)
    assert rejected["reason"].startswith(reason)


@pytest.mark.parametrize("case", REJECTED)
def test_more_than_a_hundredth_and_twenty_rejected_are_stopped(here, case):
    row, reason = REJECTED[case]
    message = error_of(Data(train=spoiled(21, 199, row)))
    assert message.startswith(f"train.jsonl:179: {reason}")
    assert "21 of 199 rows cannot be used" in message


def test_rows_rejected_in_csv_and_in_folders_name_their_file_and_line(here):
    table([*reviews(150), ("", "good")], "a.csv")
    found = corpus.load(Data(train="a.csv"))
    assert found.rejected == [{"source": "a.csv", "line": 152, "reason": "empty text"}]
    Path("parts").mkdir()
    table(reviews(75), "parts/a.csv")
    table([*reviews(75, start=75), ("no label here", "")], "parts/b.csv")
    found = corpus.load(Data(train="parts"))
    assert found.rejected == [{"source": "parts/b.csv", "line": 77, "reason": "empty label"}]
    assert everything(found)["id"].is_unique
    assert "train-b.csv:2" in set(everything(found)["id"])


# --- FIX and counted ---------------------------------------------------------------------------


def test_byte_order_marks_are_fixed_and_counted_over_all_files(here):
    for name, rows in (("train.csv", reviews(40)), ("test.csv", reviews(10, start=100))):
        table(rows, name)
        Path(name).write_bytes(b"\xef\xbb\xbf" + Path(name).read_bytes())
    found = corpus.load(Data(train="train.csv", test="test.csv"))
    assert found.report["fixed"] == {"byte-order mark": 2}


@pytest.mark.parametrize("text", ["NA", "null", "None", "nan", "007", "1e5", "-1", "true"])
def test_a_text_that_looks_like_something_else_stays_text(here, text):
    found = corpus.load(Data(train=table([*reviews(20), (text, "good")]), holdout=4))
    assert text in texts(everything(found))
    assert not found.rejected


def test_numbers_of_json_become_text(here):
    rows = [{"text": i, "label": ["a", "b"][i % 2]} for i in range(20)]
    found = corpus.load(Data(train=lines(rows)))
    assert texts(everything(found)) == {str(i) for i in range(20)}


def test_a_class_named_na_is_a_class(here):
    found = corpus.load(Data(train=table(reviews(20, names=("NA", "None")))))
    assert found.label_names == ["NA", "None"]


def test_duplicates_are_counted_and_contradictions_listed(here):
    rows = [*reviews(30), ("same", "good"), ("same ", "good"), ("torn", "good"), ("torn", "bad")]
    found = corpus.load(Data(train=table(rows)))
    assert found.report["duplicates_in_train"] == 2
    assert found.report["contradictions_in_train"] == 1
    assert found.report["contradicting_rows"] == [["train-34", "train-35"]]


# --- labels ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "names"),
    [
        (("10", "2", "1"), ["1", "2", "10"]),
        (("0.5", "10", "-2"), ["-2", "0.5", "10"]),
        (("10", "2", "x"), ["10", "2", "x"]),
        (("world", "Business", "sports"), ["Business", "sports", "world"]),
    ],
    ids=["numeric", "fractions", "one is no number", "sorted"],
)
def test_the_order_of_labels(here, written, names):
    found = corpus.load(Data(train=table(reviews(60, names=written))))
    assert found.label_names == names
    for row in everything(found).itertuples():
        assert names[row.label] == written[int(row.text.split()[-1]) % len(written)]


def test_class_label_order_wins(monkeypatch):
    found = corpus.load(given(monkeypatch, [0, 1, 2] * 20, ["z", "10", "2"]))
    assert found.label_names == ["z", "10", "2"]
    assert set(found.train["label"]) == {0, 1, 2}


def test_sets_of_labels(here):
    rows = [(f"t {i}", ["red", "red, blue", "green,red"][i % 3]) for i in range(30)]
    found = corpus.load(Data(train=table(rows), problem_type="multi_label_classification"))
    assert found.label_names == ["blue", "green", "red"]
    wanted = [[0.0, 0.0, 1.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]
    for row in everything(found).itertuples():
        assert row.label == wanted[int(row.text.split()[-1]) % 3]


def test_a_label_of_a_set_only_in_test_is_stopped(here):
    train = lines([{"text": f"t {i}", "label": [["a", "b"][i % 2]]} for i in range(20)])
    test = lines([{"text": "u", "label": ["a", "c"]}], "test.jsonl")
    message = error_of(Data(train=train, test=test, problem_type="multi_label_classification"))
    assert message.startswith("test.jsonl:1: label 'c' does not occur in train")


def test_numbers_whole_and_broken_are_one_type(here):
    rows = [{"text": f"t {i}", "label": i if i % 2 else i / 4} for i in range(20)]
    found = corpus.load(Data(train=lines(rows), problem_type="regression"))
    assert found.label_names == []
    by_text = {f"t {i}": float(i if i % 2 else i / 4) for i in range(20)}
    assert {r.text: r.label for r in everything(found).itertuples()} == by_text


# --- splits ------------------------------------------------------------------------------------


def test_carved_splits_have_the_sizes_asked_no_text_in_common_and_the_classes_shares(here):
    names = ("a", "a", "a", "b")
    rows = [*reviews(400, names=names), *reviews(20, names=names)]
    found = corpus.load(Data(train=table(rows), holdout=80, validation_size=0.1))
    assert (len(found.test), len(found.validation), len(found.train)) == (80, 34, 306)
    assert found.test_is == "holdout"
    parts = [texts(found.train), texts(found.validation), texts(found.test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert len(set.union(*parts)) == 400
    assert int((found.test["label"] == 0).sum()) == pytest.approx(60, abs=1)
    assert int((found.validation["label"] == 0).sum()) == pytest.approx(34 * 0.75, abs=1)


def test_splits_follow_from_the_split_seed_alone(here):
    train = table(reviews(200))
    first = corpus.load(Data(train=train))
    numpy.random.seed(7)
    again = corpus.load(Data(train=train))
    assert again.fingerprint == first.fingerprint
    assert texts(again.test) == texts(first.test)
    other = corpus.load(Data(train=train, split_seed=1))
    assert texts(other.test) != texts(first.test)


def test_samples_are_stratified_and_leave_the_test_rows_alone(here):
    train = table(reviews(400, names=("a", "a", "a", "b")))
    whole = corpus.load(Data(train=train, holdout=80))
    some = corpus.load(Data(train=train, holdout=80, max_train_samples=40, max_test_samples=20))
    assert (len(some.train), len(some.test)) == (40, 20)
    assert texts(some.test) < texts(whole.test)
    assert texts(some.train) < texts(whole.train)
    assert (some.train["label"] == 0).sum() == 30
    assert (some.test["label"] == 0).sum() == 15
    draws = [
        corpus.load(Data(train=train, holdout=80, max_train_samples=16, sample_seed=seed)).train
        for seed in range(3)
    ]
    assert [(draw["label"] == 0).sum() for draw in draws] == [12, 12, 12]
    assert len({frozenset(texts(draw)) for draw in draws}) == 3


def test_given_splits_are_taken_as_they_are(here):
    data = Data(
        train=table(reviews(40)),
        validation=table(reviews(6, start=100), "valid.csv"),
        test=table(reviews(8, start=200), "test.csv"),
    )
    found = corpus.load(data)
    assert (len(found.train), len(found.validation), len(found.test)) == (40, 6, 8)
    assert found.test_is == "given"
    assert found.source == "train.csv, valid.csv, test.csv"
    assert found.test["id"].tolist() == [f"test-{line}" for line in range(2, 10)]


def test_the_hubs_own_test_split_is_the_official_one(monkeypatch):
    data = given(monkeypatch, [0, 1] * 20, ["no", "yes"], test=[0, 1])
    found = corpus.load(data)
    assert (found.test_is, found.revision, len(found.test)) == ("official", "commit", 2)


def test_a_folder_with_train_and_test_is_a_dataset(here):
    Path("own").mkdir()
    table(reviews(40), "own/train.csv")
    table(reviews(10, start=100), "own/test.csv")
    found = corpus.load(Data(dataset="own"))
    assert (len(found.train), len(found.validation), len(found.test)) == (36, 4, 10)
    assert found.source == "own"


def test_an_own_file_takes_the_place_of_a_datasets_split(here):
    Path("own").mkdir()
    table(reviews(40), "own/train.csv")
    table(reviews(10, start=100), "own/test.csv")
    found = corpus.load(Data(dataset="own", train=table(reviews(20, start=200), "more.csv")))
    assert len(found.train) + len(found.validation) == 20
    assert len(found.test) == 10
    assert found.source == "own, more.csv"


def test_pairs_of_texts(here):
    rows = [{"a": "one claim", "b": f"proof {i}", "label": ["n", "y"][i % 2]} for i in range(40)]
    found = corpus.load(Data(train=lines(rows), text="a", text_pair="b", holdout=8))
    assert list(found.train.columns) == ["id", "text", "text_pair", "label"]
    assert len(found.test) == 8
    assert found.report["duplicates_in_train"] == 0
    message = error_of(Data(train="train.jsonl", text="a", text_pair="c"))
    assert "no column 'c'" in message
    assert "`text_pair:`" in message


@pytest.mark.parametrize(("name", "rows"), [("imdb", 5000), ("rotten_tomatoes", 1000)])
def test_embedded_reviews(name, rows):
    found = corpus.load(Data(dataset=f"embedded:{name}", holdout=rows))
    assert len(found.test) == rows
    assert found.test_is == "holdout"
    assert found.report["test_texts_in_train"] == 0
    assert not texts(found.test) & texts(found.train)
    assert not texts(found.test) & texts(found.validation)
    assert not texts(found.validation) & texts(found.train)
    assert found.label_names == ["negative", "positive"]
    assert not found.rejected
    assert abs(found.test["label"].mean() - everything(found)["label"].mean()) < 0.005


# --- the fingerprint ---------------------------------------------------------------------------


def test_the_fingerprint_changes_with_any_row(here):
    def fingerprint(rows: list[tuple[str, str]]) -> str:
        return corpus.load(Data(train=table(rows), holdout=8)).fingerprint

    rows = reviews(40)
    first = fingerprint(rows)
    assert len(first) == 16
    assert int(first, 16) >= 0
    assert fingerprint(rows) == first
    changed = [
        ("another text", label) if i == 7 else (text, label) for i, (text, label) in enumerate(rows)
    ]
    assert fingerprint(changed) != first
    relabelled = [(text, "good" if i == 8 else label) for i, (text, label) in enumerate(rows)]
    assert fingerprint(relabelled) != first
    assert fingerprint(rows[::-1]) != first


def test_an_empty_cell_of_several_labels_means_none(here):
    rows = [(f"review number {i}", ["plot", "cast,plot", ""][i % 3]) for i in range(60)]
    found = corpus.load(Data(train=table(rows), problem_type="multi_label_classification"))
    assert found.label_names == ["cast", "plot"]
    assert found.rejected == []
    assert [0.0, 0.0] in everything(found)["label"].tolist()


def test_a_folder_of_splits_is_not_one_table(here):
    Path("both").mkdir()
    table(reviews(20), "both/train.csv")
    table(reviews(20, 20), "both/test.csv")
    assert "give it as `dataset:`" in error_of(Data(train="both"))
    assert len(corpus.load(Data(dataset="both")).test) == 20


# --- without labels ----------------------------------------------------------------------------


def test_texts_need_no_labels_where_the_task_needs_none(here) -> None:
    lines([{"text": f"review number {i}"} for i in range(40)] + [{"text": " "}] * 9)
    assert "no column 'label'" in error_of(Data(train="train.jsonl"))
    found = corpus.load(Data(train="train.jsonl"), labelled=False)
    assert found.problem_type == corpus.UNLABELLED
    assert found.label_names == []
    assert [len(f) for f in (found.train, found.validation, found.test)] == [29, 3, 8]
    assert list(found.train.columns) == ["id", "text"]
    assert len(texts(everything(found))) == 40
    assert found.report["fixed"] == {"blank row left out": 9}
    assert found.rejected == []


def test_good_labels_hold_out_the_rows_that_a_classifier_holds_out(here) -> None:
    data = Data(train=table(reviews(100)))
    with_labels, without = corpus.load(data), corpus.load(data, labelled=False)
    for split in ("train", "validation", "test"):
        plain = getattr(with_labels, split).drop(columns="label")
        assert getattr(without, split).equals(plain)
    assert without.problem_type == corpus.UNLABELLED


def test_labels_that_no_classifier_could_use_are_left_out(here) -> None:
    data = Data(train=table([(text, "-1") for text, _ in reviews(50)]))
    error_of(data)
    found = corpus.load(data, labelled=False)
    assert "label" not in found.test
    assert len(everything(found)) == 50


def test_what_is_wrong_beside_the_labels_still_raises_an_error(here) -> None:
    lines([{"texts": f"review number {i}"} for i in range(40)])
    with pytest.raises(UserError, match="no column 'text'"):
        corpus.load(Data(train="train.jsonl"), labelled=False)


# --- documents ---------------------------------------------------------------------------------

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]


def documents(**options) -> Corpus:
    return corpus.load(Data(train="train.jsonl", **options), corpus.DOCUMENTS, labelled=False)


def test_a_document_is_a_chat_a_prompt_with_its_completion_or_a_text(here) -> None:
    rows = [{"text": f"t{i}", "prompt": f"p{i}", "completion": f"c{i}"} for i in range(20)]
    asked = {"role": "user", "name": "x"}
    lines([row | {"messages": [asked | {"content": row["text"]}, CHAT[1]]} for row in rows])
    chats = documents().test
    assert list(chats.columns) == ["id", "messages"]
    first = json.loads(chats["messages"].iloc[0])
    assert first[0].keys() == {"role", "content"}
    assert first[1] == CHAT[1]
    lines(rows)
    assert list(documents().test.columns) == ["id", "prompt", "completion"]
    assert list(documents(prompt="").test.columns) == ["id", "text"]


def test_chats_may_be_json_in_a_table(here) -> None:
    chats = [[{"role": "user", "content": f"hello {i}"}, CHAT[1]] for i in range(20)]
    pandas.DataFrame({"messages": [json.dumps(c) for c in chats]}).to_csv("t.csv", index=False)
    lines([{"messages": chat} for chat in chats])
    from_csv = corpus.load(Data(train="t.csv"), corpus.DOCUMENTS, labelled=False)
    assert texts_of(from_csv) == texts_of(documents())


def texts_of(found: Corpus) -> set[str]:
    return set(everything(found)["messages"])


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ([], "is not a list of messages"),
        ("hello", "is not a list of messages"),
        (7, "is not a list of messages"),
        (["hello"], "has a message that is not"),
        ([{"from": "human", "text": "hello"}], "has a message that is not"),
        ([{"role": "assistant", "content": None}], "not a text"),
        (CHAT[:1], "no message of the assistant"),
    ],
)
def test_a_broken_chat_is_rejected_with_its_reason(here, cell, reason: str) -> None:
    good = [{"messages": [{"role": "user", "content": str(i)}, CHAT[1]]} for i in range(199)]
    lines([*good, {"messages": cell}])
    (row,) = documents().rejected
    assert row["line"] == 200
    assert reason in row["reason"]


def test_splits_of_different_documents_raise_an_error(here) -> None:
    lines([{"text": f"t{i}"} for i in range(20)], "test.jsonl")
    lines([{"prompt": f"p{i}", "completion": "c"} for i in range(20)])
    with pytest.raises(UserError, match="has text where train has prompt, completion"):
        documents(test="test.jsonl")
