"""The models that `benchmark.py` measures: hosts with seeds, and the estimators of quantisation, routing and discrete codes.

A model in training mode returns its loss, in eval mode its result (the bare operator returns its result in both). Each takes its
estimators from `Estimating.ste`: the expressions of public code or, for the contestant `autograd.Function`, the same by hand.

"Host alone" is the model without its seeds. The quantisers, the router and the VQ-VAE have none: there the surrogate is the very
tensor that the value is made of, and with the estimator gone nothing is left to compare with.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from estimators import Estimating
from torch import Tensor, nn

CLASSES, EXPERTS = 10, 4


@dataclass(frozen=True)
class Size:
    """How large the models are. `seeds` is the largest number of seeds a host carries: it has a block for each, and one more."""

    batch: int = 64
    image: int = 32
    width: int = 32
    tokens: int = 64
    features: int = 256
    rows: int = 2048  # of the MLPs
    codes: int = 256
    seeds: int = 8


def size_of(work: str, device: str) -> Size:
    """Of a model that this type of device, "cpu" or "cuda", is given to train."""
    if device == "cpu":
        return Size()
    if work == "transformer":
        return Size(batch=8, tokens=1024, features=1024)
    return Size(batch=1024, width=64, features=1024, rows=8192)


# Hosts with seeds.


def conv_seed(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 3, padding=1))


class NormSeed(nn.Module):
    """Layer norm over the channels, in float32 as norms are under autocast: its result is cast where it joins the host."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, h: Tensor) -> Tensor:
        return self.norm(h.permute(0, 2, 3, 1).float()).permute(0, 3, 1, 2)


def bottleneck_seed(width: int) -> nn.Module:
    inner = width // 4
    return nn.Sequential(
        nn.Conv2d(width, inner, 1), nn.GELU(), nn.Conv2d(inner, inner, 3, padding=1), nn.GELU(), nn.Conv2d(inner, width, 1)
    )


def depthwise_seed(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width), nn.GELU(), nn.Conv2d(width, width, 1))


def mlp(features: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, 2 * features), nn.GELU(), nn.Linear(2 * features, features))


