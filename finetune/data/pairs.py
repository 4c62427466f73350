"""Sources with their targets, for encoder-decoders."""

import pandas

from finetune.data.tables import Table

REPEATED = "pair that occurred before, left out"
FURTHER = "further target of a source, learned and accepted beside the first"
SAME = "target that equals its source"


def joined(frame: pandas.DataFrame, table: Table) -> pandas.DataFrame:
    """Returns a row for each source: id, source, and as ``label`` the list of its targets.

    All targets of a source are right, and none is in another split than the others. What was
    joined is counted in ``table.fixed``.

    Args:
        frame: id, source and target of each row.
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
    return first[["id", "source"]].assign(label=labels)
