"""Guessing hidden tokens: which ones are hidden, what it scores, and what starts from it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoTokenizer, BertJapaneseTokenizer, pipeline

from finetune import recipe
from finetune.data.packing import IGNORED
from finetune.errors import UserError
from finetune.recipe import Model
from finetune.report import files
from finetune.tasks import masked_lm, text, text_classification
from finetune.training import losses
from tests.conftest import WORDS, make_writer, train, train_job, write_csv


@pytest.fixture
def path(tiny_recipe: Path) -> Path:
    # Words in a fixed order, so that a hidden one can be guessed from those beside it.
    rows = [
        (" ".join(WORDS[(start + i) % len(WORDS)] for i in range(length)), str(start % 2))
        for start in range(len(WORDS))
        for length in range(4, 15)
    ]
    write_csv(tiny_recipe.with_name("reviews.csv"), rows)
    text = tiny_recipe.read_text(encoding="utf-8")
    tiny_recipe.with_name("after.yaml").write_text(text, encoding="utf-8")
    tiny_recipe.write_text(text.replace("text-classification", "fill-mask"), encoding="utf-8")
    return tiny_recipe


def test_it_learns_to_guess_and_a_classifier_starts_from_it(path: Path) -> None:
    run, job = train_job(path, "--num_train_epochs", "20")
    results = run.results()
    before = results["baselines"]["before training"]["masked_accuracy"]
    after = results["metrics"]["masked_accuracy"]
    assert after["value"] > before["high"]
    assert after["low"] < after["value"] < after["high"]
    assert results["data"]["new_head"]
    files.write(run)
    assert "has no head for masked tokens" in (run.model / "README.md").read_text("utf-8")
    assert len(pipeline("fill-mask", model=str(run.model), device="cpu")("a [MASK] film")) == 5

    learned = {k: v for k, v in job.model.state_dict().items() if k.startswith("bert.")}
    flags = ["--checkpoint", str(run.folder)]
    after_it = text_classification.TASK.build(recipe.load(path.with_name("after.yaml"), flags))
    weights = after_it.model.state_dict()
    assert len(learned) > 30
    assert all(torch.equal(weights[name], value) for name, value in learned.items())
    # The rows that the classifier is tested on were not learned from.
    assert after_it.data.test["text"].equals(job.data.test["text"])

    again, _ = train_job(path, *flags, "--max_steps", "1", "--output_dir", "runs/again")
    assert not again.results()["data"]["new_head"]


def rows_of(job, split: str, count: int) -> list[dict]:
    return [job.splits[split][i] for i in range(count)]


def test_what_is_hidden_depends_on_seed_epoch_and_row_alone(path: Path) -> None:
    job = masked_lm.TASK.build(recipe.load(path))
    collate = job.collator
    assert isinstance(collate, masked_lm.MaskCollator)
    rows = rows_of(job, "train", 8)
    first = collate(rows)
    for i, row in enumerate(rows):
        alone, length = collate([row]), len(row["input_ids"])
        for name in ("input_ids", "labels"):
            assert torch.equal(alone[name][0], first[name][i, :length])
    tested = rows_of(job, "test", 8)
    assert torch.equal(collate(tested)["labels"], collate(tested)["labels"])
    later = collate([{**row, "epoch": 1} for row in rows])
    assert not torch.equal(later["labels"], first["labels"])


def test_workers_that_live_on_hide_the_tokens_of_each_epoch(path: Path) -> None:
    flags = ["--num_train_epochs", "3", "--per_device_train_batch_size", "400"]
    alone = train(path, *flags, "--output_dir", "runs/alone")
    workers = ["--dataloader_num_workers", "1", "--dataloader_persistent_workers", "true"]
    assert train(path, *flags, *workers).history() == alone.history()


def wide(collate: masked_lm.MaskCollator, words: list[int], count: int) -> dict:
    collate.most, collate.size = len(words), 1000
    row = {"input_ids": [50] * len(words), "words": words, "training": True, "epoch": 0}
    return collate([{**row, "row": i} for i in range(count)])


def test_the_share_and_the_kind_of_what_is_hidden(path: Path) -> None:
    collate = masked_lm.TASK.build(recipe.load(path)).collator
    assert isinstance(collate, masked_lm.MaskCollator)
    batch = wide(collate, [-1, *range(98), -1], 400)
    hidden = batch["labels"] != IGNORED
    assert not hidden[:, [0, -1]].any()
    assert float(hidden[:, 1:-1].float().mean()) == pytest.approx(0.15, abs=0.01)
    shown = batch["input_ids"][hidden]
    assert float((shown == collate.mask).float().mean()) == pytest.approx(0.8, abs=0.02)
    assert float((shown == 50).float().mean()) == pytest.approx(0.1, abs=0.02)
    assert (batch["input_ids"][~hidden] == 50).all()


def test_words_are_hidden_whole_where_asked(path: Path) -> None:
    words = [-1, *[w for w in range(30) for _ in range(3)], -1]
    for whole in ("false", "true"):
        collate = masked_lm.TASK.build(recipe.load(path, ["--whole_words", whole])).collator
        assert isinstance(collate, masked_lm.MaskCollator)
        hidden = wide(collate, words, 100)["labels"][:, 1:-1] != IGNORED
        in_parts = hidden.reshape(100, 30, 3).float().mean(2)
        assert bool(((in_parts == 0) | (in_parts == 1)).all()) == (whole == "true")
        assert float(hidden.float().mean()) == pytest.approx(0.15, abs=0.03)


def test_a_text_of_one_word_is_hidden_too(path: Path) -> None:
    collate = masked_lm.TASK.build(recipe.load(path)).collator
    assert isinstance(collate, masked_lm.MaskCollator)
    hidden = wide(collate, [-1, 0, -1], 20)["labels"] != IGNORED
    assert hidden.sum(1).tolist() == [1] * 20


def test_a_long_text_goes_on_in_another_row(tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    found = masked_lm.encode(["a film " * 5], tokenizer, 8, pieces=True)
    assert found["length"] == [8, 6]
    assert found["words"] == [[-1, *range(6), -1], [-1, *range(6, 10), -1]]
    assert masked_lm.encode(["a film " * 5], tokenizer, 8, pieces=False)["length"] == [8]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "lora"], "pretraining tunes all weights"),
        (["--mask_share", "0.99"], "has to be from 0.01 to 0.9"),
    ],
)
def test_what_cannot_work_is_refused(path: Path, flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        masked_lm.TASK.build(recipe.load(path, flags))


def test_a_checkpoint_without_masks_is_refused(path: Path, tmp_path: Path) -> None:
    flags = ["--checkpoint", str(make_writer(tmp_path / "writer"))]
    with pytest.raises(UserError, match="no mask token"):
        masked_lm.TASK.build(recipe.load(path, flags))


FAMILIES: list[Any] = [
    transformers.BertConfig(),
    transformers.RobertaConfig(),
    transformers.DistilBertConfig(),
    transformers.ElectraConfig(),
    transformers.ModernBertConfig(),
    transformers.MPNetConfig(),
    transformers.DebertaV2Config(),
]


@pytest.mark.parametrize("given", FAMILIES, ids=lambda config: config.model_type)
def test_the_head_sees_hidden_tokens_alone_and_learns_the_same(given: Any) -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"intermediate_size": 48, "embedding_size": 32, "vocab_size": 60, "pad_token_id": 0}
    small |= {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "reference_compile": False}
    off = {name: 0.0 for name in given.to_dict() if "drop" in name}
    config = type(given)(**{k: v for k, v in small.items() if k in given.to_dict()} | off)
    model = transformers.AutoModelForMaskedLM.from_config(config)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 60, (3, 9), generator=draw)
    hidden = torch.rand(3, 9, generator=draw) < 0.3
    labels = ids.masked_fill(~hidden, IGNORED)

    def learned(**more: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        out = model(input_ids=ids, **more)
        loss = losses.MaskedTokenLoss()(out, labels)
        loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        return loss, losses.masked_sums(out.logits, labels), gradients

    whole = learned()
    assert masked_lm.only_hidden(model)
    alone = learned(hidden=hidden)
    assert model(input_ids=ids, hidden=hidden).logits.shape == (1, int(hidden.sum()), 60)
    torch.testing.assert_close(alone, whole, rtol=1e-5, atol=1e-6)
    # Without a word of what is hidden, the model answers for every token.
    assert model(input_ids=ids).logits.shape == (3, 9, 60)


def test_a_head_that_mixes_tokens_still_sees_all(tiny_bert: Path) -> None:
    model: Any = transformers.AutoModelForMaskedLM.from_pretrained(tiny_bert)
    model.cls.register_forward_pre_hook(lambda _, given: (given[0].cumsum(1),))
    assert not masked_lm.only_hidden(model)
    assert model(input_ids=torch.tensor([[1, 2]])).logits.shape[:2] == (1, 2)
    assert not model._forward_pre_hooks
    assert not model.base_model._forward_hooks


# --- tokenizers written in Python ------------------------------------------------------------


@pytest.fixture(scope="module")
def in_python(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT with a tokenizer that has no fast version, and words in pieces."""
    folder = tmp_path_factory.mktemp("japanese")
    vocabulary = folder / "vocab.txt"
    text = (tiny_bert / "vocab.txt").read_text(encoding="utf-8").replace("cast", "##s")
    vocabulary.write_text(text, encoding="utf-8")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_bert / name, folder)
    BertJapaneseTokenizer(str(vocabulary), word_tokenizer_type="basic").save_pretrained(folder)
    return folder


