"""The model card: README.md of the model folder, as the Hugging Face hub reads it."""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from finetune.evaluation import metrics
from finetune.recipe import Model, Recipe
from finetune.report import wording

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
# Hub id and license of the checkpoints that come in packages.
EMBEDDED = {
    "embedded:minilm": (MINILM, "apache-2.0"),
    "embedded:smollm2": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
}
# Methods whose model folder is a whole model; any other leaves an adapter.
WHOLE = {"full", "head", "bitfit"}
AUTO_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
    "text-generation": "AutoModelForCausalLM",
}
# The hub's name of a task, where it is not ours.
PIPELINES = {"masked-image-modeling": "image-feature-extraction"}


def render(recipe: Recipe, results: dict[str, Any]) -> str:
    """The card as Markdown with YAML front matter.

    Args:
        recipe: as resolved by the run; its ``training.output_dir`` names the folder in the code.
        results: the run's results.json.
    """
    sections = [
        f"---\n{_front_matter(results)}\n---\n",
        f"# {_name(results)}\n\n{_opening(results)}",
        f"## Use\n\n{_usage(recipe, results)}",
        *([f"## Labels\n\n{_labels(results)}"] if results["data"]["label_names"] else []),
        f"## Results\n\n{_results(results)}",
        f"## Data\n\n{_data(results)}",
        f"## Limits\n\n{_limits(recipe, results)}",
        f"## Cost\n\n{_cost(results)}",
    ]
    return "\n\n".join(section.rstrip() for section in sections) + "\n"


def _name(results: dict[str, Any]) -> str:
    return results["name"].replace("/", "-")


def _base(results: dict[str, Any]) -> str | None:
    """The hub id of the checkpoint, or None where it came from a folder."""
    checkpoint = results["checkpoint"]
    known = EMBEDDED.get(checkpoint["name"])
    if known:
        return known[0]
    # Only a checkpoint of the hub has a commit there.
    return checkpoint["name"] if checkpoint["revision"] else None


def _is_adapter(results: dict[str, Any]) -> bool:
    return results["method"] not in WHOLE


def _front_matter(results: dict[str, Any]) -> str:
    headline: str = results["headline"]
    data = results["data"]
    known = EMBEDDED.get(results["checkpoint"]["name"])
    metric = metrics.hub_name(headline)
    measured = EvalResult(
        task_type=results["task"],
        dataset_type=data["source"],
        dataset_name=f"{data['source']} ({wording.split(data['test_is'])})",
        dataset_revision=data["revision"],
        metric_type=metric,
        metric_name=wording.title(headline),
        metric_value=results["metrics"][headline]["value"],
    )
    front = ModelCardData(
        base_model=_base(results),
        datasets=data["source"] if data["revision"] else None,
        license=known[1] if known else None,
        library_name="peft" if _is_adapter(results) else "transformers",
        pipeline_tag=PIPELINES.get(results["task"], results["task"]),
        tags=["finetune", results["method"]],
        metrics=[metric],
        model_name=_name(results),
        eval_results=[measured],
    )
    return front.to_yaml()


def _opening(results: dict[str, Any]) -> str:
    headline = results["headline"]
    return (
        f"`{results['checkpoint']['name']}`, {wording.method(results['method'])} on "
        f"`{results['data']['source']}`: {wording.title(headline)} "
        f"{wording.measured(headline, results['metrics'][headline])} on "
        f"{wording.rows(results['data']['test'])} test rows "
        f"({wording.split(results['data']['test_is'])}). {wording.standing(results)}"
    )


# --- use -------------------------------------------------------------------------------------


