"""Masked language modelling: BERT and its relatives predict hidden tokens (Devlin et al. 2019).

Further pretraining on the texts of a task, without their labels. ``checkpoint: runs/…`` in another
recipe starts a classifier from the result.
"""

from collections.abc import Mapping
from typing import Any

import numpy
import torch
from datasets import Dataset
from safetensors import safe_open
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel

from finetune.data import corpus, row_random, sources, streaming, token_cache
from finetune.data.packing import IGNORED
from finetune.errors import UserError
from finetune.evaluation import intervals, metrics, scoring
from finetune.models import configs, pretrained, tuning
from finetune.recipe import Recipe
from finetune.tasks import text
from finetune.tasks.base import Task
from finetune.tasks.usage import Example
from finetune.training import losses
from finetune.training.job import Job

HEADLINE = "masked_accuracy"
# Of the tokens to predict, the shares replaced by the mask token and by a random token.
MASKED, REPLACED = 0.8, 0.1
# The batch's key for which tokens are hidden.
HIDDEN = "hidden"


class MaskCollator:
    """Rows -> a batch with some tokens hidden: which ones follows from seed, epoch and row alone.

    ``row`` is a row's number in its split and ``training`` whether that is the training split;
    evaluation rows have the same tokens hidden every time.
    """

    def __init__(self, tokenizer: Any, recipe: Recipe, with_hidden: bool = False) -> None:
        self.with_hidden = with_hidden
        self.pad, self.mask, self.size = (
            tokenizer.pad_token_id,
            tokenizer.mask_token_id,
            len(tokenizer),
        )
        self.most, self.share = recipe.model.max_length, recipe.model.mask_share
        self.whole_words = recipe.model.whole_words
        self.seed, self.epoch = int(recipe.training.get("seed", 0)), 0

    def set_epoch(self, epoch: int) -> None:
        """Hides the tokens of another epoch from now on."""
        self.epoch = epoch

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows (B) -> ``input_ids``, ``attention_mask`` and ``labels``, each (B, T) int.

        For a model that ``only_hidden`` changed, also which tokens are hidden (B, T) bool.
        """
        longest = max(len(row["input_ids"]) for row in rows)

        def filled(values: list[list[int]], fill: int) -> torch.Tensor:
            return torch.tensor([[*v, *[fill] * (longest - len(v))] for v in values])

        ids = filled([row["input_ids"] for row in rows], self.pad)
        words = filled([row["words"] for row in rows], -1)
        numbers = torch.tensor([row["row"] for row in rows])
        training = all(row["training"] for row in rows)
        epoch = self.epoch if training else 0
        noise = row_random.noise(numbers, 3 * self.most, epoch, self.seed, training=training)
        # The draws are cut at max_length, so that they do not depend on the batch's length.
        choice, action, other = (part[:, :longest] for part in noise.split(self.most, 1))
        if self.whole_words:
            # A word's pieces follow its first one.
            choice = choice.gather(1, _first(words))
        choice = choice.masked_fill(words < 0, 1.0)
        # At least one token of every text.
        hidden = (choice < self.share) | (choice == choice.amin(1, keepdim=True))
        hidden &= words >= 0
        labels = ids.masked_fill(~hidden, IGNORED)
        shown = torch.where(action < MASKED, self.mask, ids)
        swapped = (action >= MASKED) & (action < MASKED + REPLACED)
        shown = torch.where(swapped, (other * self.size).long(), shown)
        return {
            "input_ids": torch.where(hidden, shown, ids),
            "attention_mask": (torch.arange(longest) < _lengths(rows)[:, None]).long(),
            "labels": labels,
            **({HIDDEN: hidden} if self.with_hidden else {}),
        }


def _lengths(rows: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([len(row["input_ids"]) for row in rows])


def _first(words: torch.Tensor) -> torch.Tensor:
    """Word numbers (B, T) -> where each token's word starts (B, T)."""
    starts = torch.ones_like(words, dtype=torch.bool)
    starts[:, 1:] = words[:, 1:] != words[:, :-1]
    at = torch.arange(words.shape[1]).expand_as(words)
    return torch.where(starts, at, 0).cummax(1).values


def encode(texts: list[str], tokenizer: Any, most: int, pieces: bool) -> dict[str, list[Any]]:
    """Texts -> rows of at most ``most`` tokens, with the number of each token's word, or -1.

    Args:
        pieces: whether a longer text continues in another row; otherwise it is truncated.
    """
    encoded: Any = tokenizer(
        texts, truncation=True, max_length=most, return_overflowing_tokens=pieces
    )
    out: dict[str, list[Any]] = {"input_ids": [], "words": []}
    for i, ids in enumerate(encoded["input_ids"]):
        words = [-1 if word is None else word for word in encoded.word_ids(i)]
        if max(words) >= 0:
            out["input_ids"].append(ids)
            out["words"].append(words)
    return out | {"length": [len(ids) for ids in out["input_ids"]]}


