"""Run a function or module once, on copies of its arguments, and note everything a caller could see."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import _torch
from ..state import state_kept

WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


@dataclass
class Run:
    """What one run did: tensors by name (None where there is none, such as a missing gradient), and facts by name that are no
    numbers: structure, dtypes, strides, what shares memory with what."""

    tensors: dict[str, Tensor | None] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def run(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    modules: dict[str, nn.Module],
    *,
    backward: bool,
    train: bool | None,
    rng_seed: int,
    wide: bool = False,
) -> Run:
    """Call `fn` once, on copies of its arguments; with `backward` also run its backward. `wide`: in float64 throughout."""
    done = Run()
    with state_kept(modules.values()), _Wide() if wide else contextlib.nullcontext():  # type: ignore[no-untyped-call]
        for module in modules.values():
            if train is not None:
                module.train(train)
            if wide:
                module.double()
        state = _state(modules)
        for tensor in state.values():
            tensor.grad = None
        torch.manual_seed(rng_seed)
        leaves, (args, kwargs) = _copied((args, kwargs), wide)
        differentiable = [leaf.requires_grad for leaf in leaves]  # before the call: a mutated one may come to need a gradient
        names = _argument_names(args, kwargs)
        out = fn(*args, **kwargs)
        outputs = {_path("output", path): leaf for path, leaf in _torch.pytree.tree_flatten_with_path(out)[0]}
        done.facts["structure of the output"] = _torch.pytree.tree_structure(out)
        note_outputs(done, outputs, {**names, **state})
        done.tensors |= {n: t.detach().clone() for n, t in outputs.items() if isinstance(t, Tensor)}
        done.tensors |= {f"{n} after the call": t.detach().clone() for n, t in names.items()}
        if backward:
            _backward(outputs)
            done.tensors |= {
                f"gradient of {n}": None if leaf.grad is None else leaf.grad.detach().clone()
                for n, leaf, wanted in zip(names, leaves, differentiable)
                if wanted
            }
            done.tensors |= {
                f"gradient of {n}": None if t.grad is None else t.grad.detach().clone()
                for n, t in state.items()
                if t.requires_grad
            }
        done.tensors |= {f"{n} after the call": t.detach().clone() for n, t in _state(modules).items()}
    return done


def _state(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for prefix, module in modules.items():
        named |= {f"parameter {prefix + name!r}": p for name, p in module.named_parameters()}
        named |= {f"buffer {prefix + name!r}": b for name, b in module.named_buffers()}
    return named


def _argument_names(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
    leaves = [
        (_path(f"argument {i}", path), leaf)
        for i, a in [*enumerate(args), *((repr(k), v) for k, v in kwargs.items())]
        for path, leaf in _torch.pytree.tree_flatten_with_path(a)[0]
    ]
    return {name: leaf for name, leaf in leaves if isinstance(leaf, Tensor)}


def _path(name: str, path: Any) -> str:
    return name + _torch.pytree.keystr(path)


def _copied(tree: Any, wide: bool) -> tuple[list[Tensor], Any]:
    """An equal copy, with the strides and the shared memory of the original, and the tensors in it that gradients reach. A tensor
    that is no leaf is copied to a clone of a new leaf: a leaf that requires a gradient may not be written to in place."""
    memo: dict[int, Any] = {}
    leaves: list[Tensor] = []

    def copied(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in made:
            fresh = copy.deepcopy(leaf if leaf.is_leaf else leaf.detach(), memo)
            fresh = fresh.to(WIDER.get(leaf.dtype, leaf.dtype)) if wide else fresh
            fresh = fresh.detach().requires_grad_(leaf.requires_grad)
            made[id(leaf)] = fresh, fresh if leaf.is_leaf else fresh.clone()
        leaves.append(made[id(leaf)][0])
        return made[id(leaf)][1]

    made: dict[int, tuple[Tensor, Tensor]] = {}
    tree = _torch.pytree.tree_map(copied, tree)
    return leaves, tree


def note_outputs(done: Run, outputs: dict[str, Any], inputs: dict[str, Tensor]) -> None:
    """What can be told of outputs besides their numbers."""
    before: dict[str, Tensor] = dict(inputs)
    for name, out in outputs.items():
        if not isinstance(out, Tensor):
            done.facts[name] = out
            continue
        done.facts[f"dtype, shape and device of {name}"] = str(out.dtype), tuple(out.shape), str(out.device)
        done.facts[f"strides of {name}"] = _seen_strides(out)
        done.facts[f"requires_grad of {name}"] = out.requires_grad
        done.facts[f"what {name} is"] = [other for other, t in before.items() if t is out]
        done.facts[f"what {name} shares memory with"] = [
            (other, out.storage_offset() - t.storage_offset())
            for other, t in before.items()
            if _storage(t) is not None and _storage(t) == _storage(out)
        ]
        before[name] = out


def same_fact(a: Any, b: Any) -> bool:
    try:
        return type(a) is type(b) and bool(a == b or (a != a and b != b))
    except Exception:  # an object that does not compare
        return a is b


def _seen_strides(tensor: Tensor) -> tuple[int | None, ...]:
    """The strides of dimensions with more than one element, which is where a stride is seen."""
    return tuple(s if n > 1 else None for s, n in zip(tensor.stride(), tensor.shape)) if tensor.numel() else ()


def _storage(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage()._cdata if tensor.numel() else None
    except (NotImplementedError, RuntimeError):  # sparse tensors, some subclasses
        return None


def _backward(outputs: dict[str, Any]) -> None:
    """Run the backward from all outputs at once. The incoming gradients are drawn from the multiples of 1/8 up to 2, which every
    floating dtype can hold: an element in the wrong place then shows."""
    generator = torch.Generator().manual_seed(0)
    tensors = [t for t in outputs.values() if isinstance(t, Tensor) and t.requires_grad and not _ungraphed(t)]
    incoming = [torch.randint(1, 17, t.shape, generator=generator).mul(0.125).to(t.dtype).to(t.device) for t in tensors]
    if tensors:
        torch.autograd.backward(tensors, incoming)


def _ungraphed(tensor: Tensor) -> bool:
    """Whether it is a view of a leaf made under `no_grad`: it requires a gradient, but there is no graph behind it."""
    return tensor.grad_fn is None and tensor._base is not None and tensor._base.requires_grad


class _Wide(_torch.TorchDispatchMode):
    """Makes float64 of every narrower floating dtype that code asks for by name. (Autocast leaves float64 alone by itself.)"""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = _torch.pytree.tree_map_only(torch.dtype, lambda d: WIDER.get(d, d), (args, kwargs or {}))
        return func(*args, **kwargs)
