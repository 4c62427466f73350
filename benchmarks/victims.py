"""Tiny trainings for torture.py to break, with this project and with the plain Trainer.

Each training runs in a forked child, which saves the time to start an interpreter. The parent never
computes with torch, which does not survive a fork.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import transformers
from PIL import Image
from safetensors import safe_open
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_callback import EarlyStoppingCallback
from transformers.trainer_utils import get_last_checkpoint

from finetune import cli, recipe, run_directory, tasks
from finetune.report import page
from finetune.training import arguments, checkpoints, run_results, runner

WORDS = ["good", "great", "fine", "bad", "awful", "poor", "film", "plot", "the", "a", "was", "cast"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Dropout makes every step depend on the random state.
TRAINING = """\
training:
  learning_rate: 2.0e-3
  per_device_train_batch_size: 12
  num_train_epochs: 2
  logging_steps: 3
  eval_strategy: steps
  eval_steps: 4
  save_total_limit: 2
  use_cpu: true
"""
TEXTS = """\
task: {task}
model: {{checkpoint: tiny, max_length: 16, padding_free: {free}}}
data: {{train: reviews.csv, holdout: 24, validation_size: 24}}
"""
IMAGES = """\
task: image-classification
model:
  checkpoint: "new:vit"
  config: {image_size: 16, patch_size: 8, hidden_size: 32, num_hidden_layers: 2,
    num_attention_heads: 2, intermediate_size: 64, hidden_dropout_prob: 0.1}
data: {train: photos, holdout: 24, validation_size: 24}
augmentation: {flip: 0.5, crop_area: 0.5, rotate: 10, mixup: 0.2}
"""
# Blocks of nine tokens, which make seven steps an epoch, as the other kinds' rows do.
STREAMED = """\
task: text-generation
model:
  checkpoint: "new:gpt2"
  max_length: 9
  config: {n_layer: 2, n_head: 2, n_embd: 32, n_positions: 16, vocab_size: 300}
data: {train: reviews.csv, streaming: true, holdout: 24, validation_size: 24}
"""
ENTITIES = """\
task: token-classification
model: {checkpoint: tiny, max_length: 16}
data: {train: entities.jsonl, label: spans, holdout: 24, validation_size: 24}
"""
QUESTIONS = """\
task: question-answering
model: {checkpoint: tiny, max_length: 24, stride: 4, max_answer_length: 4}
data: {train: questions.jsonl, holdout: 24, validation_size: 24}
"""
PAIRS = """\
task: text2text-generation
model:
  checkpoint: "new:t5"
  max_length: 32
  max_target_length: 8
  token_pattern: " ?[a-z]+"
  config: {d_model: 32, d_kv: 16, d_ff: 64, num_layers: 1, num_decoder_layers: 1, num_heads: 2}
