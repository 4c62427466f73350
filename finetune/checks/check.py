"""Runs the checks that fit a recipe's task over its data."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy
import pandas

from finetune.checks import duplicates, labels, leaks, shift, tokens
from finetune.checks.finding import Example, Finding, Severity, joined, some
from finetune.data import corpus, readers, sources
from finetune.data.corpus import Corpus
from finetune.data.row_kinds import RowKind
from finetune.errors import UserError
from finetune.recipe import Recipe

# Rows that the checks look at whose time grows faster than reading does, if there are more.
MOST_ROWS, MOST_LABELS, MOST_DOCUMENTS = 20_000, 5_000, 5_000
# Classes that the facts name.
SHOWN_CLASSES = 6


@dataclass
class Checked:
    """What is in the data, and what was found.

    Attributes:
        name: the recipe's, as the user knows it.
        facts: name -> a sentence about rows, classes, tokens or sizes.
        findings: the most serious first.
        left_out: which checks did not run, and why.
        learned: for language models, the parts of one row and whether they are learned.
    """

    recipe: Recipe
    name: str
    source: str
    facts: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    learned: list[tuple[str, bool]] = field(default_factory=list)

    @property
    def severity(self) -> Severity:
        """Returns the severity of the most serious finding."""
        return max((finding.severity for finding in self.findings), default=Severity.NOTE)


def check(recipe: Recipe, name: str) -> Checked:
    """Reads the recipe's data as training would, and checks it without a model.

    Args:
        name: the recipe's, as the user knows it.

    Raises:
        UserError: the data cannot be used at all; see ``corpus.load``.
    """
    if recipe.task not in CHECKS:
        those = ", ".join(CHECKS)
        raise UserError(f"{recipe.where('task')}: {recipe.task} has no checks; these have: {those}")
    kind, labelled, checks = CHECKS[recipe.task]
    data = recipe.data
    if data.streaming:
        where = recipe.where("data.streaming")
        raise UserError(
            f"{where}: rows are checked in memory; give a part of them, and no streaming"
        )
    loaded = corpus.load(replace(data, allow_overlap=True), kind, labelled)
    out = Checked(recipe, name, loaded.source, _facts(loaded))
    out.findings += _reading(loaded) + duplicates.repeated(loaded, data.allow_overlap)
    for each in checks:
        each(loaded, out)
    out.findings.sort(key=lambda finding: -finding.severity)
    return out


def _facts(data: Corpus) -> dict[str, str]:
    sizes = [f"{len(getattr(data, name)):,} {name}" for name in ("train", "validation", "test")]
    facts = {"rows": ", ".join(sizes)}
    if data.test_is == "holdout":
        facts["rows"] += " (taken from train)"
    things, _ = data.kind.counted
    if found := data.kind.counts(data.train.get("label", ()), data.label_names):
        # A row may have several classes.
        whole = len(data.train) if things == "rows" else sum(found.values())
        title = f"{len(found)} classes" if things == "rows" else f"{whole:,} {things}"
        most = sorted(found, key=lambda name: -found[name])
        shares = [
            f"{name} {100 * found[name] / max(whole, 1):.1f} %" for name in most[:SHOWN_CLASSES]
        ]
        facts[title] = ", ".join(shares + ["…"] * (len(most) > SHOWN_CLASSES))
    elif data.problem_type == "regression":
        low, middle, high = data.train["label"].quantile([0, 0.5, 1])
        facts["numbers"] = f"from {low:g} to {high:g}, median {middle:g}"
    return facts


def _reading(data: Corpus) -> list[Finding]:
    """Describes what the readers guessed, rejected or changed."""
    found = [
        Finding(Severity.NOTE, f"on reading: {note}", None, "Nothing to do.")
        for note in data.report["notes"]
    ]
    if data.rejected:
        examples = some(
            Example(readers.where(row["source"], row["line"]), row["reason"])
            for row in data.rejected
        )
        advice = "Training leaves them out; mend or remove them."
        what = "rows cannot be used"
        found.append(Finding(Severity.WARNING, what, len(data.rejected), advice, examples))
    for name, count in data.report["fixed"].items():
        found.append(Finding(Severity.NOTE, f"on reading: {name}", count, "Nothing to do."))
    return found


def _sampled(what: str, rows: pandas.DataFrame, data: Corpus, out: Checked) -> None:
    """Says so where a check looked at a sample of the rows."""
    total = len(data.train) + len(data.validation) + len(data.test)
    if len(rows) < total:
        out.left_out.append(f"{what}: looked for among {len(rows):,} of {total:,} rows")


# --- texts -----------------------------------------------------------------------------------


def _classes(data: Corpus, out: Checked) -> None:
    if data.label_names:
        out.findings += labels.balance(data) + shift.class_shares(data)


def _texts(data: Corpus, out: Checked) -> None:
    rows = duplicates.all_rows(data, MOST_ROWS)
    _sampled("near duplicates", rows, data, out)
    if "context" in rows:
        # Of questions, near duplicates are contexts; many questions are about the same.
        rows = rows.loc[~rows["context"].duplicated()].drop(columns="question")
        rows = rows.reset_index(drop=True)
    pairs = duplicates.similar_texts(joined(rows))
    out.findings += duplicates.near(data, rows, pairs, "rows")
    out.findings += shift.lengths(data) + shift.vocabulary(data)
    spoken, odd = shift.languages(rows)
    if spoken:
        out.facts["languages"] = spoken
    out.findings += odd


def _labels(data: Corpus, out: Checked) -> None:
    if data.problem_type != "single_label_classification":
        out.left_out.append("wrong labels and leaks: looked for only among rows of one class each")
        return
    out.findings += leaks.words(data)
    if out.recipe.data.train and out.recipe.data.dataset is None:
        # Read again, because a corpus keeps the columns that are used.
        table = readers.read_table(out.recipe.data.train, out.recipe.data)
        out.findings += leaks.columns(table, out.recipe.data)
    rows = duplicates.all_rows(data, MOST_LABELS)
    found = labels.out_of_fold(rows, len(data.label_names))
    if found is None:
        out.left_out.append(f"wrong labels: fewer than two classes have {labels.FOLDS} rows")
        return
    _sampled("wrong labels", rows, data, out)
    out.facts["linear model"] = (
        f"{100 * found.accuracy:.1f} % right by word counts, on held-out rows"
    )
    out.findings += labels.suspects(found, data) + leaks.too_easy(found)


def _checkpoint(recipe: Recipe, out: Checked) -> sources.Checkpoint | None:
    """Finds the checkpoint whose tokenizer reads the texts; what prevents that is a finding."""
    if recipe.model.checkpoint.startswith("new:"):
        out.left_out.append("tokens: a new model's tokenizer is trained with it")
        return None
    return _attempt(lambda: sources.checkpoint(recipe.model.checkpoint, recipe.model.revision), out)


def _attempt(action: Callable[[], Any], out: Checked) -> Any:
    """Calls an action; what the user has to correct before training is a finding, and None."""
    try:
        return action()
    except UserError as error:
        advice = "Correct this before training; tokens are not counted until then."
        out.findings.append(Finding(Severity.ERROR, str(error), None, advice))
        return None


def _pieces(data: Corpus, out: Checked) -> None:
    """As ``_tokens``, where the rest of a long text is learned in another row."""
    _tokens(data, out, True)


def _tokens(data: Corpus, out: Checked, pieces: bool = False) -> None:
    recipe = out.recipe
    checkpoint = _checkpoint(recipe, out)
    tokenizer = checkpoint and _attempt(lambda: tokens.tokenizer(checkpoint), out)
    if checkpoint is None or tokenizer is None:
        return
    found = tokens.count(data.train, tokenizer)
    most = recipe.model.max_length
    parts = _parts(found.lengths, most) if pieces else numpy.minimum(found.lengths, most)
    out.facts["tokens"] = tokens.describe(found.lengths)
    out.facts["one epoch"] = tokens.plan(recipe, len(parts), int(parts.sum()))
    room = tokens.room(checkpoint)
    out.findings += tokens.longer(data.train, found.lengths, recipe, room, pieces)
    out.findings += tokens.unknown(data.train, found)


def _parts(lengths: numpy.ndarray, most: int) -> numpy.ndarray:
    """Returns the lengths of the parts of at most ``most`` tokens that rows are divided into."""
    return numpy.array([min(most, n - at) for n in lengths.tolist() for at in range(0, n, most)])


def _tokenizer(out: Checked) -> tuple[Any, Any]:
    """Returns the recipe's checkpoint and its tokenizer; None for what cannot be had."""
    checkpoint = _checkpoint(out.recipe, out)
    return checkpoint, checkpoint and _attempt(lambda: tokens.of_transformers(checkpoint), out)


