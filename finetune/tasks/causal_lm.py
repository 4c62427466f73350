"""Causal language modelling: GPT-2, Llama and their relatives on texts, prompts or chats.

- Documents are cut into blocks of ``max_length`` tokens; where the model keeps them apart, several
  short ones share a block.
- The loss is over the tokens to learn: whole texts, completions, or the assistant's turns.
- The score is bits per byte, which can be compared across tokenizers.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy
import pandas
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TextStreamer,
)

from finetune.data import corpus, documents, packing, sources, streaming, token_cache
from finetune.data.documents import Document
from finetune.errors import UserError
from finetune.evaluation import intervals, metrics, scoring
from finetune.models import configs, parameters, positions, pretrained, tuning
from finetune.recipe import Recipe
from finetune.tasks import text
from finetune.tasks.base import Task
from finetune.tasks.usage import Example
from finetune.training import losses
from finetune.training.job import Job

HEADLINE = "bits_per_byte"
COLUMNS = ("input_ids", "labels", "position_ids")
# For how many test documents the report shows a continuation, how many words of a text are given
# as its prompt, and how many tokens are generated.
SAMPLES, PROMPT_WORDS, SAMPLE_TOKENS = 3, 8, 60


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
        splits = {
            name: _evaluation_rows(getattr(data, name), tokenizer, most)
            for name in ("validation", "test")
        }
        model = pretrained.load(self.auto_model, checkpoint, config, recipe)
        packs = not tuning.is_prompt(method) and packing.is_kept_apart(model)
        parts = documents.kind(data.test)
        pieces = parts == "text"
        splits["train"] = token_cache.once(
            data.train,
            data.train_digest,
            tokenizer,
            lambda columns: blocks(documents.encode(columns, tokenizer), most, pieces, packs),
            *("blocks", most, pieces, packs),
        )
        found = describe_blocks(splits["train"], len(data.train), most, packs)
        if not len(splits["train"]):
            raise UserError(
                f"{data.source}: no document has a token to learn within {most}; raise max_length"
            )
        data.report |= found | {"documents": parts}
        tuned = tuning.apply(model, recipe, checkpoint)
        if not parameters.count_parameters(tuned)["trainable_parameters"]:
            raise UserError(
                f"{where}: {method} finds nothing to train in {checkpoint.name}; take lora"
            )
        assert isinstance(tokenizer.pad_token_id, int)
        return Job(
            model=tuned,
            checkpoint=checkpoint,
            processor=tokenizer,
            collator=packing.Collator(tokenizer.pad_token_id, packs),
            splits=splits,
            data=data,
            loss=losses.next_token_loss,
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
            samples=lambda: samples(tuned, tokenizer, data.test),
            tokens=found["tokens"],
            blocks=True,
            notes=configs.describe(recipe, config, checkpoint),
        )

    def answers(self, outputs: numpy.ndarray, data: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Returns each document's bits per byte; None where none of its tokens was scored."""
        with numpy.errstate(divide="ignore", invalid="ignore"):
            bits = outputs[:, 0] / numpy.log(2) / outputs[:, 2]
        return [{"prediction": float(b) if numpy.isfinite(b) else None} for b in bits]

    def generate(
        self, model: Any, processor: Any, prompt: str, data: Mapping[str, Any], **options: Any
    ) -> None:
        chats = data["documents"] == "messages"
        generate(
            model,
            processor,
            [{"role": "user", "content": prompt}] if chats else prompt,
            streamer=TextStreamer(processor, skip_prompt=chats, skip_special_tokens=True),
            **options,
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


def describe_blocks(rows: Dataset, documents: int, size: int, packs: bool) -> dict[str, Any]:
    """Returns what results.json states about blocks that hold so many documents."""
    # Whole Arrow columns: as lists they would be slow for millions of rows.
    tokens, cut = (int(rows.data.column(name).to_numpy().sum()) for name in ("length", "cut"))
    # A batch is padded to its longest row; packed, every batch has a full one.
    room = len(rows) * size
    return {
        "blocks": len(rows),
        "block_size": size,
        "packed": packs,
        "tokens": tokens,
        "share_padding": 1 - tokens / room if room else 0.0,
        "share_cut": cut / documents,
    }


def _evaluation_rows(frame: pandas.DataFrame, tokenizer: Any, most: int) -> Dataset:
    """Documents as rows to score, one a document, truncated to ``most`` tokens."""
    special = set(tokenizer.all_special_ids)
    scored = [row.scored(most, special) for row in documents.encode(frame, tokenizer)]
    lengths = [len(row["input_ids"]) for row in scored]
    places = {"position_ids": [list(range(length)) for length in lengths], "length": lengths}
    names = ("input_ids", "labels", "bytes")
    return Dataset.from_dict({**{n: [row[n] for row in scored] for n in names}, **places})


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


# --- generation ------------------------------------------------------------------------------


def prompt_of(row: Any, kind: str) -> Any:
    """Returns the part of a test document that is given as a prompt: a text, or messages."""
    if kind == "prompt":
        return row["prompt"]
    if kind == "messages":
        messages = json.loads(row["messages"])
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        return messages[: turns[0]] or row["messages"]
    return " ".join(row["text"].split()[:PROMPT_WORDS])


def encode_prompt(given: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """A text or messages -> ``input_ids`` and ``attention_mask`` (1, T), without an end token."""
    if isinstance(given, str):
        encoded: Any = tokenizer(given, return_tensors="pt")
    else:
        encoded = tokenizer.apply_chat_template(
            given, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    if inputs["input_ids"].shape[1] > 1 and inputs["input_ids"][0, -1] == tokenizer.eos_token_id:
        return {name: value[:, :-1] for name, value in inputs.items()}
    return inputs


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    given: Any,
    seed: int,
    max_new_tokens: int,
    do_sample: bool = True,
    **options: Any,
) -> str:
    """Returns the text that the model generates, without special tokens.

    Args:
        given: a text or messages.
        seed: of this text alone; the global random state is left as it was.
        max_new_tokens: at most so many, or fewer where the model's positions end.

    Raises:
        UserError: the prompt takes all positions.
    """
    inputs = {n: value.to(model.device) for n, value in encode_prompt(given, tokenizer).items()}
    count = inputs["input_ids"].shape[1]
    room = positions.most_tokens(model.config) - count
    if room < 1:
        raise UserError(f"the prompt has {count} tokens, as many as the model has positions for")
    training = model.training
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        out = model.generate(
            **inputs, do_sample=do_sample, max_new_tokens=min(max_new_tokens, room), **options
        )
    model.train(training)
    return tokenizer.decode(out[0, count:], skip_special_tokens=True)


def samples(
    model: Any, tokenizer: PreTrainedTokenizerBase, test: pandas.DataFrame
) -> dict[str, str]:
    """Returns what the model generates from the beginning of some test documents, by prompt."""
    kind = documents.kind(test)
    out = {}
    for seed, i in enumerate(numpy.linspace(0, len(test) - 1, SAMPLES).astype(int)):
        given = prompt_of(test.iloc[i], kind)
        shown = given if isinstance(given, str) else given[-1]["content"]
        out[shown] = generate(model, tokenizer, given, seed, SAMPLE_TOKENS)
    return out