def test_a_tokenizer_in_python_cuts_long_texts_as_a_fast_one(
    in_python: Path, tiny_bert: Path
) -> None:
    slow: Any = AutoTokenizer.from_pretrained(in_python)
    assert not slow.is_fast
    fast: Any = AutoTokenizer.from_pretrained(tiny_bert)
    texts = ["a good film was the plot", "bad", ""]
    for pieces in (True, False):
        ours, theirs = (masked_lm.encode(texts, each, 5, pieces) for each in (slow, fast))
        assert (ours["input_ids"], ours["length"]) == (theirs["input_ids"], theirs["length"])
    # Pieces of a word have its number.
    (words,) = masked_lm.encode(["a films plot"], slow, 16, False)["words"]
    assert words[0] == words[-1] == -1
    assert words[2] == words[3] != words[4]


@pytest.mark.parametrize("truncation", ["head", "tail", "head+tail"])
@pytest.mark.parametrize("pair", [False, True])
def test_a_classifier_s_texts_are_cut_alike(
    in_python: Path, tiny_bert: Path, truncation: Any, pair: bool
) -> None:
    rows = {"text": ["a good film was the plot", "bad"]}
    if pair:
        rows["text_pair"] = ["great film the plot", "a poor film was bad the plot"]
    model = Model(max_length=7, truncation=truncation)
    slow, fast = (
        text.encode(rows, AutoTokenizer.from_pretrained(folder), model)
        for folder in (in_python, tiny_bert)
    )
    # This one gives no token types.
    assert slow == {name: fast[name] for name in slow}
    assert max(fast["length"]) == 7


def test_a_masked_model_learns_with_a_tokenizer_in_python(path: Path, in_python: Path) -> None:
    flags = ["--checkpoint", str(in_python), "--max_length", "8", "--max_steps", "1"]
    run, job = train_job(path, *flags)
    assert len(job.splits["train"]) > len(job.data.train)
    assert 0 <= run.results()["metrics"]["masked_accuracy"]["value"] <= 1
