"""What is guessed of a table: its task and the columns for it, from made-up frames."""

import json
import random
import re
from typing import Any

import pandas
import pytest

from finetune.data import guess
from finetune.data.readers import Table
from finetune.errors import UserError

N = 40
WORDS = ["the", "film", "plot", "cast", "was", "good", "bad", "slow", "and", "very", "long", "end"]
SINGLE, SEVERAL = "single_label_classification", "multi_label_classification"
CLASSES, IMAGES = "text-classification", "image-classification"


def texts(words: int = 12, seed: int = 0, count: int = N) -> list[str]:
    """Different texts of about so many words."""
    draw = random.Random(seed + words)
    return [f"{' '.join(draw.choices(WORDS, k=words))} {i}" for i in range(count)]


def of(*values: Any, count: int = N) -> list[Any]:
    """The values, over and over."""
    return [values[i % len(values)] for i in range(count)]


def mixed(*values: Any) -> list[Any]:
    """The values in another order, so that two columns of classes do not rename each other."""
    return random.Random(len(values)).choices(values, k=N)


def chat(text: str, who: tuple[str, str, str, str] = ("role", "content", "user", "assistant")):
    role, content, user, assistant = who
    return [{role: user, content: text}, {role: assistant, content: "Yes."}]


SHAREGPT = ("from", "value", "human", "gpt")
PRICES = [f"{(i * 37) % 101 + i / 10:.2f}" for i in range(N)]
DATES = [f"2024-03-{i % 28 + 1:02}" for i in range(N)]
HASHES = [f"B00{i * 7919 % 9973:05}X" for i in range(N)]
PATHS = [f"img/{i}.jpg" for i in range(N)]
TEXT, LABEL = {"text": texts()}, {"label": of("good", "bad")}

