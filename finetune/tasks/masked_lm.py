"""Masked language modelling: BERT and its like guess hidden tokens (Devlin et al. 2019).

Further pretraining on the texts of a task, without their labels, which a classifier of them starts
from: ``checkpoint: runs/…``.
"""

from typing import Any

import numpy
import torch
from datasets import Dataset
from safetensors import safe_open
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel

from finetune.data import augmentation, corpus, sources, streaming, token_cache
from finetune.data.packing import IGNORED
from finetune.errors import UserError
from finetune.evaluation import metrics, scoring
from finetune.models import pretrained, tuning
from finetune.recipe import Recipe
from finetune.tasks.classification import config_of, set_own
from finetune.tasks.text_classification import tokenizer_of
from finetune.training import losses
from finetune.training.job import Job

AUTO_MODEL = AutoModelForMaskedLM
AUTO_PROCESSOR = AutoTokenizer
HEADLINE = "masked_accuracy"
# Of the tokens to guess, so many are shown as the mask, and so many as some other token.
MASKED, REPLACED = 0.8, 0.1
# What a batch calls its hidden tokens.
HIDDEN = "hidden"


class MaskCollator:
    """Rows -> a batch with some tokens hidden: which ones follows from seed, epoch and row alone.

    ``row`` numbers the training rows from 0 up and the others from -1 down; of these the same
    tokens are hidden every time.
    """

    def __init__(self, tokenizer: Any, recipe: Recipe, says_hidden: bool = False) -> None:
        self.says_hidden = says_hidden
        self.pad, self.mask, self.size = (
            tokenizer.pad_token_id,
            tokenizer.mask_token_id,
            len(tokenizer),
        )
        self.most, self.share = recipe.model.max_length, recipe.model.mask_share
        self.whole_words = recipe.model.whole_words
        self.seed, self.epoch = int(recipe.training.get("seed", 0)), 0

    def set_epoch(self, epoch: int) -> None:
        """Hide other tokens from now on."""
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
        epoch = self.epoch if bool((numbers >= 0).all()) else 0
        noise = augmentation.noise(numbers, 3 * self.most, epoch, self.seed)
        # Where a draw stands does not depend on how long the batch is.
        choice, action, other = (part[:, :longest] for part in noise.split(self.most, 1))
        if self.whole_words:
            # A word's pieces follow its first one.
            choice = choice.gather(1, _first(words))
        choice = choice.masked_fill(words < 0, 1.0)
        # At least one, be a text ever so short.
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
            **({HIDDEN: hidden} if self.says_hidden else {}),
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
        pieces: whether a longer text goes on in another row; else what is too long is left out.
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


def build(recipe: Recipe) -> Job:
    """The recipe's texts, tokenizer and model, ready for the runner.

    Raises:
        UserError: the data, the checkpoint and the recipe do not fit each other.
    """
    if recipe.tuning.method != "full":
        where = recipe.where("tuning.method")
        raise UserError(f"{where}: pretraining tunes everything; leave the method out")
    tuning.check(recipe)
    metrics.refuse_extra(recipe, "masked language modelling")
    checkpoint = sources.checkpoint(recipe.model.checkpoint, recipe.model.revision)
    load = streaming.load if recipe.data.streaming else corpus.load
    data = load(recipe.data, labelled=False)
    config = set_own(config_of(recipe, checkpoint, {}), recipe)
    tokenizer = tokenizer_of(recipe, checkpoint, config)
    if tokenizer.mask_token is None:
        raise UserError(
            f"{checkpoint.name}: its tokenizer has no mask token; take a checkpoint of BERT's "
            "kind, or task: text-generation"
        )
    if not tokenizer.is_fast:
        raise UserError(f"{checkpoint.name}: has no fast tokenizer, which tells where words end")
    most = recipe.model.max_length

    def rows(name: str) -> Dataset:
        train, given = name == "train", getattr(data, name)
        if not len(given):
            return Dataset.from_dict({c: [] for c in ("input_ids", "words", "length", "row")})
        found = token_cache.once(
            given,
            data.train_digest if train else "",
            tokenizer,
            lambda columns: encode([str(c) for c in columns["text"]], tokenizer, most, train),
            *("masked", most, train),
        )
        numbers = numpy.arange(len(found))
        return found.add_column("row", numbers if train else -1 - numbers)

    splits = {name: rows(name) for name in ("train", "validation", "test")}
    if len(splits["test"]) < len(data.test):
        raise UserError(f"{data.source}: a test text has no token that its tokenizer knows")
    model = pretrained.load(AUTO_MODEL, checkpoint, config, recipe)
    data.report |= {"pieces": len(splits["train"]), "new_head": _is_new_head(model, checkpoint)}
    return Job(
        model=model,
        checkpoint=checkpoint,
        processor=tokenizer,
        collator=MaskCollator(tokenizer, recipe, only_hidden(model)),
        splits=splits,
        data=data,
        loss=losses.hidden_token_loss,
        score=lambda sums, _, resamples: scoring.masked(sums, resamples),
        headline=HEADLINE,
        baselines=dict,
        answers=lambda sums: [{"prediction": float(row[2] / row[1])} for row in sums],
        # Logits are as wide as the vocabulary.
        training={"remove_unused_columns": False, "per_device_eval_batch_size": 16},
        difference=lambda ours, theirs, _: scoring.bootstrap(
            lambda r: (
                float(ours[r, 2].sum() / ours[r, 1].sum())
                - float(theirs[r, 2].sum() / theirs[r, 1].sum())
            ),
            len(ours),
        ),
        reduce=losses.hidden_sums,
        untuned=True,
        blocks=True,
    )


def only_hidden(model: PreTrainedModel) -> bool:
    """Let the head see hidden tokens alone, if it looks at each by itself: most are shown.

    Its output layer is as wide as the vocabulary, and so as much work as a small trunk. Given
    ``hidden`` (B, T) bool, the model's logits are (1, M, V), those of the M hidden tokens in order.
    """
    trunk: Any = model.base_model
    wanted: list[torch.Tensor] = []

    def take(_: Any, arguments: Any, options: dict[str, Any]) -> Any:
        wanted[:] = [options.pop(HIDDEN)] if HIDDEN in options else []
        return arguments, options

    def choose(_: Any, arguments: Any, output: Any) -> Any:
        if wanted:
            output["last_hidden_state"] = output["last_hidden_state"][wanted.pop()][None]
        return output

    hooks = [model.register_forward_pre_hook(take, with_kwargs=True)]
    hooks.append(trunk.register_forward_hook(choose))
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
    """Whether the checkpoint brings a trunk alone, so that its guesses start at random."""
    heads = tuple(f"{name}." for name in tuning.head_modules(model))
    names: set[str] = set()
    for file in checkpoint.folder.glob("*.safetensors"):
        with safe_open(file, "numpy") as weights:
            names |= set(weights.keys())
    return not any(name.startswith(heads) for name in names)
