"""Language modelling: GPT-2, Llama and their like learn to go on with a text, prompt or chat."""

import json
from typing import Any

import numpy
import pandas
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from finetune.data import corpus, documents, packing, sources, streaming, token_cache
from finetune.data.documents import Document
from finetune.errors import UserError
from finetune.evaluation import scoring
from finetune.models import parameters, positions, pretrained, tuning
from finetune.recipe import Recipe
from finetune.tasks.classification import config_of, set_own
from finetune.tasks.text_classification import tokenizer_of
from finetune.training import losses
from finetune.training.job import Job

AUTO_MODEL = AutoModelForCausalLM
AUTO_PROCESSOR = AutoTokenizer
HEADLINE = "bits_per_byte"
COLUMNS = ("input_ids", "labels", "position_ids")
# Of how many test documents the report shows a continuation, how many words of a text are given,
# and how many tokens are written.
SAMPLES, GIVEN_WORDS, WRITTEN = 3, 8, 60


def blocks(rows: list[Document], size: int, pieces: bool, packs: bool) -> dict[str, list[Any]]:
    """Documents -> blocks of at most ``size`` tokens to learn from.

    A block has ``input_ids``, ``labels`` (``IGNORED`` where nothing is learned) and
    ``position_ids``, each (T,) int32, ``length``, and in ``cut`` how many of its documents are
    longer than ``size``.

    Args:
        pieces: whether a longer document goes on in another piece; else what is too long is lost.
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


def facts(rows: Dataset, documents: int, size: int, packs: bool) -> dict[str, Any]:
    """What the ledger says of ``blocks``' rows, which hold so many documents."""
    # Whole columns of Arrow, which would be slow as lists where there are millions.
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


def build(recipe: Recipe) -> Job:
    """The recipe's documents, tokenizer and model, ready for the runner.

    Raises:
        UserError: the data, the checkpoint and the recipe do not fit each other.
    """
    tuning.check(recipe)
    method, where = recipe.tuning.method, recipe.where("tuning.method")
    if method == "head":
        raise UserError(f"{where}: a language model has no new head to train; take lora, or full")
    checkpoint = sources.checkpoint(recipe.model.checkpoint, recipe.model.revision)
    load = streaming.load if recipe.data.streaming else corpus.load
    data = load(recipe.data, corpus.DOCUMENTS, labelled=False)
    config = set_own(config_of(recipe, checkpoint, {}), recipe)
    # A cache of keys and values would hide from transformers that blocks are packed.
    config.use_cache = False
    tokenizer = _tokenizer(recipe, checkpoint, config, data.train)
    if not tokenizer.is_fast:
        raise UserError(f"{checkpoint.name}: has no fast tokenizer, which tells where tokens end")
    most, special = recipe.model.max_length, set(tokenizer.all_special_ids)

    def rows(frame: pandas.DataFrame) -> Dataset:
        found = documents.encode(frame, tokenizer)
        scored = [row.scored(most, special) for row in found]
        lengths = [len(row["input_ids"]) for row in scored]
        places = {"position_ids": [list(range(length)) for length in lengths], "length": lengths}
        names = ("input_ids", "labels")
        return Dataset.from_dict({**{n: [row[n] for row in scored] for n in names}, **places})

    splits = {name: rows(getattr(data, name)) for name in ("validation", "test")}
    model = pretrained.load(AUTO_MODEL, checkpoint, config, recipe)
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
    found = facts(splits["train"], len(data.train), most, packs)
    if not len(splits["train"]):
        raise UserError(
            f"{data.source}: no document has a token to learn within {most}; raise max_length"
        )
    data.report |= found | {"documents": parts}
    learner = tuning.apply(model, recipe, checkpoint)
    if not parameters.count_parameters(learner)["trainable_parameters"]:
        raise UserError(f"{where}: {method} finds nothing to train in {checkpoint.name}; take lora")
    assert isinstance(tokenizer.pad_token_id, int)
    return Job(
        model=learner,
        checkpoint=checkpoint,
        processor=tokenizer,
        collator=packing.Collator(tokenizer.pad_token_id, packs),
        splits=splits,
        data=data,
        loss=losses.next_token_loss,
        score=lambda sums, _, resamples: scoring.language(sums, resamples),
        headline=HEADLINE,
        baselines=dict,
        answers=_answers,
        training={
            "remove_unused_columns": False,
            "include_num_input_tokens_seen": "no",
            "greater_is_better": False,
            # Logits are as wide as the vocabulary.
            "per_device_eval_batch_size": 4,
        },
        difference=lambda ours, theirs, _: scoring.bootstrap(
            _less(scoring.bits_per_byte(ours), scoring.bits_per_byte(theirs)), len(ours)
        ),
        reduce=losses.document_sums,
        untuned=True,
        samples=lambda: samples(learner, tokenizer, data.test),
        tokens=found["tokens"],
        blocks=True,
    )


