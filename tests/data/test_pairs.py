"""Sources with targets: what is joined, counted, left out and rejected; CMUdict; the tokenizer."""

import json
from pathlib import Path

import pytest

from finetune.data import corpus, pair_tokenizer, pairs, pronunciations
from finetune.data.corpus import Corpus
from finetune.errors import UserError
from finetune.recipe import Data


def load(folder: Path, rows: list[tuple[str, str]], **settings: object) -> Corpus:
    """A corpus of these rows and ten others."""
    lines = ["source\ttarget", *map("\t".join, rows), *(f"s{i}\tt{i}" for i in range(10))]
    (folder / "rows.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = Data(train=str(folder / "rows.tsv"), holdout=2, validation_size=2, **settings)  # type: ignore[arg-type]
    return corpus.load(data, corpus.PAIRS, labelled=False)


def load_lines(folder: Path, rows: list[dict]) -> Corpus:
    """A corpus of these rows, as JSON lines, and ten others."""
    others = [{"source": f"s{i}", "target": f"t{i}"} for i in range(10)]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows + others), encoding="utf-8")
    return corpus.load(Data(train=str(file), holdout=2, validation_size=2), corpus.PAIRS)


def every(data: Corpus) -> dict[str, list[str]]:
    frames = (data.train, data.validation, data.test)
    return {s: t for f in frames for s, t in zip(f["source"], f["label"], strict=True)}


def test_targets_of_a_source_are_in_one_row(tmp_path: Path) -> None:
    rows = [("read", "R EH D"), ("cat", "K AE T"), ("read ", "R IY D"), ("read", "R EH D")]
    data = load(tmp_path, rows)
    found = every(data)
    assert len(found) == 12
    assert found["read"] == ["R EH D", "R IY D"]
    assert found["cat"] == ["K AE T"]
    assert data.report["fixed"] == {pairs.REPEATED: 1, pairs.FURTHER: 1}


def test_a_source_is_in_one_split_only(tmp_path: Path) -> None:
    rows = [(f"word {i % 30}", f"target {i}") for i in range(90)]
    data = load(tmp_path, rows, split_seed=3)
    sources = [set(frame["source"]) for frame in (data.train, data.validation, data.test)]
    assert sum(map(len, sources)) == len(set().union(*sources)) == 40


def test_a_target_that_equals_its_source_is_counted(tmp_path: Path) -> None:
    data = load(tmp_path, [("same", "same "), ("other", "same")])
    assert data.report["fixed"] == {pairs.SAME: 1}


BAD = {
    "blank target": ({"source": "a", "target": " "}, "empty target"),
    "no target": ({"source": "a"}, "empty target"),
    "null target": ({"source": "a", "target": None}, "empty target"),
    "no words": ({"source": "a", "target": []}, "empty target"),
    "blank source": ({"source": "\t", "target": "b"}, "empty source"),
    "nothing": ({"source": "", "target": ""}, "empty source and target"),
}


@pytest.mark.parametrize(("row", "reason"), BAD.values(), ids=BAD)
def test_a_row_without_source_or_target_is_left_out(
    tmp_path: Path, row: dict[str, str], reason: str
) -> None:
    data = load_lines(tmp_path, [{"source": "a", "target": "b"}, row])
    assert [(r["line"], r["reason"]) for r in data.rejected] == [(2, reason)]
    assert len(every(data)) == 11


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"de": "x"}, r"rows.jsonl:1: target is an object with de, not a text"),
        ([1, 2], r"rows.jsonl:1: target is a list of int; a text or a list of words is needed"),
    ],
)
def test_a_target_that_is_no_text_is_an_error(tmp_path: Path, target: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_lines(tmp_path, [{"source": "a", "target": target}])


def test_words_that_stand_for_missing_ones_elsewhere_are_targets(tmp_path: Path) -> None:
    rows = [{"source": f"a{i}", "target": each} for i, each in enumerate(["NA", "null", "007", 7])]
    found = every(load_lines(tmp_path, rows))
    assert [found[f"a{i}"] for i in range(4)] == [["NA"], ["null"], ["007"], ["7"]]


def test_a_missing_column_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no column 'summary'.*set `target:`"):
        load(tmp_path, [], target="summary")


def test_both_may_be_parts_of_one_column(tmp_path: Path) -> None:
    rows = [{"translation": {"en": f"word {i}", "de": f"Wort {i}"}} for i in range(12)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    given = {"source": "translation.en", "target": "translation.de", "holdout": 2}
    data = Data(train=str(file), validation_size=2, **given)  # type: ignore[arg-type]
    found = every(corpus.load(data, corpus.PAIRS, labelled=False))
    assert found == {f"word {i}": [f"Wort {i}"] for i in range(12)}


def test_sources_of_train_are_not_tested(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("source,target\na,x\nb,y\nc,z\nd,w\n", encoding="utf-8")
    (tmp_path / "test.csv").write_text("source,target\na,other\ne,z\n", encoding="utf-8")
    files = {name: str(tmp_path / f"{name}.csv") for name in ("train", "test")}
    with pytest.raises(UserError, match="1 of 2 test rows are also in train"):
        corpus.load(Data(**files, validation_size=1), corpus.PAIRS, labelled=False)  # type: ignore[arg-type]


def test_the_dictionary_is_read_without_stress_and_numbers(tmp_path: Path) -> None:
    file = tmp_path / "some.dict"
    file.write_text(
        "aaron EH1 R AH0 N\naaron(2) AA1 R AH0 N # name\n'bout B AW1 T\na.m. EY1 EH1 M\n' K\n"
    )
    table = pronunciations.read_dictionary(file, "embedded:some")
    assert table.rows.to_dict("list") == {
        "word": ["aaron", "aaron", "'bout"],
        "phonemes": ["EH R AH N", "AA R AH N", "B AW T"],
    }
    assert list(table.rows.index) == [1, 2, 3]
    assert sum(table.fixed.values()) == 2


def test_cmudict_has_the_size_that_is_published() -> None:
    data = Data(dataset="embedded:cmudict", source="word", target="phonemes", holdout=12000)
    found = corpus.load(data, corpus.PAIRS, labelled=False)
    assert sum(len(f) for f in (found.train, found.validation, found.test)) == 124926
    phonemes = {p for row in found.train["label"] for target in row for p in target.split()}
    assert len(phonemes) == 39


@pytest.mark.parametrize("pattern", [None, " ?[A-Z]+|[a-z]", r"\S+"])
def test_a_trained_tokenizer_gives_the_text_back(pattern: str | None) -> None:
    texts = ["hello there", "HH AH L OW", "it's 5 €"]
    tokenizer = pair_tokenizer.train(texts, 400, pattern, "r.yaml:3")
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_pattern_is_what_a_token_is() -> None:
    tokenizer = pair_tokenizer.train(["HH AH L OW", "hello"], 400, " ?[A-Z]+|[a-z]", "r.yaml:3")
    assert tokenizer.tokenize("hello") == list("hello")
    assert tokenizer.tokenize("HH AH L OW") == ["HH", " AH", " L", " OW"]


def test_a_broken_pattern_is_an_error() -> None:
    with pytest.raises(UserError, match=r"r.yaml:3: '\[a' is no regular expression"):
        pair_tokenizer.train(["a"], 400, "[a", "r.yaml:3")
