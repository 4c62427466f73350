"""``POST /feedback``: a correction is checked, kept on disk, and read again as training rows."""

import hashlib
import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from finetune import inference
from finetune.data import corpus, corrections
from finetune.recipe import Data
from finetune.run_directory import Run
from finetune.serving import feedback

Serve = Callable[..., TestClient]


@pytest.fixture(autouse=True)
def without_corrections(texts: Run, pairs: Run, images: Run) -> None:
    """The runs are shared by tests."""
    for run in (texts, pairs, images):
        (run.folder / corrections.FILE).unlink(missing_ok=True)


def lines(run: Run) -> list[dict[str, Any]]:
    text = (run.folder / corrections.FILE).read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_a_correction_has_what_the_model_said(texts: Run, serve: Serve) -> None:
    text = "the film was göod\n\u2028"
    (said,) = inference.predict(texts, [{"text": text}])
    client = serve(texts)
    answer = client.post("/feedback", json={"text": text, "label": "negative"})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "prediction": said["prediction"],
        "file": str(texts.folder / corrections.FILE),
    }
    (kept,) = lines(texts)
    assert (kept["text"], kept["label"]) == (text, "negative")
    assert kept["prediction"] == said["prediction"]
    assert kept["probabilities"] == pytest.approx(said["probabilities"], abs=1e-5)
    assert kept["model"] == client.get("/health").json()["sha256"]
    assert kept["time"].endswith("+00:00")


def test_a_pair_with_a_number(pairs: Run, serve: Serve) -> None:
    client = serve(pairs)
    row = {"text": "a film", "text_pair": "a plot"}
    assert client.post("/feedback", json={**row, "label": 4.5}).status_code == 200
    assert {key: lines(pairs)[0][key] for key in (*row, "label")} == {**row, "label": 4.5}
    for label in ("4.5", [4.5], "NaN"):
        answer = client.post("/feedback", json={**row, "label": label})
        assert answer.status_code == 422, label
    assert client.post("/feedback", content=json.dumps({**row, "label": 1e999})).status_code == 422
    assert len(lines(pairs)) == 1


def test_an_image_is_kept_as_its_file(images: Run, serve: Serve) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (9, 9), (0, 0, 200)).save(stream, "PNG")
    content = stream.getvalue()
    sent = {"files": {"file": ("a.png", content)}, "data": {"label": '"dog"'}}
    client = serve(images)
    assert client.post("/feedback", **sent).status_code == 200
    (kept,) = lines(images)
    assert kept["image"] == f"feedback/{hashlib.sha256(content).hexdigest()}"
    assert (images.folder / kept["image"]).read_bytes() == content
    read = Data(train=str(images.folder.parent / "photos"), add_feedback=str(images))
    assert corpus.load(read, corpus.IMAGES).report["corrections"] == 1
    wrong = {"files": {"file": ("a.png", b"no image")}, "data": {"label": '"dog"'}}
    assert client.post("/feedback", **wrong).status_code == 422


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "a", "label": "Positive"}, "label 'Positive' is unknown; did you mean"),
        ({"text": "a", "label": ["positive"]}, "label \"['positive']\" is unknown"),
        ({"text": " ", "label": "positive"}, "an empty input has no label"),
        ({"text": "a"}, "label: Field required"),
        ({"text": "a", "label": "positive", "model": "x"}, "model: Extra inputs"),
    ],
)
def test_what_is_no_correction_is_not_kept(
    row: dict[str, Any], words: str, texts: Run, serve: Serve
) -> None:
    answer = serve(texts).post("/feedback", json=row)
    assert answer.status_code == 422
    assert words in answer.json()["error"]["message"]
    assert not (texts.folder / corrections.FILE).exists()


def test_a_folder_that_cannot_be_written(
    texts: Run, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feedback, "append", full)
    answer = serve(texts).post("/feedback", json={"text": "a", "label": "positive"})
    assert answer.status_code == 503
    assert "No space left" in answer.json()["error"]["message"]


def test_a_line_is_on_disk_before_it_is_confirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(
        feedback.os, "fsync", lambda _: synced.append((tmp_path / corrections.FILE).read_bytes())
    )
    feedback.append(tmp_path, {"text": "a"})
    assert synced == [b'{"text": "a"}\n']


def test_many_threads_write_whole_lines(tmp_path: Path) -> None:
    texts = [f"{i} " + "x" * 9000 for i in range(80)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: feedback.append(tmp_path, {"text": text}), texts))
    written = (tmp_path / corrections.FILE).read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["text"] for line in written) == sorted(texts)


def test_a_line_that_was_cut_short_spoils_no_other(tmp_path: Path) -> None:
    file = tmp_path / corrections.FILE
    file.write_text('{"text": "cut sho', encoding="utf-8")
    feedback.append(tmp_path, {"text": "a"})
    assert file.read_text(encoding="utf-8") == '{"text": "cut sho\n{"text": "a"}\n'
