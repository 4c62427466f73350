"""Columns of a batch that only scoring reads; the loss of a student."""

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


def taught(kind: str, weights: tuple[float, float], states: bool = False) -> Any:
    """A student's loss, and a batch of six rows: outputs, labels, the teacher's outputs."""
    torch.manual_seed(0)
    plain = losses.ClassificationLoss(kind)
    loss = losses.DistillationLoss(plain, kind, weights[0], 3.0, weights[1])
    ours, theirs = torch.randn(6, 3), torch.randn(6, 3)
    labels = torch.arange(6) % 3
    if kind != "single_label_classification":
        labels = torch.rand(6, 3).round()
    hidden = [torch.randn(6, 4, 8) for _ in range(3)]
    teacher = torch.randn(6, 2, 8) if states else None
    outputs = {"logits": ours, "hidden_states": tuple(hidden)}
    return loss, plain, outputs, losses.Taught(labels, theirs, teacher)


def test_a_student_learns_classes_by_divergence_at_a_temperature() -> None:
    loss, plain, outputs, batch = taught("single_label_classification", (0.25, 0.0))
    soft = [functional.softmax(x / 3, -1) for x in (batch.logits, outputs["logits"])]
    divergence = (soft[0] * (soft[0].log() - soft[1].log())).sum(-1).mean()
    expected = 0.25 * plain(outputs, batch.labels) + 0.75 * 9 * divergence
    assert torch.allclose(loss(outputs, batch), expected)
    same = losses.Taught(batch.labels, outputs["logits"])
    assert torch.allclose(loss(outputs, same), 0.25 * plain(outputs, batch.labels))
    # Rows without a teacher's outputs: evaluation.
    assert loss(outputs, batch.labels) == plain(outputs, batch.labels)


def test_a_student_learns_each_of_several_labels() -> None:
    loss, _, outputs, batch = taught("multi_label_classification", (0.0, 0.0))
    theirs, ours = (torch.sigmoid(x / 3) for x in (batch.logits, outputs["logits"]))
    terms = [p * (p.log() - q.log()) for p, q in ((theirs, ours), (1 - theirs, 1 - ours))]
    expected = 9 * torch.stack(terms).sum(0).mean()
    assert torch.allclose(loss(outputs, batch), expected, atol=1e-6)


def test_a_student_learns_the_directions_of_hidden_states() -> None:
    loss, plain, outputs, batch = taught("single_label_classification", (1.0, 0.5), states=True)
    ours = torch.stack([each[:, 0] for each in outputs["hidden_states"][1:]], 1)
    cosine = functional.cosine_similarity(ours, batch.states, dim=-1)
    expected = plain(outputs, batch.labels) + 0.5 * (2 - 2 * cosine).mean()
    assert torch.allclose(loss(outputs, batch), expected)


def test_a_students_loss_does_not_depend_on_micro_batches() -> None:
    kinds = ("single_label_classification", "multi_label_classification")
    for kind in kinds:
        loss, _, outputs, batch = taught(kind, (0.3, 0.7), states=True)
        parts = []
        for rows in (slice(0, 2), slice(2, 6)):
            hidden = tuple(each[rows] for each in outputs["hidden_states"])
            some = losses.Taught(batch.labels[rows], batch.logits[rows], batch.states[rows])
            part = {"logits": outputs["logits"][rows], "hidden_states": hidden}
            parts.append(loss(part, some, torch.tensor(batch.labels.numel())))
        assert torch.allclose(torch.stack(parts).sum(), loss(outputs, batch))
