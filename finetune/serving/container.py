"""Files that serve a run in a container: a Dockerfile and a compose file."""

import platform
from importlib.metadata import version
from pathlib import Path

import jinja2

from finetune import DISTRIBUTION
from finetune.data import sources
from finetune.errors import UserError
from finetune.recipe import read
from finetune.recipe.methods import PLAIN_METHODS
from finetune.run_directory import RECIPE, Run

FILES = ("Dockerfile", "compose.yaml")
# What a model's answers depend on; the others are as the package asks for them.
PINNED = ("transformers", "peft")
# Instead of root, whose runs the container can read but not write.
NOBODY = "1000:1000"
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def write(run: Run, folder: Path, base_folder: str | None = None) -> list[Path]:
    """Writes both files; the run stays where it is, and is mounted.

    Args:
        base_folder: the base of an adapter, where it is not found by itself.

    Raises:
        UserError: a file is there already or cannot be written, or the base is not found.
    """
    folders = {"run": str(run.folder.resolve())}
    if read(run.folder / RECIPE).tuning.method not in PLAIN_METHODS:
        found = sources.base(run.results()["checkpoint"], run.folder, base_folder)
        folders["base"] = str(found.folder.resolve())
    owner = run.folder.stat()
    values = {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "torch": version("torch").partition("+")[0],
        "package": f"{DISTRIBUTION}[serve,vision]=={version(DISTRIBUTION)}",
        "pins": [f"{name}=={version(name)}" for name in PINNED],
        "base": " --base /base" if "base" in folders else "",
        "folders": folders,
        "owner": f"{owner.st_uid}:{owner.st_gid}" if owner.st_uid else NOBODY,
    }
    paths = [folder / name for name in FILES]
    for path in paths:
        if path.exists():
            raise UserError(f"{path}: exists already; name another folder, or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            text = TEMPLATES.get_template(f"{path.name}.j2").render(values)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
    return paths
