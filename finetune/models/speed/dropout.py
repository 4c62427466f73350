"""Dropout on a CPU that draws 16 random bits a value and keeps one byte a value for backward.

- torch's own dropout draws one value after the other, about five times as slowly, and keeps four
  bytes a value.
- Without it a step of full fine-tuning of MiniLM took 1.03 times the CPU time (quartiles 1.01 to
  1.05): 24 pairs of steps, ``OMP_NUM_THREADS=1 python benchmarks/parts.py --steps 24``,
  2026-11-25, Intel Xeon. That alone would not pay for it. It stays for the memory, and because
  the published numbers in recipes/ were measured with its draws.
"""

import numpy
import torch
from torch import nn


class Dropout(nn.Dropout):
    """``nn.Dropout`` with draws from a generator that torch's random state seeds.

    A value is dropped with the multiple of 2**-16 nearest to ``p``; the others are scaled by
    exactly the inverse of what remains. Only plain fp32 in training mode takes this path.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        dropped = round(self.p * 2**16)
        plain = input.dtype is torch.float32 and input.device.type == "cpu" and not self.inplace
        if not plain or not self.training or not 0 < dropped < 2**16:
            return super().forward(input)
        draws = numpy.random.SFC64(int(torch.randint(2**63 - 1, ())))
        bits = draws.random_raw(-(-input.numel() // 4)).view(numpy.uint16)[: input.numel()]
        # uint8, not bool: torch converts it to float eight times as fast.
        kept = torch.from_numpy((bits >= dropped).view(numpy.uint8)).view(input.shape)
        return input * kept * (2**16 / (2**16 - dropped))
