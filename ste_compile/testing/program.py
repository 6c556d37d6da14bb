"""A program as source text: run as it is, or as the oracle of a level."""

from __future__ import annotations

import itertools
import linecache
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_numbers = itertools.count()


def execute(source: str, filename: str, namespace: dict[str, Any]) -> None:
    """Run source text that is in no file, so that Dynamo and reports can read it."""
    linecache.cache[filename] = len(source), None, source.splitlines(True), filename
    exec(compile(source, filename, "exec"), namespace)


SITE = re.compile(r"SITE\((.*); (.*?)\)(?= *$| *#)", re.M)


class Cancelled(torch.autograd.Function):
    """The value of one tensor, the gradients of another."""

    @staticmethod
    def forward(ctx: Any, expression: Tensor, value: Tensor) -> Tensor:
        return torch.empty_like(expression).copy_(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]  # 2.11 loses gradients where Dynamo looks into a Function
def cancelled_to(expression: Tensor, value: Tensor) -> Tensor:
    result: Tensor = Cancelled.apply(expression, value)  # type: ignore[no-untyped-call]
    return result


@dataclass(frozen=True)
class Line:
    """`text` may hold one SITE. `near`: nothing that happens on this line may be rewritten. `untraced`: its site need not be
    found. In inference the program runs under `no_grad`, and Dynamo does not write down a `no_grad` inside another."""

    text: str
    near: bool = False
    untraced: bool = False


@dataclass(frozen=True, eq=False)
class Program:
    """A module with the forward that `lines` spell, and example arguments. `modules` and `arguments` are expressions by name, and
    `autocast` the name of a dtype, or none.

    Call `module()` for the module, `inputs()` for fresh arguments, and `repr` for a script that runs it."""

    modules: dict[str, str]
    arguments: dict[str, str]
    lines: tuple[Line, ...]
    returns: tuple[str, ...]
    autocast: str = ""
    filename: str = field(default_factory=lambda: f"<program {next(_numbers)}>")

    def sites(self) -> list[int]:
        """The numbers of the lines that hold a site."""
        return [number for number, line in self._numbered() if "SITE(" in line.text]

    def near(self) -> list[int]:
        """The numbers of the lines that must stay as they are."""
        return [number for number, line in self._numbered() if line.near]

    def unseen(self) -> set[int]:
        """The numbers of the lines whose site need not be found."""
        return {number for number, line in self._numbered() if line.untraced}

    def _numbered(self) -> list[tuple[int, Line]]:
        return list(enumerate(self.lines, 3 if self.autocast else 2))

    def source(self, traced: bool = False) -> str:
        """The forward, without the marks."""
        return self._source(lambda _, text: plain(text), traced)

    def _source(self, written: Callable[[int, str], str], traced: bool = False) -> str:
        indent = "    " * (2 if self.autocast else 1)
        head = [f"def forward(self, {', '.join(self.arguments)}):"]
        head += [f"    with torch.autocast('cpu', {self.autocast}):"] if self.autocast else []
        at = "_at({}); " if traced else ""
        body = [indent + at.format(number) + written(number, line.text) for number, line in self._numbered()]
        return "\n".join([*head, *body, f"{indent}return {', '.join(self.returns)}{',' * (len(self.returns) == 1)}", ""])

    def module(self, cancelled: Collection[int | None] | None = None, traced: bool = False) -> nn.Module:
        """The program; or, given line numbers, its oracle, whose sites on these lines are cancelled. `traced`: when the
        module is traced without Dynamo, give each node its line, as Dynamo would."""
        if cancelled is None:
            source, filename = self.source(traced), self.filename
        else:
            source = self._source(lambda n, text: SITE.sub(rf"_site({n}, \1, lambda: \2)", text), traced)
            filename = self.filename.replace("program", "oracle")

        def site(number: int, expression: Tensor, value: Callable[[], Tensor]) -> Tensor:
            return cancelled_to(expression, value().detach()) if number in (cancelled or ()) else expression

        def at(number: int) -> None:
            torch.fx.traceback.current_meta["stack_trace"] = f'File "{self.filename}", line {number}, in forward\n    '

        namespace: dict[str, Any] = {"torch": torch, "F": F, "_site": site, "_at": at}
        execute(source, filename, namespace)
        module: nn.Module = type("Model", (nn.Module,), {"forward": namespace["forward"]})()
        torch.manual_seed(0)
        for name, expression in self.modules.items():
            setattr(module, name, eval(expression, {"torch": torch, "nn": nn}))
        return module

    def inputs(self) -> list[Tensor]:
        torch.manual_seed(1)
        return [eval(expression, {"torch": torch}) for expression in self.arguments.values()]

    def __repr__(self) -> str:
        made = [f"        self.{name} = {expression}" for name, expression in self.modules.items()]
        init = ["    def __init__(self):", "        super().__init__()", *made, ""] if made else []
        forward = ["    " + line if line else "" for line in self.source().splitlines()]
        arguments = [f"    {expression}," for expression in self.arguments.values()]
        return "\n".join(["class Model(nn.Module):", *init, *forward, "", "arguments = [", *arguments, "]"])


def plain(text: str, part: int = 1) -> str:
    """A line without the mark: with the site's expression, or with its value, which is part 2."""
    return SITE.sub(lambda site: site[part] if text[: site.start()].endswith(" = ") else f"({site[part]})", text)