class Attention(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(features, 3 * features), nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Gate(nn.Module):
    """Squeeze and excite: Hu, Shen and Sun (arXiv 1709.01507)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width // 4), nn.ReLU(), nn.Linear(width // 4, width), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.layers(x.mean((2, 3)))[:, :, None, None]


def group_norm(width: int) -> nn.Module:
    return nn.GroupNorm(8, width)


def normed(width: int, norm: Callable[[int], nn.Module] = group_norm) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width), nn.ReLU())


def separable_seed(width: int) -> nn.Module:
    depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
    return Residual(depthwise, nn.Conv2d(width, width, 1), group_norm(width), nn.ReLU())


def narrow_seed(width: int) -> nn.Module:
    inner = width // 4
    around = nn.Conv2d(width, inner, 1), nn.ReLU(), nn.Conv2d(inner, inner, 3, padding=1), nn.ReLU(), nn.Conv2d(inner, width, 1)
    return Residual(*around, group_norm(width))


CNN_SEEDS: dict[str, Callable[[int], nn.Module]] = {
    "conv": conv_seed, "norm": NormSeed, "bottleneck": bottleneck_seed, "depthwise": depthwise_seed,
}  # fmt: skip
STAGE_SEEDS: dict[str, Callable[[int], nn.Module]] = {
    "residual": lambda width: Residual(normed(width), normed(width)), "separable": separable_seed, "narrow": narrow_seed,
    "gated": lambda width: Residual(normed(width), Gate(width)),
    "batch-normed": lambda width: Residual(normed(width, nn.BatchNorm2d), normed(width, nn.BatchNorm2d)),
}  # fmt: skip
TRANSFORMER_SEEDS: dict[str, Callable[[int], nn.Module]] = {"mlp": mlp, "attention": Attention}


class Host(Estimating):
    """Residual blocks, each but the last with room for a seed. (The host alone would not keep the last one's result for the
    backward, so a seed that reads it would have to save it.)"""

    def __init__(
        self, width: int, block: Callable[[], nn.Module], seed: Callable[[int], nn.Module], seeds: int, room: int
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(room + 1))
        self.head = nn.Linear(width, CLASSES)
        self.seeds = nn.ModuleList(seed(width) for _ in range(seeds))

    def loss(self, h: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.head(h), labels) if self.training else self.head(h)


class Cnn(Host):
    """A channels-last CNN whose seeds read, as their authors wrote them, contiguous images."""

    def __init__(self, kind: str, seeds: int, size: Size) -> None:
        super().__init__(size.width, lambda: nn.Conv2d(size.width, size.width, 3, padding=1), CNN_SEEDS[kind], seeds, size.seeds)
        self.stem = nn.Conv2d(3, size.width, 3, padding=1)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        h = self.stem(images).relu()
        for i, block in enumerate(self.blocks):
            h = h + block(h).relu()
            if i < len(self.seeds):
                h = self.ste.join(h, self.seeds[i](h.detach().contiguous()))
        return self.loss(h.mean((2, 3)), labels)


class Stages(Estimating):
    """A host as classifiers have: convolution, batch norm, relu and max pool, three times, of ever more channels. Each stage
    may carry a seed with a norm of its own and a residual around it, in the layout that its author did not think of."""

    def __init__(self, kind: str, seeds: int, size: Size) -> None:
        super().__init__()
        widths = [3, size.width, 2 * size.width, 4 * size.width]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
            for before, width in itertools.pairwise(widths)
        )
        self.head = nn.Linear(widths[-1], CLASSES)
        self.seeds = nn.ModuleList(STAGE_SEEDS[kind](width) for width in widths[1 : 1 + seeds])

    def forward(self, h: Tensor, labels: Tensor) -> Tensor:
        for i, stage in enumerate(self.stages):
            h = stage(h)
            if i < len(self.seeds):
                h = self.ste.join(h, self.seeds[i](h.contiguous().detach()))
            h = F.max_pool2d(h, 2)
        logits = self.head(h.mean((2, 3)))
        return F.cross_entropy(logits, labels) if self.training else logits


class Block(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(features), Attention(features))
        self.mlp = nn.Sequential(nn.LayerNorm(features), mlp(features))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class Transformer(Host):
    def __init__(self, kind: str, seeds: int, size: Size) -> None:
        room = min(size.seeds, 4)
        super().__init__(size.features, lambda: Block(size.features), TRANSFORMER_SEEDS[kind], seeds, room)
        self.norm = nn.LayerNorm(size.features)

    def forward(self, h: Tensor, labels: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            h = block(h)
            if i < len(self.seeds):
                h = self.ste.join(h, self.seeds[i](h.detach()))
        return self.loss(self.norm(h).mean(1), labels)


# Discrete codes, quantisers, a router.


class VqVae(Estimating):
    """van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning" (arXiv 1711.00937)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width = size.width
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 4, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1)
        )
        self.codebook = nn.Parameter(torch.randn(size.codes, width) / 4)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(width, width, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(width, 3, 4, 2, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = self.encoder(images).permute(0, 2, 3, 1)
        distances = self.codebook.pow(2).sum(1) - 2 * (x @ self.codebook.T)
        q = F.embedding(distances.argmin(-1), self.codebook)
        result = self.decoder(self.ste.through(x, q).permute(0, 3, 1, 2))
        if not self.training:
            return result
        return F.mse_loss(result, images) + F.mse_loss(q, x.detach()) + 0.25 * F.mse_loss(x, q.detach())


class BitLinear(Estimating, nn.Linear):
    """Ternary weights, 8-bit activations: BitNet b1.58 (arXiv 2402.17764)."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.rms_norm(x, x.shape[-1:])
        scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        x = self.ste.through(x, (x * scale).round().clamp(-128, 127) / scale)
        scale = 1 / self.weight.abs().mean().clamp(min=1e-5)
        weight = self.ste.through(self.weight, (self.weight * scale).round().clamp(-1, 1) / scale)
        return F.linear(x, weight, self.bias)


class LsqQuantizer(Estimating):
    """A learned step size: Esser et al. (arXiv 1902.08153)."""

    def __init__(self, bits: int, step: float) -> None:
        super().__init__()
        self.step, self.top = nn.Parameter(torch.tensor(step)), 2 ** (bits - 1) - 1

    def forward(self, x: Tensor) -> Tensor:
        step = self.ste.scaled(self.step, 1 / math.sqrt(x.numel() * self.top))
        x = (x / step).clamp(-self.top - 1, self.top)
        return self.ste.through(x, x.round()) * step


class LsqLinear(nn.Linear):
    def __init__(self, *features: int) -> None:
        super().__init__(*features)
        self.activations, self.weights = LsqQuantizer(8, 0.05), LsqQuantizer(4, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.activations(x), self.weights(self.weight), self.bias)


class Mlp(nn.Module):
    """Three layers of one kind."""

    def __init__(self, linear: Callable[[int, int], nn.Module], size: Size) -> None:
        super().__init__()
        wide = 2 * size.features
        self.layers = nn.Sequential(linear(size.features, wide), nn.GELU(), linear(wide, wide), nn.GELU(), linear(wide, CLASSES))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.layers(x), labels) if self.training else self.layers(x)


class Router(Estimating):
    """Each row goes to one of a few experts (all are computed, as is usual for a few)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.route, self.head = nn.Linear(size.features, EXPERTS), nn.Linear(size.features, CLASSES)
        self.experts = nn.ModuleList(mlp(size.features) for _ in range(EXPERTS))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        gates = self.ste.gumbel(self.route(x))
        h = sum(gates[:, i : i + 1] * expert(x) for i, expert in enumerate(self.experts))
        return F.cross_entropy(self.head(h), labels) if self.training else self.head(h)


class Operator(Estimating):
    """The join alone. Without the seed it is a copy of the host: a join's result has memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds = nn.ModuleList([nn.Identity()])

    def forward(self, host: Tensor, seed: Tensor) -> Tensor:
        return self.ste.join(host, self.seeds[0](seed)) if self.seeds else host.clone()


# What can be measured.


@dataclass(frozen=True)
class Work:
    """`make(kind, seeds, size)` gives a model and its inputs. `seeds` are those allowed: (0,) where the word means nothing."""

    title: str
    make: Callable[[str, int, Size], tuple[nn.Module, tuple[Tensor, ...]]]
    kinds: tuple[str, ...] = ("-",)
    seeds: tuple[int, ...] = (0,)
    autocast: bool = False  # bf16
    alone: bool = False  # whether there is a host to be left alone
    draws: bool = False  # random numbers


def _cnn(kind: str, seeds: int, size: Size) -> tuple[nn.Module, tuple[Tensor, ...]]:
    images = torch.randn(size.batch, 3, size.image, size.image)
    inputs = images.to(memory_format=torch.channels_last), torch.randint(CLASSES, (size.batch,))
    return Cnn(kind, seeds, size).to(memory_format=torch.channels_last), inputs


def _stages(layout: torch.memory_format) -> Callable[[str, int, Size], tuple[nn.Module, tuple[Tensor, ...]]]:
    def make(kind: str, seeds: int, size: Size) -> tuple[nn.Module, tuple[Tensor, ...]]:
        model, images = Stages(kind, seeds, size), torch.randn(size.batch, 3, size.image, size.image)
        model.stages.to(memory_format=layout)
        return model, (images.to(memory_format=layout), torch.randint(CLASSES, (size.batch,)))

    return make


def _transformer(kind: str, seeds: int, size: Size) -> tuple[nn.Module, tuple[Tensor, ...]]:
    inputs = torch.randn(size.batch, size.tokens, size.features), torch.randint(CLASSES, (size.batch,))
    return Transformer(kind, seeds, size), inputs


def _vqvae(kind: str, seeds: int, size: Size) -> tuple[nn.Module, tuple[Tensor, ...]]:
    size = replace(size, codes=8192, width=max(256, size.width)) if kind == "8192-codes" else size
    return VqVae(size), (torch.randn(size.batch, 3, size.image, size.image),)


def _rows(model: Callable[[Size], nn.Module]) -> Callable[[str, int, Size], tuple[nn.Module, tuple[Tensor, ...]]]:
    def make(kind: str, seeds: int, size: Size) -> tuple[nn.Module, tuple[Tensor, ...]]:
        size = replace(size, features=1024) if kind == "width-1024" else size
        return model(size), (torch.randn(size.rows, size.features), torch.randint(CLASSES, (size.rows,)))

    return make


def _operator(kind: str, seeds: int, size: Size) -> tuple[nn.Module, tuple[Tensor, ...]]:
    count = 2 ** int(kind.removeprefix("2^"))
    return Operator(), (torch.randn(count).bfloat16().requires_grad_(), torch.randn(count).requires_grad_())


WORK = {
    "cnn": Work("CNN host", _cnn, tuple(CNN_SEEDS), (1, 2, 4, 8), autocast=True, alone=True),
    "stages": Work(
        "classifier host, channels-last", _stages(torch.channels_last), tuple(STAGE_SEEDS), (1, 2, 3), autocast=True, alone=True
    ),
    "stages-contiguous": Work(
        "classifier host, contiguous", _stages(torch.contiguous_format), tuple(STAGE_SEEDS), (1, 2, 3), autocast=True, alone=True
    ),
    "transformer": Work("transformer host", _transformer, tuple(TRANSFORMER_SEEDS), (1, 2, 4), autocast=True, alone=True),
    "vqvae": Work("VQ-VAE", _vqvae, ("-", "8192-codes")),
    "bitnet": Work("BitNet b1.58 MLP", _rows(lambda size: Mlp(BitLinear, size)), ("-", "width-1024"), autocast=True),
    "lsq": Work("LSQ MLP", _rows(lambda size: Mlp(LsqLinear, size))),
    "router": Work("Gumbel router", _rows(Router), draws=True),
    "operator": Work("ste_forward alone", _operator, ("2^20", "2^22", "2^24", "2^26"), alone=True),
}  # fmt: skip
