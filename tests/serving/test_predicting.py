"""``POST /predict``: the answers of `finetune predict`, for every kind of row."""

from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from finetune import inference
from finetune.run_directory import Run

TEXTS = ["the film was good", "", "a poor plot"]


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
