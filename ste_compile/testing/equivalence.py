"""Compiled against eager, by the promise of a level."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from .. import _torch, hooks
from ..inspection import record
from ..inspection.report import Site
from ..options import check_flag
from ..passes import levels
from ..passes.levels import DEFAULT, LEVELS, Levels, Numerics, Rules
from ..state import modules_of
from .compare import bitwise_equal, describe, error, largest, permitted, stock_bound, ulp
from .compiling import OURS, STOCK, fresh, own
from .runs import Run, run, same_fact

SHOWN = 8  # differences listed in a message


def assert_equivalent(
    fn_or_module: Callable[..., Any],
    *args: Any,
    numerics: Levels = "exact",
    backward: bool = True,
    train: bool | None = None,
    rng_seed: int = 0,
    backend: str = "ste_aot_eager",
    **kwargs: Any,
) -> None:
    """Run a function or module in eager and compiled, from the same state, and compare everything that a caller could see.

    Compared are: the outputs' values, structure, dtypes, shapes, strides, `requires_grad`, and what they share memory with; the
    gradients of arguments and parameters; parameters, buffers and arguments after the call. The comparison is the level's own:

    - `exact`: the same bits, where a NaN is a NaN.
    - `finite`: `==` wherever eager is finite. Where it is not, a cancelled NaN or infinity may have been its cause, and nothing
      is promised; a tensor that is nowhere finite in eager is an error, since nothing would have been tested.
    - `algebraic`: as `finite`, or else no further from a float64 run of the model than eager: each element at most 4 times
      eager's largest error in that tensor plus 16 ulp of the tensor's largest magnitude. Compiled code lacks the rounding errors
      of the arithmetic that cancels, so its errors are not expected to be larger than eager's. But they are others, by chance
      larger or smaller: the factor of 4 allows for that, and the 16 ulp for tensors with few elements, where eager may be right
      by luck. A model that rounds or compares the value of a site (a quantiser behind a quantiser) may turn a last bit into a
      step, which no bound allows for.

    Where no site was cancelled, every level is `exact`. A tensor that differs from eager's in the same way without our passes is
    torch's difference and is accepted: AOTAutograd may add up gradients in another order. `backend="ste"` compares code that
    Inductor generated, told to round 16-bit results where eager does (`emulate_precision_casts`); its functions and reductions
    still have other last bits than eager's, with our passes or not. An element may therefore be 1.5 times as far from eager's as
    stock Inductor's furthest, plus 4 ulp of the tensor's largest magnitude. The bound of `algebraic` is wider by as much.

    Args:
        fn_or_module: called with copies of `args` and `kwargs`; its parameters, buffers, gradients and training flag are
            afterwards as they were, and so is the global random state. For a function this holds of the modules that it closes
            over or is a method of.
        numerics: "exact", "finite" or "algebraic", or one for each module, by its path (see `ste_compile.passes.levels`): every
            tensor is then held to the one of these levels that promises least.
        backward: also run and compare the backward, from every output that requires a gradient.
        train: put modules into training mode (True) or inference mode (False) for the runs; None: as they are.
        rng_seed: seeds torch's generators before each run, so that dropout draws the same numbers.
        backend: "ste_aot_eager", where all but the sites runs on eager's own kernels, or "ste".

    Raises:
        AssertionError: they differ; the message names the tensors, the worst element, and the sites.
        ValueError: `numerics` is not a level, or has a key that is no module path or that matches no site; or `backend` is not
            one of the two.
        TypeError: `fn_or_module` is not callable, or `backward`, `train` or `rng_seed` is of another type.

        >>> from ste_compile import ste_forward
        >>> host, seed = torch.ones(2, 3), torch.randn(2, 3, requires_grad=True)
        >>> assert_equivalent(ste_forward, host, seed, numerics="finite")
    """
    rules = levels.check(numerics)
    if not callable(fn_or_module):
        raise TypeError(f"assert_equivalent: fn_or_module must be callable, got {type(fn_or_module).__name__}")
    if backend not in STOCK:
        raise ValueError(f"assert_equivalent: backend={backend!r} is not one of ours; allowed: {', '.join(map(repr, STOCK))}")
    check_flag("assert_equivalent: backward", backward)
    if not isinstance(train, bool | None):
        raise TypeError(f"assert_equivalent: train must be True, False or None, got {train!r}")
    if not isinstance(rng_seed, int):
        raise TypeError(f"assert_equivalent: rng_seed must be an integer, got {rng_seed!r}")
    how = {"backward": backward, "train": train, "rng_seed": rng_seed}
    comparison = Comparison(fn_or_module, args, kwargs, how, rules, backend)
    differences = comparison.differences()
    levels.check_matched(rules, {path for site in comparison.sites for path in site.modules})
    if differences:
        raise AssertionError(comparison.message(differences))


@dataclass
class Comparison:
    """The runs of one function, made when they are first asked for."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    how: dict[str, Any]
    numerics: Rules
    backend: str
    sites: tuple[Site, ...] = ()

    def _run(self, compiled: Callable[[Callable[..., Any]], Callable[..., Any]], **more: Any) -> Run:
        return run(compiled(self.fn), self.args, self.kwargs, modules_of(self.fn), **self.how, **more)

    @cached_property
    def eager(self) -> Run:
        return self._run(lambda fn: fn)

    @cached_property
    def ours(self) -> Run:
        backend, options = OURS[self.backend], cast(dict[str, Any], {"numerics": self.numerics})
        with _torch.compiling_alone(), record.collect(graphs=False) as recorder:
            done = self._run(lambda fn: torch.compile(own(fn), backend=fresh(backend), options=options))
        self.sites = recorder.sites()
        return done

    @cached_property
    def stock(self) -> Run:
        with _torch.compiling_alone():
            return self._run(lambda fn: torch.compile(own(fn), backend=STOCK[self.backend]))

    @cached_property
    def wide(self) -> Run | Exception:
        try:
            return self._run(lambda fn: fn, wide=True)
        except Exception as error:
            return error

    @property
    def level(self) -> Numerics:
        cancelled = any(site.action == "cancelled" for site in self.sites)
        return self.numerics.least if cancelled else DEFAULT

    def differences(self) -> list[str]:
        """In words, each thing about our run that differs from eager's and is neither permitted nor stock's own."""
        eager, ours = self.eager, self.ours
        found = []
        for name in dict.fromkeys([*eager.facts, *ours.facts]):
            have, want = ours.facts.get(name), eager.facts.get(name)
            if not same_fact(have, want) and not same_fact(have, self.stock.facts.get(name)):
                found.append(f"{name}: {_fact(have)}, and in eager {_fact(want)}")
        for name in dict.fromkeys([*eager.tensors, *ours.tensors]):
            found += self._tensor(name, ours.tensors.get(name), eager.tensors.get(name))
        return found

    def _tensor(self, name: str, ours: Tensor | None, eager: Tensor | None) -> Iterator[str]:
        if ours is None and eager is None:
            return
        if ours is not None and eager is not None and bitwise_equal(ours, eager):
            return
        stock = self.stock.tensors.get(name)
        if ours is None or eager is None:
            if (ours is None) != (stock is None):
                yield f"{name}: there is none, but in eager there is" if ours is None else f"{name}: there is none in eager"
        elif ours.dtype != eager.dtype or ours.shape != eager.shape:
            yield f"{name}: {ours.dtype} {tuple(ours.shape)}, and in eager {eager.dtype} {tuple(eager.shape)}"
        else:
            wrong = ~permitted(ours, eager, self.level)
            if wrong.any() and stock is not None and stock.dtype == ours.dtype and stock.shape == ours.shape:
                wrong = ~permitted(ours, stock, self.level) & wrong if self.backend == "ste" else wrong
                if self.backend != "ste" and permitted(ours, stock, self.level).all():
                    return
            yield from self._bounded(name, ours, eager, wrong)

    def _bounded(self, name: str, ours: Tensor, eager: Tensor, wrong: Tensor) -> Iterator[str]:
        note = ""
        if wrong.any() and (eager.is_floating_point() or eager.is_complex()):
            if self.backend == "ste":
                wrong, note = self._no_further_than_stock(name, ours, eager, wrong)
            if wrong.any() and LEVELS[self.level].compared == "bound":
                wrong, note = self._no_further_than_eager(name, ours, eager, wrong)
        if wrong.any():
            yield f"{name}: {describe(ours, eager, wrong)}{note}"
        elif LEVELS[self.level].compared != "bits" and eager.numel() and not eager.isfinite().any():
            yield f"{name}: eager is nowhere finite, and of that numerics={self.level!r} promises nothing: use other inputs"

    def _no_further_than_stock(self, name: str, ours: Tensor, eager: Tensor, wrong: Tensor) -> tuple[Tensor, str]:
        stock = self.stock.tensors.get(name)
        if stock is None or stock.shape != eager.shape:
            return wrong, ""
        bound = stock_bound(stock, eager)
        return wrong & ~(error(ours, eager) <= bound), f"; stock Inductor's distance from eager allows {bound:.3g}"

    def _no_further_than_eager(self, name: str, ours: Tensor, eager: Tensor, wrong: Tensor) -> tuple[Tensor, str]:
        if isinstance(self.wide, Exception):
            return wrong, (
                f"; the bound of 'algebraic' needs a float64 run of the model, which failed: {self.wide!r}. Test it with "
                "numerics='finite', or let the model take its dtype from its inputs"
            )
        wide = self.wide.tensors.get(name)
        if wide is None or wide.shape != eager.shape:
            return wrong, "; a float64 run of the model gives none to measure both against"
        bound = 4 * largest(eager, wide) + 16 * ulp(eager)
        stock = self.stock.tensors.get(name) if self.backend == "ste" else None
        if stock is not None and stock.shape == eager.shape:
            bound += stock_bound(stock, eager)
        return wrong & ~(error(ours, wide) <= bound), f"; eager's distance from a float64 run allows {bound:.3g} from that"

    def culprits(self) -> dict[str, list[str]]:
        """The name of a tensor -> the sites that make it differ: it does so when such a site alone is rewritten."""
        found: dict[str, list[str]] = {}
        for index, site in enumerate(self.sites[:SHOWN]):
            with hooks.only_site(index):
                alone = Comparison(self.fn, self.args, self.kwargs, self.how, self.numerics, self.backend)
                for difference in alone.differences():
                    found.setdefault(_name(difference), []).append(f"{site.file}:{site.line}" if site.file else site.node)
        return found

    def message(self, differences: list[str]) -> str:
        asked = f"numerics={str(self.numerics)!r}, backend={self.backend!r}"
        lines = [f"not equivalent to eager at {asked}: {len(differences)} difference(s)"]
        culprits = self.culprits()
        for difference in differences[:SHOWN]:
            sites = culprits.get(_name(difference))
            lines += [f"  {difference}", f"    flows from the site at {', '.join(sites)}" if sites else "    from no site alone"]
        if len(differences) > SHOWN:
            lines.append(f"  and {len(differences) - SHOWN} more")
        return "\n".join([*lines, *_sites(self.sites)])


def _name(difference: str) -> str:
    return difference.split(": ")[0]


def _sites(sites: Sequence[Site]) -> list[str]:
    """What was done to the sites of the model, where each stands in its source."""
    return ["sites of the model:", *(f"  {site}" for site in sites)] if sites else ["no site was found in the model"]


def _fact(fact: Any) -> str:
    text = repr(fact)
    return text if len(text) < 200 else text[:197] + "..."
