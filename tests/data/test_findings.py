"""What the checks of the data found, in words."""

import subprocess
import sys

from finetune.data.findings import describe

NOTHING = {
    "rejected": 0,
    "duplicates_in_train": 0,
    "contradictions_in_train": 0,
    "test_texts_in_train": 0,
    "fixed": {},
}


def test_nothing_found_says_nothing() -> None:
    assert describe(NOTHING) == []
    assert describe(NOTHING | {"share_truncated": 0.0, "new_head": False}) == []


def test_every_finding_is_one_phrase() -> None:
    counts = dict.fromkeys((key for key in NOTHING if key != "fixed"), 1200)
    found = describe(counts | {"fixed": {"EXIF rotation": 3, "byte-order mark": 0}})
    assert found == [
        "1,200 rows rejected",
        "1,200 duplicate training rows",
        "1,200 texts with two labels in train",
        "1,200 test rows that are also in train",
        "EXIF rotation: 3 x",
    ]


def test_what_tasks_add_is_described() -> None:
    blocks = {"blocks": 20, "tokens": 5000, "share_padding": 0.0123, "share_cut": 0.25}
    assert describe(NOTHING | blocks | {"new_head": True, "share_truncated": 0.5}) == [
        "5,000 tokens in 20 blocks, 1.2 % padding",
        "25.0 % of documents cut",
        "the checkpoint has no head for masks, so its predictions start at random",
        "50.0 % of training texts truncated",
    ]


def test_describing_loads_nothing_heavy() -> None:
    code = (
        "import sys, finetune.data.findings\n"
        "assert not {'torch', 'pandas', 'datasets', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
