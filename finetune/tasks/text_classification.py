"""Text classification: one label, several labels or a number for a text or a pair of texts."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy
import pandas
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
)

from finetune.data import sources, text_augmentation
from finetune.data.texts import TEXTS
from finetune.errors import UserError
from finetune.models import configs, pretrained, pruning, tuning
from finetune.models.speed import padding_free
from finetune.recipe import Recipe
from finetune.recipe.methods import CONTRASTIVE
from finetune.tasks import augmented_texts, text
from finetune.tasks.classification import Classifier, example, scored_by
from finetune.tasks.usage import Example
from finetune.training.job import Job

if TYPE_CHECKING:
    from finetune.data.corpus import Corpus


class TextClassification(Classifier):
    """BERT and its relatives with a classification head."""

    name = "text-classification"
    auto_model = AutoModelForSequenceClassification
    content = TEXTS
    auto_processor = AutoTokenizer
    judges_labels = True

    def check_texts(self, recipe: Recipe) -> None:
        """Checks that what changes the training texts fits the rest.

        Raises:
            UserError: a method or teacher reads each text once; WordNet is missing.
        """
        if not text_augmentation.active(recipe.augmentation):
            return
        if recipe.tuning.method == CONTRASTIVE or recipe.distillation.teacher:
            raise UserError(
                f"{recipe.name}: word_dropout and synonyms change texts every epoch, which "
                "contrastive tuning and teachers cannot follow; leave them out"
            )
        text_augmentation.check(recipe)

    def build(self, recipe: Recipe) -> Job:
        # Prediction starts without these.
        from finetune.data import corpus
        from finetune.evaluation import baselines
        from finetune.models.speed import cached_features
        from finetune.training import contrastive

        self.check(recipe)
        tuning.check(recipe, pairs=True)
        text.refuse_augmentation(recipe)
        checkpoint = sources.checkpoint(recipe.model.checkpoint, recipe.model.revision)
        data = corpus.load(recipe.data)
        scored = scored_by(data, recipe)
        config = configs.labelled_config(recipe, checkpoint, data)
        tokenizer = text.load_tokenizer(recipe, checkpoint, config)
        encode = _encoder(recipe, tokenizer)
        splits = _encoded(encode, data)
        share = float(numpy.mean(splits["train"]["truncated"]))
        data.report["share_truncated"] = share
        if share == 1.0:
            longest = recipe.model.max_length
            print(f"warning: every training text is longer than max_length {longest}")

        collator: Any = DataCollatorWithPadding(tokenizer, text.padding())
        model = pretrained.load(self.auto_model, checkpoint, config, recipe)
        model = pruning.shrink(model, recipe, splits["train"], collator, scored["loss"])
        model = tuning.apply(model, recipe, checkpoint)
        batching = text.skip_padding(model, recipe)
        described = configs.describe_head(checkpoint, data)
        described = [*scored.pop("notes"), *described]
        notes = [*described, *configs.describe(recipe, config, checkpoint), batching]
        changed = text_augmentation.active(recipe.augmentation)
        if recipe.tuning.method == "head" and recipe.tuning.cache_features and not changed:
            assert isinstance(model, PreTrainedModel)
            uncached = (
                "NEFTune adds noise to what it reads"
                if recipe.training.get("neftune_noise_alpha")
                else cached_features.replace(model, splits, collator, recipe.training)
            )
            if uncached:
                notes.append(f"the encoder runs every epoch: {uncached}")
            else:
                collator = cached_features.collate
                notes.append("the encoder's features computed once, without its dropout")
        parts = {**scored, "collator": collator, "training": {}}
        if changed:
            parts["training"] = dict(augmented_texts.TRAINING)
            collator = augmented_texts.Collator(collator, data.train, tokenizer, recipe)
            splits["train"] = augmented_texts.numbered(splits["train"])
            decided = scored["details"]
            parts["details"] = lambda *given: decided(*given) | {"augmented": collator.sheet()}
            parts["collator"] = collator
        if recipe.tuning.method == CONTRASTIVE:
            assert isinstance(model, PreTrainedModel)
            parts |= contrastive.parts(model, splits, collator, recipe, scored["loss"])
        parts["training"]["per_device_eval_batch_size"] = text.eval_rows(splits, recipe)
        return Job(
            model=model,
            checkpoint=checkpoint,
            processor=tokenizer,
            splits=splits,
            data=data,
            **parts,
            baselines=lambda: baselines.for_texts(data),
            answers=self.answers,
            notes=notes,
            encode=encode,
        )

    def prepare(self, model: torch.nn.Module, recipe: Recipe) -> None:
        if recipe.model.padding_free:
            with torch.no_grad():
                padding_free.enable(model, {})

    def read_rows(self, given: list[str], file: str | None, recipe: Recipe) -> list[dict[str, Any]]:
        return text.read_rows(given, file, recipe)

    def fields(self, recipe: Recipe) -> dict[str, type]:
        return {"text": str} | ({"text_pair": str} if recipe.data.text_pair else {})

    def batches(
        self, rows: list[dict[str, Any]], processor: Any, recipe: Recipe, size: int
    ) -> Iterator[tuple[numpy.ndarray, dict[str, torch.Tensor]]]:
        return text.batches(rows, processor, recipe, size)

    def example(self, recipe: Recipe, results: dict[str, Any]) -> Example:
        pair = '{"text": "One text.", "text_pair": "Another."}'
        given = pair if recipe.data.text_pair else '"A text."'
        return example(recipe.data.problem_type, "classify", [given, "truncation=True"])

    def exported(self, recipe: Recipe, results: dict[str, Any]) -> list[str]:
        return [*text.exported(recipe), *super().exported(recipe, results)]

    def limits(self, recipe: Recipe, results: dict[str, Any]) -> list[str]:
        model = recipe.model
        cut = f"Texts above {model.max_length} tokens were cut."
        if model.truncation == "head":
            return [cut, "The pipeline cuts them the same way with `truncation=True`."]
        return [
            cut,
            f"Training and test kept their {model.truncation}; the pipeline with "
            "`truncation=True` keeps the head only, so long texts may score otherwise there. "
            "`finetune predict` cuts as training did.",
        ]

    def shown(self, row: dict[str, Any]) -> dict[str, Any]:
        columns = [name for name in ("text", "text_pair") if name in row]
        return {"text": "\n\n".join(text.shorten(str(row[name])) for name in columns)}


TASK = TextClassification()


def _encoder(recipe: Recipe, tokenizer: Any) -> Callable[[pandas.DataFrame], Dataset]:
    """Returns what encodes labelled texts as token ids of at most ``max_length``, by the cache."""
    from finetune.data import token_cache

    model = recipe.model

    def encode(rows: dict[str, list[str]]) -> dict[str, list[Any]]:
        encoded = text.encode(rows, tokenizer, model)
        # As Python integers they would take two to eight times the space on disk.
        kinds = {name: "int32" if name == "input_ids" else "int8" for name in encoded}
        return {
            name: [numpy.array(cell, kinds[name]) for cell in cells]
            if name in tokenizer.model_input_names
            else cells
            for name, cells in encoded.items()
        }

    def dataset(frame: pandas.DataFrame) -> Dataset:
        texts = frame.drop(columns="label")
        cut = (model.max_length, model.truncation, model.head_share)
        rows = token_cache.once(texts, "", tokenizer, encode, "classes", *cut)
        return rows.add_column("labels", frame["label"].tolist())

    return dataset


def _encoded(encode: Callable[[pandas.DataFrame], Dataset], data: "Corpus") -> dict[str, Dataset]:
    splits = {name: encode(getattr(data, name)) for name in ("train", "test")}
    # Tokenizers fail on an empty list of texts.
    none = Dataset.from_dict({name: [] for name in splits["train"].column_names})
    splits["validation"] = encode(data.validation) if len(data.validation) else none
    return splits
