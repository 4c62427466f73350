"""Leaves documents out of which nothing is learned or scored, and counts them."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy
from datasets import Dataset

from finetune.data import documents
from finetune.data.chat_templates import ChatTemplate
from finetune.data.corpus import Corpus
from finetune.data.packing import IGNORED
from finetune.errors import UserError

# Why a document is left out that is fine by itself.
NOTHING = "has nothing to learn within max_length"


@dataclass
class LeftOut:
    """The rows of a corpus that are left out because of their tokens.

    ``unlearned`` counts by split those with ``NOTHING``; ``notes`` what was changed in the others.
    """

    data: Corpus
    unlearned: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def leave_out(self, split: str, faults: list[tuple[int, str]]) -> None:
        """Leaves rows out, given by number and with their faults.

        Raises:
            UserError: no row is left.
        """
        if not faults:
            return
        data, rows = self.data, getattr(self.data, split)
        kept = numpy.ones(len(rows), bool)
        kept[[number for number, _ in faults]] = False
        if not kept.any():
            reason = faults[0][1]
            advice = "; raise max_length" if reason == NOTHING else ""
            raise UserError(f"{data.source}: no {split} row can be used: it {reason}{advice}")
        for number, reason in faults:
            if isinstance(rows, Dataset):
                place = {"source": split, "line": number + 1}
            else:
                file, _, line = rows["id"].iloc[number].partition("-")[2].rpartition(":")
                source = f"{data.source}/{file}" if file else data.source
                place = {"source": source, "line": int(line) if line.isdecimal() else None}
            data.rejected.append(place | {"reason": reason})
            self.unlearned[split] += reason == NOTHING
        data.report["rejected"] += len(faults)
        if split == "train":
            data.report["share_unlearned"] = self.unlearned[split] / len(rows)
        left = numpy.flatnonzero(kept)
        setattr(data, split, rows.select(left) if isinstance(rows, Dataset) else rows.iloc[left])

    def blocks(self, made: Dataset) -> tuple[Dataset, int]:
        """Returns the blocks among ``causal_lm.training_rows``, and how many documents they hold.

        Leaves out the rows of train that nothing is learned from.
        """
        said = made.data.column("said").to_pylist()
        count, faults = 0, []
        for batch in map(json.loads, filter(None, said)):
            count += batch["documents"]
            self.notes.update(batch["notes"])
            faults += [(number, reason) for number, reason in batch["left_out"]]
        self.leave_out("train", faults)
        lengths = made.data.column("length").to_numpy()
        made = made.remove_columns("said")
        return made if lengths.all() else made.select(numpy.flatnonzero(lengths)), count

    def evaluation_rows(
        self, split: str, tokenizer: Any, template: ChatTemplate | None, most: int
    ) -> Dataset:
        """Returns documents as rows to score, one a document, truncated to ``most`` tokens.

        Leaves out the rows of the split without anything to score.
        """
        special, scored, faults = set(tokenizer.all_special_ids), [], []
        rows = documents.encode(getattr(self.data, split), tokenizer, template)
        for number, row in enumerate(rows):
            made = row.documents[0].scored(most, special) if row.documents else None
            if made and any(label != IGNORED for label in made["labels"]):
                scored.append(made)
            else:
                faults.append((number, row.fault or NOTHING))
        self.leave_out(split, faults)
        lengths = [len(row["input_ids"]) for row in scored]
        places = {"position_ids": [list(range(length)) for length in lengths], "length": lengths}
        names = ("input_ids", "labels", "bytes")
        return Dataset.from_dict({**{n: [row[n] for row in scored] for n in names}, **places})

    def report(self) -> dict[str, Any]:
        """Returns what results.json states about these rows."""
        fixed = Counter(self.data.report["fixed"]) + self.notes
        return {"unlearned": dict(+self.unlearned), "fixed": dict(fixed)}
