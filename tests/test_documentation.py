"""What the README and the recipes say can be typed in."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from finetune import cli, recipe
from finetune.recipe import Recipe
from tests.conftest import make_writer, sentences, write_csv

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "recipes").glob("*/README.md"))]
RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))
# Enough to go through every part of a run, in seconds.
SMALL = [
    *("--max_train_samples", "32", "--max_test_samples", "16", "--validation_size", "16"),
    *("--max_steps", "1", "--eval_strategy", "no", "--save_strategy", "no"),
    *("--max_length", "16", "--overwrite"),
]


def reviews() -> list[str]:
    return [text for text, _ in sentences(40)]


def commands(text: str) -> list[str]:
    """The commands of a text's shell blocks and comments, without their remarks."""
    blocks = "\n".join(re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL))
    lines = [re.split(r"\s{2,}#|\s#\s", line)[0].strip() for line in blocks.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def documented() -> list[str]:
    found = [c for page in PAGES for c in commands(page.read_text(encoding="utf-8"))]
    return sorted(set(found))


def opening(path: Path) -> list[str]:
    """The commands in the comments that open a recipe."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if re.match(r"# (make|finetune|accelerate|cp) ", line):
            lines.append(line[2:])
    return lines


def test_the_pages_hold_commands() -> None:
    assert len(PAGES) >= 4
    assert len(documented()) >= 12


def test_every_recipe_reads_and_opens_with_its_command() -> None:
    assert len(RECIPES) >= 12
    for path in RECIPES:
        read = recipe.load(path)
        assert isinstance(read, Recipe)
        name = str(path.relative_to(ROOT))
        assert any(name in c or "minilm.yaml" in name for c in opening(path)), name


@pytest.mark.parametrize("command", documented())
def test_documented_command(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command runs; training ones on a few rows, and those of the hub only as far as it."""
    for name in ("recipes", "finetune", "Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_csv(
        tmp_path / "mine.csv",
        [(f"{t} {i}", str(i % 5 + 1)) for i, (t, _) in enumerate(sentences(120))],
        "review,stars",
    )
    chats = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    lines = [json.dumps({"messages": [{**chats[0], "content": t}, chats[1]]}) for t in reviews()]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines), encoding="utf-8")
    lines = [json.dumps({"text": t}) for t in reviews()]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    words = shlex.split(command)
    if words[0] in {"make", "git", "cd", "pip", "cp"}:
        if words[0] == "make":
            done = subprocess.run([*words, "-n"], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        return
    if words[:2] == ["accelerate", "launch"] or words[0] == "torchrun":
        module = {"accelerate": "accelerate.commands.launch", "torchrun": "torch.distributed.run"}
        rest = words[2:] if words[0] == "accelerate" else words[1:]
        if not any("recipes/" in word for word in rest):
            own = "reviews/smollm2-lora" if any("writing" in w for w in rest) else "imdb/minilm"
            rest.append(f"recipes/{own}.yaml")
        # The embedded data set of short texts, so that a step costs little.
        extra = ["--dataset", "embedded:rotten_tomatoes", *SMALL]
        done = subprocess.run(
            [sys.executable, "-m", module[words[0]], *rest, *extra], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return
    assert words[0] == "finetune", command
    if words[1] == "train":
        if "chat.yaml" in command or "text-corpus.yaml" in command:
            writer = str(make_writer(tmp_path / "writer"))
            cli.main([*words[1:], "--checkpoint", writer, "--max_length", "64", "--max_steps", "1"])
            return
        of_hub = ("bert-base", "distilbert", "roberta", "images.yaml", "vit-base", "cifar10")
        hub = any(n in command for n in (*of_hub, "wikitext2"))
        small = (
            SMALL
            if "--train" in words or "mnist" in command
            else ["--dataset", "embedded:rotten_tomatoes", *SMALL]
        )
        if hub:
            with pytest.raises(SystemExit) as stop:
                cli.main([*words[1:], *SMALL])
            assert stop.value.code == 2
            return
        first = re.search(r"(recipes/\w+/\w+)-after-(mlm|mae).yaml", command)
        if first:
            cli.main(["train", f"{first[1]}-{first[2]}.yaml", *SMALL[:-1]])
            small = [*small, "--output_dir", "runs/after"]
        cli.main([*words[1:], *[w for w in small if w != "--overwrite"]])
        assert list(tmp_path.glob("runs/**/results.json"))
    elif words[1] == "resume":
        flags = ["--dataset", "embedded:rotten_tomatoes", "--output_dir", words[2], *SMALL[:-1]]
        cli.main(["train", "recipes/imdb/minilm.yaml", *flags])
        results = tmp_path / words[2] / "results.json"
        results.unlink()
        cli.main(words[1:])
        assert results.is_file()
    elif words[1] == "generate":
        writer = str(make_writer(tmp_path / "writer"))
        recipe_file = words[2].replace("runs/", "recipes/") + ".yaml"
        cli.main(["train", recipe_file, "--checkpoint", writer, *SMALL[:-1]])
        cli.main(words[1:])
    elif words[1] in {"predict", "compare", "report", "merge"}:
        named = re.findall(r"runs/(\w+/[a-z][\w-]*)", command) or ["imdb/minilm"]
        for name in named:
            folder = f"runs/{name}/seed-0"
            texts = [] if "mnist" in name else ["--dataset", "embedded:rotten_tomatoes"]
            if "reviews" in name:
                texts += ["--checkpoint", str(make_writer(tmp_path / "writer"))]
            flags = [*texts, "--output_dir", folder, *SMALL]
            cli.main(["train", f"recipes/{name}.yaml", *[w for w in flags if w != "--overwrite"]])
        Image.new("RGB", (28, 28)).save(tmp_path / "digit.png")
        write_csv(tmp_path / "reviews.csv", sentences(3), "text,label")
        spread = [
            str(p) for w in words[2:] for p in (sorted(tmp_path.glob(w)) if "*" in w else [w])
        ]
        monkeypatch.setattr(sys, "stdin", ["a film\n"])
        cli.main([words[1], *spread])
    else:
        cli.main(words[1:])
