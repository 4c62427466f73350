"""Sources with their targets, for encoder-decoders."""

from typing import Any

import pandas

from finetune.data import plain_rows
from finetune.data.document_columns import Layout
from finetune.data.tables import Table
from finetune.recipe import Data

REPEATED = "pair that occurred before, left out"
FURTHER = "further target of a source, learned and accepted beside the first"
SAME = "target that equals its source"


class Pairs(plain_rows.NamedRows):
    """A source with its targets, which are the row's label."""

    name = "sources with targets"
    labels = False
    classes = False
    alike = False

    def columns(self, data: Data) -> dict[str, str]:
        return {"source": data.source, "target": data.target}

    def finished(
        self, frame: pandas.DataFrame, table: Table, parts: Layout, data: Data
    ) -> pandas.DataFrame:
        plain_rows.as_texts(frame, table, parts)
        return joined(super().finished(frame, table, parts, data), table)

    def label_text(self, label: Any, label_names: list[str]) -> str:
        return " | ".join(label)


PAIRS = Pairs()


def joined(frame: pandas.DataFrame, table: Table) -> pandas.DataFrame:
    """Returns a row for each source: source, and as ``label`` the list of its targets.

    All targets of a source are right, and none is in another split than the others. What was
    joined is counted in ``table.fixed``.

    Args:
        frame: source and target of each row.
    """
    same = frame["source"].str.strip() == frame["target"].str.strip()
    keys = frame["source"].str.strip()
    pairs = frame.assign(key=keys, target_key=frame["target"].str.strip())
    unique = pairs.loc[~pairs.duplicated(["key", "target_key"])]
    targets = unique.groupby("key", sort=False)["target"].agg(list)
    first = unique.loc[~unique["key"].duplicated()]
    counts = {
        REPEATED: len(frame) - len(unique),
        FURTHER: len(unique) - len(first),
        SAME: int(same.sum()),
    }
    for name, count in counts.items():
        if count:
            table.fixed[name] = table.fixed.get(name, 0) + count
    labels = pandas.Series([targets[key] for key in first["key"]], index=first.index, dtype=object)
    return first[["source"]].assign(label=labels)
