"""A straight-through Gumbel-softmax router of experts, on handwritten digits: is the chosen expert's gate 1?

It depends on the order of the terms. `hard - soft.detach() + soft`, which `F.gumbel_softmax(hard=True)` computes, is one-hot in
eager too: `(1 - p) + p` is rounded to 1 whatever `p` is. `hard + soft - soft.detach()`, as often seen, is not: `(1 + p) - p` may
be beside 1, and the layer's result beside its expert's. Under `algebraic` both are `hard`. It saves a kernel a layer, no memory:
the gradient needs `soft` anyway.

    python examples/gumbel_router.py --plot router.png  # a minute or two on two cores; on CUDA where there is one
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import compare
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ste_compile.testing import count_off

EXPERTS, WIDTH = 4, 128
COLUMNS = {"accuracy": ".1%", "experts\nused": "d", "gates\nnot 1": ".1%", "of gumbel\n_softmax": ".1%", "ulp\nmax": "d"}
NOTE = "gates not 1: chosen experts', for the test images, in the layer that writes the estimator out and in F.gumbel_softmax's"


def written_out(logits: Tensor) -> Tensor:
    noise = -torch.empty_like(logits).exponential_().log()
    soft = (logits + noise).softmax(-1)
    hard = F.one_hot((logits + noise).argmax(-1), EXPERTS).to(soft.dtype)
    return hard + soft - soft.detach()


def of_torch(logits: Tensor) -> Tensor:
    return F.gumbel_softmax(logits, hard=True)


class Moe(nn.Module):
    """A layer of which each image takes one expert (all are computed, as is usual for a few)."""

    def __init__(self, width: int, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate, self.route = gate, nn.Linear(width, EXPERTS)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(EXPERTS)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gates = self.gate(self.route(x))
        return x + sum(gates[:, i : i + 1] * expert(x) for i, expert in enumerate(self.experts)), gates


class Network(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, width), nn.Linear(width, 10)
        self.first, self.second = Moe(width, written_out), Moe(width, of_torch)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x, first = self.first(self.stem(images.flatten(1)).relu())
        x, second = self.second(x)
        logits = self.head(x)
        return F.cross_entropy(logits, labels) if self.training else (logits, torch.stack([first, second]))


def gates(contestant: compare.Contestant, tests: list[compare.Batch]) -> Tensor:
    """Of both layers, for the test images."""
    return torch.cat([contestant.result(*batch)[1] for batch in tests], dim=1)


def measure(contestant: compare.Contestant, tests: list[compare.Batch]) -> dict[str, float]:
    chosen, experts = gates(contestant, tests).max(-1)
    right = contestant.accuracy(tests, lambda result: result[0])
    shares, ulps = zip(*(compare.share_and_ulp(count_off(layer, torch.ones_like(layer))) for layer in chosen))
    return dict(zip(COLUMNS, (right, len(experts.unique()), *shares, max(ulps))))


def draw(contestants: list[compare.Contestant], tests: list[compare.Batch], path: Path) -> None:
    """Left: what eager makes of a chosen expert's gate, whatever its probability. Right: how many gates are not 1."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    p = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    for label, gate, color in (("hard + soft - soft'", (1 + p) - p, "#c8384c"), ("hard - soft' + soft", (1 - p) + p, "#00798c")):
        left.scatter(p.tolist(), ((gate - 1) * 2**24).tolist(), s=4, color=color, label=label)
    left.set(xlabel="soft probability of the chosen expert", ylabel="gate less 1, in $2^{-24}$", title="eager, float32")
    left.set(ylim=(-1.5, 1), yticks=(-1, 0))
    left.legend(frameon=False)
    for layer, column, color in ((-1, "gates\nnot 1", "#c8384c"), (1, "of gumbel\n_softmax", "#00798c")):
        at = [i + 0.2 * layer for i in range(len(contestants))]
        bars = right.bar(at, [100 * each.measured[column] for each in contestants], width=0.38, color=color)
        right.bar_label(bars, [f"{each.measured[column]:.0%}" for each in contestants], fontsize=8)
    right.set_xticks(range(len(contestants)), [each.name for each in contestants])
    right.set(ylabel="% of test images", title="chosen gates that are not 1")
    figure.savefig(path)


def main(given: Sequence[str] | None = None, width: int = WIDTH, generate: bool = True) -> list[compare.Contestant]:
    chosen = compare.arguments(__doc__, given)
    torch.manual_seed(0)
    batches, tests = compare.digits(chosen.batch, 8)
    contestants = compare.contestants(Network(width), batches[0], rate=2e-3, generate=generate)
    for contestant, batch in compare.in_turn(contestants, batches, chosen.epochs):
        contestant.step(*batch)
        contestant.infer(*batch)
    for contestant in contestants:
        contestant.measured = measure(contestant, tests)
    compare.show("Gumbel router", contestants, COLUMNS, len(batches), NOTE)
    if chosen.plot:
        draw(contestants, tests, chosen.plot)
    return contestants


if __name__ == "__main__":
    main()
