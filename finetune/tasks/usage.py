"""Python code that loads a run's model into ``pipeline()``, for its model card."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune.recipe.methods import PLAIN_METHODS

# Hub id and license of the checkpoints that come in packages.
EMBEDDED = {
    "embedded:minilm": ("sentence-transformers/all-MiniLM-L6-v2", "apache-2.0"),
    "embedded:smollm2": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
}


@dataclass(frozen=True)
class Example:
    """A call of a pipeline: the name it gets, its arguments as code, sentences that follow it."""

    name: str
    arguments: list[str]
    notes: list[str] = field(default_factory=list)


def is_adapter(results: dict[str, Any]) -> bool:
    """Returns whether a run saved an adapter rather than a whole model."""
    return results["method"] not in PLAIN_METHODS


def base_id(results: dict[str, Any]) -> str | None:
    """Returns the hub id of the checkpoint, or None where it came from a folder."""
    checkpoint = results["checkpoint"]
    known = EMBEDDED.get(checkpoint["name"])
    if known:
        return known[0]
    # Only a checkpoint of the hub has a commit there.
    return checkpoint["name"] if checkpoint["revision"] else None


def quoted(text: str) -> str:
    """Returns a text as a Python literal in double quotes."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def markdown(
    task: str,
    auto_model: str,
    auto_processor: str,
    example: Example,
    results: dict[str, Any],
    folder: str,
) -> str:
    """Returns the model card's section on how to use the model.

    Args:
        task: the name of the pipeline.
        auto_model, auto_processor: names of transformers' classes.
        folder: the model folder, as the code names it.
    """
    if is_adapter(results):
        argument = "image_processor" if "Image" in auto_processor else "tokenizer"
        code = load_adapter(auto_model, auto_processor, results, folder, ["pipeline"])
        code += f'{example.name} = pipeline("{task}", model=model, {argument}=processor)\n'
    else:
        code = (
            "from transformers import pipeline\n\n"
            f"{example.name} = pipeline({quoted(task)}, model={quoted(folder)})\n"
        )
    code += f"print({example.name}({', '.join(example.arguments)}))"
    return section(code, results, example.notes)


def section(code: str, results: dict[str, Any], notes: list[str]) -> str:
    """Returns code with what there is to know about the folder that it names, as Markdown."""
    about = ["The folder may also be the hub id that it was pushed to."]
    if is_adapter(results):
        about.append(f"The base's weights have the sha256 `{results['checkpoint']['sha256']}`.")
    return f"```python\n{code}\n```\n\n{' '.join(about + notes)}"


def load(auto_model: str, auto_processor: str, results: dict[str, Any], folder: str) -> str:
    """Returns code that loads a run's ``model`` and ``processor``, an adapter with its base."""
    if is_adapter(results):
        return load_adapter(auto_model, auto_processor, results, folder)
    return (
        f"from transformers import {auto_model}, {auto_processor}\n\n"
        f"folder = {quoted(folder)}\n"
        f"model = {auto_model}.from_pretrained(folder)\n"
        f"processor = {auto_processor}.from_pretrained(folder)\n"
    )


def generating(given: str, results: dict[str, Any], folder: str) -> str:
    """Returns the section for an encoder-decoder, which has no pipeline in transformers 5.

    Args:
        given: a source, as code.
    """
    code = load("AutoModelForSeq2SeqLM", "AutoTokenizer", results, folder)
    code += (
        f'inputs = processor({given}, return_tensors="pt", return_token_type_ids=False)\n'
        "written = model.eval().generate(**inputs)\n"
        "print(processor.decode(written[0], skip_special_tokens=True))"
    )
    return section(code, results, [])


def searching(loader: str, example: str, results: dict[str, Any], folder: str) -> str:
    """Returns the section for a folder of sentence-transformers.

    Args:
        loader: the name of its class.
        example: code that uses ``model``.
    """
    notes = []
    if is_adapter(results):
        notes = [
            "An adapter becomes such a folder when it is merged: `finetune merge "
            f"{folder.removesuffix('/model')} --output {folder}-merged`."
        ]
        folder = f"{folder}-merged"
    code = f"from sentence_transformers import {loader}\n\nmodel = {loader}({quoted(folder)})\n"
    return section(code + example, results, notes)


