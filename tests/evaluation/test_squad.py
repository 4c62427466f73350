"""SQuAD's scores agree with its evaluation scripts; the threshold is the best there is."""

import hashlib
import random

import numpy
import pytest

from finetune.data.answer_spans import Ranked, Span
from finetune.evaluation import squad

PARTS = [
    "The",
    "the",
    "a",
    "An",
    "Denver",
    "denver's",
    "Broncos,",
    "24\u201310",
    "1976.",
    "Éire",
    "é",
]
PARTS += ["of", "(of)", "Beyoncé", "\u00a0", "-", "...", "\t", "Theatre", "an.", "U.S.", "東京", ""]
# What the scripts give: sums of F1 and exact match, and a hash of all of them.
TOTALS = [496.6222222222232, 287.0]
DIGEST = "e75854ce7206848e31aa69fdbe8037b85d05997a25cc912827236fd255f21b6d"
KEPT, TOTALS_1 = 382, [250.0809523809525, 119.0]


def cases() -> list[tuple[str, list[str]]]:
    """1,000 made-up predictions with reference answers that are alike, some of them empty."""
    draw, out = random.Random(0), []
    for _ in range(1000):
        words = draw.choices(PARTS, k=draw.randint(0, 6))
        references = []
        for _ in range(draw.randint(0, 4)):
            near = [word for word in words if draw.random() < 0.8]
            near[draw.randint(0, len(near)) :] = draw.choices(PARTS, k=draw.randint(0, 2))
            references.append(" ".join(near))
        out.append((" ".join(words), references))
    return out


def test_a_thousand_cases_score_as_by_the_script_of_squad_2() -> None:
    found = squad.scores(*zip(*cases(), strict=True))
    assert [float(total) for total in found.sum(0)] == TOTALS
    lines = "\n".join(f"{f1!r} {int(exact)}" for f1, exact in found.tolist())
    assert hashlib.sha256(lines.encode()).hexdigest() == DIGEST


def test_the_script_of_squad_1_gives_the_same_where_words_are_left() -> None:
    kept = [(p, given) for p, given in cases() if given and all(map(squad.normalized, given))]
    assert len(kept) == KEPT
    found = squad.scores(*zip(*kept, strict=True))
    assert [float(total) for total in found.sum(0)] == TOTALS_1


@pytest.mark.parametrize(
    ("prediction", "references", "f1", "exact"),
    [
        ("the Denver Broncos", ["Denver Broncos"], 1, 1),
        ("Denver", ["Denver Broncos", "Carolina Panthers"], 2 / 3, 0),
        ("Carolina", ["Denver Broncos"], 0, 0),
        ("", [], 1, 1),
        ("Denver", [], 0, 0),
        ("", ["Denver"], 0, 0),
        ("gold gold", ["gold"], 2 / 3, 0),
    ],
)
def test_scores_by_hand(prediction: str, references: list[str], f1: float, exact: float) -> None:
    assert squad.f1(prediction, references) == pytest.approx(f1)
    assert squad.exact_match(prediction, references) == exact


def ranked(score: float, null: float, text: str = "yes") -> Ranked:
    return Ranked([Span(text, 0, len(text), score)], null)


def test_the_threshold_is_the_best_of_all() -> None:
    draw = numpy.random.default_rng(0)
    for count in (1, 2, 5, 40):
        for _ in range(20):
            margins = draw.integers(-4, 4, count) / 2
            outputs = [ranked(0.0, float(margin)) for margin in margins]
            outputs[0] = Ranked([], 0.0) if count == 5 else outputs[0]
            labels = [("yes",) if yes else () for yes in draw.random(count) < 0.5]

            def mean(threshold: float, given: list[Ranked], truth: list[tuple]) -> float:
                return float(squad.scores(squad.texts(given, threshold), truth)[:, 0].mean())

            chosen = mean(squad.best_threshold(outputs, labels), outputs, labels)
            every = [mean(t, outputs, labels) for t in numpy.arange(-5, 6, 0.25)]
            assert chosen == max(every)


def test_a_prediction_is_the_best_span_or_none() -> None:
    assert squad.texts([ranked(1.0, 3.0)], None) == ["yes"]
    assert squad.texts([ranked(1.0, 3.0)], 2.5) == ["yes"]
    assert squad.texts([ranked(1.0, 3.0)], 1.5) == [""]
    assert squad.texts([Ranked([], 0.0)], None) == [""]
    answer = squad.answer(ranked(1.0, 3.0), 1.5)
    assert (answer["prediction"], answer["start"], answer["end"]) == ("", 0, 0)
    assert [each["text"] for each in answer["candidates"]] == ["", "yes"]
    assert sum(each["score"] for each in answer["candidates"]) == pytest.approx(1, abs=1e-5)
    assert "" not in [e["text"] for e in squad.answer(ranked(1.0, 3.0), None)["candidates"]]


def test_only_rows_with_both_kinds_have_their_own_scores() -> None:
    found = squad.score(["yes", "", "no"], [("yes",), (), ("yes",)], 100)["metrics"]
    assert found["answer_f1"]["value"] == pytest.approx(2 / 3)
    assert (found["has_answer_f1"]["value"], found["has_answer_f1"]["n"]) == (0.5, 2)
    assert found["no_answer_accuracy"]["value"] == 1.0
    assert found["answer_f1"]["low"] < found["answer_f1"]["value"] < found["answer_f1"]["high"]
    assert squad.score(["yes"], [("yes",)], 0)["metrics"].keys() == {"answer_f1", "exact_match"}


def test_the_baseline_is_the_sentence_with_the_words_of_the_question() -> None:
    context = "Ada was born in London. Charles built the engine!\nIt was never finished."
    given = ["Where was Ada born?", "What was not finished?", "Who built an engine?"]
    found = squad.baselines(given, [context] * 3, [("London",), ("It",), ("Charles",)])
    assert list(found) == [squad.MOST_WORDS]
    texts = squad.texts(found[squad.MOST_WORDS], 5.0)
    assert texts == [
        "Ada was born in London.",
        "It was never finished.",
        "Charles built the engine!",
    ]
    never = squad.baselines(given, [context] * 3, [("London",), (), ("Charles",)])
    assert squad.texts(never[squad.NEVER], None) == ["", "", ""]