# name: columns, flags, task, the keys of the data section
GUESSES: dict[str, tuple[dict[str, list[Any]], dict[str, str], str, dict[str, str]]] = {
    "classes in words": (
        TEXT | LABEL, {}, CLASSES, {"text": "text", "label": "label", "problem_type": SINGLE},
    ),
    "words with tags": (
        {"n": PRICES, "words": of(["Ada", "left"], ["in"]), "ner": of(["B-P", "O"], ["O"])},
        {}, "token-classification", {"text": "words", "label": "ner"},
    ),
    "texts with spans": (
        TEXT | {"spans": of([{"start": 0, "end": 3, "label": "P"}], [])},
        {}, "token-classification", {"text": "text", "label": "spans"},
    ),
    "lists of another length are no tags": (
        TEXT | {"words": of(["Ada", "left"]), "label": of(["B-P"], ["O"])},
        {}, CLASSES, {"text": "text", "label": "label", "problem_type": SEVERAL},
    ),
    "names that no one knows": (
        {"aa": texts(), "bb": of("x", "y", "z")},
        {}, CLASSES, {"text": "aa", "label": "bb", "problem_type": SINGLE},
    ),
    "the label first": (
        {"sentiment": of("pos", "neg"), "review": texts()},
        {}, CLASSES, {"text": "review", "label": "sentiment", "problem_type": SINGLE},
    ),
    "numbers with few values are classes": (
        {"review": texts(), "stars": of("1", "2", "3", "4", "5")},
        {}, CLASSES, {"text": "review", "label": "stars", "problem_type": SINGLE},
    ),
    "a flag makes them numbers": (
        {"review": texts(), "stars": of("1", "2", "3", "4", "5")}, {"problem_type": "regression"},
        CLASSES, {"text": "review", "label": "stars", "problem_type": "regression"},
    ),
    "numbers of JSON": (
        {"review": texts(), "stars": of(1, 2, 3)},
        {}, CLASSES, {"text": "review", "label": "stars", "problem_type": SINGLE},
    ),
    "numbers with many values": (
        {"review": texts(), "price": PRICES},
        {}, CLASSES, {"text": "review", "label": "price", "problem_type": "regression"},
    ),
    "many numbers, and one that is none": (
        {"review": texts(), "score": [*PRICES[1:], "n/a"]},
        {}, CLASSES, {"text": "review", "label": "score", "problem_type": "regression"},
    ),
    "truth values": (
        {"body": texts(), "is_spam": of(True, False)},
        {}, CLASSES, {"text": "body", "label": "is_spam", "problem_type": SINGLE},
    ),
    "a usual name wins over other classes": (
        {"text": texts(), "verified": mixed("yes", "no"), "stars": mixed("1", "2", "3")},
        {}, CLASSES, {"text": "text", "label": "stars", "problem_type": SINGLE},
    ),
    "label wins over stars": (
        {"text": texts(), "label": mixed("yes", "no"), "stars": mixed("1", "2", "3")},
        {}, CLASSES, {"text": "text", "label": "label", "problem_type": SINGLE},
    ),
    "a usual name wins over its confidence": (
        {"airline_sentiment": mixed("a", "b"), "airline_sentiment_confidence": PRICES} | TEXT,
        {}, CLASSES, {"text": "text", "label": "airline_sentiment", "problem_type": SINGLE},
    ),
    "classes win over many numbers": (
        {"text": texts(), "bb": of("x", "y"), "price": PRICES},
        {}, CLASSES, {"text": "text", "label": "bb", "problem_type": SINGLE},
    ),
    "metadata is the label only where nothing else is": (
        {"text": texts(), "author": mixed("Ann", "Bob", "Cid"), "bb": mixed("x", "y")},
        {}, CLASSES, {"text": "text", "label": "bb", "problem_type": SINGLE},
    ),
    "an author can be the label": (
        {"text": texts(), "author": of("Ann", "Bob", "Cid")},
        {}, CLASSES, {"text": "text", "label": "author", "problem_type": SINGLE},
    ),
    "the names of numbered classes": (
        {"text": texts(), "label": of(0, 1, 2), "label_text": of("bad", "fair", "good")},
        {}, CLASSES, {"text": "text", "label": "label_text", "problem_type": SINGLE},
    ),
    "the index of pandas": (
        {"Unnamed: 0": [str(i) for i in range(N)]} | TEXT | LABEL,
        {}, CLASSES, {"text": "text", "label": "label", "problem_type": SINGLE},
    ),
    "an index without a name": (
        {"": [str(i) for i in range(N)]} | TEXT | LABEL,
        {}, CLASSES, {"text": "text", "label": "label", "problem_type": SINGLE},
    ),
    "row numbers are no numbers to learn": (
        {"nr": [str(i + 1) for i in range(N)], "aa": texts(), "bb": of("x", "y")},
        {}, CLASSES, {"text": "aa", "label": "bb", "problem_type": SINGLE},
    ),
    "ids, dates and links": (
        {"asin": HASHES, "user_id": of("17", "4", "9"), "when": DATES}
        | {"url": [f"https://x.org/{i}" for i in range(N)], "aa": texts(), "bb": of("x", "y")},
        {}, CLASSES, {"text": "aa", "label": "bb", "problem_type": SINGLE},
    ),
    "a split is no label": (
        {"split": mixed("train", "test"), "aa": texts(), "bb": mixed("x", "y")},
        {}, CLASSES, {"text": "aa", "label": "bb", "problem_type": SINGLE},
    ),
    "constant and empty columns": (
        {"lang": of("en"), "note": of(""), "aa": texts(), "bb": of("x", "y")},
        {}, CLASSES, {"text": "aa", "label": "bb", "problem_type": SINGLE},
    ),
    "cells without a label": (
        {"aa": texts(), "bb": of("x", None, "y", "")},
        {}, CLASSES, {"text": "aa", "label": "bb", "problem_type": SINGLE},
    ),
    "a title beside the text": (
        {"review_title": texts(3, 1), "review_body": texts(30), "stars": of("1", "2")},
        {}, CLASSES, {"text": "review_body", "label": "stars", "problem_type": SINGLE},
    ),
    "the longer of two texts": (
        {"aa": texts(4, 1), "bb": texts(40), "cc": of("1", "2")},
        {}, CLASSES, {"text": "bb", "label": "cc", "problem_type": SINGLE},
    ),
    "single words": (
        {"word": [f"{a}{b}" for a in WORDS for b in WORDS][:N], "bb": of("x", "y")},
        {}, CLASSES, {"text": "word", "label": "bb", "problem_type": SINGLE},
    ),
    "a language without spaces": (
        {"内容": ["这部电影很好看" + chr(0x4E00 + i) for i in range(N)], "标签": of("好", "坏")},
        {}, CLASSES, {"text": "内容", "label": "标签", "problem_type": SINGLE},
    ),
    "names in camel case": (
        {"reviewerName": mixed("Ann", "Bob"), "reviewText": texts(), "overallRating": of(5, 4, 1)},
        {}, CLASSES, {"text": "reviewText", "label": "overallRating", "problem_type": SINGLE},
    ),
    "a pair by name": (
        {"premise": texts(8, 1), "hypothesis": texts(6, 2), "label": of("0", "1", "2")},
        {}, CLASSES,
        {"text": "premise", "text_pair": "hypothesis", "label": "label", "problem_type": SINGLE},
    ),
    "a numbered pair with a score": (
        {"id": HASHES, "sentence1": texts(8, 1), "sentence2": texts(8, 2), "score": PRICES},
        {}, CLASSES,
        {
            "text": "sentence1", "text_pair": "sentence2", "label": "score",
            "problem_type": "regression",
        },
    ),
    "questions and answers with a label": (
        {"question": texts(8, 1), "answer": texts(9, 2), "label": of("0", "1")}, {}, CLASSES,
        {"text": "question", "text_pair": "answer", "label": "label", "problem_type": SINGLE},
    ),
    "a text of a pair that a flag names alone": (
        {"premise": texts(8, 1), "hypothesis": texts(6, 2), "label": of("0", "1")},
        {"text": "hypothesis"}, CLASSES,
        {"text": "hypothesis", "label": "label", "problem_type": SINGLE},
    ),
    "several labels with semicolons": (
        {"text": texts(), "genres": of("war; drama", "drama", "comedy", "comedy; war")},
        {}, CLASSES,
        {"text": "text", "label": "genres", "problem_type": SEVERAL, "label_separator": ";"},
    ),
    "several labels with commas": (
        {"text": texts(), "bb": of("war,drama", "drama", "", "comedy,war")}, {}, CLASSES,
        {"text": "text", "label": "bb", "problem_type": SEVERAL, "label_separator": ","},
    ),
    "a comma in the names of classes": (
        {"text": texts(), "category": of("Arts, Crafts & Sewing", "Toys", "Clothing, Shoes")},
        {}, CLASSES, {"text": "text", "label": "category", "problem_type": SINGLE},
    ),
    "lists of labels": (
        {"text": texts(), "tags": of(["a", "b"], ["a"], [])},
        {}, CLASSES, {"text": "text", "label": "tags", "problem_type": SEVERAL},
    ),
    "a given label": (
        {"text": texts(), "stars": mixed("1", "2"), "bb": mixed("x", "y")}, {"label": "bb"},
        CLASSES, {"text": "text", "label": "bb", "problem_type": SINGLE},
    ),
    "a given text": (
        {"aa": texts(9, 1), "bb": texts(9, 2), "cc": of("x", "y")}, {"text": "bb"},
        CLASSES, {"text": "bb", "label": "cc", "problem_type": SINGLE},
    ),
    "a given pair": (
        {"aa": texts(9, 1), "bb": texts(9, 2), "cc": of("x", "y")}, {"text_pair": "aa"}, CLASSES,
        {"text": "bb", "text_pair": "aa", "label": "cc", "problem_type": SINGLE},
    ),
    "texts alone": (TEXT, {}, "text-generation", {"text": "text"}),
    "texts alone, all of one type": (
        TEXT | {"type": ["article"] * N}, {}, "text-generation", {"text": "text"},
    ),
    "articles with their sources": (
        {"id": HASHES, "url": [f"https://x.org/{i}" for i in range(N)], "title": texts(3)}
        | {"text": texts(60), "timestamp": DATES},
        {}, "text-generation", {"text": "text"},
    ),
    "a task that needs no label": (
        TEXT | LABEL, {"task": "fill-mask"}, "fill-mask", {"text": "text"},
    ),
    "texts of a language model with labels beside them": (
        TEXT | LABEL, {"task": "text-generation"}, "text-generation", {"text": "text"},
    ),
    "prompts and completions": (
        {"prompt": texts(8), "completion": texts(20)},
        {}, "text-generation", {"prompt": "prompt", "completion": "completion"},
    ),
    "instructions with an input": (
        {"instruction": texts(8), "input": of("", "a", "b"), "output": texts(20)},
        {}, "text-generation", {"prompt": "instruction", "completion": "output"},
    ),
    "articles and summaries": (
        {"article": texts(60), "highlights": texts(10), "id": HASHES},
        {}, "text-generation", {"prompt": "article", "completion": "highlights"},
    ),
    "chats": (
        {"messages": [chat(text) for text in texts()], "source": of("a", "b")},
        {}, "text-generation", {"messages": "messages"},
    ),
    "ShareGPT": (
        {"id": HASHES, "conversations": [chat(text, SHAREGPT) for text in texts()]},
        {}, "text-generation", {"messages": "conversations"},
    ),
    "chats as JSON text in a table": (
        {"aa": [json.dumps(chat(text)) for text in texts()]},
        {}, "text-generation", {"messages": "aa"},
    ),
    "paths of images": (
        {"file": PATHS, "breed": of("pug", "husky")},
        {}, IMAGES, {"image": "file", "label": "breed", "problem_type": SINGLE},
    ),
    "images inside a table": (
        {"image": [{"bytes": b"x", "path": None}] * N, "label": of(3, 7)},
        {}, IMAGES, {"image": "image", "label": "label", "problem_type": SINGLE},
    ),
    "images with several labels": (
        {"image": PATHS, "tags": of("sea|sky", "sky", "sea")}, {}, IMAGES,
        {"image": "image", "label": "tags", "problem_type": SEVERAL, "label_separator": "|"},
    ),
    "images beside texts that a flag chooses": (
        {"photo": PATHS, "text": texts(), "stars": of(1, 2)}, {"text": "text"},
        CLASSES, {"text": "text", "label": "stars", "problem_type": SINGLE},
    ),
    "links to images are not read": (
        {"photo": [f"https://x.org/{i}.jpg" for i in range(N)], "aa": texts(), "bb": of("x", "y")},
        {}, CLASSES, {"text": "aa", "label": "bb", "problem_type": SINGLE},
    ),
    "images without labels": (
        {"image": PATHS}, {"task": "masked-image-modeling"},
        "masked-image-modeling", {"image": "image"},
    ),
}  # fmt: skip


