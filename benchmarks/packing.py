"""Measures tokens per second: packed blocks against the plain Trainer with padded batches.

python benchmarks/packing.py
python benchmarks/packing.py --reviews 64 --rounds 5 --bf16

Both train the same weights on the same real tokens of the same reviews, in alternation. Prints
medians, and the ratio of the two in each round. The plain Trainer pads each batch to its longest
review.

Writes benchmarks/results/packing.json.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from speed import machine
from transformers import (
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    logging,
)
from transformers.trainer_callback import PrinterCallback

from finetune import recipe
from finetune.data import corpus, documents, packing, sources
from finetune.models import pretrained
from finetune.models.configs import load_config
from finetune.tasks import causal_lm
from finetune.tasks.text import load_tokenizer
from finetune.training import losses
from finetune.training.arguments import DEFAULTS, has_accelerator
from finetune.training.signals import Signals
from finetune.training.trainer import StepTrainer

NUMBERS = Path("benchmarks/results/packing.json")


def seconds(trainer: Trainer) -> float:
    """Trains one epoch and returns its seconds."""
    trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    trainer.train()
    return time.perf_counter() - started


def main() -> None:
    """Trains both ways in alternation and prints their speed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--checkpoint", default="embedded:smollm2")
    parser.add_argument("--dataset", default="embedded:imdb")
    parser.add_argument("--reviews", type=int, default=64)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    logging.set_verbosity_error()

    checkpoint = sources.checkpoint(options.checkpoint)
    read = recipe.Recipe(
        task="text-generation",
        model=recipe.Model(options.checkpoint, max_length=options.max_length),
        data=recipe.Data(options.dataset, max_train_samples=options.reviews),
        tuning=recipe.Tuning(),
        training={},
        reference=None,
        name="packing",
        origin={},
    )
    data = corpus.load(read.data, corpus.DOCUMENTS, labelled=False)
    config: Any = load_config(read, checkpoint, {})
    config.use_cache = False
    tokenizer = load_tokenizer(read, checkpoint, config)
    # Truncated equally, so that both get the same tokens.
    rows = documents.texts(list(data.train["text"]), tokenizer)
    made = causal_lm.blocks(rows, options.max_length, pieces=False, packs=True)
    packed = Dataset.from_dict(made)
    facts = causal_lm.describe_blocks(packed, len(rows), options.max_length, packs=True)
    plain = Dataset.from_dict({"input_ids": [row.ids[: options.max_length] for row in rows]})
    model = pretrained.load(causal_lm.TASK.auto_model, checkpoint, config, read)
    assert packing.is_kept_apart(model)
    assert isinstance(tokenizer.pad_token_id, int)

    def arguments(folder: str, **more: Any) -> TrainingArguments:
        return TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=options.batch,
            num_train_epochs=1,
            # The weights do not change, so that every round does the same work.
            learning_rate=0.0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            bf16=options.bf16,
            use_cpu=not has_accelerator(),
            **more,
        )

    def ours(folder: str) -> Trainer:
        return StepTrainer(
            signals=Signals(),
            run={},
            stateful={},
            changed_keys=[],
            layer_decay=1.0,
            ema_decay=0.0,
            model=model,
            args=arguments(
                folder,
                remove_unused_columns=False,
                train_sampling_strategy=DEFAULTS["train_sampling_strategy"],
            ),
            data_collator=packing.Collator(int(str(tokenizer.pad_token_id))),
            train_dataset=packed,
            compute_loss_func=losses.NextTokenLoss(),
        )

    def theirs(folder: str) -> Trainer:
        return Trainer(
            model=model,
            args=arguments(folder),
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
            train_dataset=plain,
        )

    took: dict[str, list[float]] = {"packed": [], "padded": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            took["packed"].append(facts["tokens"] / seconds(ours(folder)))
            took["padded"].append(facts["tokens"] / seconds(theirs(folder)))
    for name, speeds in took.items():
        print(f"{name}: {statistics.median(speeds):,.0f} real tokens per second")
    ratios = [round(a / b, 2) for a, b in zip(took["packed"], took["padded"], strict=True)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"packed is {statistics.median(ratios):.2f} times as fast ({spread})")
    speeds = {name: round(statistics.median(each), 1) for name, each in took.items()}
    results = {"machine": machine(), "settings": vars(options), "tokens_per_second": speeds}
    results |= {"ratio": statistics.median(ratios), "every": ratios, "tokens": facts["tokens"]}
    NUMBERS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"{facts['tokens']:,} tokens in {facts['blocks']} blocks of {options.max_length}")


if __name__ == "__main__":
    main()