data: {train: pairs.jsonl, holdout: 24, validation_size: 24}
"""
KINDS = {
    "random": (TEXTS.format(task="text-classification", free="false"), ["random"]),
    "length-grouped": (TEXTS.format(task="text-classification", free="false"), []),
    "padding-free": (TEXTS.format(task="text-classification", free="true"), []),
    "MLM masks": (TEXTS.format(task="fill-mask", free="false"), []),
    "augmentation": (IMAGES, ["random"]),
    "streaming": (STREAMED, []),
    "entities": (ENTITIES, []),
    "questions": (QUESTIONS, []),
    "pairs": (PAIRS, []),
}


def prepare() -> None:
    """Writes the checkpoint, data and recipes into the working directory."""
    Path("tiny").mkdir()
    Path("tiny/vocab.txt").write_text("\n".join(SPECIAL + WORDS) + "\n", encoding="utf-8")
    transformers.set_seed(0)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    BertForMaskedLM(config).save_pretrained("tiny")
    BertTokenizer("tiny/vocab.txt").save_pretrained("tiny")
    draw, texts = random.Random(0), {}
    while len(texts) < 132:
        label = draw.choice(["negative", "positive"])
        words = draw.choices(WORDS[6:], k=draw.randint(3, 11))
        words[0] = draw.choice(WORDS[:3] if label == "positive" else WORDS[3:6])
        texts[" ".join(words)] = label
    lines = ["text,label", *(f"{text},{label}" for text, label in texts.items())]
    Path("reviews.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    opinions = {text: text.split()[0] for text in texts}
    rows = {
        "entities": [
            {"text": text, "spans": [{"start": 0, "end": len(word), "label": texts[text]}]}
            for text, word in opinions.items()
        ],
        "questions": [
            {
                "question": "the film was",
                "context": text,
                "answers": [{"text": word, "answer_start": 0}],
            }
            for text, word in opinions.items()
        ],
        "pairs": [{"source": text, "target": f"a {word}"} for text, word in opinions.items()],
    }
    for name, made in rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in made)
        Path(f"{name}.jsonl").write_text(lines, encoding="utf-8")
    shades = numpy.random.default_rng(0)
    for label in range(2):
        Path(f"photos/{label}").mkdir(parents=True)
        for i in range(66):
            pixels = shades.integers(0, 128, (16, 16, 3)) + 100 * label
            Image.fromarray(pixels.astype(numpy.uint8)).save(f"photos/{label}/{i}.png")
    for kind, (text, sampling) in KINDS.items():
        more = "".join(f"  train_sampling_strategy: {name}\n" for name in sampling)
        Path(f"{kind}.yaml").write_text(text + TRAINING + more, encoding="utf-8")


def fork(action: Callable[[], object], log: str = "log.txt") -> int:
    """Runs an action in a child and returns its pid; it exits with 70 on an exception."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        # The parent's handlers are not for the child.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        action()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(pid: int, seconds: float = 120) -> int:
    """Returns a child's exit status, negative for a signal; -99 if it hangs and is killed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -99


def do(action: Callable[[], object], log: str = "log.txt") -> int:
    return wait(fork(action, log))


# --- this project ------------------------------------------------------------------------------


class Ours:
    """``finetune train`` and ``finetune resume``, in this process."""

    name = "finetune"

    def __init__(self) -> None:
        # Report and baselines take longer than these trainings, and promise nothing here.
        page.render = lambda run: ""
        run_results._baselines = lambda *args: {}

    def train(self, run: str, kind: str = "random", *flags: str) -> None:
        cli.main(["train", f"{kind}.yaml", "--output_dir", run, *flags])

    def resume(self, run: str, kind: str = "random", *flags: str) -> None:
        cli.main(["resume", run])

    def end(self, run: str) -> Any:
        """Returns what has to be equal bit for bit; None if the run did not finish."""
        done = run_directory.Run(run)
        if not done.is_finished:
            return None
        newest, _ = checkpoints.newest(done.checkpoints)
        results = done.results()
        files = [*done.model.glob("*.safetensors")]
        files += sorted(newest.folder.glob("*.safetensors")) if newest else []
        return (
            [tensors(file) for file in files],
            (done.folder / run_directory.HISTORY).read_text(encoding="utf-8"),
            json.dumps([results["metrics"], results["chosen"], results["steps"]]),
        )

    def save_of(self) -> tuple[Any, str]:
        from finetune.training.resumable import ResumableTrainer

        return ResumableTrainer, "write_files"

    def trainer(self) -> Any:
        from finetune.training.trainer import StepTrainer

        return StepTrainer

    def stops_early(self) -> None:
        """Makes the following trainings stop when two evaluations are no better."""
        made = runner.new_trainer

        def stopping(*args: Any) -> Any:
            trainer = made(*args)
            trainer.add_callback(EarlyStoppingCallback(2))
            return trainer

        runner.new_trainer = stopping


# --- the plain Trainer -------------------------------------------------------------------------


class Plain:
    """The same job with the plain ``transformers.Trainer`` and its SIGTERM handling."""

    name = "plain Trainer"

    def __init__(self) -> None:
        self.callbacks: list[Any] = []

    def train(self, run: str, kind: str = "random", *flags: str) -> None:
        self._go(run, kind, flags, False)

    def resume(self, run: str, kind: str = "random", *flags: str) -> None:
        self._go(run, kind, flags, True)

    def _go(self, run: str, kind: str, flags: tuple[str, ...], resume: bool) -> None:
        read = recipe.load(f"{kind}.yaml", list(flags))
        transformers.logging.set_verbosity_error()
        transformers.set_seed(read.training["seed"])
        job = tasks.find(read.task).build(read)
        folder = Path(run)
        values = vars(arguments.training_arguments(read, run_directory.Run(run), job))
        plain = {k: v for k, v in (job.training | read.training).items() if k != "output_dir"}
        args = TrainingArguments(
            **plain
            | {
                "seed": values["seed"],
                "output_dir": str(folder / "checkpoints"),
                "save_strategy": values["save_strategy"],
                "save_steps": values["save_steps"],
                "load_best_model_at_end": True,
                "metric_for_best_model": "eval_loss",
                "greater_is_better": False,
                "report_to": "none",
                "disable_tqdm": True,
                "enable_jit_checkpoint": True,
                "logging_first_step": True,
                "train_sampling_strategy": values["train_sampling_strategy"],
                "remove_unused_columns": values["remove_unused_columns"],
                "dataloader_pin_memory": False,
            }
        )
        trainer = Trainer(
            model=job.model,
            args=args,
            data_collator=job.collator,
            train_dataset=job.splits["train"],
            eval_dataset=job.splits["validation"],
            compute_loss_func=job.loss,
            preprocess_logits_for_metrics=job.reduce,
            callbacks=self.callbacks,
        )
        last = get_last_checkpoint(str(args.output_dir)) if resume and folder.is_dir() else None
        trainer.train(resume_from_checkpoint=last)
        stopped = trainer.state.global_step < trainer.state.max_steps
        if not stopped or self.callbacks:
            trainer.save_model(str(folder / "model"))

    def end(self, run: str) -> Any:
        folder = Path(run)
        model = folder / "model" / "model.safetensors"
        if not model.is_file():
            model = folder / "model" / "adapter_model.safetensors"
        if not model.is_file():
            return None
        # Its history lacks the steps between two logs, so only the weights are compared.
        return [tensors(model)]

    def save_of(self) -> tuple[Any, str]:
        return Trainer, "_save_checkpoint"

    def trainer(self) -> Any:
        return Trainer

    def stops_early(self) -> None:
        self.callbacks = [EarlyStoppingCallback(2)]


def tensors(file: Path) -> dict[str, str]:
    """Returns a digest of each tensor of a file."""
    with safe_open(file, "numpy") as held:
        return {
            name: hashlib.sha256(
                numpy.ascontiguousarray(held.get_tensor(name)).tobytes()
            ).hexdigest()
            for name in held.keys()  # noqa: SIM118
        }


def wrapped(owner: Any, method: str, before: Callable[[int], object]) -> None:
    """Calls ``before`` with the number of the call, from 1, before each call of a method."""
    kept, calls = getattr(owner, method), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        before(len(calls))
        return kept(*args, **kwargs)

    setattr(owner, method, counted)
