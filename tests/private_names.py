"""Take a private name of torch's away from this package, and from nobody else: torch itself goes on with it.

Run in a process that has not imported the package yet. `NAME` is what `ste_compile._torch` lists, "module:path".
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import warnings
from typing import Any

import torch
from torch import nn


class _Without:
    """`real`, but for what `path` leads to."""

    def __init__(self, real: Any, path: list[str]) -> None:
        self.__dict__.update(real=real, path=path)

    def __getattr__(self, name: str) -> Any:
        first, *rest = self.path
        found = getattr(self.real, name)
        return found if name != first else _seen(found, rest, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _Without(self.real(*args, **kwargs), self.path)

    def __instancecheck__(self, each: Any) -> bool:
        return isinstance(each, self.real)


def _seen(found: Any, rest: list[str], name: str) -> Any:
    if not rest:
        raise AttributeError(f"hidden: {name}")
    return _Without(found, rest)


def hide(name: str) -> None:
    """Have the modules of this package, and no other, find an attribute missing."""
    module_name, path = name.replace("()", "").split(":")
    module, (first, *rest) = importlib.import_module(module_name), path.split(".")

    def hidden(attribute: str) -> bool:
        return attribute == first and sys._getframe(2).f_globals.get("__name__", "").startswith("ste_compile")

    class Hiding(type(module)):  # type: ignore[misc]
        def __getattribute__(self, attribute: str) -> Any:
            found = super().__getattribute__(attribute)
            return _seen(found, rest, attribute) if hidden(attribute) else found

        def __getattr__(self, attribute: str) -> Any:  # (a config module's entries are found so)
            found = getattr(super(), "__getattr__", super().__getattribute__)(attribute)
            return _seen(found, rest, attribute) if hidden(attribute) else found

    object.__setattr__(module, "__class__", Hiding)  # a config module has a `__setattr__` of its own


class Model(nn.Module):
    """A seed for a region, one that draws, and a site that stays under `finite` and is fused."""

    def __init__(self) -> None:
        super().__init__()
        self.host, self.seed = nn.Conv2d(2, 2, 3, padding=1), nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Tanh(), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, s = self.host(x), self.seed(x)
        h = h + (s - s.detach())
        d = nn.functional.dropout(x * 2)
        h = (h + (d - d.detach())).relu()
        return h + (h.round() - h).detach()


def outcome(name: str, what: str) -> tuple[str, list[str]]:
    """The error there was ("" for none), and this package's warnings, when without `name` a model is compiled by the backend
    `what`, trained and run; or a function is given to "explain" or "assert_equivalent", or a script to "run"."""
    hide(name)
    import ste_compile
    from ste_compile.__main__ import main

    torch._inductor.config.fx_graph_cache = torch._functorch.config.enable_autograd_cache = False
    torch.manual_seed(0)
    model, x = Model(), torch.randn(2, 2, 4, 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if what == "explain":
                assert len(ste_compile.explain(ste_compile.ste_forward, x, x, suggest=True).sites) == 1
            elif what == "run":
                with contextlib.redirect_stderr(io.StringIO()) as printed:
                    assert main(["run", __file__]) == 2
                raise RuntimeError(printed.getvalue())
            elif what == "assert_equivalent":
                ste_compile.testing.assert_equivalent(ste_compile.ste_forward, x, x)
            else:
                options = {"numerics": "finite"}
                _train_and_run(model, torch.compile(model, backend=what, options=options), x)
        except Exception as error:
            return f"{type(error).__name__}: {error}", []
    return "", [str(each.message) for each in caught if "ste_compile" in str(each.message)]


def _train_and_run(model: nn.Module, compiled: Any, x: torch.Tensor) -> None:
    wanted = torch.autograd.grad((value := model(x)).sum(), [*model.parameters()])
    torch.testing.assert_close(compiled(x), value)
    for mine, theirs in zip(torch.autograd.grad(compiled(x).sum(), [*model.parameters()]), wanted, strict=True):
        torch.testing.assert_close(mine, theirs)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), value)
