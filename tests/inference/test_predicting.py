"""``finetune predict``: columns, kinds of files, empty rows, the output file."""

import io
import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from PIL import Image

from finetune import cli, inference, run_directory
from finetune.run_directory import Run
from tests.conftest import sentences, train, write_csv

TEXTS = ["the film was good", "", "a poor plot", "the cast was fine"]


@pytest.fixture(scope="module")
def run(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A classifier of texts."""
    folder = tmp_path_factory.mktemp("predicting")
    write_csv(folder / "reviews.csv", sentences(60))
    path = folder / "tiny.yaml"
    path.write_text(
        "task: text-classification\n"
        f'model: {{checkpoint: "{tiny_bert}", max_length: 16}}\n'
        f'data: {{train: "{folder}/reviews.csv", holdout: 10, validation_size: 10}}\n'
        f'training: {{max_steps: 1, use_cpu: true, output_dir: "{folder}/run"}}\n',
        encoding="utf-8",
    )
    return train(path)


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[list[dict], str]:
    capsys.readouterr()
    cli.main(["predict", *map(str, words)])
    out, err = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], err


def error(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict", *map(str, words)])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert len(message) <= 310
    return message


def table(path: str, column: str = "text") -> str:
    pandas.DataFrame({"id": range(4), column: TEXTS}).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "txt", "parquet", "stdin"])
def test_an_empty_row_keeps_its_place(
    run: Run,
    workdir: Path,
    kind: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = f"texts.{kind}"
    cells: list[Any] = [text or None for text in TEXTS]
    if kind == "csv":
        table(file)
    elif kind == "jsonl":
        lines = "".join(json.dumps({"text": cell}) + "\n" for cell in cells)
        Path(file).write_text(lines, encoding="utf-8")
    elif kind == "parquet":
        pandas.DataFrame({"text": cells}).to_parquet(file)
    else:
        Path(file).write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    if kind == "stdin":
        monkeypatch.setattr("sys.stdin", io.StringIO(Path(file).read_text("utf-8")))
        file = "-"
    rows, said = printed(capsys, run, "--file", file)
    assert [row["text"] for row in rows] == TEXTS
    assert [row["prediction"] is None for row in rows] == [False, True, False, False]
    assert "1 of 4 rows are empty" in said
    alone = inference.predict(run, [{"text": TEXTS[2]}])[0]
    assert rows[2]["prediction"] == alone["prediction"]
    assert rows[2]["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)


def test_the_column_can_have_another_name(
    run: Run, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = table("mine.csv", "review")
    rows, _ = printed(capsys, run, "--file", file, "--text", "review")
    assert [row["text"] for row in rows] == TEXTS
    assert "it has id, review" in error(capsys, run, "--file", file)
    assert "--text" in error(capsys, run, "--file", file)
    assert "--text names a column" in error(capsys, run, "a film", "--text", "review")
    wrong = error(capsys, run, "--file", file, "--text", "id", "--text_pair", "review")
    assert "labels single texts" in wrong


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_predictions_go_to_a_file(
    run: Run, workdir: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = table("mine.csv")
    rows, _ = printed(capsys, run, "--file", file)
    nothing, said = printed(capsys, run, "--file", file, "--output", name)
    assert nothing == []
    assert f"4 predictions in {name}" in said
    if name.endswith("csv"):
        back = pandas.read_csv(name, keep_default_na=False)
        assert back["prediction"].tolist() == [row["prediction"] or "" for row in rows]
    else:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == rows
    assert "is the file to read" in error(capsys, run, "--file", file, "--output", "./mine.csv")
    wrong = error(capsys, run, "--file", file, "--output", "no/where.csv")
    assert "no/where.csv: cannot be written" in wrong


def test_nothing_but_empty_rows_is_refused(
    run: Run, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("blank.txt").write_text("\n \n", encoding="utf-8")
    assert "there is no text to label" in error(capsys, run, "--file", "blank.txt")
    assert "gone.txt: cannot be read" in error(capsys, run, "--file", "gone.txt")


def test_a_text_file_in_another_encoding_is_read(
    run: Run, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("other.txt").write_bytes("a caf\xe9\nfine".encode("latin-1"))
    cli.main(["predict", str(run), "--file", "other.txt"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == ["a caf\xe9", "fine"]


def test_a_missing_second_text_is_empty(
    workdir: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(text, "the plot", label) for text, label in sentences(60)]
    lines = ["text,other,label", *(",".join(row) for row in rows)]
    Path("pairs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    Path("pairs.yaml").write_text(
        "task: text-classification\n"
        f'model: {{checkpoint: "{tiny_bert}", max_length: 16}}\n'
        "data: {train: pairs.csv, text_pair: other, holdout: 10, validation_size: 10}\n"
        "training: {max_steps: 1, use_cpu: true}\n",
        encoding="utf-8",
    )
    pairs = train(Path("pairs.yaml"))
    given = [{"text": "a good film", "other": second} for second in (None, "", "None")]
    text = "".join(json.dumps(row) + "\n" for row in given)
    Path("new.jsonl").write_text(text, encoding="utf-8")
    found, _ = printed(capsys, pairs, "--file", "new.jsonl")
    assert [row["text_pair"] for row in found] == ["", "", "None"]
    assert found[0]["probabilities"] == found[1]["probabilities"]
    assert found[0]["probabilities"] != found[2]["probabilities"]


def test_images_of_a_table_are_found_as_in_training(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(24):
        path = Path(f"train/{'ab'[i % 2]}/{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i * 10, 0, 255 * (i % 2))).save(path)
    Path("cnn.yaml").write_text(
        "task: image-classification\n"
        'model: {checkpoint: "new:convnet", image_size: 8,\n'
        "  config: {channels: [4], convolutions: 1, hidden_size: 8, num_channels: 3}}\n"
        "data: {train: train, holdout: 6, validation_size: 4, image_folder: train}\n"
        "training: {max_steps: 1, use_cpu: true}\n",
        encoding="utf-8",
    )
    made = train(Path("cnn.yaml"))
    Path("new.csv").write_text("file\na/0\n\nb/1.png\n", encoding="utf-8")
    Path("new.jsonl").write_text(
        '{"file": "a/0"}\n{"file": null}\n{"file": "b/1.png"}\n', encoding="utf-8"
    )
    rows, said = printed(capsys, made, "--file", "new.jsonl", "--image", "file")
    assert [row["image"] for row in rows] == ["train/a/0.png", None, "train/b/1.png"]
    assert [row["prediction"] is None for row in rows] == [False, True, False]
    assert "1 of 3 rows are empty" in said
    cells = [{"bytes": Path("train/a/0.png").read_bytes(), "path": None}]
    pandas.DataFrame({"image": cells}).to_parquet("new.parquet")
    inside, _ = printed(capsys, made, "--file", "new.parquet")
    assert inside[0]["probabilities"] == rows[0]["probabilities"]
    assert "image" not in inside[0]
    assert run_directory.one(str(made)).is_finished
