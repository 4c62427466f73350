"""Python code that loads a run's model into ``pipeline()``, for its model card."""

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
    notes = ["The folder may also be the hub id that it was pushed to."]
    if is_adapter(results):
        code = _load_adapter(task, auto_model, auto_processor, example.name, results, folder)
        notes.append(f"The base's weights have the sha256 `{results['checkpoint']['sha256']}`.")
    else:
        code = (
            "from transformers import pipeline\n\n"
            f"{example.name} = pipeline({quoted(task)}, model={quoted(folder)})\n"
        )
    code += f"print({example.name}({', '.join(example.arguments)}))"
    return f"```python\n{code}\n```\n\n{' '.join(notes + example.notes)}"


def generating(given: str, results: dict[str, Any], folder: str) -> str:
    """Returns the section for an encoder-decoder, which has no pipeline in transformers 5.

    Args:
        given: a source, as code.
    """
    classes, load = ["AutoModelForSeq2SeqLM", "AutoTokenizer"], ""
    notes = ["The folder may also be the hub id that it was pushed to."]
    if is_adapter(results):
        imports = "from peft import PeftModel\n"
        if results["method"] == "bottleneck":
            # This import registers the one method that is not peft's own.
            imports = f"import finetune.models.bottleneck\n{imports}"
        classes.append("GenerationConfig")
        base = quoted(base_id(results) or results["checkpoint"]["name"])
        load = (
            f"base = AutoModelForSeq2SeqLM.from_pretrained({base})\n"
            "base.generation_config = GenerationConfig.from_pretrained(folder)\n"
            "model = PeftModel.from_pretrained(base, folder)\n"
        )
        notes.append(f"The base's weights have the sha256 `{results['checkpoint']['sha256']}`.")
    else:
        imports, load = "", "model = AutoModelForSeq2SeqLM.from_pretrained(folder)\n"
    code = (
        f"{imports}from transformers import {', '.join(sorted(classes))}\n\n"
        f"folder = {quoted(folder)}\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        f"{load}"
        f'inputs = tokenizer({given}, return_tensors="pt", return_token_type_ids=False)\n'
        "written = model.eval().generate(**inputs)\n"
        "print(tokenizer.decode(written[0], skip_special_tokens=True))"
    )
    return f"```python\n{code}\n```\n\n{' '.join(notes)}"


def _load_adapter(
    task: str,
    auto_model: str,
    auto_processor: str,
    name: str,
    results: dict[str, Any],
    folder: str,
) -> str:
    base = base_id(results) or results["checkpoint"]["name"]
    revision = results["checkpoint"]["revision"]
    at = f", revision={quoted(revision)}" if revision else ""
    # This import registers the one method that is not peft's own.
    imports = "import finetune.models.bottleneck\n" if results["method"] == "bottleneck" else ""
    argument = "image_processor" if "Image" in auto_processor else "tokenizer"
    names, stops = ["AutoConfig", auto_model, auto_processor], ""
    if "CausalLM" in auto_model:
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
        + "".join(f"    {each},\n" for each in [*sorted(names), "pipeline"])
        + ")\n\n"
        f"folder = {quoted(folder)}\n"
        "config = AutoConfig.from_pretrained(folder)\n"
        f"{smaller}{found}base = {auto_model}.from_pretrained(\n"
        f"    {source}, {options}\n"
        f")\n{larger}"
        f"{stops}"
        "model = PeftModel.from_pretrained(base, folder)\n"
        f"processor = {auto_processor}.from_pretrained(folder)\n"
        f'{name} = pipeline("{task}", model=model, {argument}=processor)\n'
    )
