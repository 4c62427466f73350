"""Causal language modelling: GPT-2, Llama and their relatives on texts, prompts or chats.

- Documents are cut into blocks of ``max_length`` tokens; where the model keeps them apart, several
  short ones share a block.
- The loss is over the tokens to learn: whole texts, completions, or the assistant's turns.
- The score is bits per byte, which can be compared across tokenizers.
"""

import datetime
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy
import pandas
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TextStreamer,
)

from finetune.data import (
    chat_templates,
    corpus,
    documents,
    packing,
    sources,
    streaming,
    token_cache,
)
from finetune.data.chat_templates import ChatTemplate
from finetune.data.documents import Document, Encoded
from finetune.data.left_out import NOTHING, LeftOut
from finetune.errors import UserError
from finetune.evaluation import intervals, metrics, scoring
from finetune.models import (
    configs,
    devices,
    generation,
    parameters,
    positions,
    pretrained,
    tuning,
)
from finetune.models.speed import packed_rows
from finetune.recipe import Data, Recipe
from finetune.tasks import text
from finetune.tasks.base import Task
from finetune.tasks.usage import Example
from finetune.training import losses
from finetune.training.job import Job

HEADLINE = "bits_per_byte"
COLUMNS = ("input_ids", "labels", "position_ids")
DATE = Data().date


