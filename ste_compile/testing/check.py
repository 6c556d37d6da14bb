"""A random program at every level, against what the program itself says its sites' values are.

A cancelled site has the value that it stands for, and the gradients of its expression. The program with such sites is an eager
program too: the oracle. Compiled code must be equal to it, not close to it; where nothing is cancelled, the oracle is the program
itself. Only code that Inductor generates may differ, by a bound that comes from the oracle compiled by stock Inductor.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch.fx import GraphModule

from .. import _torch
from ..inspection import record
from ..inspection.report import Site
from ..passes import levels
from .compare import describe, error, same_bits, stock_bound
from .compiling import OURS, STOCK, own
from .program import Program
from .runs import Run, run, same_fact

LEVELS = tuple(levels.LEVELS)
MODES = ("training", "inference")


class Difference(AssertionError):
    """Compiled code does not give what its oracle gives; the message holds the program."""


class StockFails(RuntimeError):
    """Stock torch cannot run an oracle, so that the bound on what Inductor may make of the program is not known. Inductor of 2.11
    to 2.15 returns two results that hold one value as one tensor, also where only one of them has a gradient."""


class EveryLevel:
    """A backend that compiles each graph at all levels, and runs it at the one named by `level`."""

    def __init__(self, levels: Sequence[str], backend: str) -> None:
        self.levels, self.level, self.compile = levels, levels[0], OURS[backend]
        self.sites: dict[str, list[Site]] = collections.defaultdict(list)

    def __call__(self, gm: GraphModule, inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
        compiled = {}
        for level in self.levels:
            with record.collect(graphs=False) as recorder:
                copy = GraphModule(gm, gm.graph)
                compiled[level] = self.compile(copy, inputs, options={"numerics": level})
            self.sites[level] += recorder.sites()
        return lambda *args: compiled[self.level](*args)


def check(
    program: Program, levels: Sequence[str] = LEVELS, modes: Sequence[str] = MODES, backend: str = "ste_aot_eager"
) -> collections.Counter[str]:
    """Compile a program at all levels, for training and for inference, and hold each against its oracle; `backend` is
    "ste_aot_eager" or "ste".

    Returns:
        How many sites were "cancelled", "fused" and "left", over all levels.

    Raises:
        Difference: with the program's source and what differs.
        StockFails: the oracle is an error where stock Inductor compiles it.
    """
    done: collections.Counter[str] = collections.Counter()
    for mode in modes:
        with torch.set_grad_enabled(mode == "training"), _torch.compiling_alone():
            done += _check(program, mode == "training", levels, backend)
    return done


def _check(program: Program, train: bool, levels: Sequence[str], name: str) -> collections.Counter[str]:
    backend, module, inputs = EveryLevel(levels, name), program.module(), tuple(program.inputs())

    def ran(fn: Callable[..., Any], module: torch.nn.Module) -> Run:
        return run(fn, inputs, {}, {"": module}, backward=train, train=train, rng_seed=0)

    def stock(lines: set[int | None] | None) -> Run:
        done["stock"] += 1
        module = program.module(lines)
        try:
            return ran(torch.compile(own(module), backend=STOCK[name]), module)
        except Exception as error:
            if not lines or name != "ste":
                raise
            raise StockFails(f"{type(error).__name__}: {error}\n{program!r}") from error

    compiled = torch.compile(own(module), backend=backend)
    eager = ran(module, module)
    done: collections.Counter[str] = collections.Counter()
    for level in levels:
        backend.level = level
        ours = ran(compiled, module)
        sites = backend.sites[level]
        lines = cancelled_lines(program, sites)
        oracle = eager
        if lines:
            with_lines = program.module(lines)
            oracle = ran(with_lines, with_lines)
        allowed = partial(stock, None), partial(stock, lines)
        found = differences(program, sites, ours, eager, oracle, *allowed, near=name == "ste")
        if found:
            fail(program, f"numerics={level!r}, {'training' if train else 'inference'}, backend={name!r}", lines, found)
        done.update(site.action for site in sites)
    return done


def line_of(program: Program, site: Site) -> int | None:
    lines = [frame.line for frame in site.stack if frame.file == program.filename]
    return lines[-1] if lines else None


def cancelled_lines(program: Program, sites: Sequence[Site]) -> set[int | None]:
    """The lines whose site was replaced by the value it stands for. A site that was cancelled because only another cancelled site
    used it does not count: nothing reads it any more."""
    return {line_of(program, s) for s in sites if s.action == "cancelled" and s.why == "permitted"}


def differences(
    program: Program,
    sites: Sequence[Site],
    ours: Run,
    eager: Run,
    oracle: Run,
    stock: Callable[[], Run],
    stock_oracle: Callable[[], Run],
    near: bool = False,
) -> list[str]:
    """What is wrong with our run, in words: lines that should have been rewritten and were not, or the reverse; facts that are
    not eager's; tensors that are not the oracle's. A difference that torch makes without our passes is not ours: AOTAutograd adds
    up gradients in another order. `near`: our tensors may be as far from the oracle's as `stock_bound` allows."""
    lines = cancelled_lines(program, sites)
    found = [*_lines(program, lines, sites)]
    if facts := _facts(ours, eager):
        found += _facts(ours, stock()) and facts
    if [*_tensors(ours, oracle, lines)]:
        again = stock_oracle()
        found += _tensors(ours, oracle, lines, again) if near else _tensors(ours, again, lines)
    return found


