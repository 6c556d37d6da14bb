"""BitNet b1.58 layers, in bfloat16, on handwritten digits: are the weights ternary?

The weights are `w + (q - w).detach()` with `q` one of -s, 0 and s. In eager that sum is `q` where `w` and `q` are within a factor
of two of each other: there a difference is exact (which also keeps the 8-bit activations on their grid). Where `w` is larger than
2s, and so was clamped, it is rounded to a value beside `s`. Under `algebraic` there are three values, which saves arithmetic, no
memory: the quantiser reads `w` anyway. Stock has three here too, as it rounds once, after the sum; that is no promise. `exact`
rounds as eager does, but the `s` that Inductor gives it may be the float beside eager's, and then other weights stray.

    python examples/bitnet.py --plot bitnet.png         # a minute or two on two cores; on CUDA where there is one
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import compare
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ste_compile.testing import count_off

WIDTH = 256
COLUMNS = {"accuracy": ".1%", "weight\nvalues": "d", "off the\nthree": ".2%", "ulp\nmax": "d", "activation\nvalues": "d"}
NOTE = """weight values: the most of any layer; off the three, ulp: of all weights, as each has trained them
activation values: for a row from -1 to 1, of 255 possible"""


def of_three(w: Tensor) -> Tensor:
    """Weights to -s, 0 and s, where s is their mean size."""
    scale = 1 / w.abs().mean().clamp(min=1e-5)
    return (w * scale).round().clamp(-1, 1) / scale


def ternary(w: Tensor) -> Tensor:
    return w + (of_three(w) - w).detach()


def eight_bits(x: Tensor) -> Tensor:
    """Each row's activations to 8 bits."""
    scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    q = (x * scale).round().clamp(-128, 127) / scale
    return x + (q - x).detach()


class BitLinear(nn.Linear):
    """Ma et al., "The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits" (arXiv 2402.17764)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(eight_bits(F.rms_norm(x, x.shape[-1:])), ternary(self.weight), self.bias)


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), BitLinear(64, width), nn.ReLU(), BitLinear(width, width), nn.ReLU(), BitLinear(width, 10)
        )
        for layer in self.layers[1::2]:
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)  # as in language models: some are far larger than most

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self.layers(images.bfloat16()).float()
        return F.cross_entropy(logits, labels) if self.training else logits


def quantized(model: Mlp) -> list[tuple[Tensor, Tensor]]:
    """The layers' weights as their products are given them, and what they stand for."""
    return [(ternary(layer.weight), of_three(layer.weight)) for layer in model.layers[1::2]]


def measure(contestant: compare.Contestant, tests: list[compare.Batch]) -> dict[str, float]:
    found = [count_off(*each) for each in contestant.run(quantized, contestant.model)]
    row = torch.linspace(-1, 1, 2**12, device=contestant.device).bfloat16()[None]
    levels = contestant.run(eight_bits, row).unique()
    values = max(each.distinct or 0 for each in found)
    return dict(zip(COLUMNS, (contestant.accuracy(tests), values, *compare.share_and_ulp(*found), len(levels))))


def draw(contestants: list[compare.Contestant], path: Path) -> None:
    """How often the weights take each value around s, in the layer where eager strays most: eager's weights, for all."""
    figure, axes = plt.subplots(len(contestants), 1, sharex=True, sharey=True, figsize=(7, 7), layout="constrained")
    eager = contestants[0]
    off = [count_off(*each).off for each in eager.run(quantized, eager.model)]
    for each, axis in zip(contestants, axes):
        weights, meant = each.run(quantized, eager.model)[off.index(max(off))]
        s = meant.max()
        values, counts = weights.unique(return_counts=True)
        near = (values / s - 1).abs() < 0.03
        axis.vlines((values[near] / s).tolist(), 0.5, counts[near].tolist(), color=compare.COLORS[each.name], linewidth=3)
        axis.set(yscale="log", ylabel=each.name)
    axes[0].set_title("weights given to the product: how many have each value near s")
    axes[-1].set_xlabel("value / s")
    figure.savefig(path)


def main(given: Sequence[str] | None = None, width: int = WIDTH, generate: bool = True) -> list[compare.Contestant]:
    chosen = compare.arguments(__doc__, given)
    torch.manual_seed(0)
    batches, tests = compare.digits(chosen.batch, 8)
    contestants = compare.contestants(Mlp(width).bfloat16(), batches[0], rate=2e-3, generate=generate)
    for contestant, batch in compare.in_turn(contestants, batches, chosen.epochs):
        contestant.step(*batch)
        contestant.infer(*batch)
    for contestant in contestants:
        contestant.measured = measure(contestant, tests)
    compare.show("BitNet b1.58", contestants, COLUMNS, len(batches), NOTE)
    if chosen.plot:
        draw(contestants, chosen.plot)
    return contestants


if __name__ == "__main__":
    main()
