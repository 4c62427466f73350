"""``POST /predict``: the answers of `finetune predict`, for every kind of row."""

from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from finetune import inference
from finetune.run_directory import Run

TEXTS = ["the film was good", "", "a poor plot"]
ROWS = {
    "entities": [{"text": TEXTS[0]}, {"text": ""}],
    "questions": [{"question": "the film was", "context": TEXTS[0]}],
    "speller": [{"source": "bad"}],
}


def test_texts_are_answered_as_finetune_predict_does(
    texts: Run, serve: Callable[..., TestClient]
) -> None:
    expected = inference.predict(texts, [{"text": text} for text in TEXTS])
    answer = serve(texts).post("/predict", json={"inputs": [*TEXTS[:2], {"text": TEXTS[2]}]})
    assert answer.status_code == 200, answer.text
    found = answer.json()["predictions"]
    assert [row["prediction"] for row in found] == [row["prediction"] for row in expected]
    assert found[1] == {"prediction": None}
    assert found[2]["probabilities"] == pytest.approx(expected[2]["probabilities"], abs=1e-5)


@pytest.mark.parametrize("kind", ROWS)
def test_other_answers_are_those_of_finetune_predict(
    kind: str, request: pytest.FixtureRequest, serve: Callable[..., TestClient]
) -> None:
    run, rows = request.getfixturevalue(kind), ROWS[kind]
    client = serve(run)
    answer = client.post("/predict", json={"inputs": rows})
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"] == inference.predict(run, rows)
    # What is right is marked in a text, which the page does not offer.
    assert client.get("/about").json()["feedback"] is None
    assert client.post("/feedback", json={**rows[0], "label": "a"}).status_code == 404
