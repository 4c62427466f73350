"""Encoder-decoders learn, generate, resume, and predict what their test predicted."""

import io
import json
import random
import re
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    GenerationConfig,
    M2M100Config,
    MarianConfig,
    NllbTokenizer,
    T5Config,
    T5ForConditionalGeneration,
)

from finetune import cli, inference, recipe, run_directory, tasks
from finetune.data import pair_tokenizer
from finetune.errors import UserError
from finetune.forecast import measuring
from finetune.inference import evaluation as inference_evaluation
from finetune.run_directory import Run
from finetune.tasks.sequence_to_sequence import COPY, LEAD, TASK
from finetune.training.job import Job
from tests.conftest import interrupted, train, train_job
from tests.training.test_processes import SEVERAL, launch, losses

LETTERS = "abcdefgh"
SMALL = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
RECIPE = """\
task: text2text-generation
model:
  checkpoint: "new:t5"
  config: {config}
  token_pattern: "[A-Z]|."
  max_length: 16
  max_target_length: 10
data: {{train: rows.tsv, holdout: 24, validation_size: 16}}
training:
  learning_rate: 5.0e-3
  per_device_train_batch_size: 16
  num_train_epochs: 2
  lr_scheduler_type: constant
  logging_steps: 1
  use_cpu: true
"""


def words(count: int, seed: int = 0) -> list[str]:
    draw, seen = random.Random(seed), dict[str, None]()
    while len(seen) < count:
        seen["".join(draw.choices(LETTERS, k=draw.randint(2, 6)))] = None
    return list(seen)


def write(rows: list[tuple[str, str]], path: str = "rows.tsv") -> None:
    lines = ["source\ttarget", *map("\t".join, rows)]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def spelling(workdir: Path) -> Path:
    """A recipe of words and their letters in upper case, for a tiny T5 from scratch."""
    write([(word, word.upper()) for word in words(136)])
    path = workdir / "spelling.yaml"
    config = json.dumps({**SMALL, "num_decoder_layers": 1, "dropout_rate": 0.0})
    path.write_text(RECIPE.format(config=config), encoding="utf-8")
    return path


def small_tokenizer() -> Any:
    return pair_tokenizer.train([LETTERS, LETTERS.upper()], 100, "[A-Z]|.", "")


