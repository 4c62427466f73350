"""Language models: what is learned and scored of a document, and runs from end to end."""

import datetime
import json
import math
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, pipeline

from finetune import cli, inference, recipe
from finetune.data import chats, documents, findings
from finetune.data.chat_templates import ChatTemplate
from finetune.data.packing import IGNORED
from finetune.errors import UserError
from finetune.evaluation import scoring
from finetune.models import generation, parameters
from finetune.report import files, tables
from finetune.tasks import causal_lm
from tests.conftest import CHAT_TEMPLATE, make_writer, sentences, train_job

MARKED = (
    "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}</s>{% endgeneration %}{% else %}{{ m['content'] }}</s>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hé"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "see you"},
]


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_writer(tmp_path_factory.mktemp("writer"))


@pytest.fixture
def tokenizer(writer: Path):
    return AutoTokenizer.from_pretrained(writer)


@pytest.fixture
def path(workdir: Path, writer: Path) -> Path:
    rows = [json.dumps({"text": text}) for text, _ in sentences(100)]
    (workdir / "texts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    made = workdir / "tiny.yaml"
    made.write_text(
        f"""\
task: text-generation
model: {{checkpoint: "{writer}", max_length: 64}}
data: {{train: texts.jsonl, holdout: 20, validation_size: 10}}
training:
  learning_rate: 3.0e-3
  per_device_train_batch_size: 4
  num_train_epochs: 3
  logging_steps: 1
  use_cpu: true
""",
        encoding="utf-8",
    )
    return made


# --- documents -------------------------------------------------------------------------------


def learned(document: documents.Document, tokenizer) -> str:
    ids = [i for i, on in zip(document.ids, document.learned, strict=True) if on]
    return tokenizer.decode(ids)


def test_a_text_is_learned_whole_with_its_end(tokenizer) -> None:
    (found,) = documents.texts(["a film"], tokenizer)
    assert learned(found, tokenizer) == "a film<end>"
    row = found.scored(100, {tokenizer.eos_token_id})
    # All but the first letter, which nothing comes before, and the end.
    assert (row["bytes"], row["labels"][0]) == (5, IGNORED)
    assert row["labels"][-1] == IGNORED
    assert found.scored(3, set())["bytes"] == 2


def test_of_a_prompt_only_the_completion_is_learned(tokenizer) -> None:
    found = documents.completion("Film: ", "é good", tokenizer)
    assert learned(found, tokenizer) == "é good<end>"
    row = found.scored(100, {tokenizer.eos_token_id})
    assert row["labels"][:7] == [*[IGNORED] * 6, row["input_ids"][6]]
    assert row["bytes"] == len("é good".encode())


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, MARKED])
def test_of_a_chat_only_the_assistant_is_learned(tokenizer, template: str) -> None:
    tokenizer.chat_template = template
    written = ChatTemplate(tokenizer, datetime.date(2024, 7, 26))
    (found,) = documents.chat(chats.read(CHAT), written).documents
    assert tokenizer.decode(found.ids) == tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert learned(found, tokenizer) == "hé</s>see you</s>"
    row = found.scored(1000, set())
    assert row["bytes"] == len("hé</s>see you</s>".encode())


def block_rows(row: documents.Document, size: int, pieces: bool) -> Dataset:
    return Dataset.from_dict(causal_lm.blocks([row], size, pieces, packs=True))


def test_a_long_text_goes_on_in_pieces_and_a_long_completion_is_cut(tokenizer) -> None:
    (text,) = documents.texts(["x" * 25], tokenizer)
    rows = block_rows(text, 10, pieces=True)
    facts = causal_lm.describe_blocks(rows, 1, 10, packs=True)
    assert sorted(rows["length"]) == [6, 10, 10]
    assert facts["tokens"] == 26
    assert facts["share_cut"] == 1.0
    assert facts["share_padding"] == pytest.approx(4 / 30)
    long = documents.completion("p" * 5, "c" * 20, tokenizer)
    rows = block_rows(long, 10, pieces=False)
    assert causal_lm.describe_blocks(rows, 1, 10, packs=True)["tokens"] == 10
    assert rows[0]["labels"] == [IGNORED] * 5 + long.ids[5:10]
    # A prompt alone teaches nothing.
    assert len(block_rows(long, 5, pieces=False)) == 0