def load_adapter(
    auto_model: str,
    auto_processor: str,
    results: dict[str, Any],
    folder: str,
    also: Sequence[str] = (),
) -> str:
    """Returns code that loads an adapter's ``model``, on its base, and ``processor``.

    Args:
        also: further names to import from transformers.
    """
    base = base_id(results) or results["checkpoint"]["name"]
    revision = results["checkpoint"]["revision"]
    at = f", revision={quoted(revision)}" if revision else ""
    # This import registers the one method that is not peft's own.
    imports = "import finetune.models.bottleneck\n" if results["method"] == "bottleneck" else ""
    names, stops = ["AutoConfig", auto_model, auto_processor], ""
    if "CausalLM" in auto_model or "Seq2SeqLM" in auto_model:
        # What ends an answer here need not be what ends one of the base.
        names.append("GenerationConfig")
        stops = "base.generation_config = GenerationConfig.from_pretrained(folder)\n"
    source, options = f"{quoted(base)}{at}", "config=config, ignore_mismatched_sizes=True"
    found, smaller, larger = "", "", ""
    if added := results["checkpoint"].get("added_tokens"):
        smaller = f"config.vocab_size -= {added}\n"
        larger = f"base.resize_token_embeddings(config.vocab_size + {added})\n"
    if results["checkpoint"].get("gguf"):
        # The hub's full weights are not quite those that the adapter was trained on.
        imports += "from finetune.data import sources\n"
        source, options = "checkpoint.folder", "config=config, **checkpoint.options"
        found = f"checkpoint = sources.checkpoint({quoted(results['checkpoint']['name'])})\n"
    return (
        f"{imports}from peft import PeftModel\n"
        "from transformers import (\n"
        + "".join(f"    {each},\n" for each in [*sorted(names), *also])
        + ")\n\n"
        f"folder = {quoted(folder)}\n"
        "config = AutoConfig.from_pretrained(folder)\n"
        f"{smaller}{found}base = {auto_model}.from_pretrained(\n"
        f"    {source}, {options}\n"
        f")\n{larger}"
        f"{stops}"
        "model = PeftModel.from_pretrained(base, folder)\n"
        f"processor = {auto_processor}.from_pretrained(folder)\n"
    )


def answering(max_length: int, stride: int, longest: int, threshold: float | None) -> str:
    """Returns code that answers a question by ``model`` and ``processor``.

    Args:
        max_length, stride: of the windows of a context.
        longest: tokens that an answer has at most.
        threshold: for no answer, as ``evaluation.squad.decide`` takes it.
    """
    none = ""
    if threshold is not None:
        none = (
            "    null = (out.start_logits[:, 0] + out.end_logits[:, 0]).min()\n"
            f"    if null - sums.max() > {threshold!r}:\n"
            '        return ""  # no answer\n'
        )
    return f"""
import torch

model.eval()


def answer(question, context):
    windows = processor(
        question,
        context,
        truncation="only_second",
        max_length={max_length},
        stride={stride},
        padding=True,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_tensors="pt",
    )
    places = windows.pop("offset_mapping")
    windows.pop("overflow_to_sample_mapping")
    with torch.no_grad():
        out = model(**windows)
    sums = out.start_logits[:, :, None] + out.end_logits[:, None]
    inside = torch.tensor([[i == 1 for i in windows.sequence_ids(w)] for w in range(len(places))])
    possible = torch.ones(sums.shape[1:], dtype=torch.bool).triu().tril({longest - 1})
    possible = possible & inside[:, :, None] & inside[:, None]
    sums = sums.masked_fill(~possible, -torch.inf)
{none}    window, first, last = torch.unravel_index(sums.argmax(), sums.shape)
    return context[places[window, first, 0] : places[window, last, 1]].strip()


print(answer("Who was it?", "It was Ada Lovelace."))"""
