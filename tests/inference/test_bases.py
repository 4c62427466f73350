"""The base of an adapter is found wherever it or the run was moved, or named; adapters go on."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune import cli, inference, recipe
from finetune.errors import UserError
from finetune.run_directory import Run
from finetune.tasks import text_classification
from tests.conftest import sentences, train, train_job, write_csv

ROWS = [{"text": "the film was good"}, {"text": "a poor plot"}]
LORA = ("--method", "lora", "--r", "4", "--init_lora_weights", "false")


@pytest.fixture
def adapter(tiny_recipe: Path, tiny_bert: Path) -> Run:
    """An adapter in project/runs/a whose base was named by the relative path ``base``."""
    shutil.copytree(tiny_bert, "project/base")
    write_csv(Path("project/reviews.csv"), sentences(60))
    text = tiny_recipe.read_text("utf-8").replace(str(tiny_bert), "base")
    Path("project/tiny.yaml").write_text(text, encoding="utf-8")
    os.chdir("project")
    flags = ["--max_steps", "2", "--holdout", "10", "--validation_size", "10"]
    run = train(Path("tiny.yaml"), *LORA, *flags, "--output_dir", "runs/a")
    os.chdir("..")
    return Run(Path("project") / run.folder)


def test_another_working_directory_finds_the_base(adapter: Run) -> None:
    before = inference.predict(adapter, ROWS)
    # Run and base move together, and then the base alone.
    shutil.move("project", "moved")
    assert inference.predict(Run("moved/runs/a"), ROWS) == before
    shutil.move("moved/runs/a", "elsewhere")
    with pytest.raises(UserError, match="--base FOLDER") as raised:
        inference.predict(Run("elsewhere"), ROWS)
    assert str(Path("project/base").resolve()) in str(raised.value)
    assert len(str(raised.value)) <= 300
    shutil.copytree("moved/base", "project/base")
    assert inference.predict(Run("elsewhere"), ROWS) == before


def test_the_base_can_be_named(adapter: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = inference.predict(adapter, ROWS)
    shutil.move("project/base", "there")
    run = str(adapter)
    cli.main(["predict", run, *(row["text"] for row in ROWS), "--base", "there"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["probabilities"] for line in lines] == [row["probabilities"] for row in before]
    cli.main(["predict", "--adapter", run, "--adapter", run, "a film", "--base", "there"])
    cli.main(["merge", run, "--output", "merged", "--base", "there"])
    assert Path("merged/config.json").is_file()
    shutil.copytree("there", "other")
    weights = load_file("there/model.safetensors")
    save_file({n: w + 1 for n, w in weights.items()}, "other/model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"trained on other weights of base .* are now in other"):
        inference.predict(adapter, ROWS, base_folder="other")


def test_a_base_of_other_weights_under_the_same_name_is_passed_over(adapter: Run) -> None:
    before = inference.predict(adapter, ROWS)
    shutil.copytree("project/base", "base")
    weights = load_file("base/model.safetensors")
    save_file({n: w + 1 for n, w in weights.items()}, "base/model.safetensors", {"format": "pt"})
    assert inference.predict(adapter, ROWS) == before


# --- going on with an adapter ------------------------------------------------------------------


def lora_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if "lora_" in n or "modules_to" in n}


@pytest.mark.parametrize(
    "options", [("lora", "--r", "4"), ("bottleneck",), ("ia3",), ("loha",)], ids=str
)
def test_an_adapter_goes_on(tiny_recipe: Path, options: tuple[str, ...]) -> None:
    flags = ["--method", *options, "--max_steps", "2", "--load_best_model_at_end", "false"]
    first, job = train_job(tiny_recipe, *flags, "--output_dir", "runs/first")
    more = [*flags, "--checkpoint", "runs/first", "--output_dir", "runs/second"]
    again = text_classification.TASK.build(recipe.load(tiny_recipe, more))
    ends = {n: p for n, p in job.model.named_parameters() if p.requires_grad}
    starts = {n: p for n, p in again.model.named_parameters() if p.requires_grad}
    assert starts.keys() == ends.keys()
    assert all(torch.equal(starts[name], ends[name]) for name in ends)
    assert again.processor.get_vocab() == job.processor.get_vocab()
    second = train(tiny_recipe, *more)
    before, after = (run.results()["checkpoint"] for run in (first, second))
    assert after["sha256"] == before["sha256"]
    assert (before["adapter"], after["adapter"]) == (None, "runs/first/model")
    expected = inference.predict(second, ROWS)
    shutil.rmtree("runs/first")
    assert inference.predict(second, ROWS) == expected


def test_the_head_of_an_adapter_follows_the_labels_order(tiny_recipe: Path) -> None:
    first, job = train_job(tiny_recipe, *LORA, "--max_steps", "2", "--output_dir", "runs/first")
    config = first.model / "config.json"
    made: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    made |= {"id2label": {"0": "positive", "1": "negative"}}
    made |= {"label2id": {"positive": 0, "negative": 1}}
    config.write_text(json.dumps(made), encoding="utf-8")
    flags = [*LORA, "--checkpoint", "runs/first"]
    again = text_classification.TASK.build(recipe.load(tiny_recipe, flags))
    inputs = job.processor([ROWS[0]["text"]], return_tensors="pt")
    with torch.no_grad():
        before, after = (each.model.eval()(**inputs).logits for each in (job, again))
    assert torch.allclose(after, before[:, [1, 0]])


def test_what_cannot_go_on_is_refused(tiny_recipe: Path, tiny_bert: Path) -> None:
    def error(*flags: str) -> str:
        with pytest.raises(UserError) as raised:
            text_classification.TASK.build(recipe.load(tiny_recipe, flags))
        assert len(str(raised.value)) <= 300
        return str(raised.value)

    quick = ("--load_best_model_at_end", "false", "--output_dir")
    train(tiny_recipe, *LORA, *quick, "runs/a", "--max_steps", "1")
    start = ("--checkpoint", "runs/a")
    assert "runs/a is an adapter; `method: lora` goes on" in error(*start)
    assert "runs/a is an adapter" in error(*start, "--method", "bottleneck")
    wrong = error(*start, "--method", "lora", "--r", "8")
    assert "--r: r is 8, and 4 in the adapter of runs/a" in wrong
    write_csv(Path("reviews.csv"), [(text, label[:3]) for text, label in sentences(60)])
    small = ("--holdout", "10", "--validation_size", "10")
    other = error(*start, *LORA, *small)
    assert "has a head for negative/positive, and the data has neg/pos" in other
    for method, reason in (("adalora", "the ranks"), ("prompt_tuning", "peft reads virtual")):
        run = f"runs/{method}"
        train(tiny_recipe, "--method", method, *quick, run, *small, "--max_steps", "3")
        cannot = error("--checkpoint", run, "--method", method, *small)
        assert f"the {method} adapter of {run} cannot go on: {reason}" in cannot
    shutil.copytree("runs/a/model", "bare")
    assert "is an adapter without its run" in error("--checkpoint", "bare", *LORA, *small)
    record = json.loads(Path("runs/a/results.json").read_text("utf-8"))
    record["checkpoint"]["sha256"] = "0" * 64
    Path("runs/a/results.json").write_text(json.dumps(record), encoding="utf-8")
    assert "was trained on other weights" in error(*start, *LORA, *small)