def _usage(recipe: Recipe, results: dict[str, Any]) -> str:
    where = f"{recipe.training['output_dir']}/model" if "output_dir" in recipe.training else "."
    if results["task"] == "masked-image-modeling":
        return _start_from(where)
    task = results["task"]
    code = _load_adapter(where, results) if _is_adapter(results) else _load_whole(where, task)
    if task == "image-classification":
        text, options = '"image.png"', []
    elif task == "text-generation":
        text, options = _prompt(results), ["max_new_tokens=60"]
    elif task == "fill-mask":
        text, options = 'f"A {fill.tokenizer.mask_token} film."', []
    else:
        pair = '{"text": "One text.", "text_pair": "Another."}'
        text, options = pair if recipe.data.text_pair else '"A text."', ["truncation=True"]
    if recipe.data.problem_type == "multi_label_classification":
        options.append("top_k=None")
    if recipe.data.problem_type == "regression":
        options.append('function_to_apply="none"')
    code += f"print({_verb(task)}({', '.join([text, *options])}))"
    after = "The folder may also be the hub id that it was pushed to."
    if _is_adapter(results):
        after += f" The base's weights have the sha256 `{results['checkpoint']['sha256']}`."
    if recipe.data.problem_type == "multi_label_classification":
        after += " A label counts as given when its score is above 0.5."
    if recipe.data.problem_type == "regression":
        after += " The score is the predicted number."
    return f"```python\n{code}\n```\n\n{after}"


def _verb(task: str) -> str:
    """What the pipeline is called in the code."""
    return {"text-generation": "write", "fill-mask": "fill"}.get(task, "classify")


def _prompt(results: dict[str, Any]) -> str:
    if results["data"]["documents"] == "messages":
        return '[{"role": "user", "content": "A question?"}]'
    return '"This film"'


def _start_from(where: str) -> str:
    return (
        "A classifier starts from it with `checkpoint:` in a recipe, or in transformers:\n\n"
        "```python\nfrom transformers import ViTForImageClassification\n\n"
        f"model = ViTForImageClassification.from_pretrained({_quoted(where)}, num_labels=10)\n```"
    )


def _load_whole(where: str, task: str) -> str:
    return (
        "from transformers import pipeline\n\n"
        f"{_verb(task)} = pipeline({_quoted(task)}, model={_quoted(where)})\n"
    )


def _load_adapter(where: str, results: dict[str, Any]) -> str:
    base = _base(results) or results["checkpoint"]["name"]
    revision = results["checkpoint"]["revision"]
    at = f", revision={_quoted(revision)}" if revision else ""
    # peft learns of the one method that is not its own by this import.
    ours = "import finetune.models.bottleneck\n" if results["method"] == "bottleneck" else ""
    images = results["task"] == "image-classification"
    auto = AUTO_CLASSES[results["task"]]
    processor = "AutoImageProcessor" if images else "AutoTokenizer"
    argument = "image_processor" if images else "tokenizer"
    names = sorted(["AutoConfig", auto, processor])
    source, options = f"{_quoted(base)}{at}", "config=config, ignore_mismatched_sizes=True"
    if results["checkpoint"].get("gguf"):
        # Full weights of the hub are not quite those that the adapter was trained on.
        ours += "from finetune import sources\n"
        source, options = "checkpoint.folder", "config=config, **checkpoint.options"
        found = f"checkpoint = sources.checkpoint({_quoted(results['checkpoint']['name'])})\n"
    else:
        found = ""
    return (
        f"{ours}from peft import PeftModel\n"
        "from transformers import (\n"
        + "".join(f"    {name},\n" for name in [*names, "pipeline"])
        + ")\n\n"
        f"folder = {_quoted(where)}\n"
        "config = AutoConfig.from_pretrained(folder)\n"
        f"{found}base = {auto}.from_pretrained(\n"
        f"    {source}, {options}\n"
        ")\n"
        "model = PeftModel.from_pretrained(base, folder)\n"
        f"processor = {processor}.from_pretrained(folder)\n"
        f'{_verb(results["task"])} = pipeline("{results["task"]}", model=model, '
        f"{argument}=processor)\n"
    )


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# --- numbers ---------------------------------------------------------------------------------


def _cell(text: object) -> str:
    return wording.plain(text).replace("|", "\\|").replace("<", "&lt;")