def fail(program: Program, where: str, lines: set[int | None], found: list[str]) -> NoReturn:
    cancelled = f"cancelled on lines {sorted(map(str, lines))}" if lines else "nothing cancelled"
    raise Difference("\n".join([f"{where}, {cancelled}: {len(found)} difference(s)", *found, repr(program)]))


def _lines(program: Program, lines: set[int | None], sites: Sequence[Site]) -> Iterator[str]:
    if wrong := (lines - set(program.sites())) | (lines & set(program.near())):
        yield f"cancelled on lines {wrong}, where there is no site"
    if missed := set(program.sites()) - program.unseen() - {line_of(program, site) for site in sites}:
        yield f"the sites on lines {sorted(missed)} were not found"


def _facts(ours: Run, eager: Run) -> list[str]:
    names = dict.fromkeys([*eager.facts, *ours.facts])
    pairs = {name: (ours.facts.get(name), eager.facts.get(name)) for name in names}
    return [f"{name}: {mine}, and in eager {theirs}" for name, (mine, theirs) in pairs.items() if not same_fact(mine, theirs)]


def _tensors(ours: Run, oracle: Run, lines: set[int | None], stock: Run | None = None) -> Iterator[str]:
    for name in dict.fromkeys([*oracle.tensors, *ours.tensors]):
        mine, theirs = ours.tensors.get(name), oracle.tensors.get(name)
        if (mine is None) != (theirs is None) and stock is not None:
            theirs = stock.tensors.get(name)  # AOTAutograd gives zeros where eager gives no gradient
        if mine is None or theirs is None:
            if mine is not theirs:
                yield f"{name}: {mine}, and in the oracle {theirs}"
        elif mine.dtype != theirs.dtype or mine.shape != theirs.shape:
            yield f"{name}: {mine.dtype} {tuple(mine.shape)}, and in the oracle {theirs.dtype} {tuple(theirs.shape)}"
        else:
            # A cancelled zero is not added, and so does not turn -0 to 0.
            wrong = ~same_bits(mine, theirs) & (mine != theirs if lines else True)
            if wrong.any() and stock is not None and (near := stock.tensors.get(name)) is not None:
                wrong &= ~same_bits(mine, near) & ~(error(mine, theirs) <= stock_bound(near, theirs))
            if wrong.any():
                yield f"{name}: {describe(mine, theirs, wrong)}"
