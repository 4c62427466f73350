"""One table of all metrics: title, unit, direction and name on the hub.

Training chooses the best checkpoint by it; tables, pages and model cards format numbers by it.
Imports no numerical library, so that the report and ``finetune recipes`` start fast.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from finetune.errors import UserError, refuse_unknown
from finetune.recipe import Recipe


@dataclass(frozen=True)
class MetricSpec:
    """What has to be known about a metric to rank by it and to show it.

    Attributes:
        title: the name in tables and figures.
        is_share: whether it is a share, shown in percent; any other metric is shown as it is.
        greater_is_better: the direction; None where it is unknown (metrics of the hub).
        hub_name: the name in a model card's metadata, where it differs from the key.
        can_be_undefined: whether predictions exist for which it has no value, such as constant ones
            for a correlation. It is then left out.
    """

    title: str
    is_share: bool = False
    greater_is_better: bool | None = True
    hub_name: str = ""
    can_be_undefined: bool = False


def _share(title: str, greater_is_better: bool = True, hub_name: str = "") -> MetricSpec:
    return MetricSpec(title, True, greater_is_better, hub_name)


def _loss(title: str, hub_name: str = "") -> MetricSpec:
    return MetricSpec(title, greater_is_better=False, hub_name=hub_name)


# A task that is registered from outside adds its own metrics: METRICS["name"] = MetricSpec(...).
METRICS: dict[str, MetricSpec] = {
    "loss": _loss("loss"),
    # single-label and multi-label classification
    "accuracy": _share("accuracy"),
    "macro_f1": _share("macro F1", hub_name="f1"),
    "micro_f1": _share("micro F1", hub_name="f1"),
    "exact_match": _share("exact match"),
    "log_loss": _loss("log loss"),
    "brier": _loss("Brier score"),
    "calibration_error": _loss("calibration error"),
    # regression
    "r2": MetricSpec("R²", hub_name="r_squared"),
    "rmse": _loss("RMSE"),
    "mae": _loss("MAE"),
    "pearson": MetricSpec("Pearson r", can_be_undefined=True),
    "spearman": MetricSpec("Spearman rho", can_be_undefined=True),
    # token classification
    "entity_f1": _share("entity F1", hub_name="f1"),
    "entity_precision": _share("entity precision", hub_name="precision"),
    "entity_recall": _share("entity recall", hub_name="recall"),
    "token_accuracy": _share("token accuracy", hub_name="accuracy"),
    # question answering
    "answer_f1": _share("answer F1", hub_name="f1"),
    "has_answer_f1": MetricSpec("F1 where there is an answer", True, can_be_undefined=True),
    "no_answer_accuracy": MetricSpec("accuracy where there is none", True, can_be_undefined=True),
    # generated texts
    "chrf": MetricSpec("chrF"),
    "bleu": MetricSpec("BLEU"),
    "rouge1": _share("ROUGE-1"),
    "rouge2": _share("ROUGE-2"),
    "rougel": _share("ROUGE-L", hub_name="rougeL"),
    "token_error_rate": _share("token error rate", greater_is_better=False),
    # rankings
    "ndcg_at_10": _share("NDCG@10"),
    "mrr_at_10": _share("MRR@10"),
    "recall_at_1": _share("recall@1"),
    "recall_at_10": _share("recall@10"),
    "recall_at_100": _share("recall@100"),
    # pretraining
    "bits_per_byte": _loss("bits per byte"),
    "perplexity": _loss("perplexity"),
    "masked_accuracy": _share("accuracy on hidden tokens"),
    "explained_variance": _share("explained variance"),
    # per class
    "precision": _share("precision"),
    "recall": _share("recall"),
    "f1": _share("F1"),
    "average_precision": _share("average precision"),
    # measured only where the recipe's key `metrics` names them; see extra_metrics
    "matthews_correlation": MetricSpec("Matthews correlation"),
    "balanced_accuracy": _share("balanced accuracy"),
    "cohen_kappa": MetricSpec("Cohen's kappa", can_be_undefined=True),
    "macro_precision": _share("macro precision", hub_name="precision"),
    "macro_recall": _share("macro recall", hub_name="recall"),
    "weighted_f1": _share("weighted F1", hub_name="f1"),
    "hamming_loss": _share("Hamming loss", greater_is_better=False),
    "mse": _loss("MSE"),
    "max_error": _loss("maximum error"),
}

# What is always measured, by problem type or task. The first is the headline: the best checkpoint
# is chosen by it unless the recipe names another, and tables show it first.
MEASURED: dict[str, tuple[str, ...]] = {
    "single_label_classification": (
        *("accuracy", "macro_f1", "log_loss", "brier", "calibration_error"),
    ),
    "multi_label_classification": ("macro_f1", "micro_f1", "exact_match", "log_loss"),
    "regression": ("r2", "rmse", "mae", "pearson", "spearman"),
    "token-classification": (
        *("entity_f1", "entity_precision", "entity_recall", "token_accuracy"),
    ),
    "question-answering": ("answer_f1", "exact_match", "has_answer_f1", "no_answer_accuracy"),
    "embedding": ("ndcg_at_10", "mrr_at_10", "recall_at_1", "recall_at_10", "recall_at_100"),
    "sentence-similarity": ("spearman", "pearson"),
    "reranking": ("ndcg_at_10", "mrr_at_10", "recall_at_1", "recall_at_10", "recall_at_100"),
    "text-generation": ("bits_per_byte", "perplexity"),
    "fill-mask": ("masked_accuracy", "log_loss"),
    "masked-image-modeling": ("explained_variance",),
    "text2text-generation": (
        *("chrf", "bleu", "rouge1", "rouge2", "rougel", "token_error_rate", "exact_match"),
    ),
}
HEADLINE = {kind: names[0] for kind, names in MEASURED.items()}


def spec(name: str) -> MetricSpec:
    """Returns a metric's entry; for one that is not in the table (a user's own), the defaults."""
    return METRICS.get(name) or MetricSpec(name.replace("_", " "))


def hub_name(name: str) -> str:
    """Returns the name of a metric in a model card's metadata."""
    return spec(name).hub_name or name


def chosen_by(name: str, headline: str, extra: Mapping[str, MetricSpec], where: str) -> MetricSpec:
    """Returns the entry of the metric that chooses the best checkpoint.

    Args:
        name: ``metric_for_best_model``, with or without the Trainer's prefix ``eval_``.
        headline: the task's headline, which tells what else the task measures.
        extra: metrics that the recipe names.
        where: the place of the setting, for messages.

    Raises:
        UserError: no such metric is measured.
    """
    # It is the first of them, unless the recipe or rare classes chose another.
    beside = [other for names in MEASURED.values() if headline in names for other in names]
    measured = list(dict.fromkeys(["loss", *(beside or METRICS), *extra]))
    bare = name.removeprefix("eval_")
    if bare not in measured:
        refuse_unknown(bare, measured, f"{where}: metric_for_best_model")
    return extra.get(bare) or METRICS[bare]


def refuse_extra(recipe: Recipe, task: str) -> None:
    """Checks that a recipe names no further metrics, for a task that takes none.

    Raises:
        UserError: it names some.
    """
    if recipe.metrics:
        raise UserError(f"{recipe.where('metrics')}: {task} takes no further metrics; leave it out")