class CausalLM(Task):
    """Models that predict the next token."""

    name = "text-generation"
    auto_model = AutoModelForCausalLM
    auto_processor = AutoTokenizer
    generates = True

    def build(self, recipe: Recipe) -> Job:
        tuning.check(recipe)
        metrics.refuse_extra(recipe, "language modelling")
        method, where = recipe.tuning.method, recipe.where("tuning.method")
        if method == "head":
            raise UserError(
                f"{where}: a language model has no new head to train; take lora, or full"
            )
        checkpoint = sources.checkpoint(recipe.model.checkpoint, recipe.model.revision)
        load = streaming.load if recipe.data.streaming else corpus.load
        data = load(recipe.data, corpus.DOCUMENTS, labelled=False)
        config = configs.override(configs.load_config(recipe, checkpoint, {}), recipe)
        # With a cache of keys and values, transformers does not see that blocks are packed.
        config.use_cache = False
        tokenizer = _tokenizer(recipe, checkpoint, config, data.train)
        if not tokenizer.is_fast:
            raise UserError(
                f"{checkpoint.name}: has no fast tokenizer, which tells where tokens end"
            )
        most = recipe.model.max_length
        parts = documents.kind(data.test)
        template = chat_templates.of(recipe, tokenizer) if parts == "messages" else None
        each = recipe.data.turns == "each"
        left_out = LeftOut(data)
        splits = {
            name: left_out.evaluation_rows(name, tokenizer, template, most)
            for name in ("validation", "test")
        }
        model = pretrained.load(self.auto_model, checkpoint, config, recipe)
        packs = not tuning.is_prompt(method) and packed_rows.keeps_apart(model, recipe.training)
        pieces = parts == "text"

        def encoded(columns: documents.Columns, numbers: list[int]) -> dict[str, list[Any]]:
            rows = documents.encode(columns, tokenizer, template, each)
            return training_rows(rows, numbers, most, pieces, packs)

        made = token_cache.once(
            data.train,
            data.train_digest,
            tokenizer,
            encoded,
            *("blocks", most, pieces, packs, each, template and template.date),
            numbered=True,
        )
        splits["train"], count = left_out.blocks(made)
        found = describe_blocks(made, count, most, packs)
        data.report |= found | {"documents": parts} | left_out.report()
        if template and template.has_date:
            data.report["chat_date"] = str(template.date)
        notes = _stop(model, tokenizer, template)
        tuned = tuning.apply(model, recipe, checkpoint)
        if not parameters.count_parameters(tuned)["trainable_parameters"]:
            raise UserError(
                f"{where}: {method} finds nothing to train in {checkpoint.name}; take lora"
            )
        assert isinstance(tokenizer.pad_token_id, int)

        def generated() -> dict[str, str]:
            # The Trainer's precision is not that of the model inside an adapter.
            with devices.as_trained(tuned, recipe.training):
                return generation.samples(tuned, tokenizer, data.test, template)

        return Job(
            model=tuned,
            checkpoint=checkpoint,
            processor=tokenizer,
            collator=packing.Collator(tokenizer.pad_token_id, packs),
            splits=splits,
            data=data,
            loss=losses.NextTokenLoss(losses.smoothing(recipe)),
            label_smoothing=losses.smoothing(recipe),
            score=lambda sums, _, resamples: scoring.language(sums, resamples),
            headline=HEADLINE,
            baselines=dict,
            answers=self.answers,
            training={
                "remove_unused_columns": False,
                "label_names": ["labels", "bytes"],
                "include_num_input_tokens_seen": "no",
                # Logits are as wide as the vocabulary.
                "per_device_eval_batch_size": 4,
            },
            difference=_difference,
            reduce=lambda logits, labels: losses.document_sums(logits, *labels),
            untuned=True,
            samples=generated,
            notes=[*configs.describe(recipe, config, checkpoint), *notes],
            tokens=found["tokens"],
            blocks=True,
        )

    def answers(self, outputs: numpy.ndarray, data: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Returns each document's bits per byte; None where none of its tokens was scored."""
        with numpy.errstate(divide="ignore", invalid="ignore"):
            bits = outputs[:, 0] / numpy.log(2) / outputs[:, 2]
        return [{"prediction": float(b) if numpy.isfinite(b) else None} for b in bits]

    def generate(
        self,
        model: Any,
        processor: Any,
        prompt: str | list[dict[str, str]],
        data: Mapping[str, Any],
        **options: Any,
    ) -> str:
        chats = data["documents"] == "messages"
        if not isinstance(prompt, str) and not chats:
            raise UserError("the model continues texts and knows no chats; give it a text")
        if isinstance(prompt, str) and chats:
            prompt = [{"role": "user", "content": prompt}]
        date = datetime.date.fromisoformat(data.get("chat_date") or DATE)
        printer = TextStreamer(processor, skip_prompt=chats, skip_special_tokens=True)
        return generation.generate(
            model,
            processor,
            prompt,
            template=ChatTemplate(processor, date) if chats else None,
            **{"streamer": printer, **options},
        )

    def example(self, recipe: Recipe, results: dict[str, Any]) -> Example:
        chats = results["data"]["documents"] == "messages"
        prompt = '[{"role": "user", "content": "A question?"}]' if chats else '"This film"'
        return Example("write", [prompt, "max_new_tokens=60"])


TASK = CausalLM()


def blocks(rows: list[Document], size: int, pieces: bool, packs: bool) -> dict[str, list[Any]]:
    """Documents -> blocks of at most ``size`` tokens to learn from.

    A block has ``input_ids``, ``labels`` (``IGNORED`` where there is no loss) and
    ``position_ids``, each (T,) int32, ``length``, and in ``cut`` how many of its documents are
    longer than ``size``.

    Args:
        pieces: whether a longer document continues in another block; otherwise it is truncated.
        packs: whether documents share blocks.
    """
    parts = []
    for row in rows:
        labels = row.labels()
        for start in range(0, len(row.ids) if pieces else 1, size):
            cut = slice(start, start + size)
            if any(label != packing.IGNORED for label in labels[cut][1:]):
                longer = int(start == 0 and len(row.ids) > size)
                parts.append({"input_ids": row.ids[cut], "labels": labels[cut], "cut": longer})
    lengths = [len(part["input_ids"]) for part in parts]
    shared = packing.pack(lengths, size) if packs else [[i] for i in range(len(parts))]
    made = [packing.block([parts[i] for i in chosen]) for chosen in shared]
    return {
        **{name: [numpy.array(block[name], numpy.int32) for block in made] for name in COLUMNS},
        "length": [len(block["input_ids"]) for block in made],
        "cut": [sum(parts[i]["cut"] for i in chosen) for chosen in shared],
    }


def training_rows(
    rows: list[Encoded], numbers: list[int], size: int, pieces: bool, packs: bool
) -> dict[str, list[Any]]:
    """Rows -> ``blocks``, the first of which states in ``said`` (JSON) what became of the rows.

    Args:
        numbers: those of the rows, by which the rows are named that nothing is learned from.
    """
    learned, notes, left_out = [], Counter[str](), []
    for number, row in zip(numbers, rows, strict=True):
        useful = [d for d in row.documents if _teaches(d, size, pieces)]
        learned += useful
        notes.update(row.notes if useful else ())
        if not useful:
            left_out.append([number, row.fault or NOTHING])
        elif len(useful) < len(row.documents):
            notes["answer beyond max_length left out"] += len(row.documents) - len(useful)
    said = json.dumps({"documents": len(learned), "notes": notes, "left_out": left_out})
    if not learned:
        empty = numpy.zeros(0, numpy.int32)
        return {**{name: [empty] for name in COLUMNS}, "length": [0], "cut": [0], "said": [said]}
    made = blocks(learned, size, pieces, packs)
    return made | {"said": [said, *[""] * (len(made["length"]) - 1)]}


def _teaches(row: Document, size: int, pieces: bool) -> bool:
    """Whether a document has tokens to learn: nothing is predicted at its first position."""
    return True in (row.learned[1:] if pieces else row.learned[1:size])


def describe_blocks(rows: Dataset, documents: int, size: int, packs: bool) -> dict[str, Any]:
    """Returns what results.json states about blocks that hold so many documents."""
    # Whole Arrow columns: as lists they would be slow for millions of rows.
    lengths, cut = (rows.data.column(name).to_numpy() for name in ("length", "cut"))
    tokens, cut, count = int(lengths.sum()), int(cut.sum()), int((lengths > 0).sum())
    # A batch is padded to its longest row; packed, every batch has a full one.
    room = count * size
    return {
        "blocks": count,
        "block_size": size,
        "packed": packs,
        "tokens": tokens,
        "share_padding": 1 - tokens / room if room else 0.0,
        "share_cut": cut / documents,
    }


def _stop(model: Any, tokenizer: Any, template: ChatTemplate | None) -> list[str]:
    """Lets the model stop at what ends a document here; returns what is to be said of it."""
    known = model.generation_config.eos_token_id
    stops = [] if known is None else known if isinstance(known, list) else [known]
    ends, notes = {tokenizer.eos_token_id}, []
    if template:
        ends.add(template.end_id)
        if template.end_id is None:
            notes = [f"{template.end.strip()!r} ends an answer and is no token of its own"]
    new = sorted(ends - {None, *stops})
    if new:
        model.generation_config.eos_token_id = [*stops, *new]
        if stops:
            names = ", ".join(tokenizer.convert_ids_to_tokens(new))
            notes.append(f"the saved model also stops at {names}")
    return notes


def _tokenizer(
    recipe: Recipe, checkpoint: sources.Checkpoint, config: Any, train: Dataset | pandas.DataFrame
) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, or for a new model one trained on the training documents."""
    if not checkpoint.is_new:
        return text.load_tokenizer(recipe, checkpoint, config)
    text.check_max_length(recipe, positions.most_tokens(config))
    texts = (cell for columns in streaming.batches(train) for cells in columns for cell in cells)
    tokenizer = documents.new_tokenizer(texts, config.vocab_size)
    config.vocab_size = len(tokenizer)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    tokenizer.model_max_length = recipe.model.max_length
    return tokenizer


def _difference(ours: numpy.ndarray, theirs: numpy.ndarray, labels: Any) -> intervals.Metric:
    """The difference in bits per byte on the same documents, with its interval."""
    a, b = scoring.bits_per_byte(ours), scoring.bits_per_byte(theirs)
    return intervals.difference(a, b, len(ours))
