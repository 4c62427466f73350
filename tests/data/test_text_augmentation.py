"""Changed texts follow from the seed, the epoch and the row; evaluation rows stay as they are."""

import re
from pathlib import Path

import pytest

from finetune import recipe, tasks
from finetune.data import text_augmentation
from finetune.data.text_augmentation import augment
from finetune.errors import UserError
from finetune.recipe import Augmentation
from tests.conftest import train_job

TEXT = "The plot was good, but the cast was awful and the film felt far too long."
DROP = Augmentation(word_dropout=0.3)


def test_words_are_dropped_at_random_and_stay_in_order() -> None:
    found = [augment(TEXT, row, 0, 0, DROP).split() for row in range(400)]
    words = TEXT.split()
    for kept in found:
        left = iter(words)
        assert all(word in left for word in kept)
    share = 1 - sum(map(len, found)) / (len(words) * len(found))
    assert share == pytest.approx(0.3, abs=0.02)
    assert augment(TEXT, 3, 0, 0, Augmentation()) == TEXT
    assert augment("", 3, 0, 0, DROP) == ""
    assert all(augment("one two", row, 0, 0, Augmentation(word_dropout=0.9)) for row in range(99))


def test_the_result_follows_from_seed_epoch_row_and_part() -> None:
    first = augment(TEXT, 5, 2, 7, DROP)
    assert augment(TEXT, 5, 2, 7, DROP) == first
    others = [augment(TEXT, *key, DROP) for key in ((6, 2, 7), (5, 3, 7), (5, 2, 8))]
    assert first not in [*others, augment(TEXT, 5, 2, 7, DROP, part=1)]


@pytest.fixture
def wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A WordNet of two words; nltk's data is not installed here."""
    words = {"good": ("fine", "sound"), "plot": ("story",)}
    monkeypatch.setattr(text_augmentation, "synonyms", lambda word: words.get(word, ()))


def test_words_become_synonyms_with_capital_and_punctuation(wordnet: None) -> None:
    always = Augmentation(synonyms=1.0)
    found = {augment("Good plot, (good)!", row, 0, 0, always) for row in range(99)}
    pattern = re.compile(r"^(Fine|Sound) story, \((fine|sound)\)!$")
    assert all(pattern.match(each) for each in found)
    assert len(found) == 4
    assert augment("awful cast", 0, 0, 0, always) == "awful cast"


def test_synonyms_need_wordnet(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(word: str) -> None:
        raise LookupError

    monkeypatch.setattr(text_augmentation, "synonyms", missing)
    read = recipe.load(tiny_recipe, ["--synonyms", "0.2"])
    with pytest.raises(UserError, match="--synonyms: synonyms needs WordNet: `python -m nltk"):
        tasks.find(read.task).build(read)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "contrastive", "--word_dropout", "0.1"], "contrastive tuning and teachers"),
        (["--task", "fill-mask", "--word_dropout", "0.1"], "only text-classification does so"),
    ],
)
def test_texts_that_are_read_once_do_not_change(
    tiny_recipe: Path, flags: list[str], message: str
) -> None:
    read = recipe.load(tiny_recipe, flags)
    with pytest.raises(UserError, match=message):
        tasks.find(read.task).check(read)


def test_training_reads_changed_texts_and_the_report_shows_them(tiny_recipe: Path) -> None:
    run, job = train_job(tiny_recipe, "--word_dropout", "0.5", "--num_train_epochs", "3")
    rows = [job.splits["train"][i] for i in range(8)]
    lengths = [
        job.collator([{**row, "epoch": epoch} for row in rows])["attention_mask"].sum(1).tolist()
        for epoch in (0, 1)
    ]
    whole = [row["length"] for row in rows]
    assert lengths[0] != lengths[1]
    assert all(a <= b for each in lengths for a, b in zip(each, whole, strict=True))
    assert sum(lengths[0]) < sum(whole)
    held = job.splits["validation"][0]
    assert job.collator([held])["input_ids"][0].tolist() == held["input_ids"]
    sheet = run.results()["augmented"]
    assert len(sheet) == 6
    for sample in sheet:
        assert len(sample["epochs"]) == 3
        assert all(len(text) <= len(sample["text"]) for text in sample["epochs"])
    assert any(text != sample["text"] for sample in sheet for text in sample["epochs"])
