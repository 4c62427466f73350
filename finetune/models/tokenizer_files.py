"""Loads tokenizers; the one inside a GGUF file is converted once and cached.

gguf reads every token of the vocabulary as an array of its own, which takes seconds each time.
"""

import hashlib
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from finetune.data import sources

# What decides the result of a conversion, beside the file.
LIBRARIES = ("transformers", "tokenizers", "gguf")


def load(folder: Path, options: dict[str, str]) -> Any:
    """Returns a tokenizer with its chat template.

    Args:
        folder, options: as ``Checkpoint.processor`` has them.

    Raises:
        OSError, ValueError: there is none that transformers can load.
    """
    if "gguf_file" in options:
        folder = _converted(folder, options)
    return AutoTokenizer.from_pretrained(folder)


def _converted(folder: Path, options: dict[str, str]) -> Path:
    """Returns the folder in the cache that holds a GGUF file's tokenizer as tokenizer.json."""
    file = (folder / options["gguf_file"]).resolve()
    found = file.stat()
    key = [str(file), str(found.st_size), str(found.st_mtime_ns), *map(version, LIBRARIES)]
    kept = sources.cache("tokenizers") / hashlib.sha256("\0".join(key).encode()).hexdigest()[:32]
    done = kept / "tokenizer.json"
    with sources.filling(done):
        if not done.is_file():
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            # tokenizer.json is what tells that all is written: it is moved last.
            with tempfile.TemporaryDirectory(dir=kept) as written:
                tokenizer.save_pretrained(written)
                names = [path for path in Path(written).iterdir() if path.name != done.name]
                for path in [*names, Path(written) / done.name]:
                    shutil.move(path, kept / path.name)
    return kept
