"""A VQ-VAE on handwritten digits, under bf16 autocast: is the decoder given the codebook?

Its decoder is given `x + (q - x).detach()`, which stands for `q`, a row of the codebook. In eager the difference and the sum are
rounded to 16 bits, and what comes out is beside that row. Under `algebraic` it is the row, bit for bit, as it will be where only
the codes are kept and the decoder reads the codebook itself. (Under autocast stock comes to the row too, as it rounds once, after
the sum; in float32 it does not.) It saves arithmetic, no memory: the distances to the codebook read `x` anyway.

    python examples/vq_vae.py --plot vq_vae.png         # a minute or two on two cores; on CUDA where there is one
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

CODES, SIZE, WIDTH, ROW = 64, 16, 32, 8
COLUMNS = {"test\nloss": ".4f", "codes\nused": "d", "off the\ncodebook": ".1%", "ulp\nmax": "d", "off in\nfloat32": ".1%"}
NOTE = "off the codebook: elements of the decoder's input that are not their row's, for the test images; and without autocast"


class VqVae(nn.Module):
    """van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning" (arXiv 1711.00937)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width, 4, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 4, 2, 1), nn.ReLU(), nn.Conv2d(width, ROW, 1)
        )
        self.codebook = nn.Parameter(torch.empty(CODES, ROW))
        self.decoder = nn.Sequential(nn.ConvTranspose2d(ROW, width, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(width, 1, 4, 2, 1))

    @torch.no_grad()
    def start(self, images: Tensor) -> VqVae:
        """Begin with what the encoder gives, spread out: most rows would never be used else."""
        self.encoder[-1].weight.mul_(8)
        self.encoder[-1].bias.zero_()
        x = self.encoder(images).permute(0, 2, 3, 1).flatten(0, 2)
        self.codebook.copy_(x[torch.randint(len(x), (CODES,))])
        return self

    def forward(self, images: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        x = self.encoder(images).permute(0, 2, 3, 1)
        codes = (self.codebook.pow(2).sum(1) - 2 * (x @ self.codebook.T)).argmin(-1)
        q = F.embedding(codes, self.codebook).to(x.dtype)
        given = x + (q - x).detach()
        result = self.decoder(given.permute(0, 3, 1, 2))
        if not self.training:
            return result, given, codes
        return F.mse_loss(result, images) + F.mse_loss(q, x.detach()) + 0.25 * F.mse_loss(x, q.detach())


def decoded(contestant: compare.Contestant, tests: list[compare.Batch]) -> tuple[Tensor, Tensor, Tensor]:
    """What the decoder is given, the rows it stands for, and their codes."""
    _, given, codes = (torch.cat(each) for each in zip(*(contestant.result(*batch) for batch in tests)))
    return given, contestant.model.codebook.detach().to(given.dtype)[codes], codes


def measure(contestant: compare.Contestant, tests: list[compare.Batch]) -> dict[str, float]:
    given, rows, codes = decoded(contestant, tests)
    off, ulp = compare.share_and_ulp(count_off(given, rows))
    contestant.autocast = False
    off_in_float32, _ = compare.share_and_ulp(count_off(*decoded(contestant, tests)[:2]))
    contestant.autocast = True
    loss = torch.stack([F.mse_loss(contestant.result(*batch)[0].float(), batch[0]) for batch in tests]).mean()
    return dict(zip(COLUMNS, (loss.item(), len(codes.unique()), off, ulp, off_in_float32)))


def draw(contestants: list[compare.Contestant], tests: list[compare.Batch], path: Path) -> None:
    """Left: how far each element is from its row's. Right: how many are not on it."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for each in (contestants[0], contestants[-1]):
        given, rows, _ = decoded(each, tests)
        off = given.double() - rows.double()
        left.scatter(rows.flatten().tolist(), off.flatten().tolist(), s=4, color=compare.COLORS[each.name], label=each.name)
    left.set(xlabel="element of the codebook's row", ylabel="the decoder's input, less it", title="how far off the codebook")
    left.legend(frameon=False)
    for side, column, alpha in ((-1, "off the\ncodebook", 1), (1, "off in\nfloat32", 0.45)):
        shares = [100 * each.measured[column] for each in contestants]
        at = [i + 0.2 * side for i in range(len(contestants))]
        bars = right.bar(at, shares, width=0.38, color=[compare.COLORS[each.name] for each in contestants], alpha=alpha)
        right.bar_label(bars, [f"{share:.1f}" for share in shares], fontsize=8)
    right.set_xticks(range(len(contestants)), [each.name for each in contestants])
    right.set(ylabel="% of elements", title="elements off the codebook (light: in float32)")
    figure.savefig(path)


def main(given: Sequence[str] | None = None, width: int = WIDTH, generate: bool = True) -> list[compare.Contestant]:
    chosen = compare.arguments(__doc__, given)
    torch.manual_seed(0)
    batches, tests = compare.digits(chosen.batch, SIZE)
    model = VqVae(width).start(batches[0][0].cpu())
    contestants = compare.contestants(model, batches[0], rate=4e-3, autocast=True, generate=generate)
    for contestant, batch in compare.in_turn(contestants, batches, chosen.epochs):
        contestant.step(*batch)
        contestant.infer(*batch)
    for contestant in contestants:
        contestant.measured = measure(contestant, tests)
    compare.show("VQ-VAE", contestants, COLUMNS, len(batches), NOTE)
    if chosen.plot:
        draw(contestants, tests, chosen.plot)
    return contestants


if __name__ == "__main__":
    main()
