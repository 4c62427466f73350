"""Columns of a batch that only scoring reads."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from finetune.training import losses
from finetune.training.signals import Signals
from finetune.training.trainer import StepTrainer


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Batches rows of one length; training rows have no ``bytes``."""
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0] if name != "length"}


def test_scoring_gets_columns_that_the_model_does_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 20, (6, 5)).tolist()
    rows = Dataset.from_dict({"input_ids": tokens, "labels": tokens, "length": [5] * 6})
    scored = rows.add_column("bytes", list(range(6)))  # pyright: ignore[reportCallIssue]
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=8))
    trainer = StepTrainer(
        signals=Signals(),
        run={},
        stateful={},
        changed_keys=[],
        layer_decay=1.0,
        ema_decay=0.0,
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=3,
            per_device_eval_batch_size=4,
            label_names=["labels", "bytes"],
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        data_collator=collate,
        train_dataset=rows,
        eval_dataset=scored,
        compute_loss_func=losses.NextTokenLoss(),
        preprocess_logits_for_metrics=lambda logits, columns: losses.document_sums(
            logits, *columns
        ),
    )
    trainer.train()
    output = trainer.predict(scored)  # pyright: ignore[reportArgumentType]
    labels, byte_counts = output.label_ids  # pyright: ignore[reportGeneralTypeIssues]
    assert byte_counts.tolist() == list(range(6))
    assert labels.tolist() == tokens
    sums = torch.tensor(output.predictions)
    assert sums[:, 1:].tolist() == [[4, count] for count in range(6)]
    with torch.no_grad():
        logits = model.eval()(torch.tensor(tokens)).logits
    nats = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), torch.tensor(tokens)[:, 1:].flatten(), reduction="none"
    )
    assert torch.allclose(sums[:, 0], nats.view(6, 4).sum(1), atol=1e-4)
