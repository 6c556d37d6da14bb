"""The eager straight-through forward: the oracle that every rewrite is held against."""

from __future__ import annotations

from torch import Tensor


def ste_forward(host: Tensor, seed: Tensor) -> Tensor:
    """The host's value, with the seed's gradient beside the host's: `host + (seed - seed.detach())`.

    The seed is first cast to the host's dtype, and that cast is required: without it promotion would return the wider dtype and
    the layers after it, under autocast, would run on another dtype than with the host alone. What it costs in eager: one tensor
    of the seed's shape for the cast, one for the difference and one for the sum, with three kernels, for a value that equals
    `host`. That cost is what `torch.compile(model, backend="ste")` takes away.

    Args:
        host: any shape `H`; floating point or complex.
        seed: any shape that broadcasts with `H`; any dtype that casts to the host's; same device as `host`.

    Returns:
        A new tensor of the broadcast shape and the host's dtype. It equals `host` (as `==`) wherever the cast seed is finite, and
        is NaN where it is not. Gradients: to `host`, the incoming one; to `seed`, the same, summed to the seed's shape and cast
        to the seed's dtype.

    Raises:
        TypeError: an argument is not a tensor, or `host` is an integer or bool tensor, which no gradient can reach.
        ValueError: the devices differ, or the shapes do not broadcast.

    Source: Bengio, Leonard and Courville, "Estimating or Propagating Gradients Through Stochastic Neurons" (arXiv 1308.3432).

        >>> host = torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True)
        >>> seed = torch.tensor([0.5, 0.5], requires_grad=True)
        >>> ste_forward(host, seed)
        tensor([1., 2.], dtype=torch.bfloat16, grad_fn=<AddBackward0>)
        >>> ste_forward(host, seed).sum().backward()
        >>> seed.grad
        tensor([1., 1.])
    """
    _check(host, seed)
    if seed.dtype != host.dtype:
        seed = seed.to(host.dtype)
    return host + (seed - seed.detach())


def _check(host: Tensor, seed: Tensor) -> None:
    for name, argument in (("host", host), ("seed", seed)):
        if not isinstance(argument, Tensor):
            raise TypeError(f"ste_forward: {name} must be a tensor, got {type(argument).__name__}")
    if not (host.is_floating_point() or host.is_complex()):
        raise TypeError(f"ste_forward: host must be floating point or complex, got {_describe(host, seed)}")
    if host.device != seed.device:
        raise ValueError(f"ste_forward: host and seed must be on one device, got {_describe(host, seed)}")
    if any(h != s and h != 1 and s != 1 for h, s in zip(reversed(host.shape), reversed(seed.shape))):
        raise ValueError(f"ste_forward: the shapes of host and seed must broadcast, got {_describe(host, seed)}")


def _describe(host: Tensor, seed: Tensor) -> str:
    return ", ".join(f"{n}: {tuple(t.shape)} {t.dtype} on {t.device}" for n, t in (("host", host), ("seed", seed)))
