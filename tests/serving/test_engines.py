"""The engine that computes predictions: the run's model, or an export that is faster."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune.errors import UserError
from finetune.export import engine
from finetune.run_directory import EXPORT, EXPORTS, Run
from finetune.serving import engines
from finetune.serving.service import Service

SECONDS = {"ONNX Runtime, fp32": 0.1, "OpenVINO, fp32": 0.3, "torch": 0.2}


class Half:
    """An export whose logits are half of those that it is made of."""

    def __init__(self, name: str, service: Service) -> None:
        self.name, self.service = name, service

    def __call__(self, **inputs: torch.Tensor) -> Any:
        logits = self.service.model(**inputs).logits / 2
        return SimpleNamespace(logits=logits)


@pytest.fixture
def exported(texts: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of the run with three exports, one of which cannot be loaded."""
    plain = Service(texts)
    for name in ("model", "recipe.yaml", "results.json"):
        (tmp_path / name).symlink_to((texts.folder / name).resolve())
    names = {"onnx-fp32": "ONNX Runtime, fp32", "openvino-fp32": "OpenVINO, fp32", "other": ""}
    for folder in names:
        (tmp_path / EXPORTS / folder).mkdir(parents=True)
        (tmp_path / EXPORTS / folder / EXPORT).touch()

    def load(folder: Path) -> Half:
        if not names[folder.name]:
            raise UserError(f"{folder}: no runtime")
        return Half(names[folder.name], plain)

    monkeypatch.setattr(engine, "load", load)
    return Run(tmp_path)


def test_the_fastest_engine_answers(exported: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": "the film was good"}]
    order = ["torch", "ONNX Runtime, fp32", "OpenVINO, fp32"]
    taken = iter([SECONDS[name] for name in order])
    monkeypatch.setattr(engines, "seconds", lambda predict, fields: next(taken))
    service = Service(exported)
    assert service.engine == "ONNX Runtime, fp32"
    assert service.measured == SECONDS
    assert [note.rpartition(": ")[2] for note in service.notes] == ["no runtime"]
    ours, torchs = service.predict(rows)[0], Service(Run(exported.model.resolve().parent))
    theirs = torchs.predict(rows)[0]
    assert torchs.engine == "torch"
    assert torchs.measured == {}
    # Half the logits are nearer to one half.
    assert max(ours["probabilities"].values()) < max(theirs["probabilities"].values())


@pytest.mark.parametrize("fields", [{"text": str, "text_pair": str}, {"image": bytes}])
def test_measuring_predicts_made_up_rows(fields: dict[str, type]) -> None:
    asked: list[list[dict[str, Any]]] = []
    assert engines.seconds(asked.append, fields) >= 0
    assert [len(rows) for rows in asked] == [engines.ROWS, 1] * (1 + engines.ROUNDS)
    assert all(isinstance(row[name], kind) for row in asked[0] for name, kind in fields.items())