def table(columns: dict[str, list[Any]]) -> Table:
    rows = pandas.DataFrame({k: pandas.Series(v, dtype=object) for k, v in columns.items()})
    rows.index = pandas.RangeIndex(2, len(rows) + 2)
    return Table(rows, "mine.csv")


@pytest.mark.parametrize("name", GUESSES)
def test_task_and_columns(name: str) -> None:
    columns, given, task, data = GUESSES[name]
    found = guess.of(table(columns), given)
    assert (found.task, found.data) == (task, data)
    # The order of the columns and of the rows decides nothing.
    turned = table(dict(reversed(columns.items())))
    turned.rows = turned.rows.iloc[::-1]
    assert guess.of(turned, given).data == data
    assert all(len(reason.line()) <= guess.WIDTH for reason in found.reasons)


TIES: dict[str, tuple[dict[str, list[Any]], dict[str, str], str]] = {
    "two usual labels": (
        TEXT | {"stars": mixed("1", "2", "3"), "category": mixed("x", "y")}, {},
        "columns 'stars' and 'category' could both be the label; add --label stars or --label "
        "category",
    ),
    "three columns of classes": (
        TEXT | {"a": mixed("1", "2", "3"), "b": mixed("x", "y"), "c": mixed("m", "n", "o", "p")},
        {},
        "columns 'a' and 'b' (and 1 more) could both be the label; add --label a or --label b",
    ),
    "two texts": (
        {"aa": texts(9, 1), "bb": texts(9, 2)} | LABEL, {},
        "columns 'aa' and 'bb' could both be the text; add --text aa or --text bb",
    ),
    "two columns of chats": (
        {"chosen": [chat(t) for t in texts()], "rejected": [chat(t) for t in texts()]}, {},
        "columns 'chosen' and 'rejected' could both be the messages; add --messages chosen or "
        "--messages rejected",
    ),
    "two columns of images": (
        {"before": PATHS, "after": PATHS} | LABEL, {},
        "columns 'before' and 'after' could both be the image; add --image before or --image after",
    ),
    "images and texts": (
        {"photo": PATHS, "text": texts(), "stars": of(1, 2)}, {},
        "'photo' has images and 'text' texts; add --image photo or --text text",
    ),
    "no text": (
        {"width": PRICES, "height": PRICES}, {},
        "no column looks like a text, an image or a chat: width (numbers), height (numbers); name "
        "one with --text, --image or --messages",
    ),
    "no label": (
        TEXT, {"task": CLASSES},
        "no column looks like a label: text (texts); name one with --label",
    ),
    "no label for a pair": (
        {"premise": texts(8, 1), "hypothesis": texts(6, 2)}, {},
        "no column looks like a label: premise (texts), hypothesis (texts); name one with --label",
    ),
    "no label for images": (
        {"image": PATHS, "id": HASHES}, {},
        "no column looks like a label for the images: image (images), id (ids); name one with "
        "--label",
    ),
    "a label with one value": (
        TEXT | {"label": ["pos"] * N}, {},
        "every 'label' is 'pos', and a classifier needs at least two classes; add rows of another "
        "one, or --task text-generation to learn the texts alone",
    ),
    "no images": (
        TEXT | LABEL, {"task": IMAGES},
        "no column looks like an image: text (texts), label (classes); name one with --image",
    ),
    "a column that is not there": (
        TEXT | LABEL, {"label": "lable"},
        "no column 'lable'; it has text, label (set `label:`; did you mean 'label'?)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TIES)
def test_what_cannot_be_decided_is_one_line_with_the_flag(name: str) -> None:
    columns, given, message = TIES[name]
    with pytest.raises(UserError) as caught:
        guess.of(table(columns), given)
    assert str(caught.value) == f"mine.csv: {message}"
    assert len(str(caught.value)) <= 300


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"--task: .*did you mean 'text-classification'"):
        guess.of(table(TEXT | LABEL), {"task": "text_classification"})


def test_the_guess_in_words() -> None:
    columns = {"id": HASHES, "review": ['A  waste of "two\nhours". ' + t for t in texts()]}
    columns |= {"stars": of("10", "9", "10", "1"), "when": DATES}
    found = guess.of(table(columns), {"text": "review"})
    assert [(reason.about, reason.text, reason.flags) for reason in found.reasons] == [
        ("task", "text-classification, 3 classes", "--task --problem_type"),
        ("text", f'review: "A waste of "two hours". {texts()[0]}"', "(given)"),
        ("label", "stars: 1 (10), 9 (10), 10 (20)", "--label"),
        ("unused", "id (ids), when (dates)", ""),
    ]
    long = found.reasons[1].line()
    assert long.startswith('  text       review: "A waste of "two hours". ')
    assert re.search(r"[^ ]… +\(given\)$", long)
    assert len(long) == 80
    numbers = guess.of(table(TEXT | {"price": PRICES}), {})
    assert numbers.reasons[0].text == "text-classification, numbers (regression)"
    assert numbers.reasons[2].text == "price: 0 to 103, mean 51.8"
    several = guess.of(table(TEXT | {"tags": of("a;b", "b", "c;a")}), {})
    assert several.reasons[2].text == "tags: a (27), b (27), c (13)"


@pytest.mark.parametrize(
    ("rows", "epochs"), [(40, "10"), (500, "10"), (501, "5"), (3_000, "3"), (30_000, "2")]
)
def test_fewer_rows_are_trained_for_more_epochs(rows: int, epochs: str) -> None:
    columns = {"text": texts(12, count=rows), "label": of("a", "b", count=rows)}
    assert guess.of(table(columns), {}).settings["num_train_epochs"] == epochs
    assert "num_train_epochs" not in guess.of(table(columns), {"num_train_epochs": "1"}).settings
    assert "num_train_epochs" not in guess.of(table(columns), {"max_steps": "1"}).settings


def test_long_texts_keep_more_tokens() -> None:
    assert "max_length" not in guess.of(table(TEXT | LABEL), {}).settings
    long = table({"text": texts(200)} | LABEL)
    assert guess.of(long, {}).settings["max_length"] == "256"
    assert "max_length" not in guess.of(long, {"max_length": "64"}).settings


@pytest.mark.parametrize("name", ["answers", "answer"])
def test_questions_with_a_context_and_answers_are_answered(name: str) -> None:
    rows = {"Question": ["Who?"], "context": ["Ada."], name: ["Ada"], "extra": ["x"]}
    table = Table(pandas.DataFrame(rows, index=[1], dtype=object), "asked.csv")
    found = guess.of(table, {})
    assert found.task == "question-answering"
    assert found.data == {"question": "Question", "context": "context", "answers": name}
    assert found.reasons[1].line().split() == [
        *("columns", "Question,", "context,", f"{name}"),
        *("--question", "--context", "--answers"),
    ]
    # A column of another task, or no answers, makes it something else.
    assert guess.of(table, {"prompt": "Question", "completion": name}).task == "text-generation"
    assert guess.of(table, {"answers": "extra"}).data["answers"] == "extra"
    del rows[name]
    with pytest.raises(UserError, match="no column looks like a label"):
        guess.of(Table(pandas.DataFrame(rows, index=[1], dtype=object), "asked.csv"), {})