class MaskedLM(Task):
    """BERT and its relatives with their language modelling head."""

    name = "fill-mask"
    auto_model = AutoModelForMaskedLM
    auto_processor = AutoTokenizer

    def build(self, recipe: Recipe) -> Job:
        if recipe.tuning.method != "full":
            where = recipe.where("tuning.method")
            raise UserError(f"{where}: pretraining tunes all weights; leave the method out")
        tuning.check(recipe)
        metrics.refuse_extra(recipe, "masked language modelling")
        checkpoint = sources.checkpoint(recipe.model.checkpoint, recipe.model.revision)
        load = streaming.load if recipe.data.streaming else corpus.load
        data = load(recipe.data, labelled=False)
        config = configs.override(configs.load_config(recipe, checkpoint, {}), recipe)
        tokenizer: Any = text.load_tokenizer(recipe, checkpoint, config)
        if tokenizer.mask_token is None:
            raise UserError(
                f"{checkpoint.name}: its tokenizer has no mask token; take a checkpoint of BERT's "
                "kind, or task: text-generation"
            )
        if not tokenizer.is_fast:
            raise UserError(
                f"{checkpoint.name}: has no fast tokenizer, which tells where words end"
            )
        splits = _encoded(tokenizer, recipe.model.max_length, data)
        if len(splits["test"]) < len(data.test):
            raise UserError(f"{data.source}: a test text has no token that its tokenizer knows")
        model = pretrained.load(self.auto_model, checkpoint, config, recipe)
        is_new_head = _is_new_head(model, checkpoint)
        data.report |= {"pieces": len(splits["train"]), "new_head": is_new_head}
        return Job(
            model=model,
            checkpoint=checkpoint,
            processor=tokenizer,
            collator=MaskCollator(tokenizer, recipe, only_hidden(model)),
            splits=splits,
            data=data,
            loss=losses.masked_token_loss,
            score=lambda sums, _, resamples: scoring.masked(sums, resamples),
            headline=HEADLINE,
            baselines=dict,
            answers=self.answers,
            # Logits are as wide as the vocabulary.
            training={"remove_unused_columns": False, "per_device_eval_batch_size": 16},
            difference=lambda ours, theirs, _: intervals.difference(
                scoring.masked_accuracy(ours), scoring.masked_accuracy(theirs), len(ours)
            ),
            reduce=losses.masked_sums,
            untuned=True,
            blocks=True,
            notes=configs.describe(recipe, config, checkpoint),
        )

    def answers(self, outputs: numpy.ndarray, data: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Returns the share of each text's hidden tokens that was predicted correctly."""
        return [{"prediction": float(row[2] / row[1])} for row in outputs]

    def example(self, recipe: Recipe, results: dict[str, Any]) -> Example:
        return Example("fill", ['f"A {fill.tokenizer.mask_token} film."'])

    def limits(self, recipe: Recipe, results: dict[str, Any]) -> list[str]:
        if not results["data"].get("new_head"):
            return []
        name = results["checkpoint"]["name"]
        return [
            f"`{name}` has no head for masked tokens: it was trained here, from random weights."
        ]


TASK = MaskedLM()


def _encoded(tokenizer: Any, most: int, data: Any) -> dict[str, Dataset]:
    """The splits as rows for ``MaskCollator``, through the token cache."""

    def rows(name: str) -> Dataset:
        training, given = name == "train", getattr(data, name)
        if not len(given):
            columns = ("input_ids", "words", "length", "row", "training")
            return Dataset.from_dict({column: [] for column in columns})
        found = token_cache.once(
            given,
            data.train_digest if training else "",
            tokenizer,
            lambda columns: encode([str(c) for c in columns["text"]], tokenizer, most, training),
            *("masked", most, training),
        )
        found = found.add_column("row", numpy.arange(len(found)))
        return found.add_column("training", numpy.full(len(found), training))

    return {name: rows(name) for name in ("train", "validation", "test")}


def only_hidden(model: PreTrainedModel) -> bool:
    """Makes the head compute hidden tokens only, where that leaves their logits as they are.

    The output layer is as wide as the vocabulary, as much work as a small encoder, and most tokens
    are not hidden. Given ``hidden`` (B, T) bool, the model's logits are then (1, M, V), those of
    the M hidden tokens in order. Tried on two sequences, and undone where they differ.
    """
    encoder: Any = model.base_model
    wanted: list[torch.Tensor] = []

    def take(_: Any, arguments: Any, options: dict[str, Any]) -> Any:
        wanted[:] = [options.pop(HIDDEN)] if HIDDEN in options else []
        return arguments, options

    def choose(_: Any, arguments: Any, output: Any) -> Any:
        if wanted:
            output["last_hidden_state"] = output["last_hidden_state"][wanted.pop()][None]
        return output

    hooks = [model.register_forward_pre_hook(take, with_kwargs=True)]
    hooks.append(encoder.register_forward_hook(choose))
    ids, training = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]]), model.training
    hidden = torch.tensor([[False, True, False, False], [True, False, False, True]])
    model.eval()
    with torch.no_grad():
        alone, whole = model(input_ids=ids, hidden=hidden).logits, model(input_ids=ids).logits
    model.train(training)
    expected = whole[hidden][None]
    holds = alone.shape == expected.shape and torch.allclose(alone, expected, 1e-4, 1e-4)
    for hook in () if holds else hooks:
        hook.remove()
    return holds


def _is_new_head(model: PreTrainedModel, checkpoint: sources.Checkpoint) -> bool:
    """Whether the checkpoint has no head, so that predictions start at random."""
    heads = tuple(f"{name}." for name in tuning.head_modules(model))
    names: set[str] = set()
    for file in checkpoint.folder.glob("*.safetensors"):
        with safe_open(file, "numpy") as weights:
            names |= set(weights.keys())
    return not any(name.startswith(heads) for name in names)
