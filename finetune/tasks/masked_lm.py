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
from finetune.models import configs, devices, pretrained, tuning
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

    ``row`` is a row's number in its split, ``training`` whether that is the training split, and
    ``epoch`` that of the training; evaluation rows have the same tokens hidden every time.
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
        self.seed = int(recipe.training.get("seed", 0))

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows (B) -> ``input_ids``, ``attention_mask`` and ``labels``, each (B, T) int.

        For a model that ``only_hidden`` changed, also which tokens are hidden (B, T) bool.
        """
        longest = max(len(row["input_ids"]) for row in rows)

        def filled(values: list[list[int]], fill: int) -> torch.Tensor:
            return torch.tensor([[*v, *[fill] * (longest - len(v))] for v in values])

        ids = filled([row["input_ids"] for row in rows], self.pad)
        words = filled([row["words"] for row in rows], -1)
        numbers, epochs = (torch.tensor([row[n] for row in rows]) for n in ("row", "epoch"))
        training = all(row["training"] for row in rows)
        noise = row_random.noise(numbers, 3 * self.most, epochs, self.seed, training=training)
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
    out: dict[str, list[Any]] = {"input_ids": [], "words": []}
    if tokenizer.is_fast:
        encoded: Any = tokenizer(
            texts, truncation=True, max_length=most, return_overflowing_tokens=pieces
        )
        rows = [(ids, encoded.word_ids(i)) for i, ids in enumerate(encoded["input_ids"])]
    else:
        rows = _rows_in_python(texts, tokenizer, most, pieces)
    for ids, found in rows:
        words = [-1 if word is None else word for word in found]
        if max(words) >= 0:
            out["input_ids"].append(ids)
            out["words"].append(words)
    return out | {"length": [len(ids) for ids in out["input_ids"]]}


def _rows_in_python(
    texts: list[str], tokenizer: Any, most: int, pieces: bool
) -> list[tuple[list[int], list[int | None]]]:
    """Returns the rows of a tokenizer written in Python, which tells neither words nor pieces.

    A token that starts with ``##`` belongs to the word of the one before it (WordPiece).
    """
    size, rows = most - tokenizer.num_special_tokens_to_add(), []
    for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
        for start in range(0, len(ids) if pieces else min(1, len(ids)), size):
            part = ids[start : start + size]
            whole = tokenizer.build_inputs_with_special_tokens(part)
            before = next(i for i in range(len(whole)) if whole[i : i + len(part)] == part)
            tokens = tokenizer.convert_ids_to_tokens(part)
            words = numpy.cumsum([not token.startswith("##") for token in tokens]).tolist()
            after = len(whole) - before - len(part)
            rows.append((whole, [*[None] * before, *words, *[None] * after]))
    return rows


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
        splits = _encoded(tokenizer, recipe.model.max_length, data)
        if len(splits["test"]) < len(data.test):
            raise UserError(f"{data.source}: a test text has no token that its tokenizer knows")
        model = pretrained.load(self.auto_model, checkpoint, config, recipe)
        is_new_head = _is_new_head(model, checkpoint)
        with devices.as_trained(model, recipe.training) as tolerance:
            alone = not devices.is_replicated(recipe.training)
            with_hidden = alone and only_hidden(model, tolerance)
        data.report |= {"pieces": len(splits["train"]), "new_head": is_new_head}
        return Job(
            model=model,
            checkpoint=checkpoint,
            processor=tokenizer,
            collator=MaskCollator(tokenizer, recipe, with_hidden),
            splits=splits,
            data=data,
            loss=losses.MaskedTokenLoss(losses.smoothing(recipe)),
            label_smoothing=losses.smoothing(recipe),
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

    def exported(self, recipe: Recipe, results: dict[str, Any]) -> list[str]:
        return [
            *text.exported(recipe),
            "Output: `logits` (B, T, V) of every token; those of mask tokens are predictions.",
        ]

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
            columns = ("input_ids", "words", "length", "row", "training", "epoch")
            return Dataset.from_dict({column: [] for column in columns})
        found = token_cache.once(
            given,
            data.train_digest if training else "",
            tokenizer,
            lambda columns: encode([str(c) for c in columns["text"]], tokenizer, most, training),
            *("masked", most, training),
        )
        found = found.add_column("row", numpy.arange(len(found)))
        found = found.add_column("epoch", numpy.zeros(len(found), int))
        return found.add_column("training", numpy.full(len(found), training))

    return {name: rows(name) for name in ("train", "validation", "test")}


def only_hidden(model: PreTrainedModel, tolerance: float = 1e-4) -> bool:
    """Makes the head compute hidden tokens only, where that leaves their logits as they are.

    The output layer is as wide as the vocabulary, as much work as a small encoder, and most tokens
    are not hidden. Given ``hidden`` (B, T) bool, the model's logits are then (1, M, V), those of
    the M hidden tokens in order. Tried on a padded batch, on the model's device and in the
    precision of the caller's autocast, and undone where they differ by more than ``tolerance``,
    relative to the largest logit.
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
    ids = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 0]]).to(model.device)
    mask, training = (ids > 0).long(), model.training
    hidden = (ids == 2) | (ids == 4)
    model.eval()
    with torch.no_grad():
        alone = model(input_ids=ids, attention_mask=mask, hidden=hidden).logits
        whole = model(input_ids=ids, attention_mask=mask).logits
    model.train(training)
    expected, most = whole[hidden][None], tolerance * whole.abs().max()
    holds = alone.shape == expected.shape and bool((alone - expected).abs().max() <= most)
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