def _sample(data: Corpus, what: str, out: Checked) -> pandas.DataFrame:
    """Returns the training rows, or a sample that takes seconds, which ``what`` says."""
    if len(data.train) <= MOST_DOCUMENTS:
        return data.train
    out.left_out.append(what.format(f"{MOST_DOCUMENTS:,} of {len(data.train):,}"))
    return data.train.sample(MOST_DOCUMENTS, random_state=0).reset_index(drop=True)


def _documents(data: Corpus, out: Checked) -> None:
    # These import transformers, which the checks of classifiers do without.
    from finetune.checks import documents as checks
    from finetune.data import documents, packing

    recipe, most = out.recipe, out.recipe.model.max_length
    checkpoint, tokenizer = _tokenizer(out)
    if checkpoint is None or tokenizer is None:
        return
    frame = _sample(data, "tokens: counted in {} training documents, and scaled", out)
    kind = documents.kind(frame)
    rows = _attempt(lambda: _encoded(frame, tokenizer, recipe, kind), out)
    if rows is None:
        return
    out.findings += checks.refused(frame, rows)
    encoded = [document for row in rows for document in row.documents]
    frame = frame.loc[[i for i, row in enumerate(rows) for _ in row.documents]]
    frame = frame.reset_index(drop=True)
    if not encoded:
        return
    pieces = kind == "text"
    lengths = numpy.array([len(row.ids) for row in encoded])
    scale = len(data.train) / len(frame)
    parts = _parts(lengths, most) if pieces else numpy.minimum(lengths, most)
    blocks = len(packing.pack(parts.tolist(), most))
    out.facts["tokens"] = tokens.describe(lengths)
    share = checks.learned_share(encoded, int(lengths.max()) if pieces else most)
    out.facts["learned"] = f"{100 * share:.1f} % of the tokens that an epoch sees"
    seen = tokens.plan(
        recipe, round(blocks * scale), round(int(parts.sum()) * scale), "full blocks"
    )
    out.facts["one epoch"] = seen
    out.findings += tokens.longer(frame, lengths, recipe, tokens.room(checkpoint), pieces)
    out.findings += checks.unlearned(frame, encoded, recipe, pieces)
    out.learned = checks.shown(encoded[0], most)