def pretrained(folder: Path, kind: str = "t5") -> Path:
    """A tiny checkpoint of a kind, with random weights and the tokenizer of letters."""
    tokenizer = small_tokenizer()
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    size: Any = {"vocab_size": len(tokenizer), **ids}
    wide = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64}
    wide |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "dropout": 0.0}
    wide |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config: Any = {
        "t5": lambda: T5Config(**SMALL, dropout_rate=0.0, **size),
        "bart": lambda: BartConfig(**wide, **size, bos_token_id=2, forced_eos_token_id=1),
        "marian": lambda: MarianConfig(**wide, **size),
        "m2m_100": lambda: M2M100Config(**wide, **size, encoder_layerdrop=0.0),
    }[kind]()
    torch.manual_seed(1)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def adapt(path: Path, checkpoint: Path | str) -> list[str]:
    """Flags that train another checkpoint than the recipe's new one."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"  config: .*\n  token_pattern: .*\n", "", text)
    path.write_text(text.replace("new:t5", str(checkpoint)), encoding="utf-8")
    return []


def predicted(run: Run, capsys: pytest.CaptureFixture[str], *flags: str) -> list[str]:
    capsys.readouterr()
    cli.main(["predict", str(run), *flags])
    return [json.loads(line)["prediction"] for line in capsys.readouterr().out.splitlines()]


def run_card(run: Run, source: str) -> str:
    """Runs the code of the model card for a source and returns what it prints."""
    card = (run.model / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code
    shown = io.StringIO()
    with redirect_stdout(shown):
        exec(code[1].replace('"A text."', repr(source)), {})
    return shown.getvalue().rstrip("\n")


# --- learning --------------------------------------------------------------------------------


def test_16_rows_are_learned_by_heart_and_predicted_the_same_everywhere(
    spelling: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(word, word[::-1].upper()) for word in words(16, seed=2)]
    write(rows)
    data = ["--train", "rows.tsv", "--test", "rows.tsv", "--validation_size", "0"]
    more = ["--allow_overlap", "true", "--holdout", "0", "--num_train_epochs", "150"]
    more += ["--lr_scheduler_type", "linear", "--output_dir", "runs/spelling/seed-0"]
    cli.main(["train", str(spelling), *data, *more])
    run = run_directory.Run("runs/spelling/seed-0")
    results = run.results()
    assert results["metrics"]["exact_match"]["value"] == 1.0
    assert results["metrics"]["token_error_rate"]["value"] == 0.0
    assert results["signatures"]["chrf"].startswith("nrefs:1|")
    assert results["generated"]["copies"] == 0.0
    test = run.predictions()
    assert [list(label) for label in test["label"]] == [[target] for _, target in rows]
    assert predicted(run, capsys, *test["source"]) == list(test["prediction"])
    assert predicted(run, capsys, "--file", "rows.tsv") == list(test["prediction"])
    assert run_card(run, rows[3][0]) == rows[3][1]
    assert (run.folder / "report.html").is_file()
    # What the library itself generates from the saved folder.
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    model = AutoModelForSeq2SeqLM.from_pretrained(run.model)
    written = model.generate(**tokenizer([rows[0][0]], return_tensors="pt"))
    assert tokenizer.decode(written[0], skip_special_tokens=True) == rows[0][1]


@pytest.mark.parametrize("shuffled", [False, True])
def test_shuffled_targets_give_chance(spelling: Path, shuffled: bool) -> None:
    given = words(400, seed=3)
    targets = ["A" if "a" in word else "B" for word in given]
    if shuffled:
        random.Random(0).shuffle(targets)
    write(list(zip(given, targets, strict=True)))
    run = train(spelling, "--num_train_epochs", "6", "--holdout", "120")
    found = run.results()["metrics"]["exact_match"]
    most_frequent = max(map(targets.count, targets)) / len(targets)
    if shuffled:
        assert found["low"] < most_frequent + 0.05
    else:
        assert found["low"] > most_frequent + 0.2


def test_every_target_of_a_source_is_learned_and_right(spelling: Path) -> None:
    draw = random.Random(0)
    rows = [(word, end) for word in words(60) for end in ("A", "B")]
    draw.shuffle(rows)
    write(rows)
    run, job = train_job(spelling, "--num_train_epochs", "4")
    assert len(job.splits["train"]) == len(job.data.train) == 2 * (60 - 24 - 16)
    assert len(job.splits["test"]) == 24
    assert run.results()["metrics"]["exact_match"]["value"] == 1.0
    assert "nrefs:2" in run.results()["signatures"]["bleu"]
    assert job.name_rows(numpy.array([0, 1])).startswith("train-")


# --- the loss --------------------------------------------------------------------------------


def batch_of(job: Job, rows: int) -> dict[str, Any]:
    kept = ("input_ids", "attention_mask", "labels")
    return job.collator([{k: r[k] for k in kept} for r in job.splits["train"].select(range(rows))])


@pytest.mark.parametrize("kind", ["t5", "bart", "marian", "m2m_100"])
def test_the_loss_is_that_of_the_model(spelling: Path, kind: str) -> None:
    adapt(spelling, pretrained(Path(kind), kind))
    job = TASK.build(recipe.load(spelling))
    batch = batch_of(job, 6)
    assert (batch["labels"] == -100).any()
    assert (batch["decoder_input_ids"][:, 0] == 0).all()
    labels = batch.pop("labels")
    model: Any = job.model.eval()
    with torch.no_grad():
        ours = job.loss(model(**batch), labels, (labels != -100).sum())
        batch.pop("decoder_input_ids")
        theirs = model(**batch, labels=labels).loss
    assert float(ours) == pytest.approx(float(theirs), abs=1e-6)


def test_a_step_does_not_depend_on_how_it_is_divided(spelling: Path) -> None:
    flags = ["--max_steps", "3", "--label_smoothing_factor", "0.2"]
    whole, job = train_job(spelling, *flags, "--output_dir", "runs/whole")
    parts = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "4"]
    divided, other = train_job(spelling, *flags, *parts, "--output_dir", "runs/divided")
    assert losses(whole) == pytest.approx(losses(divided), abs=1e-5)
    for name, weight in job.model.state_dict().items():
        assert torch.allclose(weight, other.model.state_dict()[name], atol=2e-5), name
    plain = train(spelling, "--max_steps", "3", "--output_dir", "runs/plain")
    assert abs(losses(plain)[0] - losses(whole)[0]) > 1e-3


@pytest.mark.slow
def test_two_processes_give_the_run_of_one(spelling: Path) -> None:
    half = ["--per_device_train_batch_size", "8", "--output_dir", "two"]
    one = train(spelling, "--output_dir", "one")
    launch(2, SEVERAL, json.dumps([[spelling.name, *half]]))
    two = run_directory.Run("two")
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    assert list(two.predictions()["prediction"]) == list(one.predictions()["prediction"])
    for name, metric in one.results()["metrics"].items():
        assert two.results()["metrics"][name] == pytest.approx(metric, abs=1e-5)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_it_resumes_to_the_same_bits(spelling: Path, method: str) -> None:
    flags = ["--method", method, "--num_train_epochs", "3"]
    if method == "lora":
        adapt(spelling, pretrained(Path("tiny-t5")))
    whole = train(spelling, *flags, "--output_dir", "runs/whole")
    with pytest.raises(KeyboardInterrupt):
        train(spelling, *flags, build=interrupted(TASK.build))
    run = train(spelling, *flags, resume=True)
    assert run.history() == whole.history()
    assert run.results()["metrics"] == whole.results()["metrics"]
    assert list(run.predictions()["prediction"]) == list(whole.predictions()["prediction"])


def test_a_forecast_counts_what_is_generated_for_scores(
    spelling: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, batches, generate = [0.0], [], T5ForConditionalGeneration.generate

    def slow(self: Any, **given: Any) -> torch.Tensor:
        clock[0] += 2.0 * len(given["input_ids"])
        batches.append((len(given["input_ids"]), given["min_new_tokens"]))
        return generate(self, **given)

    monkeypatch.setattr(T5ForConditionalGeneration, "generate", slow)
    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(measuring, "GENERATED", 8)
    found = measuring.measure(recipe.load(spelling, ["--max_steps", "2"]))
    # Two seconds a row, of 16 validation and 24 test rows.
    assert (found.evaluation_seconds, found.test_seconds) == (32, 48)
    assert sum(rows for rows, _ in batches) == 2 * 8
    # As many tokens as the longest target, of at most six letters, and its end.
    assert all(3 <= tokens <= 7 for _, tokens in batches)


# --- checkpoints and adapters ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "method"),
    [("t5", "lora"), ("t5", "bottleneck"), ("t5", "ia3"), ("bart", "lora"), ("marian", "lora")],
)
def test_adapters_load_to_the_last_bit(
    spelling: Path, kind: str, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    adapt(spelling, pretrained(Path(kind), kind))
    run, job = train_job(spelling, "--method", method)
    tasks_own = run.results()
    assert 0 < tasks_own["cost"]["trainable_parameters"] < tasks_own["cost"]["total_parameters"]
    assert all(set(sample) == {"given", "before", "after"} for sample in tasks_own["samples"])
    assert tasks_own["samples"]
    assert "before training" in tasks_own["baselines"]
    loaded, _, _ = inference.load(run)
    batch = batch_of(job, 4)
    batch.pop("labels")
    with torch.no_grad():
        ours, theirs = (m.eval()(**batch).logits for m in (job.model, loaded))
    assert torch.equal(ours, theirs)
    test = run.predictions()
    assert predicted(run, capsys, *test["source"]) == list(test["prediction"])


def test_the_card_of_an_adapter_gives_its_predictions(spelling: Path) -> None:
    adapt(spelling, pretrained(Path("tiny-t5")))
    cli.main(["train", str(spelling), "--method", "lora"])
    run = run_directory.Run("runs/spelling/seed-0")
    test = run.predictions()
    assert run_card(run, test["source"][0]) == test["prediction"][0].rstrip("\n")


def test_an_encoder_starts_both_parts(
    spelling: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapt(spelling, tiny_bert)
    texts = [
        f"the {a} {b} was {c}"
        for a in ("film", "plot")
        for b in ("good", "bad", "poor")
        for c in ("fine", "great", "awful", "a cast", "the plot", "bad", "good")
    ]
    write([(each, each.split()[2]) for each in texts])
    run, job = train_job(spelling, "--holdout", "8", "--validation_size", "4", "--max_steps", "60")
    batch = batch_of(job, 3)
    cls, sep = job.processor.cls_token_id, job.processor.sep_token_id
    assert (batch["decoder_input_ids"][:, 0] == cls).all()
    assert (batch["labels"][:, 0] != cls).all()
    assert all(sep in row for row in batch["labels"].tolist())
    # The base's weights are in both parts.
    from safetensors.torch import load_file

    base = load_file(tiny_bert / "model.safetensors")
    fresh = TASK.build(recipe.load(spelling, ["--holdout", "8", "--validation_size", "4"])).model
    weights = fresh.state_dict()
    for name, tensor in base.items():
        assert torch.equal(weights[f"encoder.{name}"], tensor)
        if "pooler" not in name:
            assert torch.equal(weights[f"decoder.bert.{name}"], tensor)
    test = run.predictions()
    assert run.results()["metrics"]["exact_match"]["value"] == 1.0
    assert predicted(run, capsys, *test["source"]) == list(test["prediction"])
    # That run's model is an encoder-decoder, which an adapter can go on from.
    adapt(spelling, run.folder)
    text = spelling.read_text(encoding="utf-8").replace(str(tiny_bert), str(run.folder))
    spelling.write_text(text, encoding="utf-8")
    again = train(
        spelling,
        "--method",
        "lora",
        "--holdout",
        "8",
        "--validation_size",
        "4",
        "--output_dir",
        "runs/again",
    )
    assert again.results()["baselines"]["before training"]["exact_match"]["value"] == 1.0


def test_settings_of_generation_are_saved_with_the_model(spelling: Path) -> None:
    text = spelling.read_text(encoding="utf-8")
    beams = "  generation: {num_beams: 3, no_repeat_ngram_size: 2}\n  max_length"
    spelling.write_text(text.replace("  max_length", beams), encoding="utf-8")
    run = train(spelling, "--max_steps", "2")
    saved = GenerationConfig.from_pretrained(run.model)
    assert (saved.num_beams, saved.no_repeat_ngram_size, saved.max_new_tokens) == (3, 2, 10)
    assert saved.max_length is None
    assert (saved.pad_token_id, saved.eos_token_id, saved.decoder_start_token_id) == (0, 1, 0)
    longest = max(len(text) for text in run.predictions()["prediction"])
    assert longest <= 10


def test_languages_are_the_first_tokens(spelling: Path) -> None:
    folder = pretrained(Path("m2m"), "m2m_100")
    vocabulary = {t: i for i, t in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS])}
    codes = ["eng_Latn", "fra_Latn", "deu_Latn"]
    nllb = NllbTokenizer(vocab=vocabulary, merges=[], extra_special_tokens=codes)
    for file in folder.glob("*token*"):
        file.unlink()
    nllb.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    ids = {"vocab_size": len(nllb), "pad_token_id": 1, "eos_token_id": 2}
    kind: Any = M2M100Config(**config | ids | {"decoder_start_token_id": 2})
    AutoModelForSeq2SeqLM.from_config(kind).save_pretrained(folder)
    adapt(spelling, folder)
    flags = ["--source_language", "eng_Latn", "--target_language", "fra_Latn", "--max_steps", "1"]
    run, job = train_job(spelling, *flags)
    english, french = (nllb.convert_tokens_to_ids(code) for code in codes[:2])
    row = job.splits["train"][0]
    assert (row["input_ids"][0], row["labels"][0], row["labels"][-1]) == (english, french, 2)
    batch = job.collator([{k: row[k] for k in ("input_ids", "attention_mask", "labels")}])
    assert batch["decoder_input_ids"][0, :2].tolist() == [2, french]
    assert GenerationConfig.from_pretrained(run.model).forced_bos_token_id == french
    assert AutoTokenizer.from_pretrained(run.model).src_lang == "eng_Latn"
    for code, message in (("fra", "it can be deu_Latn, eng"), ("xyz", "target_language 'xyz' is")):
        with pytest.raises(UserError, match=message):
            TASK.build(recipe.load(spelling, [*flags[:2], "--target_language", code]))


# --- what is said, and what is rejected ------------------------------------------------------


def test_what_is_cut_is_counted(spelling: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(word, word.upper()) for word in words(134)]
    write([*rows, ("a" * 40, "B"), ("b" * 3, "C" * 30)])
    train(spelling, "--max_steps", "1", "--holdout", "24", "--split_seed", "1")
    shown = " ".join(capsys.readouterr().err.split())
    assert re.search(r"1 of \d+ (train|validation|test) sources cut to max_length 16", shown)
    assert re.search(r"1 of \d+ (train|validation|test) targets cut to max_target_length 10", shown)


def test_a_prefix_stands_before_every_source(spelling: Path) -> None:
    run, job = train_job(spelling, "--source_prefix", "ab: ", "--max_steps", "1")
    row = job.splits["test"][0]
    source = job.data.test["source"].iloc[0]
    assert job.processor.decode(row["input_ids"], skip_special_tokens=True) == f"ab: {source}"
    read = recipe.read(run.folder / "recipe.yaml")
    _, inputs = next(TASK.batches([{"source": source}], job.processor, read, 4))
    assert inputs["input_ids"][0].tolist() == row["input_ids"]
    assert "Every source begins with 'ab: '." in TASK.limits(
        recipe.read(run.folder / "recipe.yaml"), run.results()
    )


def test_baselines_copy_the_source_and_take_its_first_sentences(spelling: Path) -> None:
    story = "One a. Two b! Three c? Four d. Five e."
    write([(f"{word}. {story}", f"{word}. One a. Two b!") for word in words(60)])
    run = train(spelling, "--max_steps", "1", "--max_length", "64")
    found = run.results()["baselines"]
    assert set(found) == {COPY, LEAD}
    assert found[LEAD]["chrf"]["value"] == pytest.approx(100.0)
    assert found[COPY]["chrf"]["value"] < 90


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "head"], "no new head to train"),
        (["--method", "prompt_tuning"], "prompt_tuning is not offered"),
        (["--method", "lora"], "lora would not learn it; take full"),
        (["--token_pattern", "(a"], "is no regular expression"),
        (["--generation", "{num_beems: 2}"], "did you mean 'num_beams'"),
        (["--generation", "{num_return_sequences: 3}"], "num_return_sequences"),
        (["--generation", "{num_beams: 3, num_return_sequences: 2}"], "one text for each source"),
        (["--source_prefix", "x", "--truncation", "tail"], "would cut the source_prefix"),
        (["--target_language", "fr"], "write it into source_prefix"),
        (["--checkpoint", "new:bart", "--max_target_length", "5000"], "more than the model's"),
        (["--checkpoint", "new:gpt2"], "no encoder; take T5"),
        (["--checkpoint", "new:distilbert"], "an encoder that cannot decode"),
    ],
)
def test_what_does_not_fit_is_an_error(spelling: Path, flags: list[str], message: str) -> None:
    if "--checkpoint" in flags:
        text = spelling.read_text(encoding="utf-8")
        spelling.write_text(re.sub(r"  config: .*\n", "", text), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        TASK.build(recipe.load(spelling, flags))


def test_a_checkpoint_keeps_its_tokenizer(spelling: Path) -> None:
    adapt(spelling, pretrained(Path("tiny-t5")))
    with pytest.raises(UserError, match="has a tokenizer of its own"):
        TASK.build(recipe.load(spelling, ["--token_pattern", "."]))


def test_missing_packages_name_the_extra(spelling: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.tasks.sequence_to_sequence.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'finetune-recipes\[seq2seq\]'"):
        TASK.build(recipe.load(spelling))


def test_the_headline_is_what_chooses_the_checkpoint(spelling: Path) -> None:
    run = train(spelling, "--metric_for_best_model", "token_error_rate")
    results = run.results()
    assert results["headline"] == "token_error_rate"
    assert results["chosen"]["metric"] == "token_error_rate"
    values = [row["eval_token_error_rate"] for row in run.history() if "eval_chrf" in row]
    assert results["chosen"]["value"] == min(values)
    assert TASK is tasks.find("text2text-generation")


def test_rows_labelled_later_are_evaluated(
    spelling: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(spelling)
    test = run.predictions()
    rows = [(s, t) for s, label in zip(test["source"], test["label"], strict=True) for t in label]
    new = [f"{s},{t},{'ab'[i % 2]}" for i, (s, t) in enumerate(rows)]
    Path("new.csv").write_text("\n".join(["source,target,kind", *new]) + "\n", encoding="utf-8")
    capsys.readouterr()
    cli.main(["evaluate", str(run), "new.csv", "--by", "kind"])
    shown = capsys.readouterr().out
    assert "new.csv: 24 rows" in shown
    found = inference_evaluation.evaluate(run, "new.csv", {}, "kind")
    assert found["metrics"] == run.results()["metrics"]
    assert found["overlap"] == {"rows": 0, "first": []}
    assert [part["rows"] for part in found["slices"]] == [12, 12]
    assert set(found["drift"]) == {"chrF of a row", "words of the source", "words written"}


def test_check_shows_what_is_in_the_pairs(
    spelling: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("rows.tsv").open("a", encoding="utf-8") as file:
        file.write("alone\t \nsame\tsame\n")
    with pytest.raises(SystemExit):
        cli.main(["check", str(spelling)])
    shown = " ".join(capsys.readouterr().out.split())
    assert "text2text-generation" in shown
    assert "empty target" in shown
    assert "target that equals its source" in shown


def test_it_is_not_exported(spelling: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(spelling, "--max_steps", "1")
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", str(run), "--to", "onnx"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert f"{run}: text2text-generation is not exported: an exported encoder" in line