def _tokenizer(
    recipe: Recipe, checkpoint: sources.Checkpoint, config: Any, train: Dataset | pandas.DataFrame
) -> PreTrainedTokenizerBase:
    """The checkpoint's, or for a model from scratch one learned from the training documents."""
    if not checkpoint.is_new:
        return tokenizer_of(recipe, checkpoint, config)
    most = positions.most_tokens(config)
    if most < recipe.model.max_length:
        where = recipe.where("model.max_length")
        raise UserError(
            f"{where}: max_length {recipe.model.max_length} is more than the model's {most}"
        )
    texts = (text for columns in streaming.batches(train) for cells in columns for text in cells)
    tokenizer = documents.new_tokenizer(texts, config.vocab_size)
    config.vocab_size = len(tokenizer)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    tokenizer.model_max_length = recipe.model.max_length
    return tokenizer


def _less(ours: Any, theirs: Any) -> Any:
    return lambda rows: ours(rows) - theirs(rows)


def _answers(sums: numpy.ndarray) -> list[dict[str, Any]]:
    """Each document's own bits per byte; None where nothing of it was scored."""
    with numpy.errstate(divide="ignore", invalid="ignore"):
        bits = sums[:, 0] / numpy.log(2) / sums[:, 2]
    return [{"prediction": float(b) if numpy.isfinite(b) else None} for b in bits]


# --- writing ---------------------------------------------------------------------------------


def opening(row: Any, found: str) -> Any:
    """What is given of a test document for the model to go on with: a text, or messages."""
    if found == "prompt":
        return row["prompt"]
    if found == "messages":
        messages = json.loads(row["messages"])
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        return messages[: turns[0]] or row["messages"]
    return " ".join(row["text"].split()[:GIVEN_WORDS])


def inputs(given: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """A text or messages -> ``input_ids`` and ``attention_mask`` (1, T) to go on from."""
    if isinstance(given, str):
        encoded: Any = tokenizer(given, return_tensors="pt")
    else:
        encoded = tokenizer.apply_chat_template(
            given, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    made = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    if made["input_ids"].shape[1] > 1 and made["input_ids"][0, -1] == tokenizer.eos_token_id:
        return {name: value[:, :-1] for name, value in made.items()}
    return made


@torch.no_grad()
def write(
    model: Any,
    tokenizer: Any,
    given: Any,
    seed: int,
    most: int,
    do_sample: bool = True,
    **options: Any,
) -> str:
    """What the model goes on with, sampled with a seed of its own, without special tokens.

    Args:
        most: tokens to write, or fewer where the model's positions end.

    Raises:
        UserError: what is given fills all positions.
    """
    encoded = {name: value.to(model.device) for name, value in inputs(given, tokenizer).items()}
    count = encoded["input_ids"].shape[1]
    room = positions.most_tokens(model.config) - count
    if room < 1:
        raise UserError(f"{count} tokens are given, as many as the model can see; give fewer")
    training = model.training
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        out = model.generate(
            **encoded, do_sample=do_sample, max_new_tokens=min(most, room), **options
        )
    model.train(training)
    return tokenizer.decode(out[0, count:], skip_special_tokens=True)


def samples(
    model: Any, tokenizer: PreTrainedTokenizerBase, test: pandas.DataFrame
) -> dict[str, str]:
    """By the opening of some test documents, what the model goes on with."""
    found = documents.kind(test)
    out = {}
    for seed, i in enumerate(numpy.linspace(0, len(test) - 1, SAMPLES).astype(int)):
        given = opening(test.iloc[i], found)
        shown = given if isinstance(given, str) else given[-1]["content"]
        out[shown] = write(model, tokenizer, given, seed, WRITTEN)
    return out
