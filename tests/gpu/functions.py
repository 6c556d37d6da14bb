"""Functions with a site that reads a product, or has one in it, by name: where a GPU's compiler may skip a rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import ste_compile


def seed(host, a, g):
    return ste_compile.ste_forward(host, a * g)


def host(a, g, seed):
    return ste_compile.ste_forward(a * g, seed)


def product_plus(host, a, g):
    surrogate = a * g
    return (host + surrogate) - surrogate.detach()


def dequantised(x, codes, scale):
    value = codes * scale
    return x + (value - x).detach()


def both_products(a, g, codes, scale):
    x, value = a * g, codes * scale
    return x + (value - x).detach()


def two_surrogates(x, a, b, g):
    s, t = a * g, b * g
    return ((x + s) + t) - s.detach() - t.detach()


def leaf_last(x, codes, scale):
    value = codes * scale
    return -(x - value).detach() + x


def scaled_zero(host, a, g):
    surrogate = a * g
    return host + 0.3 * (surrogate - surrogate.detach())


def scaled_difference(x, codes, scale):
    return x * 3 - (x * 3 - codes * scale).detach()


def number(a, g):
    surrogate = a * g
    return surrogate - (surrogate - 0.25).detach()


def product_of_sites(host, a, g, scale):
    return dequantised(host, ste_compile.ste_forward(host, a * g), scale)


def broadcast(x, codes, scale):
    rows = x.view(-1, 64)
    return dequantised(rows, codes.view(-1, 64), scale.narrow(0, 0, len(rows)).unsqueeze(1))


def negated_product(host, a, g):
    surrogate = -(a * g)
    return (host + surrogate) - surrogate.detach()


def viewed_zero(host, a, g):
    surrogate = a * g
    return host + (surrogate.view(-1, 64) - surrogate.view(-1, 64).detach()).view(-1)


def read_by_another(x, a, g):
    surrogate = a * g
    value = surrogate + (a - surrogate).detach()
    return x + (value - x).detach()


def widened(x, codes, scale):
    x, value = x.float(), (codes * scale).float()
    return x + (value - x).detach()


def multiple(host, a, g):
    return ste_compile.ste_forward(host, 0.5 * (a * g))


def widened_multiple(x, codes, scale):
    x, value = x.float(), 0.5 * (codes * scale).float()
    return x + (value - x).detach()


def widened_factor(host, a, g):
    return host + (host - host.detach()) * (a * g).float()


def recast(host, a, g):
    surrogate = (a * g).float().half()
    return (host + surrogate) - surrogate.detach()


def widened_host(a, g, seed):
    return ste_compile.ste_forward((a * g).float(), seed)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (
        seed, host, product_plus, dequantised, both_products, two_surrogates, leaf_last, scaled_zero, scaled_difference, number,
        product_of_sites, broadcast, negated_product, viewed_zero,
        read_by_another, widened, widened_factor, widened_multiple, multiple, recast,
    )
}  # fmt: skip
# name -> the value that an estimator stands for, where its surrogate is computed (an input has no gradient here: it is none)
VALUES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        ("seed", "product_plus", "two_surrogates", "scaled_zero", "negated_product", "viewed_zero", "multiple"),
        lambda first, *rest: first,
    ),
    "host": lambda a, g, seed: a * g,
    "recast": lambda first, *rest: first.to(torch.promote_types(first.dtype, torch.float16)),
    "both_products": lambda a, g, codes, scale: codes * scale,
    "number": lambda a, g: torch.full_like(a, 0.25),
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


def arity(name: str) -> int:
    return FUNCTIONS[name].__code__.co_argcount
