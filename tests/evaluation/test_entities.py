"""Entity scores agree with seqeval; intervals and differences are over texts."""

import random
import warnings

import numpy
import pandas
import pytest
from seqeval.metrics import accuracy_score, classification_report

from finetune.data.corpus import Corpus
from finetune.evaluation import entities, entity_baselines
from finetune.evaluation.entities import TaggedWords, as_rows

NAMES = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def outputs(rows: list[list[int]]) -> numpy.ndarray:
    """Texts whose words are tagged as given."""
    places = [numpy.zeros((len(row), 2), int) for row in rows]
    return as_rows(
        [TaggedWords(p, numpy.eye(len(NAMES))[row]) for p, row in zip(places, rows, strict=True)]
    )


def codes(rows: list[list[int]]) -> numpy.ndarray:
    return as_rows([numpy.array(row) for row in rows])


def draw_rows(draw: random.Random) -> list[list[int]]:
    weights = [draw.choice([0, 1, 5]), *(draw.random() for _ in NAMES[1:])]
    return [draw.choices(range(5), weights, k=length) for length in (1, 4, 9)]


def test_a_thousand_random_cases_agree_with_seqeval_to_the_last_digit() -> None:
    draw = random.Random(0)
    for _ in range(1000):
        truth, predicted = draw_rows(draw), draw_rows(draw)
        # Otherwise few entities would be found.
        predicted = [
            [t if draw.random() < 0.6 else p for t, p in zip(*pair, strict=True)]
            for pair in zip(truth, predicted, strict=True)
        ]
        found = entities.score(outputs(predicted), codes(truth), 0, names=NAMES)
        named = [[[NAMES[k] for k in row] for row in rows] for rows in (truth, predicted)]
        with warnings.catch_warnings():
            # Types without an entity, whose share counts as 0.
            warnings.simplefilter("ignore")
            report = classification_report(*named, output_dict=True, zero_division=0)
        micro = report.pop("micro avg")
        report.pop("macro avg"), report.pop("weighted avg")
        metrics = {name: metric["value"] for name, metric in found["metrics"].items()}
        expected = {
            "entity_f1": micro["f1-score"],
            "entity_precision": micro["precision"],
            "entity_recall": micro["recall"],
            "token_accuracy": accuracy_score(*named),
        }
        # seqeval's F1 is computed from the rounded precision and recall, ours from counts.
        assert metrics == pytest.approx(expected, rel=1e-15)
        for kind, scores in found["per_class"].items():
            # seqeval has no type that is predicted only.
            if kind in report:
                assert (scores["precision"] or 0) == report[kind]["precision"]
                assert (scores["recall"] or 0) == report[kind]["recall"]
                assert scores["f1"] == pytest.approx(report[kind]["f1-score"], rel=1e-15)
                assert scores["entities"] == report[kind]["support"]


def test_a_wrong_border_is_a_wrong_entity() -> None:
    found = entities.score(outputs([[3, 0, 1]]), codes([[3, 4, 1]]), 0, names=NAMES)
    assert found["metrics"]["entity_f1"]["value"] == 0.5
    assert found["per_class"]["PER"] == {"precision": 0, "recall": 0, "f1": 0, "entities": 1}
    assert found["metrics"]["token_accuracy"]["value"] == pytest.approx(2 / 3)


def test_intervals_and_differences_are_over_texts() -> None:
    truth = codes([[3, 4, 0], [0, 1, 0]] * 20)
    good, bad = outputs([[3, 4, 0], [0, 1, 0]] * 20), outputs([[3, 4, 0], [0, 0, 0]] * 20)
    metric = entities.score(bad, truth, names=NAMES)["metrics"]["entity_f1"]
    assert metric["n"] == 40
    assert metric["low"] < metric["value"] == 2 / 3 < metric["high"]
    apart = entities.difference(NAMES, good, bad, truth)
    assert apart["value"] == pytest.approx(1 / 3)
    assert 0 < apart["low"] < apart["high"]
    assert entities.difference(NAMES, bad, bad, truth)["high"] == 0


def frame(*rows: tuple[str, list[dict]]) -> pandas.DataFrame:
    words = []
    for text, _ in rows:
        starts = [i for i in range(len(text)) if i == 0 or text[i - 1] == " "]
        words.append(str([[s, s + len(text[s:].split()[0])] for s in starts]))
    texts, labels = zip(*rows, strict=True)
    return pandas.DataFrame(
        {"id": range(len(rows)), "text": texts, "words": words, "label": labels}
    )


def test_baselines_tag_known_words_and_words_beside_known_ones() -> None:
    train = frame(
        *[(f"w{i} in Paris", [{"start": 7, "end": 12, "label": "LOC"}]) for i in range(10, 30)]
    )
    test = frame(("w10 in Paris", []), ("w11 in Rome", []), ("Paris", []))
    data = Corpus(train, test, test, NAMES[:3], "", "", None, "")
    found = entity_baselines.for_words(data)
    frequent, linear = ([row.tags(NAMES) for row in rows] for rows in found.values())
    assert list(found) == ["most frequent tag of each word", "logistic regression on words"]
    assert frequent == [["O", "O", "B-LOC"], ["O", "O", "O"], ["B-LOC"]]
    # A word after "in" is a place.
    assert linear[:2] == [["O", "O", "B-LOC"]] * 2
