"""The fused operators on DTensors: each rank computes its own shard, and nothing is gathered.

    straight_through(Shard(0), Replicate())  ->  Shard(0)        pointwise: a shard of the result needs that shard of both
    straight_through(Partial(), Shard(0))    ->  Shard(0)        ... reduced first, to that shard
    after(anything, [anything, ...])         ->  as its value    a copy, whatever it is a part of

A pending sum is reduced before the arithmetic: `v + (s - s)` is linear, but rounds the sum of the ranks' parts once, and a sum of
rounded parts is another number; a part may overflow where the sum does not. The passes never meet a DTensor (AOTAutograd
hands them its local tensors); whoever calls or retraces the operators may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

# (placement of the result, placements of the tensor inputs), each on one dimension of a device mesh
Placements = list[tuple[list[Any], list[Any]]]


def pointwise(*args: Any) -> Placements:
    """A shard of the broadcast result needs the same shard of each input, but all of an input that lacks the dimension or is
    expanded along it."""
    from torch.distributed.tensor import Replicate, Shard

    inputs = [each for each in args if hasattr(each, "placements")]
    shape = torch.broadcast_shapes(*(each.shape for each in inputs))

    def of(each: Any, dim: int) -> Any:
        own = dim - len(shape) + len(each.shape)
        return Shard(own) if own >= 0 and each.shape[own] == shape[dim] else Replicate()

    sharded = [([Shard(dim)], [of(each, dim) for each in inputs]) for dim in range(len(shape))]
    return [([Replicate()], [Replicate() for _ in inputs]), *sharded]


def as_it_is(value: Any, effects: Sequence[Any]) -> Placements:
    """A copy is placed as its original is, whatever else has run, wherever."""
    columns = zip(value.placements, *(each.placements for each in effects))
    return [([placement], [placement, *others]) for placement, *others in columns]


def register(rules: Mapping[Any, Callable[..., Placements]]) -> None:
    """Tell DTensor the rule of each operator. A build of torch can be without `torch.distributed`; in one with it, importing
    DTensor costs nothing: `torch._dynamo` does it too (2.11 to 2.15)."""
    if torch.distributed.is_available():
        from torch.distributed.tensor.experimental import register_sharding

        for operator, rule in rules.items():
            register_sharding(operator)(rule)
