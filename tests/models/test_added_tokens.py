"""A tokenizer with more tokens than its model: the new rows are learned, saved and merged."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from finetune import inference, recipe
from finetune.errors import UserError
from finetune.report import files
from finetune.tasks import text_classification
from tests.conftest import WORDS, make_writer, train, train_job

NEW = ["<joy>", "<grief>"]
ROWS = [{"text": "the film was <joy>"}, {"text": "the film was <grief>"}, {"text": "a plot"}]


@pytest.fixture
def extended(tiny_recipe: Path, tiny_bert: Path) -> Path:
    """The tiny recipe with a checkpoint whose tokenizer has two tokens more than its model."""
    shutil.copytree(tiny_bert, "extended")
    tokenizer = AutoTokenizer.from_pretrained("extended")
    assert tokenizer.add_tokens(NEW) == 2
    tokenizer.save_pretrained("extended")
    text = tiny_recipe.read_text("utf-8").replace(str(tiny_bert), "extended")
    tiny_recipe.write_text(text, encoding="utf-8")
    rows = Path("reviews.csv").read_text("utf-8").replace("good", NEW[0]).replace("bad", NEW[1])
    Path("reviews.csv").write_text(rows, encoding="utf-8")
    return tiny_recipe


@pytest.mark.parametrize("method", ["full", "lora"])
def test_new_rows_are_learned_saved_and_merged(
    extended: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, job = train_job(extended, "--method", method, "--learning_rate", "0.01")
    assert "2 tokens of the tokenizer are new to the model, and learned" in capsys.readouterr().err
    before = AutoModelForSequenceClassification.from_pretrained("extended")
    old: Any = before.get_input_embeddings()
    rows = len(old.weight)
    if method == "lora":
        inference.merge(run, run.folder / "merged")
    folder = run.model if method == "full" else run.folder / "merged"
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    weights = plain.get_input_embeddings().weight
    assert len(weights) == rows + 2
    assert not torch.allclose(weights[rows], weights[rows + 1], atol=1e-4)
    if method == "lora":
        assert torch.equal(weights[:rows], old.weight)
        assert run.results()["checkpoint"]["added_tokens"] == 2
    model, tokenizer, read = inference.load(run)
    again = inference.outputs(model, tokenizer, read, ROWS)
    trained = inference.outputs(job.model.eval(), job.processor, read, ROWS)
    assert again == pytest.approx(trained, abs=1e-6)
    assert inference.outputs(plain, tokenizer, read, ROWS) == pytest.approx(trained, abs=1e-5)


def test_the_code_on_the_model_card_knows_the_new_rows(extended: Path) -> None:
    run = train(extended, "--method", "lora", "--max_steps", "2")
    files.write(run)
    card = (run.model / "README.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(card.split("```python\n")[1].split("```")[0], names)
    ours = inference.predict(run, [ROWS[0]])[0]
    (theirs,) = names["classify"](ROWS[0]["text"])
    assert theirs["score"] == pytest.approx(ours["probabilities"][theirs["label"]], abs=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_learns_new_rows_on_both_sides(workdir: Path, tied: bool) -> None:
    folder = make_writer(workdir / "writer")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.tie_word_embeddings = tied
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(model.config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(NEW)
    tokenizer.save_pretrained(folder)
    rows = [{"text": f"{a} {NEW[0]} {b} {c}"} for a in WORDS for b in WORDS[:3] for c in WORDS[:2]]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (workdir / "texts.jsonl").write_text(lines, encoding="utf-8")
    (workdir / "writer.yaml").write_text(
        "task: text-generation\n"
        "model: {checkpoint: writer, max_length: 32}\n"
        "data: {train: texts.jsonl, holdout: 8, validation_size: 4}\n"
        "tuning: {method: lora, r: 4}\n"
        "training: {learning_rate: 1.0e-2, max_steps: 4, use_cpu: true}\n",
        encoding="utf-8",
    )
    run, job = train_job(workdir / "writer.yaml")
    inference.merge(run, workdir / "merged")
    merged = AutoModelForCausalLM.from_pretrained(workdir / "merged").eval()
    ids = tokenizer(rows[0]["text"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = job.model.eval()(input_ids=ids).logits
        assert merged(input_ids=ids).logits == pytest.approx(expected, abs=1e-4)
        loaded, _, _ = inference.load(run)
        assert loaded(input_ids=ids).logits == pytest.approx(expected, abs=1e-5)
    new = ids[0][ids[0] >= len(tokenizer) - 2][0]
    heads = merged.get_output_embeddings().weight
    mean = heads[: len(tokenizer) - 2].mean(0)
    # The new token's output row was learned, too.
    assert (heads[new] - mean).abs().max() > 1e-2


def test_methods_that_would_not_learn_new_rows_are_refused(extended: Path) -> None:
    for method in ("head", "bitfit", "ia3"):
        read = recipe.load(extended, ["--method", method])
        message = f"has 2 tokens that its model has not, and {method} would not learn them"
        with pytest.raises(UserError, match=message):
            text_classification.TASK.build(read)


def test_a_tokenizer_of_another_model_is_still_refused(tiny_recipe: Path, tiny_bert: Path) -> None:
    shutil.copytree(tiny_bert, "other")
    config = json.loads(Path("other/config.json").read_text("utf-8"))
    config["vocab_size"] = 12
    Path("other/config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match="they do not belong together"):
        text_classification.TASK.build(recipe.load(tiny_recipe, ["--checkpoint", "other"]))