def _labels(results: dict[str, Any]) -> str:
    names = results["data"]["label_names"]
    return "\n".join(f"{i}. {_cell(name)}" for i, name in enumerate(names))


def _results(results: dict[str, Any]) -> str:
    headline = results["headline"]
    lines = [f"| | {wording.title(headline)} | the model is |", "|---|---|---|"]
    model = results["metrics"][headline]
    lines.append(f"| **this model** | **{wording.measured(headline, model)}** | |")
    for name, scores in results["baselines"].items():
        beside = scores[headline]
        said = wording.apart(headline, scores)
        lines.append(f"| {_cell(name)} | {wording.measured(headline, beside)} | {said} |")
    header, *rows = wording.also_measured(results)
    lines += ["", *(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))]
    lines += ["", "Brackets hold 95 % intervals over the test rows, for one training seed."]
    if wording.views(results["data"]):
        lines += ["", wording.views(results["data"])]
    published = wording.reference(results)
    if published:
        lines += ["", f"For comparison: {'; '.join(published.lines)}."]
    return "\n".join(lines)


def _data(results: dict[str, Any]) -> str:
    data = results["data"]
    commit = f" at `{data['revision']}`" if data["revision"] else ""
    lines = [
        f"- source: `{data['source']}`{commit}",
        f"- rows: {wording.counts(data)}; fingerprint `{data['fingerprint']}`",
        f"- test rows: {wording.split(data['test_is'])}",
    ]
    found = wording.findings(data)
    if found:
        lines.append(f"- found: {', '.join(found)}")
    return "\n".join(lines)


def _limits(recipe: Recipe, results: dict[str, Any]) -> str:
    data, model = results["data"], recipe.model
    said = [
        f"Trained on {wording.rows(data['train'])} rows of `{data['source']}`, so its language, "
        "domain and label habits are those of that data; nothing was measured on any other."
    ]
    if data["test_is"] == "holdout":
        said.append(
            f"The test rows are a {wording.split('holdout')}: the numbers cannot stand beside "
            "those published for it."
        )
    if recipe.data.max_test_samples == data["test"]:
        said.append(f"Only {wording.rows(data['test'])} test rows were used (`max_test_samples`).")
    if results["task"] == "text-classification":
        said.append(_cutting(model))
    if results["checkpoint"].get("gguf"):
        said.append(
            f"It started from a GGUF file, `{results['checkpoint']['gguf']}`, whose weights were "
            "rounded to few bits and turned back into full precision (dequantised) for training: "
            "what the rounding took is not restored."
        )
    if results["data"].get("new_head"):
        said.append(
            f"`{results['checkpoint']['name']}` brings no head for hidden tokens: it was learned "
            "here, from random weights."
        )
    if model.quantization:
        said.append(
            f"The base was held in {model.quantization} while the adapter was trained; the code "
            "above loads it in full precision and may score a little otherwise. `finetune predict` "
            "holds it as training did."
        )
    said.append("One seed was trained: another may land elsewhere, beyond the intervals above.")
    said.append("No check for bias or for harmful use was made.")
    return " ".join(said)


def _cutting(model: Model) -> str:
    cut = f"Texts above {model.max_length} tokens were cut. "
    if model.truncation == "head":
        return cut + "The pipeline cuts them the same way with `truncation=True`."
    return cut + (
        f"Training and test kept their {model.truncation}; the pipeline with `truncation=True` "
        "keeps the head only, so long texts may score otherwise there. `finetune predict` cuts as "
        "training did."
    )


def _cost(results: dict[str, Any]) -> str:
    cost = results["cost"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"{wording.duration(cost['train_seconds'])} of training on {results['device']}, "
        f"{wording.size(cost['peak_memory_bytes'])} peak memory; trained "
        f"{wording.trained(cost)}; {wording.size(cost['model_bytes'])} on disk.\n\n"
        f"Made by:\n\n```\n{results['command']}\n```\n\nwith {versions}."
    )
