"""What results.json records of the machine that a run was trained on."""

import importlib
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from finetune.training import run_results


def test_peak_memory_is_measured_without_the_module_that_windows_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    own = run_results.peak_memory_bytes()
    assert psutil.Process().memory_info().rss / 2 < own < psutil.virtual_memory().total
    monkeypatch.setitem(sys.modules, "resource", None)
    importlib.reload(run_results)
    windows = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=7_000))
    monkeypatch.setattr(psutil, "Process", lambda: windows)
    assert run_results.peak_memory_bytes() == 7_000
