"""Sequence to sequence: T5, BART, Marian and their relatives on sources with targets.

- Training predicts the target's tokens. Validation and test generate a text for every source, by
  transformers' ``generate`` with the settings that are saved with the model.
- A source may have several targets, each in a row: each is learned, and each is right.
- Models from scratch get a tokenizer that is trained on the training rows.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy
import pandas
import torch
from transformers import AutoTokenizer, DataCollatorForSeq2Seq

from finetune.data import corpus, sources
from finetune.errors import UserError
from finetune.evaluation import metrics
from finetune.models import (
    configs,
    devices,
    encoder_decoder,
    parameters,
    pretrained,
    tuning,
)
from finetune.models.encoder_decoder import AutoEncoderDecoder
from finetune.recipe import Recipe
from finetune.tasks import pairs, text, usage
from finetune.tasks.base import Labelled, Mistake, Row, Task
from finetune.training import losses
from finetune.training.job import Job

KIND = "text2text-generation"
# Rows of a batch that generates, as many as `finetune predict` takes.
BATCH = 32
# Test rows whose texts the report shows before and after training.
SAMPLES = 3
COPY, LEAD, LEAD_SENTENCES = "copy of the source", "first 3 sentences", 3
PACKAGES = ("sacrebleu", "rouge_score", "rapidfuzz")


class Collator(DataCollatorForSeq2Seq):
    """Pads sources, and targets with -100, and gives the decoder the target shifted by one."""

    def __call__(self, features: Any, return_tensors: Any = None) -> Any:
        batch = super().__call__(features, return_tensors)
        if "decoder_input_ids" not in batch:
            # Some models (M2M100, NLLB) only shift labels that they compute a loss of.
            config: Any = self.model and self.model.config
            shifted = batch["labels"].roll(1, dims=1)
            shifted[:, 0] = config.decoder_start_token_id
            batch["decoder_input_ids"] = shifted.masked_fill(shifted == -100, config.pad_token_id)
        return batch


class SequenceToSequence(Task):
    """Encoder-decoders that write a target for a source."""

    name = KIND
    auto_model = AutoEncoderDecoder
    auto_processor = AutoTokenizer
    not_exported = (
        "an exported encoder and decoder would need a generation of their own; `finetune serve` "
        "answers with the run itself"
    )

    def build(self, recipe: Recipe) -> Job:
        _check(recipe)
        # Prediction starts without it.
        from finetune.evaluation import generation

        checkpoint = sources.checkpoint(recipe.model.checkpoint, recipe.model.revision)
        data = corpus.load(recipe.data, corpus.PAIRS)
        # One row for each target to learn; a test row keeps all of its targets.
        data.train = data.train.explode("label", ignore_index=True)
        config = configs.override(configs.load_config(recipe, checkpoint, {}), recipe)
        encoder_decoder.check(config, checkpoint)
        tokenizer = pairs.tokenizer_of(recipe, checkpoint, config, data)
        config = encoder_decoder.complete(config, tokenizer, checkpoint)
        is_new = encoder_decoder.starts_new(config, checkpoint)
        _check_new(recipe, checkpoint, is_new)
        start = config.decoder_start_token_id
        splits = {
            name: pairs.encoded(getattr(data, name), tokenizer, recipe, start)
            for name in ("train", "validation", "test")
        }
        data.report["notes"] += pairs.describe_cut(splits, recipe)
        splits = {name: rows.remove_columns(pairs.CUT) for name, rows in splits.items()}
        base = pretrained.load(self.auto_model, checkpoint, config, recipe)
        encoder_decoder.set_generation(base, tokenizer, recipe, checkpoint)
        model = tuning.apply(base, recipe, checkpoint)
        if not parameters.count_parameters(model)["trainable_parameters"]:
            where = recipe.where("tuning.method")
            raise UserError(
                f"{where}: {recipe.tuning.method} finds nothing to train in {checkpoint.name}; "
                "take lora, or full"
            )
        headline = str(recipe.training.get("metric_for_best_model") or metrics.HEADLINE[KIND])
        headline = headline.removeprefix("eval_")
        if headline not in metrics.MEASURED[KIND]:
            headline = metrics.HEADLINE[KIND]

        def generated(texts: list[str]) -> list[str]:
            # The Trainer's precision is not that of the model outside of it.
            with devices.as_trained(model, recipe.training):
                return self._texts(model, tokenizer, recipe, texts)

        def collect(outputs: Any, labels: Any, split: str) -> tuple[list[str], list[Any]]:
            frame = getattr(data, split)
            given = frame["source"].tolist()
            expected = map(generation.Expected, given, frame["label"])
            return text.shared(generated, given), list(expected)

        @torch.no_grad()
        def generate(split: str, places: numpy.ndarray) -> None:
            targets = splits[split].select(places)["labels"]
            rows = [{"source": s} for s in getattr(data, split)["source"].iloc[places]]
            where: Any = model.device
            with devices.as_trained(model, recipe.training):
                for numbers, batch in self.batches(rows, tokenizer, recipe, BATCH):
                    most = max(len(targets[n]) for n in numbers)
                    inputs = {name: value.to(where) for name, value in batch.items()}
                    _generated(model.eval(), inputs, min_new_tokens=most, max_new_tokens=most)

        def samples() -> dict[str, str]:
            rows = numpy.linspace(0, len(data.test) - 1, SAMPLES).astype(int)
            given = data.test["source"].iloc[rows].tolist()
            return dict(zip(given, generated(given), strict=True))

        return Job(
            model=model,
            checkpoint=checkpoint,
            processor=tokenizer,
            collator=Collator(tokenizer, base),
            splits=splits,
            data=data,
            loss=losses.MaskedTokenLoss(losses.smoothing(recipe)),
            label_smoothing=losses.smoothing(recipe),
            score=generation.score,
            headline=headline,
            baselines=lambda: _baselines(data.test["source"].tolist()),
            answers=self.answers,
            # Logits are as wide as the vocabulary.
            training={"per_device_eval_batch_size": 16, "label_names": ["labels"]},
            difference=partial(generation.difference, headline),
            # Texts are scored, which ``collect`` generates.
            reduce=lambda logits, labels: torch.zeros(len(labels), device=labels.device),
            collect=collect,
            untuned=not is_new,
            samples=samples,
            generate=generate,
            notes=[*configs.describe(recipe, config, checkpoint), _describe(base)],
        )

    # --- prediction ----------------------------------------------------------------------------

    def labelled(self, file: str, recipe: Recipe, data: Mapping[str, Any]) -> Labelled:
        from finetune.evaluation import generation, intervals

        frame, table = corpus.labelled(file, recipe.data, corpus.PAIRS, [])
        expected = numpy.empty(len(frame), object)
        expected[:] = [*map(generation.Expected, frame["source"], frame["label"])]
        return Labelled(
            content=corpus.PAIRS,
            rows=[{"source": source} for source in frame["source"]],
            frame=frame,
            table=table.rows.loc[frame.index],
            rejected=len(table.rejected),
            labels=expected,
            score=lambda texts, labels: generation.score(texts, list(labels), intervals.RESAMPLES),
            values=_values,
        )

    def read_rows(self, given: list[str], file: str | None, recipe: Recipe) -> list[Row]:
        single = replace(recipe.data, text=recipe.data.source, text_pair=None)
        rows = text.read_rows(given, file, replace(recipe, data=single))
        return [{"source": row["text"]} for row in rows]

    def fields(self, recipe: Recipe) -> dict[str, type]:
        return {"source": str}

    def batches(
        self, rows: list[Row], processor: Any, recipe: Recipe, size: int
    ) -> Iterator[tuple[numpy.ndarray, dict[str, torch.Tensor]]]:
        encoder_decoder.set_languages(processor, recipe)
        prefixed = [{"text": recipe.model.source_prefix + row["source"]} for row in rows]
        return text.batches(prefixed, processor, recipe, size)

    def forward(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> list[Any]:
        return list(_generated(model, inputs).cpu().numpy())

    def join(self, parts: list[list[Any]], rows: list[Row]) -> list[numpy.ndarray]:
        return [tokens for (tokens,) in parts]

    def decode(self, outputs: list[numpy.ndarray], processor: Any) -> numpy.ndarray:
        """Returns texts (N,), as an array of objects."""
        return numpy.array(processor.batch_decode(outputs, skip_special_tokens=True), object)

    def answers(self, outputs: Iterable[str], data: Mapping[str, Any]) -> list[Row]:
        return [{"prediction": written} for written in outputs]

    @torch.no_grad()
    def _texts(self, model: Any, tokenizer: Any, recipe: Recipe, given: list[str]) -> list[str]:
        """Generates a text for each source, in the batches of `finetune predict`."""
        if not given:
            return []
        training = model.training
        rows = [{"source": source} for source in given]
        texts = self.outputs(model.eval(), tokenizer, recipe, rows, BATCH, model.device)
        model.train(training)
        return texts.tolist()

    # --- model card and report -----------------------------------------------------------------

    def usage(self, recipe: Recipe, results: Row, folder: str) -> str:
        prefix = recipe.model.source_prefix
        return usage.generating(usage.quoted(f"{prefix}A text."), results, folder)

    def limits(self, recipe: Recipe, results: Row) -> list[str]:
        model = recipe.model
        out = [f"Sources above {model.max_length} tokens were cut ({model.truncation} kept)."]
        if model.source_prefix:
            out.append(f"Every source begins with {model.source_prefix!r}.")
        found = results["generated"]
        shares = [f"{100 * found[name]:.1f} %" for name in ("repeated", "empty", "copies")]
        out.append(
            f"On the test rows it wrote {found['words']:.1f} words a text, where targets have "
            f"{found['target_words']:.1f}. Of the pieces of three words {shares[0]} repeat one of "
            f"the same text; {shares[1]} of the texts are empty, {shares[2]} copy the source."
        )
        return out

    def mistakes(
        self, rows: pandas.DataFrame, data: Mapping[str, Any], most: int
    ) -> list[Mistake] | None:
        found = [row for row in rows.to_dict("records") if row["prediction"] not in row["label"]]
        return [
            Mistake(
                id=row["id"],
                label=text.shorten(" | ".join(row["label"])),
                prediction=text.shorten(row["prediction"]),
                confidence="",
                text=text.shorten(row["source"]),
            )
            for row in found[:most]
        ]


TASK = SequenceToSequence()


def _check(recipe: Recipe) -> None:
    """Checks what does not need the data.

    Raises:
        UserError: a package is missing, or the method or truncation does not fit.
    """
    tuning.check(recipe)
    metrics.refuse_extra(recipe, KIND)
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"{recipe.name}: {', '.join(missing)} is not installed: "
            "pip install 'finetune-recipes[seq2seq]'"
        )
    method, where = recipe.tuning.method, recipe.where("tuning.method")
    if method == "head":
        raise UserError(f"{where}: an encoder-decoder has no new head to train; take lora, or full")
    if tuning.is_prompt(method):
        raise UserError(f"{where}: {method} is not offered for encoder-decoders; take lora")
    if recipe.model.source_prefix and recipe.model.truncation == "tail":
        raise UserError(
            f"{recipe.where('model.truncation')}: truncation tail would cut the source_prefix; "
            "take head, or head+tail"
        )


def _describe(model: Any) -> str:
    """Says how the model generates."""
    settings = model.generation_config
    beams = settings.num_beams or 1
    how = f"with {beams} beams" if beams > 1 else "greedily"
    how = "by sampling" if settings.do_sample else how
    return f"generates at most {settings.max_new_tokens} tokens, {how}"


def _check_new(recipe: Recipe, checkpoint: sources.Checkpoint, is_new: bool) -> None:
    """Checks that new weights learn, and that only a new model's tokenizer is trained."""
    if is_new and recipe.tuning.method != "full":
        raise UserError(
            f"{recipe.where('tuning.method')}: {checkpoint.name} has no trained attention between "
            f"encoder and decoder, and {recipe.tuning.method} would not learn it; take full"
        )
    if recipe.model.token_pattern is not None and not checkpoint.is_new:
        raise UserError(
            f"{recipe.where('model.token_pattern')}: token_pattern is for new models; "
            f"{checkpoint.name} has a tokenizer of its own"
        )


def _generated(model: Any, inputs: dict[str, torch.Tensor], **settings: Any) -> torch.Tensor:
    """Returns the tokens that the model generates for a batch, (B, T)."""
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    return model.generate(**given, **settings)


def _values(rows: pandas.DataFrame) -> dict[str, numpy.ndarray]:
    """Returns what `finetune evaluate` compares between new rows and those of the test."""
    from finetune.evaluation import generation

    def words(column: str) -> numpy.ndarray:
        return rows[column].str.split().str.len().to_numpy(float)

    return {
        "chrF of a row": generation.sentences(list(rows["prediction"]), list(rows["label"])),
        "words of the source": words("source"),
        "words written": words("prediction"),
    }


def _baselines(given: list[str]) -> dict[str, list[str]]:
    """Returns trivial answers; the first sentences only where sources have more of them."""
    lead = [
        " ".join(re.split(r"(?<=[.!?])\s+", source.strip())[:LEAD_SENTENCES]) for source in given
    ]
    copies = [source.strip() for source in given]
    return {COPY: copies} | ({LEAD: lead} if lead != copies else {})
