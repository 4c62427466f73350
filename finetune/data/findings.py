"""Describes in words what the checks of the data found.

Imports nothing heavy, because reports are shown without loading the data again.
"""

from typing import Any

COUNTS = {
    "rejected": "rows rejected",
    "duplicates_in_train": "duplicate training rows",
    "contradictions_in_train": "texts with two labels in train",
    "test_texts_in_train": "test rows that are also in train",
    "validation_texts_in_train": "validation rows that are also in train",
    "test_texts_in_validation": "test rows that are also in validation",
    "corrections": "corrections joined to train",
    "corrections_superseded": "corrections that later ones replace",
    "corrections_repeating_train": "training rows repeated by corrections",
    "corrections_contradicting_train": "training rows contradicted and replaced by corrections",
    "corrections_of_validation_rows": "corrections of validation rows rejected",
    "corrections_of_test_rows": "corrections of test rows rejected",
}


def describe(report: dict[str, Any]) -> list[str]:
    """Returns a phrase for each finding that is not zero.

    Args:
        report: the keys of ``splits.Chosen.report``, and where a task adds them ``blocks`` (with
            ``tokens``, ``share_padding``, ``share_cut``), ``new_head`` and ``share_truncated``.
    """
    found = [f"{report[key]:,} {words}" for key, words in COUNTS.items() if report.get(key)]
    found += [f"{name}: {count:,} x" for name, count in report["fixed"].items() if count]
    found += report.get("notes", [])
    if "blocks" in report:
        found.append(
            f"{report['tokens']:,} tokens in {report['blocks']:,} blocks, "
            f"{_percent(report['share_padding'])} padding"
        )
        found.append(f"{_percent(report['share_cut'])} of documents cut")
    if report.get("unlearned"):
        counts = report["unlearned"]
        named = ", ".join(
            f"{counts[s]:,} {s}" for s in ("train", "validation", "test") if s in counts
        )
        share = _percent(report.get("share_unlearned", 0.0))
        found.append(
            f"nothing to learn within max_length in {named} documents ({share} of training)"
        )
    if report.get("chat_date"):
        found.append(f"the chat template prints the date {report['chat_date']}")
    if report.get("new_head"):
        found.append("the checkpoint has no head for masks, so its predictions start at random")
    if report.get("share_truncated"):
        found.append(f"{_percent(report['share_truncated'])} of training texts truncated")
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