def _encoded(frame: pandas.DataFrame, tokenizer: Any, recipe: Recipe, kind: str) -> list[Any]:
    """Returns the documents of each row, as training makes them."""
    from finetune.data import chat_templates, documents

    template = chat_templates.of(recipe, tokenizer) if kind == "messages" else None
    return documents.encode(frame, tokenizer, template, recipe.data.turns == "each")


# --- questions and targets -------------------------------------------------------------------


def _questions(data: Corpus, out: Checked) -> None:
    from finetune.checks import answers

    out.facts["answers"] = answers.describe(data.train)
    out.findings += answers.unlike(data)
    checkpoint, tokenizer = _tokenizer(out)
    if checkpoint is None or tokenizer is None:
        return
    frame = _sample(data, "windows: of {} training questions", out)
    found = _attempt(lambda: answers.windows(frame, tokenizer, out.recipe), out)
    if found is None:
        return
    scale, lengths = len(data.train) / len(frame), found["length"]
    seen = round(len(lengths) * scale), round(sum(lengths) * scale)
    out.facts["one epoch"] = tokens.plan(out.recipe, *seen, "windows")
    out.findings += answers.unlearned(frame, found, out.recipe)


def _targets(data: Corpus, out: Checked) -> None:
    from finetune.checks import targets

    written = targets.rows_of(duplicates.all_rows(data, MOST_ROWS))
    spoken, odd = shift.languages(written)
    if spoken:
        out.facts["languages of targets"] = spoken
    out.facts["targets"] = targets.describe(data.train)
    out.findings += [*odd, *targets.frequent(data.train)]
    if out.recipe.model.checkpoint.startswith("new:"):
        return
    found = _attempt(lambda: targets.lengths(data.train, out.recipe), out)
    if found is not None:
        out.findings += targets.cut(data.train, found, out.recipe)


# --- images ----------------------------------------------------------------------------------


def _images(data: Corpus, out: Checked) -> None:
    from finetune.checks import images

    rows = duplicates.all_rows(data, MOST_ROWS)
    _sampled("near duplicates and sizes", rows, data, out)
    looks = images.look(rows)
    out.facts["sizes"] = images.describe(looks)
    out.facts["one epoch"] = tokens.plan(out.recipe, len(data.train), None)
    out.findings += images.blank(rows, looks)
    out.findings += images.sizes(rows, looks, out.recipe.model.image_size)
    pairs = images.similar(looks, rows["digest"].to_list())
    out.findings += duplicates.near(data, rows, pairs, "images")


Check = Callable[[Corpus, Checked], None]
# What a row is for each task, whether it has a label, and the checks.
CHECKS: dict[str, tuple[RowKind, bool, tuple[Check, ...]]] = {
    "text-classification": (corpus.TEXTS, True, (_classes, _texts, _tokens, _labels)),
    "token-classification": (corpus.TAGGED, True, (_classes, _texts, _pieces)),
    "question-answering": (corpus.QUESTIONS, True, (_texts, _questions)),
    "text2text-generation": (corpus.PAIRS, True, (_texts, _tokens, _targets)),
    "image-classification": (corpus.IMAGES, True, (_classes, _images)),
    "masked-image-modeling": (corpus.IMAGES, False, (_images,)),
    "text-generation": (corpus.DOCUMENTS, False, (_texts, _documents)),
    "fill-mask": (corpus.TEXTS, False, (_texts, _pieces)),
    "embedding": (corpus.RETRIEVAL, True, (_texts,)),
    "reranking": (corpus.RETRIEVAL, True, (_texts,)),
}
