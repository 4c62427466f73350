"""Training end to end on a tiny BERT: what is left behind, and whether it can be believed."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy
import pandas
import pytest
import torch
from safetensors.torch import load_file

from finetune import cli, inference, recipe, run_directory
from finetune.data import corpus
from finetune.errors import UserError
from finetune.models import parameters
from finetune.report import page
from finetune.tasks import text_classification
from finetune.tasks.text import encode
from finetune.training import hub, runner
from finetune.training.job import Job
from tests.conftest import interrupted, sentences, train, write_csv


def losses(run: run_directory.Run) -> list[float]:
    return [row["loss"] for row in run.history() if "loss" in row]


def test_a_run_leaves_exactly_these_files(tiny_recipe: Path) -> None:
    cli.main(["train", str(tiny_recipe)])
    run = run_directory.Run("runs/tiny/seed-0")
    assert run.folder == Path("runs/tiny/seed-0")
    assert sorted(p.name for p in run.folder.iterdir() if p.name != ".lock") == [
        "checkpoints",
        "history.jsonl",
        "model",
        "predictions.parquet",
        "recipe.yaml",
        "report.html",
        "results.json",
    ]
    assert sorted(p.name for p in run.model.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    rows = run.predictions()
    assert len(rows) == 24
    assert set(rows["label"]) == {"negative", "positive"}
    right = (rows["label"] == rows["prediction"]).mean()
    assert run.results()["metrics"]["accuracy"]["value"] == pytest.approx(right)


def test_pipeline_loads_the_model_and_agrees_with_predict(tiny_recipe: Path) -> None:
    from transformers import pipeline

    run = train(tiny_recipe)
    texts = ["the film was good", "awful plot"]
    said = pipeline("text-classification", model=str(run.model), device="cpu")(texts)
    ours = inference.predict(run, [{"text": text} for text in texts])
    assert [a["label"] for a in said] == [a["prediction"] for a in ours]
    for theirs, answer in zip(said, ours, strict=True):
        probability = answer["probabilities"][answer["prediction"]]
        assert theirs["score"] == pytest.approx(probability, abs=1e-5)


def test_the_same_seed_gives_the_same_results(tiny_recipe: Path) -> None:
    first, second = train(tiny_recipe), train(tiny_recipe, "--output_dir", "runs/again")
    a, b = first.results(), second.results()
    for results in (a, b):
        for measured in (
            "train_seconds",
            "total_seconds",
            "rows_per_second",
            "tokens_per_second",
            "peak_memory_bytes",
        ):
            del results["cost"][measured]
        # The way from the run's folder to the checkpoint.
        del results["checkpoint"]["path_from_run"]
    assert a == b
    assert first.history() == second.history()
    third = train(tiny_recipe, "--seed", "1")
    assert third.history() != first.history()


def test_accumulation_gives_the_curve_of_the_whole_batch(tiny_recipe: Path) -> None:
    # 96 rows in batches of 40: the last one has 16, in other micro-batches than the rest.
    whole = train(tiny_recipe, "--per_device_train_batch_size", "40")
    parts = train(
        tiny_recipe,
        *("--per_device_train_batch_size", "10", "--gradient_accumulation_steps", "4"),
        *("--output_dir", "runs/parts"),
    )
    assert len(losses(whole)) == 6
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)


def test_lora_leaves_the_base_alone_and_reloads_to_the_last_bit(
    tiny_recipe: Path, tiny_bert: Path
) -> None:
    before = load_file(tiny_bert / "model.safetensors")
    read = recipe.load(tiny_recipe, ["--method", "lora"])
    jobs = []

    def build(read: recipe.Recipe) -> Job:
        jobs.append(text_classification.TASK.build(read))
        return jobs[-1]

    run = runner.train(read, build)
    assert run is not None
    trained = jobs[0].model.eval()
    frozen = {
        name: tensor
        for name, tensor in trained.named_parameters()
        if "lora_" not in name and "modules_to_save" not in name
    }
    compared = 0
    for name, tensor in before.items():
        match = [
            t for n, t in frozen.items() if n.replace(".base_layer", "").endswith(f"bert.{name}")
        ]
        match += [
            t
            for n, t in frozen.items()
            if n.endswith(f"{name.replace('pooler', 'pooler.original_module')}")
        ]
        assert match, name
        assert torch.equal(match[0], tensor), name
        compared += 1
    assert compared == len(before)

    texts = [text for text, _ in sentences(8, seed=3)]
    rows = [{"text": text} for text in texts]
    expected = inference.outputs(trained, jobs[0].processor, read, rows)
    code = (
        "import json, sys, numpy; from finetune import inference, run_directory\n"
        "run = run_directory.Run(sys.argv[1]); model, tokenizer, recipe = inference.load(run)\n"
        "rows = [{'text': t} for t in json.loads(sys.argv[2])]\n"
        "numpy.save('logits.npy', inference.outputs(model, tokenizer, recipe, rows))"
    )
    subprocess.run([sys.executable, "-c", code, str(run), json.dumps(texts)], check=True)
    assert numpy.array_equal(numpy.load("logits.npy"), expected)


def test_head_trains_nothing_else(tiny_recipe: Path, tiny_bert: Path) -> None:
    run = train(tiny_recipe, "--method", "head")
    after, before = (
        load_file(run.model / "model.safetensors"),
        load_file(tiny_bert / "model.safetensors"),
    )
    changed = {n for n, t in before.items() if not torch.equal(after[f"bert.{n}"], t)}
    assert changed == {"pooler.dense.weight", "pooler.dense.bias"}
    cost = run.results()["cost"]
    assert cost["trainable_parameters"] == 32 * 32 + 32 + 2 * 32 + 2


@pytest.mark.parametrize("method", ["full", "lora", "head", "bottleneck", "prefix_tuning"])
def test_the_best_weights_are_the_ones_saved(tiny_recipe: Path, method: str) -> None:
    # A step so large that the last epochs are worse than some earlier one.
    run = train(
        tiny_recipe, "--method", method, "--learning_rate", "0.05", "--num_train_epochs", "6"
    )
    scores = [r["eval_accuracy"] for r in run.history() if "eval_accuracy" in r]
    assert all("eval_loss" in r for r in run.history() if "eval_accuracy" in r)
    chosen = run.results()["chosen"]
    assert chosen["value"] == max(scores)
    data = corpus.load(recipe.load(tiny_recipe).data).validation
    said = inference.predict(run, [{"text": text} for text in data["text"]])
    names = run.results()["data"]["label_names"]
    right = [names[label] == a["prediction"] for label, a in zip(data["label"], said, strict=True)]
    assert numpy.mean(right) == pytest.approx(max(scores))


def test_shuffled_labels_score_no_better_than_chance(tiny_recipe: Path) -> None:
    rows = sentences(600)
    labels = [label for _, label in rows]
    random.Random(0).shuffle(labels)
    write_csv(Path("reviews.csv"), [(t, y) for (t, _), y in zip(rows, labels, strict=True)])
    run = train(tiny_recipe, "--holdout", "200", "--num_train_epochs", "4")
    accuracy = run.results()["metrics"]["accuracy"]
    majority = run.results()["baselines"]["majority class"]["accuracy"]
    assert accuracy["low"] < max(0.5, majority["value"])
    write_csv(Path("reviews.csv"), rows)
    honest = train(
        tiny_recipe, "--holdout", "200", "--num_train_epochs", "4", "--output_dir", "runs/b"
    )
    assert honest.results()["metrics"]["accuracy"]["value"] > 0.9


def test_sixteen_rows_are_learned_by_heart(tiny_recipe: Path) -> None:
    run = train(
        tiny_recipe,
        *("--max_train_samples", "16", "--max_steps", "150", "--eval_strategy", "no"),
        *("--save_strategy", "no"),
    )
    assert losses(run)[-1] < 0.005


def test_pairs_are_true_pairs(tiny_recipe: Path) -> None:
    draw, rows = random.Random(0), []
    for text, _ in sentences(400):
        other = text if draw.random() < 0.5 else sentences(400, seed=1)[len(rows)][0]
        rows.append((text, other, "same" if other == text else "other"))
    write_csv(Path("reviews.csv"), rows, "text,second,label")
    run = train(tiny_recipe, "--text_pair", "second", "--max_length", "30", "--max_steps", "3")
    _, tokenizer, read = inference.load(run)
    encoded = encode({"text": ["good film"], "text_pair": ["bad plot"]}, tokenizer, read.model)
    assert encoded["token_type_ids"] == [[0, 0, 0, 0, 1, 1, 1]]
    assert list(run.predictions().columns)[:4] == ["id", "text", "text_pair", "label"]


def test_several_labels_a_row(tiny_recipe: Path) -> None:
    rows = []
    for text, label in sentences(300):
        topics = [label, *(w for w in ("plot", "cast") if w in text.split())]
        rows.append((text, "|".join(topics)))
    write_csv(Path("reviews.csv"), rows)
    run = train(
        tiny_recipe,
        *("--problem_type", "multi_label_classification", "--label_separator", "|"),
        *("--num_train_epochs", "8", "--gradient_accumulation_steps", "2"),
    )
    results = run.results()
    assert results["data"]["label_names"] == ["cast", "negative", "plot", "positive"]
    chance = results["baselines"]["majority class"]["macro_f1"]["value"]
    assert results["metrics"]["macro_f1"]["value"] > chance + 0.2
    said = inference.predict(run, [{"text": "the plot was awful"}])[0]
    assert said["prediction"] == [n for n, p in said["probabilities"].items() if p > 0.5]
    assert "negative" in said["prediction"]


def test_regression_predicts_numbers(tiny_recipe: Path) -> None:
    rows = [(t, str(t.split().count("film") + 2 * (y == "positive"))) for t, y in sentences(400)]
    write_csv(Path("reviews.csv"), rows)
    run = train(tiny_recipe, "--problem_type", "regression", "--num_train_epochs", "10")
    results = run.results()
    assert results["metrics"]["r2"]["value"] > 0.5
    assert results["baselines"]["mean of train"]["r2"]["value"] < 0.05
    assert isinstance(inference.predict(run, [{"text": "good film"}])[0]["prediction"], float)


def test_accumulation_is_right_for_several_labels_and_numbers(tiny_recipe: Path) -> None:
    rows = [(t, "1.5" if y == "positive" else "0.25") for t, y in sentences(136)]
    write_csv(Path("reviews.csv"), rows)
    for kind in ("regression", "multi_label_classification"):
        flags = ["--problem_type", kind]
        whole = train(
            tiny_recipe,
            *flags,
            "--per_device_train_batch_size",
            "40",
            "--output_dir",
            f"runs/{kind}-a",
        )
        parts = train(
            tiny_recipe,
            *(*flags, "--output_dir", f"runs/{kind}-b"),
            *("--per_device_train_batch_size", "10", "--gradient_accumulation_steps", "4"),
        )
        assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)


def test_layer_decay_scales_each_layer(tiny_recipe: Path) -> None:
    job = text_classification.TASK.build(recipe.load(tiny_recipe))
    names = {id(p): n for n, p in job.model.named_parameters()}
    groups = parameters.parameter_groups(job.model, set(), 1.0, 0.0, 0.5)
    rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == len(names)
    assert rates["classifier.weight"] == rates["bert.pooler.dense.weight"] == 1.0
    assert rates["bert.encoder.layer.1.output.dense.weight"] == 0.5
    assert rates["bert.encoder.layer.0.attention.self.query.bias"] == 0.25
    assert rates["bert.embeddings.word_embeddings.weight"] == 0.125


def test_layer_decay_and_smoothing_change_the_training(tiny_recipe: Path) -> None:
    plain = train(tiny_recipe)
    decayed = train(tiny_recipe, "--layer_decay", "0.5", "--output_dir", "runs/decayed")
    smooth = train(tiny_recipe, "--label_smoothing_factor", "0.2", "--output_dir", "runs/smooth")
    assert losses(decayed)[0] == losses(plain)[0]
    assert losses(decayed)[-1] != losses(plain)[-1]
    assert losses(smooth)[0] != losses(plain)[0]


def test_a_run_is_never_written_over_by_accident(tiny_recipe: Path) -> None:
    run = train(tiny_recipe)
    kept = (run.folder / "results.json").read_bytes()
    with pytest.raises(UserError, match=r"--resume .* --overwrite"):
        train(tiny_recipe)
    assert (run.folder / "results.json").read_bytes() == kept


def test_training_is_checked_before_anything_is_read(tiny_recipe: Path) -> None:
    def build(read: recipe.Recipe) -> Job:
        raise AssertionError("built before training was checked")

    for flag, value in {"--learning_rat": "1", "--seed": "one", "--num_train_epochs": "0"}.items():
        with pytest.raises(UserError, match=flag[2:]):
            runner.train(recipe.load(tiny_recipe, [flag, value]), build)


def test_half_precision_without_a_gpu_is_refused(tiny_recipe: Path) -> None:
    with pytest.raises(UserError, match=r"--fp16: fp16 needs a GPU; use bf16, or nothing"):
        train(tiny_recipe, "--fp16", "true")


def test_kernels_that_are_not_installed_are_refused(tiny_recipe: Path) -> None:
    with pytest.raises(UserError, match=r"--use_liger_kernel: .*pip install liger-kernel"):
        train(tiny_recipe, "--use_liger_kernel", "true")


def test_a_refused_recipe_costs_nothing(tiny_recipe: Path) -> None:
    with pytest.raises(UserError, match="learning_rate"):
        train(tiny_recipe, "--learning_rate", "-1")
    run = train(tiny_recipe)
    kept = (run.folder / "results.json").read_bytes()
    with pytest.raises(UserError, match="learning_rate"):
        runner.train(
            recipe.load(tiny_recipe, ["--learning_rate", "-1"]),
            text_classification.TASK.build,
            overwrite=True,
        )
    assert (run.folder / "results.json").read_bytes() == kept


def test_resume_goes_on_from_the_checkpoint(tiny_recipe: Path) -> None:
    whole = train(tiny_recipe, "--num_train_epochs", "3", "--output_dir", "runs/whole")
    read = recipe.load(tiny_recipe, ["--num_train_epochs", "3"])

    with pytest.raises(KeyboardInterrupt):
        runner.train(read, interrupted(text_classification.TASK.build))
    assert not run_directory.Run("runs/tiny/seed-0").is_finished
    run = runner.train(
        recipe.load(tiny_recipe, ["--num_train_epochs", "3"]),
        text_classification.TASK.build,
        resume=True,
    )
    assert run is not None
    weights = [load_file(r.model / "model.safetensors") for r in (run, whole)]
    assert all(torch.equal(weights[0][n], t) for n, t in weights[1].items())


def test_rows_set_aside_are_written_with_their_reason(tiny_recipe: Path) -> None:
    rows = [*sentences(200), ("", "positive")]
    write_csv(Path("reviews.csv"), rows)
    run = train(tiny_recipe, "--max_steps", "1")
    lines = (run.folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["empty text"]
    assert run.results()["data"]["rejected"] == 1


def test_tensorboard_writes_into_the_run(tiny_recipe: Path) -> None:
    for name in ("runs/a", "runs/b"):
        train(tiny_recipe, "--max_steps", "1", "--report_to", "tensorboard", "--output_dir", name)
        assert list(Path(name, "tensorboard").glob("events.out.tfevents.*"))


def test_nothing_is_pickled_into_the_model(tiny_recipe: Path) -> None:
    run = train(tiny_recipe, "--max_steps", "1")
    assert {p.suffix for p in run.model.iterdir()} == {".json", ".safetensors"}


def test_a_report_that_fails_leaves_a_whole_run(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(run: run_directory.Run) -> str:
        raise ValueError("no such figure")

    with monkeypatch.context() as patched:
        patched.setattr(page, "render", broken)
        cli.main(["train", str(tiny_recipe), "--max_steps", "1"])
    shown = capsys.readouterr()
    assert "accuracy" in shown.out
    assert "its report failed (ValueError: no such figure); `finetune report`" in shown.err
    run = run_directory.Run("runs/tiny/seed-0")
    assert run.is_finished
    assert not (run.folder / "report.html").exists()
    cli.main(["report", str(run)])
    assert (run.folder / "report.html").is_file()


def test_push_uploads_the_model_folder(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Hub:
        def create_repo(self, name: str, **options: object) -> object:
            calls.append((name, options))
            return type("Url", (), {"repo_id": f"me/{name}"})()

        def upload_folder(self, **options: object) -> None:
            folder = Path(str(options["folder_path"]))
            calls.append((options["repo_id"], sorted(p.name for p in folder.iterdir())))

    monkeypatch.setattr(hub, "HfApi", Hub)
    flags = ["--max_steps", "1", "--push_to_hub", "true", "--hub_model_id", "mine"]
    cli.main(["train", str(tiny_recipe), *flags])
    assert calls[0][0] == "mine"
    assert calls[1][0] == "me/mine"
    assert "model.safetensors" in calls[1][1]
    assert "README.md" in calls[1][1]


def test_command_line_from_training_to_prediction(
    tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["train", "tiny.yaml"])
    shown = capsys.readouterr().out
    assert "accuracy" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80
    cli.main(["predict", "runs/tiny", "the film was good", "awful"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == ["the film was good", "awful"]
    cli.main(["predict", "runs/tiny", "--file", "reviews.csv", "--format", "csv"])
    Path("out.csv").write_text(capsys.readouterr().out, encoding="utf-8")
    table = pandas.read_csv("out.csv")
    assert list(table.columns) == ["text", "prediction", "negative", "positive"]
    assert len(table) == 136
    cli.main(["compare", "runs"])
    assert "tiny" in capsys.readouterr().out


def test_the_minilm_adapter_is_small(workdir: Path) -> None:
    path = Path(__file__).parents[2] / "recipes" / "rotten_tomatoes" / "minilm-lora.yaml"
    run = train(
        path,
        *("--max_train_samples", "32", "--max_test_samples", "16", "--validation_size", "16"),
        *("--max_steps", "1", "--max_length", "16"),
    )
    weights = load_file(run.model / "adapter_model.safetensors")
    assert {n.split(".")[-2] for n in weights if "classifier" in n} == {"classifier"}
    assert sum(f.stat().st_size for f in run.model.iterdir()) < 3e6
