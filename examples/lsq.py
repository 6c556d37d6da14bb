"""Learned step sizes, 3 bits, on handwritten digits: an estimator that is exact in eager, and what is left to gain.

LSQ scales the gradient of its step with `(s - s * g).detach() + s * g` and passes gradients through a rounding with
`x + (x.round() - x).detach()`. The second is exact in IEEE arithmetic, as a number and its rounding are within a factor of two of
each other (or the rounding is zero), and the first nearly always, as `s * g` is small: eager's weights are on the grid too.
Left to gain is arithmetic: memory, kernels and bytes are stock's, as the quantiser reads `x` anyway. The losses differ only as
stock's do from eager's: a last bit turns a rounding over now and then, and training goes on from there.

    python examples/lsq.py --plot lsq.png               # a minute or two on two cores; on CUDA where there is one
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import compare
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ste_compile.testing import count_off

WIDTH = 256
COLUMNS = {"accuracy": ".1%", "weight\nlevels": "d", "off the\ngrid": ".1%", "ulp\nmax": "d"}
NOTE = "off the grid: of the 3-bit weights as their products are given them, those that are no whole multiple of the learned step"


class Quantizer(nn.Module):
    """Esser et al., "Learned Step Size Quantization" (arXiv 1902.08153)."""

    def __init__(self, low: int, high: int, step: float) -> None:
        super().__init__()
        self.step, self.low, self.high = nn.Parameter(torch.tensor(step)), low, high

    def forward(self, x: Tensor) -> Tensor:
        g = 1 / math.sqrt(x.numel() * self.high)
        step = (self.step - self.step * g).detach() + self.step * g
        x = (x / step).clamp(self.low, self.high)
        return (x + (x.round() - x).detach()) * step


class LsqLinear(nn.Linear):
    """Weights of `bits` bits with a sign, activations of `bits` bits without, as they come from a ReLU."""

    def __init__(self, inputs: int, outputs: int, bits: int) -> None:
        super().__init__(inputs, outputs)
        top = 2**bits - 1
        self.weights = Quantizer(-(top // 2) - 1, top // 2, 2 * self.weight.abs().mean().item() / math.sqrt(top // 2))
        self.activations = Quantizer(0, top, 1 / math.sqrt(top))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.activations(x), self.weights(self.weight), self.bias)


class Mlp(nn.Module):
    """Two layers of 3 bits between a first and a last one of 8, as in the paper."""

    def __init__(self, width: int) -> None:
        super().__init__()
        bits = (8, 3, 3, 8)
        sizes = (64, width, width, width, 10)
        self.layers = nn.ModuleList(LsqLinear(*sizes[i : i + 2], bits[i]) for i in range(4))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = images.flatten(1)
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        x = self.layers[-1](x)
        return F.cross_entropy(x, labels) if self.training else x


def quantized(model: Mlp) -> list[Tensor]:
    """The hidden layers' weights as their products are given them."""
    return [layer.weights(layer.weight) for layer in model.layers[1:-1]]


def measure(contestant: compare.Contestant, tests: list[compare.Batch]) -> dict[str, float]:
    steps = [layer.weights.step.detach() for layer in contestant.model.layers[1:-1]]
    found = [count_off(each, (each / s).round() * s) for each, s in zip(contestant.run(quantized, contestant.model), steps)]
    levels = max(each.distinct or 0 for each in found)
    return dict(zip(COLUMNS, (contestant.accuracy(tests), levels, *compare.share_and_ulp(*found))))


def draw(contestants: list[compare.Contestant], path: Path) -> None:
    """Left: the losses, apart as stock's is from eager's. Right: a 3-bit layer's weights, and where its product is given them."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for each, width in zip(contestants, (7, 5, 3.5, 2, 1)):  # so that lines above each other stay visible
        left.plot(each.losses, color=compare.COLORS[each.name], linewidth=width, label=each.name)
    left.set(xlabel="step", ylabel="loss", yscale="log", title="training")
    left.legend(frameon=False)
    algebraic = contestants[-1]
    layer = algebraic.model.layers[1]
    given, counts = algebraic.run(quantized, algebraic.model)[0].unique(return_counts=True)
    shown, heights = given.tolist(), counts.tolist()
    right.hist(layer.weight.detach().flatten().tolist(), bins=120, color="#c9d6df", label="weights, in float32")
    right.vlines(shown, 0, heights, color=compare.COLORS["algebraic"], linewidth=2.5, label="as the product is given them")
    right.set(xlabel="value", ylabel="how many", title=f"a 3-bit layer, step {layer.weights.step.item():.4f}")
    right.set(yscale="log", ylim=(0.6, 1e6))
    right.legend(frameon=False, loc="upper right")
    figure.savefig(path)


def main(given: Sequence[str] | None = None, width: int = WIDTH, generate: bool = True) -> list[compare.Contestant]:
    chosen = compare.arguments(__doc__, given)
    torch.manual_seed(0)
    batches, tests = compare.digits(chosen.batch, 8)
    contestants = compare.contestants(Mlp(width), batches[0], rate=2e-3, generate=generate)
    for contestant, batch in compare.in_turn(contestants, batches, chosen.epochs):
        contestant.step(*batch)
        contestant.infer(*batch)
    for contestant in contestants:
        contestant.measured = measure(contestant, tests)
    compare.show("LSQ", contestants, COLUMNS, len(batches), NOTE)
    if chosen.plot:
        draw(contestants, chosen.plot)
    return contestants


if __name__ == "__main__":
    main()