# --- scores ----------------------------------------------------------------------------------


def test_perplexity_and_bits_per_byte() -> None:
    sums = numpy.array([[math.log(2) * 8, 8, 4], [math.log(2) * 24, 8, 12]])
    found = scoring.language(sums, 100)["metrics"]
    assert found["bits_per_byte"]["value"] == pytest.approx(2.0)
    assert found["perplexity"]["value"] == pytest.approx(4.0)
    assert found["perplexity"]["low"] == pytest.approx(2.0)
    assert found["perplexity"]["high"] == pytest.approx(8.0)


def test_a_run_scores_what_the_model_itself_says(path: Path) -> None:
    run, _ = train_job(path)
    results, rows = run.results(), run.predictions()
    before, after = results["baselines"]["before training"], results["metrics"]
    assert after["bits_per_byte"]["high"] < before["bits_per_byte"]["low"]
    assert before["difference"]["high"] < 0
    assert after["perplexity"]["high"] < before["perplexity"]["low"]
    shown = [line.split() for line in tables.summary(run).splitlines() if "perplexity" in line]
    assert [shown[0][1], shown[0][4]] == [
        f"{scores['perplexity']['value']:.3f}" for scores in (after, before)
    ]
    model, tokenizer, _ = inference.load(run)
    nats, tokens, size = 0.0, 0, 0
    for text in rows["text"]:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            nats += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens, size = tokens + ids.shape[1] - 1, size + len(text.encode()) - 1
    assert after["perplexity"]["value"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert after["bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)
    assert rows["prediction"].between(0, 20).all()

    data = results["data"]
    assert data["packed"]
    assert data["blocks"] < 70
    assert results["cost"]["tokens_seen"] == 3 * data["tokens"]
    assert 0 <= data["share_padding"] < 0.2
    assert [set(sample) for sample in results["samples"]] == [{"given", "before", "after"}] * 3
    files.write(run)
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "before training" in page
    assert "bits per byte" in page
    card = (run.model / "README.md").read_text(encoding="utf-8")
    assert 'pipeline("text-generation"' in card
    said = pipeline("text-generation", model=str(run.model), device="cpu")("a film")
    assert said[0]["generated_text"].startswith("a film")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_validation_loss_is_a_token_s_as_perplexity_is(path: Path, kind: str) -> None:
    flags = ["--checkpoint", str(make_writer(path.parent / kind, kind)), "--max_steps", "2"]
    flags += ["--eval_strategy", "steps", "--eval_steps", "2", "--per_device_eval_batch_size", "16"]
    run, _ = train_job(path, *flags)
    said = next(row for row in run.history() if "eval_loss" in row)
    assert said["eval_loss"] == pytest.approx(math.log(said["eval_perplexity"]), rel=1e-5)


def test_a_run_goes_on_with_a_text(path: Path, capsys) -> None:
    run, _ = train_job(path, "--max_steps", "1")
    capsys.readouterr()
    words = ["generate", str(run), "a film", "--max_new_tokens", "8"]
    said = []
    for more in ([], [], ["--seed", "1"], ["--greedy"]):
        cli.main([*words, *more])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert len(set(said)) == 3
    assert all(text.startswith("a film") for text in said)
    for wrong, message in (
        (["generate", str(run), " "], "the prompt is empty"),
        (["generate", str(run), "a", "--max_new_tokens", "0"], "at least 1"),
        (["generate", str(run), "a" * 128], "as many as the model has positions for"),
        (["predict", str(run), "a"], "gives no labels; use `finetune generate`"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(wrong)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_a_run_on_chats_answers(path: Path, capsys) -> None:
    asked = [[{"role": "user", "content": text}, CHAT[1]] for text, _ in sentences(40)]
    lines = [json.dumps({"messages": chat}) for chat in asked]
    (path.parent / "chats.jsonl").write_text("\n".join(lines), encoding="utf-8")
    flags = ["--train", "chats.jsonl", "--max_length", "128"]
    run, _ = train_job(path, *flags, "--max_steps", "1")
    assert run.results()["data"]["documents"] == "messages"
    assert run.results()["samples"][0]["given"] in dict(sentences(40))
    files.write(run)
    assert '"role": "user"' in (run.model / "README.md").read_text(encoding="utf-8")
    capsys.readouterr()
    cli.main(["generate", str(run), "hello", "--max_new_tokens", "4"])
    assert "hello" not in capsys.readouterr().out


def chatml(path: Path, kind: str = "llama") -> Path:
    """A base model whose end of text is another token than the end mark of its chat template."""
    folder = make_writer(path.parent / f"chatml-{kind}", kind)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    template = Path(__file__).parents[1] / "data/chat_templates/chatml.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_model_stops_at_the_end_mark_of_its_chats(path: Path, method: str) -> None:
    asked = [[{"role": "user", "content": text}, CHAT[1]] for text, _ in sentences(40)]
    lines = [json.dumps({"messages": chat}) for chat in asked]
    (path.parent / "chats.jsonl").write_text("\n".join(lines), encoding="utf-8")
    flags = ["--train", "chats.jsonl", "--max_length", "128", "--checkpoint", str(chatml(path))]
    run, job = train_job(path, *flags, "--max_steps", "1", "--method", method)
    assert "the saved model also stops at <|im_end|>" in job.notes
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    ends = [0, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    model: Any = inference.load(run)[0]
    assert model.generation_config.eos_token_id == ends
    files.write(run)
    card = (run.model / "README.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(card.split("```python\n")[1].split("```")[0], names)
    assert names["write"].model.generation_config.eos_token_id == ends
    saved = GenerationConfig.from_pretrained(run.model)
    assert saved.eos_token_id == ends


def test_rows_of_which_nothing_is_learned_are_counted(path: Path) -> None:
    rows = [
        {"prompt": text if i % 2 else text + "." * 70, "completion": f"c {i}"}
        for i, (text, _) in enumerate(sentences(80))
    ]
    write = "\n".join(json.dumps(row) for row in rows)
    (path.parent / "prompts.jsonl").write_text(write, encoding="utf-8")
    flags = ["--train", "prompts.jsonl", "--max_steps", "2", "--per_device_eval_batch_size", "2"]
    flags += ["--eval_strategy", "steps", "--eval_steps", "2"]
    run, job = train_job(path, *flags)
    data = run.results()["data"]
    left_out = data["unlearned"]
    assert sum(left_out.values()) == data["rejected"] == len(job.data.rejected) == 40
    assert (data["train"], data["test"]) == (58 - left_out["train"], 16 - left_out["test"])
    assert data["share_unlearned"] == left_out["train"] / 58
    said = str(findings.describe(data))
    assert "40 rows rejected" in said
    assert f"nothing to learn within max_length in {left_out['train']} train, " in said
    assert {row["line"] for row in job.data.rejected} == {i + 1 for i in range(0, 80, 2)}
    assert {row["source"] for row in job.data.rejected} == {"prompts.jsonl"}
    assert math.isfinite(next(row["eval_loss"] for row in run.history() if "eval_loss" in row))
    # Read from the cache, too.
    again = causal_lm.TASK.build(recipe.load(path, flags)).data.report
    assert again["unlearned"] == left_out
    with pytest.raises(UserError, match=r"no validation row can be used: .*; raise max_length"):
        causal_lm.TASK.build(recipe.load(path, [*flags, "--max_length", "8"]))


def test_a_prompt_without_room_for_an_answer_is_no_sample(writer: Path, tokenizer) -> None:
    model = AutoModelForCausalLM.from_pretrained(writer)
    rows = pandas.DataFrame({"prompt": ["a film", "a" * 200, "the plot"], "completion": "good"})
    assert list(generation.samples(model, tokenizer, rows, None)) == ["a film", "the plot"]
    # Of a chat that the assistant starts, the prompt is what the user is answered to.
    asked = [CHAT[1], *CHAT]
    template = ChatTemplate(tokenizer, datetime.date(2024, 7, 26))
    rows = pandas.DataFrame({"messages": [json.dumps(asked), json.dumps(CHAT[1:2])]})
    assert list(generation.samples(model, tokenizer, rows, template)) == ["hello"]


def test_chats_that_the_template_refuses_are_set_aside(path: Path) -> None:
    folder = make_writer(path.parent / "strict")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    refuse = "{% if messages | length > 2 %}{{ raise_exception('too long') }}{% endif %}"
    tokenizer.chat_template = refuse + CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    asked = [[{"role": "user", "content": text}, CHAT[1]] for text, _ in sentences(60)]
    held = "\n".join(json.dumps({"messages": chat}) for chat in asked[40:])
    (path.parent / "test.jsonl").write_text(held, encoding="utf-8")
    for chat in asked[10:20]:
        chat += CHAT[2:]
    lines = "\n".join(json.dumps({"messages": chat}) for chat in asked[:40])
    (path.parent / "chats.jsonl").write_text(lines, encoding="utf-8")
    flags = ["--train", "chats.jsonl", "--test", "test.jsonl", "--max_length", "128"]
    flags += ["--validation_size", "0", "--checkpoint", str(folder)]
    for more in ([], ["--streaming", "true"]):
        job = causal_lm.TASK.build(recipe.load(path, [*flags, *more]))
        assert (len(job.data.train), job.data.report["rejected"]) == (30, 10)
        assert job.data.report["unlearned"] == {}
        assert [row["line"] for row in job.data.rejected] == list(range(11, 21))
        assert job.data.rejected[0]["reason"] == "is rejected by the chat template: too long"


def test_each_answer_may_be_a_row_of_its_own(path: Path) -> None:
    folder = make_writer(path.parent / "rewrites")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # What was said first changes when the chat goes on.
    tokenizer.chat_template = "{{ messages | length }}" + CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    asked = [[{"role": "user", "content": text}, *CHAT[1:]] for text, _ in sentences(60)]
    lines = "\n".join(json.dumps({"messages": chat}) for chat in asked)
    (path.parent / "chats.jsonl").write_text(lines, encoding="utf-8")
    flags = ["--train", "chats.jsonl", "--max_length", "128", "--checkpoint", str(folder)]
    learned = {}
    for turns in ("together", "each"):
        job = causal_lm.TASK.build(recipe.load(path, [*flags, "--turns", turns]))
        labels = [i for row in job.splits["train"]["labels"] for i in row if i != IGNORED]
        learned[turns] = tokenizer.decode(labels)
        rewritten = job.data.report["fixed"].get(documents.REWRITTEN, 0)
        assert rewritten == (43 if turns == "together" else 0)
    assert learned["together"] == "see you</s>" * 43
    assert learned["each"].count("see you</s>") == learned["each"].count("hé</s>") == 43


def test_the_date_of_a_template_is_the_recipe_s(path: Path) -> None:
    folder = make_writer(path.parent / "dated")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    asked = [[{"role": "user", "content": text}, CHAT[1]] for text, _ in sentences(60)]
    lines = "\n".join(json.dumps({"messages": chat}) for chat in asked)
    (path.parent / "chats.jsonl").write_text(lines, encoding="utf-8")
    flags = ["--train", "chats.jsonl", "--max_length", "128", "--checkpoint", str(folder)]
    for more, printed in (([], "26 Jul 2024"), (["--date", "2025-01-31"], "31 Jan 2025")):
        job = causal_lm.TASK.build(recipe.load(path, [*flags, *more]))
        assert tokenizer.decode(job.splits["train"][0]["input_ids"]).startswith(printed)
        assert tokenizer.decode(job.splits["test"][0]["input_ids"]).startswith(printed)
    assert "the chat template prints the date 2025-01-31" in findings.describe(job.data.report)
    with pytest.raises(UserError, match="write it as 2024-07-26"):
        causal_lm.TASK.build(recipe.load(path, [*flags, "--date", "today"]))


def test_packed_blocks_learn_what_single_documents_do(path: Path, monkeypatch) -> None:
    # All rows in one batch: the same gradient, however they are laid out.
    flags = ["--per_device_train_batch_size", "100", "--num_train_epochs", "2"]
    packed, _ = train_job(path, *flags)
    monkeypatch.setattr(causal_lm.packing, "is_kept_apart", lambda *given: False)
    single, _ = train_job(path, *flags, "--output_dir", "runs/single")
    assert single.results()["data"]["blocks"] == 70
    curves = [[row["loss"] for row in run.history() if "loss" in row] for run in (packed, single)]
    assert len(curves[0]) == 2
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)


def test_a_model_from_scratch_gets_a_tokenizer_of_its_own(path: Path) -> None:
    config = "{n_embd: 32, n_layer: 2, n_head: 2, n_positions: 64, vocab_size: 280}"
    flags = ["--checkpoint", "new:gpt2", "--config", config, "--learning_rate", "1e-2"]
    run, job = train_job(path, *flags, "--num_train_epochs", "10")
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    assert len(tokenizer) == job.model.config.vocab_size == 280
    text = "the film was naïve"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    # Words of the reviews are few tokens; a test row's own words are not looked at.
    assert len(ids) < len(text.encode()) - 4
    before = run.results()["baselines"]["before training"]["bits_per_byte"]
    assert run.results()["metrics"]["bits_per_byte"]["high"] < 0.8 * before["low"]
    said = pipeline("text-generation", model=str(run.model), device="cpu")("the")
    assert said[0]["generated_text"].startswith("the")


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("method", ["bitfit", "bottleneck", "lora", "ia3", "oft", "prompt_tuning"])
def test_adapters(path: Path, tmp_path: Path, kind: str, method: str) -> None:
    checkpoint = make_writer(tmp_path / kind, kind)
    flags = ["--checkpoint", str(checkpoint), "--method", method, "--max_steps", "2"]
    if method in {"bitfit", "oft"} and kind != {"bitfit": "gpt2", "oft": "llama"}[method]:
        with pytest.raises(UserError, match=r"bitfit finds nothing to train|oft does not fit"):
            causal_lm.TASK.build(recipe.load(path, flags))
        return
    run, job = train_job(path, *flags)
    assert job.data.report["packed"] == (method != "prompt_tuning")
    count = parameters.count_parameters(job.model)
    assert 0 < count["trainable_parameters"] < 0.5 * count["total_parameters"]
    model, tokenizer, _ = inference.load(run)
    ids = tokenizer("a film", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        trained = job.model.eval()(input_ids=ids).logits
        assert torch.allclose(model(input_ids=ids).logits, trained, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "head"], "has no new head to train"),
        (["--max_length", "200"], "is more than the model's 128"),
        (["--train", "mine.csv"], "mine.csv: no such file"),
        (["--checkpoint", "new:gpt2", "--max_length", "2000"], "is more than the model's 1024"),
    ],
)
def test_what_cannot_work_is_refused(path: Path, flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        causal_lm.TASK.build(recipe.load(path, flags))
