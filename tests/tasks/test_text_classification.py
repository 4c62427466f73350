"""How texts become model inputs, and which checkpoints and data are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import recipe, run_directory
from finetune.errors import UserError
from finetune.recipe import Model
from finetune.tasks import text, text_classification
from finetune.tasks.text import batches, encode, kept
from finetune.training import arguments
from tests.conftest import sentences, train, train_job, write_csv


@pytest.fixture(scope="module")
def tokenizer(tiny_bert: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert)


@pytest.mark.parametrize(
    ("truncation", "expected"),
    [("head", [0, 1, 2, 3]), ("tail", [6, 7, 8, 9]), ("head+tail", [0, 7, 8, 9])],
)
def test_which_tokens_stay(truncation: str, expected: list[int]) -> None:
    assert kept(10, 4, truncation, 0.25) == expected
    assert kept(4, 4, truncation, 0.25) == [0, 1, 2, 3]
    assert kept(3, 4, truncation, 0.25) == [0, 1, 2]


def test_head_and_tail_of_sun_et_al() -> None:
    positions = kept(1000, 510, "head+tail", 0.25)
    assert positions[:128] == list(range(128))
    assert positions[128:] == list(range(1000 - 382, 1000))


@pytest.mark.parametrize("truncation", ["head", "tail", "head+tail"])
def test_special_tokens_stay_and_length_is_kept(tokenizer, truncation: str) -> None:
    long = "good film the plot was bad a cast great awful fine poor"
    model = Model(max_length=8, truncation=truncation)
    out = encode({"text": [long, "good film"]}, tokenizer, model)
    ids = out["input_ids"][0]
    assert len(ids) == 8
    assert ids[0] == tokenizer.cls_token_id
    assert ids[-1] == tokenizer.sep_token_id
    words = tokenizer.convert_ids_to_tokens(ids[1:-1])
    every = long.split()
    expected = {
        "head": every[:6],
        "tail": every[-6:],
        "head+tail": [*every[:2], *every[-4:]],
    }[truncation]
    assert words == expected
    assert out["truncated"] == [True, False]
    assert out["length"] == [8, 4]
    assert all(len(v[0]) == 8 for k, v in out.items() if k in tokenizer.model_input_names)


@pytest.mark.parametrize(("first", "second"), [(12, 2), (2, 12), (12, 12), (4, 3)])
def test_a_pair_gives_up_tokens_of_its_longer_text(tokenizer, first: int, second: int) -> None:
    words = ["good", "film"] * 6
    rows = {"text": [" ".join(words[:first])], "text_pair": [" ".join(words[:second])]}
    out = encode(rows, tokenizer, Model(max_length=13))
    ids, kinds = out["input_ids"][0], out["token_type_ids"][0]
    assert len(ids) == min(13, first + second + 3)
    assert ids.count(tokenizer.sep_token_id) == 2
    left = kinds.count(0) - 2, kinds.count(1) - 1
    budget = 10
    if first + second <= budget:
        assert left == (first, second)
    else:
        assert sum(left) == budget
        assert min(left) >= min(first, second, budget // 2)


def build(path: Path, *flags: str) -> None:
    text_classification.TASK.build(recipe.load(path, list(flags)))


def test_share_truncated_is_counted(tiny_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = text_classification.TASK.build(recipe.load(tiny_recipe, ["--max_length", "9"]))
    lengths = [len(text.split()) + 2 for text in job.data.train["text"]]
    assert job.data.report["share_truncated"] == pytest.approx(
        sum(n > 9 for n in lengths) / len(lengths)
    )
    assert capsys.readouterr().out == ""
    build(tiny_recipe, "--max_length", "4")
    assert "every training text is longer than max_length 4" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["full", "head"])
def test_all_rows_can_go_to_training(tiny_recipe: Path, method: str) -> None:
    run, _ = train_job(tiny_recipe, *("--validation_size", "0"), *("--method", method))
    results = run.results()
    assert results["data"]["validation"] == 0
    assert results["chosen"] is None
    assert results["steps"] > 0


def test_changes_of_images_are_refused_for_texts(tiny_recipe: Path) -> None:
    with pytest.raises(UserError, match="augmentation changes images; leave it out for texts"):
        text_classification.TASK.build(recipe.load(tiny_recipe, ["--test_views", "2"]))


def test_max_length_beyond_the_positions_is_refused(tiny_recipe: Path) -> None:
    with pytest.raises(UserError, match=r"--max_length: max_length 65 is more than the model's 64"):
        build(tiny_recipe, "--max_length", "65")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "loro"], r"tuning method 'loro' is unknown; did you mean 'lora'"),
        (["--learning_rat", "1"], r"learning_rat' is unknown; did you mean 'learning_rate'"),
        (["--checkpoint", "embedded:mini"], r"'mini' is unknown; .*minilm"),
        (
            ["--checkpoint", "embedded:minilm", "--config", "{hidden_dropout: 0}"],
            "hidden_dropout_prob",
        ),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(
    tiny_recipe: Path, flags: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        train(tiny_recipe, *flags)
    assert "\n" not in str(raised.value)


def test_an_unknown_adapter_option_names_the_nearest(tiny_recipe: Path) -> None:
    tiny_recipe.write_text(
        tiny_recipe.read_text(encoding="utf-8") + "tuning: {method: lora, lora_alfa: 3}\n",
        encoding="utf-8",
    )
    with pytest.raises(UserError, match=r"tiny.yaml:\d+: tuning key 'lora_alfa'.*'lora_alpha'"):
        build(tiny_recipe)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: [p.unlink() for p in f.glob("*token*")] + [(f / "vocab.txt").unlink()],
            "no tokenizer",
        ),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "safetensors"),
        (
            lambda f: (f / "config.json").write_text(
                json.dumps(json.loads((f / "config.json").read_text()) | {"auto_map": {}})
            ),
            "auto_map",
        ),
        (
            lambda f: (f / "config.json").write_text(
                json.dumps(json.loads((f / "config.json").read_text()) | {"vocab_size": 5})
            ),
            "do not belong together",
        ),
    ],
    ids=["no tokenizer", "pickled weights", "checkpoint code", "tokens beyond the vocabulary"],
)
def test_a_checkpoint_that_cannot_be_trusted_is_refused(
    tiny_recipe: Path, tiny_bert: Path, spoil, message: str
) -> None:
    shutil.copytree(tiny_bert, "copy")
    spoil(Path("copy"))
    with pytest.raises(UserError, match=message) as refusal:
        build(tiny_recipe, "--checkpoint", "copy")
    assert "\n" not in str(refusal.value)


def test_another_head_size_gets_a_new_head(tiny_recipe: Path) -> None:
    job = text_classification.TASK.build(recipe.load(tiny_recipe))
    job.model.save_pretrained("two")
    job.processor.save_pretrained("two")
    rows = [(t, str(i % 3)) for i, (t, _) in enumerate(sentences(90))]
    write_csv(Path("reviews.csv"), rows)
    job = text_classification.TASK.build(recipe.load(tiny_recipe, ["--checkpoint", "two"]))
    assert job.model.config.num_labels == 3
    assert job.model.config.id2label == {0: "0", 1: "1", 2: "2"}
    assert job.notes[0] == "the checkpoint's head of 2 is replaced by a new one of 3"


def test_a_head_that_goes_on_under_other_names_is_said(tiny_recipe: Path) -> None:
    job = text_classification.TASK.build(recipe.load(tiny_recipe))
    assert not any("head" in note for note in job.notes)
    job.model.save_pretrained("two")
    job.processor.save_pretrained("two")
    flags = ["--checkpoint", "two"]
    again = text_classification.TASK.build(recipe.load(tiny_recipe, flags))
    assert not any("head" in note for note in again.notes)
    write_csv(Path("reviews.csv"), [(text, label[:3]) for text, label in sentences(136)])
    other = text_classification.TASK.build(recipe.load(tiny_recipe, flags))
    assert other.notes[0] == "the checkpoint's head is kept under new label names"
    for name, weights in other.model.state_dict().items():
        assert torch.equal(weights, job.model.state_dict()[name])


def with_attention(path: Path, name: str) -> recipe.Recipe:
    text = path.read_text("utf-8").replace(
        "max_length: 16", f"max_length: 16, config: {{attn_implementation: {name}}}"
    )
    (path.parent / f"{name}.yaml").write_text(text, encoding="utf-8")
    return recipe.load(path.parent / f"{name}.yaml")


def test_attention_is_the_one_that_the_recipe_names(tiny_recipe: Path) -> None:
    said = []
    for name in ("eager", "sdpa"):
        job = text_classification.TASK.build(with_attention(tiny_recipe, name))
        model: Any = job.model.eval()
        assert model.config._attn_implementation == name
        assert job.notes == [f"batches padded: the recipe asks for {name} attention"]
        torch.manual_seed(0)
        torch.nn.init.normal_(model.classifier.weight)
        rows: Any = job.splits["train"].select_columns(["input_ids", "attention_mask"])
        said.append(model(**job.collator([rows[i] for i in range(8)])).logits)
    assert torch.allclose(*said, atol=1e-6)
    assert said[0].std() > 0.1


@pytest.mark.parametrize("name", ["flash_attention_2", "flashy"])
def test_an_attention_that_cannot_be_had_is_refused_in_one_line(
    tiny_recipe: Path, name: str
) -> None:
    read = with_attention(tiny_recipe, name)
    with pytest.raises(UserError, match=rf"{name}.yaml:2: .*{name}") as caught:
        text_classification.TASK.build(read)
    assert "\n" not in str(caught.value)


def test_rows_to_answer_are_encoded_a_window_at_a_time(
    tiny_recipe: Path, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "WINDOW", 30)
    seen = []

    def counted(rows: dict[str, list[str]], *others):
        seen.append(len(rows["text"]))
        return encode(rows, *others)

    monkeypatch.setattr(text, "encode", counted)
    rows = [{"text": text} for text, _ in sentences(100)]
    made = list(batches(rows, tokenizer, recipe.load(tiny_recipe), 2))
    assert seen == [30, 30, 30, 10]
    assert sorted(n for chosen, _ in made for n in chosen) == list(range(100))
    for chosen, batch in made:
        # 2 rows of max_length 16
        assert batch["input_ids"].numel() <= 32
        for row, n in enumerate(chosen):
            words = tokenizer.tokenize(rows[n]["text"])[:14]
            found = tokenizer.convert_ids_to_tokens(batch["input_ids"][row])
            assert found[1 : len(words) + 1] == words


def test_evaluation_holds_so_many_tokens_at_once(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_once(*flags: str) -> int:
        read = recipe.load(tiny_recipe, flags)
        job = text_classification.TASK.build(read)
        return arguments.training_arguments(
            read, run_directory.Run("runs/a"), job
        ).per_device_eval_batch_size

    assert at_once() == 64
    monkeypatch.setattr(text, "EVAL_TOKENS", 50)
    rows = text_classification.TASK.build(recipe.load(tiny_recipe)).splits
    longest = max(max(rows[name]["length"]) for name in ("validation", "test"))
    assert longest < 16
    assert at_once() == 50 // longest
    # Of rows cut to 8 tokens there are more, of longer ones than the budget one.
    assert at_once("--max_length", "8") == 6
    monkeypatch.setattr(text, "EVAL_TOKENS", 5)
    assert at_once() == 1
    assert at_once("--per_device_eval_batch_size", "7") == 7
    # XLA pads every row to max_length.
    monkeypatch.setattr(text, "EVAL_TOKENS", 50)
    monkeypatch.setattr(text, "is_torch_xla_available", lambda: True)
    assert at_once() == 50 // 16
