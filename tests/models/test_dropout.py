"""Dropout on a CPU: its share, its mean, its memory, its seed."""

import pytest
import torch

from finetune.models.speed.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    states = torch.ones(1000, 1001, requires_grad=True)
    out = Dropout(p)(states)
    dropped = float((out == 0).float().mean())
    # Five standard deviations of a share over so many draws.
    assert abs(dropped - p) < 5 * (p * (1 - p) / states.numel()) ** 0.5
    assert out.max().item() == pytest.approx(1 / (1 - p), rel=1e-4)
    # Neither rows nor columns share their draws.
    for axis in (0, 1):
        shares = (out == 0).float().mean(axis)
        assert shares.std().item() == pytest.approx((p * (1 - p) / 1000) ** 0.5, rel=0.15)
    out.sum().backward()
    assert states.grad is not None
    assert torch.equal(states.grad, out.detach())


def test_dropout_keeps_a_byte_a_value_for_the_backward_pass() -> None:
    states = torch.ones(100, 100, requires_grad=True)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: None):
        Dropout(0.5)(states)
    assert sum(x.nbytes for x in saved) == states.numel()


def test_dropout_follows_torchs_seed() -> None:
    states, dropout = torch.ones(7, 9), Dropout(0.5)
    torch.manual_seed(3)
    first, second = dropout(states), dropout(states)
    torch.manual_seed(3)
    assert torch.equal(dropout(states), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_of_nothing_or_all(p: float) -> None:
    assert torch.equal(Dropout(p)(torch.ones(5)), torch.full((5,), 1 - p))
    assert torch.equal(Dropout(0.5).eval()(torch.ones(5)), torch.ones(5))
