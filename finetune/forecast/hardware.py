"""Forecasts a run on another GPU by formula, from what a step computes.

- compute: operations / (peak rate x share of it that is reached), 50 % to 20 % of the peak
- memory traffic: both passes read the weights; the optimizer reads and writes four values of each
  trained weight
- launches: an operator takes a fixed time to start, which small models spend most of

Peak rates are dense, without sparsity; bf16 or fp16 with tensor cores, fp32 without.
Sources: the data sheets of NVIDIA for each card.
"""

from dataclasses import dataclass

from finetune.errors import UserError, nearest
from finetune.forecast.measuring import Forecast


@dataclass(frozen=True)
class Card:
    """A GPU: memory in GB, bandwidth in GB/s, peak rates in TFLOP/s."""

    title: str
    memory: float
    bandwidth: float
    half: float
    single: float


CARDS = {
    "t4": Card("T4", 16, 320, 65, 8.1),
    "v100": Card("V100 SXM2 32 GB", 32, 900, 125, 15.7),
    "l4": Card("L4", 24, 300, 121, 30.3),
    "a10": Card("A10", 24, 600, 125, 31.2),
    "rtx3090": Card("RTX 3090", 24, 936, 71, 35.6),
    "rtx4090": Card("RTX 4090", 24, 1008, 165, 82.6),
    "l40s": Card("L40S", 48, 864, 362, 91.6),
    "a100-40gb": Card("A100 SXM 40 GB", 40, 1555, 312, 19.5),
    "a100": Card("A100 SXM 80 GB", 80, 2039, 312, 19.5),
    "h100": Card("H100 SXM", 80, 3350, 989, 67),
    "h200": Card("H200 SXM", 141, 4800, 989, 67),
}
REACHED = (0.5, 0.2)
# Seconds to start an operator from Python, fast and slow hosts.
LAUNCH = (5e-6, 20e-6)
# The CUDA context and the libraries' workspaces.
CONTEXT_BYTES = 1e9


@dataclass(frozen=True)
class Estimate:
    """A run on a card: seconds of training between ``fast`` and ``slow``, and bytes of memory."""

    card: Card
    fast: float
    slow: float
    memory_bytes: float

    @property
    def fits(self) -> bool:
        return self.memory_bytes <= self.card.memory * 1e9


def card(name: str) -> Card:
    """Returns the card of a name.

    Raises:
        UserError: it is unknown; names the nearest.
    """
    if name.lower() not in CARDS:
        raise UserError(f"--gpu {name}: known are {', '.join(CARDS)}; {nearest(name, [*CARDS])}")
    return CARDS[name.lower()]


def estimate(forecast: Forecast, card: Card, half: bool) -> Estimate:
    """Estimates a run on a card by formula.

    Evaluations count as a third of a training step for each token: they have a forward pass only.

    Args:
        half: whether the run computes in bf16 or fp16.
    """
    counts = forecast.counts
    steps = forecast.tokens / counts.tokens
    trained = counts.trained_bytes
    traffic = 2 * counts.parameter_bytes * counts.micro_batches + 8 * trained
    training = forecast.step_seconds * forecast.steps
    more = 1 + forecast.evaluations * forecast.evaluation_seconds / training
    seconds = []
    for reached, launch in zip(REACHED, LAUNCH, strict=True):
        compute = counts.flops / (1e12 * (card.half if half else card.single) * reached)
        moved = traffic / (card.bandwidth * 1e9)
        seconds.append(steps * more * (max(compute, counts.kernels * launch) + moved))
    # Gradients and two values of Adam for each trained weight.
    memory = counts.parameter_bytes + 3 * trained + counts.activation_bytes + CONTEXT_BYTES
    return Estimate(card, seconds[0], seconds[1], memory)
