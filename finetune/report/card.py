"""The model card: README.md of the model folder, as the Hugging Face hub reads it."""

from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from finetune import tasks
from finetune.evaluation import metrics
from finetune.recipe import Recipe
from finetune.report import decided, exports, wording
from finetune.tasks.usage import EMBEDDED, base_id, is_adapter


def render(
    recipe: Recipe,
    results: dict[str, Any],
    exported: Sequence[dict[str, Any]] = (),
    seeds: dict[str, Any] | None = None,
) -> str:
    """The card as Markdown with YAML front matter.

    Args:
        recipe: as resolved by the run; its ``training.output_dir`` names the folder in the code.
        results: the run's results.json.
        exported: export.json of the run's exports.
        seeds: seeds.json, if the run is one of several seeds.
    """
    sections = [
        f"---\n{_front_matter(results)}\n---\n",
        f"# {_name(results)}\n\n{_opening(results)}",
        f"## Use\n\n{_usage(recipe, results)}",
        *([f"## Labels\n\n{_labels(results)}"] if results["data"]["label_names"] else []),
        f"## Results\n\n{_results(results, seeds)}",
        *([f"## Exports\n\n{exports.table(exported)}\n\n{exports.NOTE}"] if exported else []),
        f"## Data\n\n{_data(results)}",
        f"## Limits\n\n{_limits(recipe, results, seeds)}",
        f"## Cost\n\n{_cost(results)}",
    ]
    return "\n\n".join(section.rstrip() for section in sections) + "\n"


def _name(results: dict[str, Any]) -> str:
    return results["name"].replace("/", "-")


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
        base_model=base_id(results),
        datasets=data["source"] if data["revision"] else None,
        license=known[1] if known else None,
        library_name="peft" if is_adapter(results) else "transformers",
        pipeline_tag=tasks.find(results["task"]).hub_tag or results["task"],
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


def _usage(recipe: Recipe, results: dict[str, Any]) -> str:
    inside = "output_dir" in recipe.training
    folder = f"{recipe.training['output_dir']}/model" if inside else "."
    return tasks.find(results["task"]).usage(recipe, results, folder)


# --- numbers ---------------------------------------------------------------------------------


def _cell(text: object) -> str:
    return wording.plain(text).replace("|", "\\|").replace("<", "&lt;")


def _labels(results: dict[str, Any]) -> str:
    names = results["data"]["label_names"]
    return "\n".join(f"{i}. {_cell(name)}" for i, name in enumerate(names))


def _results(results: dict[str, Any], seeds: dict[str, Any] | None) -> str:
    headline = results["headline"]
    lines = [f"| | {wording.title(headline)} | the model is |", "|---|---|---|"]
    model = results["metrics"][headline]
    lines.append(f"| **this model** | **{wording.measured(headline, model)}** | |")
    for name, scores in results["baselines"].items():
        beside = scores[headline]
        verdict = wording.apart(headline, scores)
        lines.append(f"| {_cell(name)} | {wording.measured(headline, beside)} | {verdict} |")
    header, *rows = wording.also_measured(results)
    lines += ["", *(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))]
    lines += ["", "Brackets hold 95 % intervals over the test rows, for one training seed."]
    if seeds:
        lines += [
            "",
            f"{wording.over_seeds(seeds)} This is seed {results['seed']}. {wording.kept(seeds)}",
        ]
    if wording.views(results["data"]):
        lines += ["", wording.views(results["data"])]
    for line in decided.lines(results):
        lines += ["", line]
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


def _limits(recipe: Recipe, results: dict[str, Any], seeds: dict[str, Any] | None) -> str:
    data, model = results["data"], recipe.model
    limits = [
        f"Trained on {wording.rows(data['train'])} rows of `{data['source']}`, so its language, "
        "domain and label habits are those of that data; nothing was measured on any other."
    ]
    if data["test_is"] == "holdout":
        limits.append(
            f"The test rows are a {wording.split('holdout')}: the numbers cannot stand beside "
            "those published for it."
        )
    if recipe.data.max_test_samples == data["test"]:
        limits.append(
            f"Only {wording.rows(data['test'])} test rows were used (`max_test_samples`)."
        )
    limits += tasks.find(results["task"]).limits(recipe, results)
    if results["checkpoint"].get("gguf"):
        limits.append(
            f"It started from a GGUF file, `{results['checkpoint']['gguf']}`, whose weights were "
            "rounded to few bits and turned back into full precision (dequantised) for training: "
            "what the rounding took is not restored."
        )
    if model.quantization:
        limits.append(
            f"The base was held in {model.quantization} while the adapter was trained; the code "
            "above loads it in full precision and may score a little otherwise. `finetune predict` "
            "holds it as training did."
        )
    if seeds is None:
        limits.append(
            "One seed was trained: another may land elsewhere, beyond the intervals above."
        )
    limits.append("No check for bias or for harmful use was made.")
    return " ".join(limits)


def _cost(results: dict[str, Any]) -> str:
    cost = results["cost"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"{wording.duration(cost['train_seconds'])} of training on {results['device']}, "
        f"{wording.size(cost['peak_memory_bytes'])} peak memory; trained "
        f"{wording.trained(cost)}; {wording.size(cost['model_bytes'])} on disk.\n\n"
        f"Made by:\n\n```\n{results['command']}\n```\n\nwith {versions}."
    )
