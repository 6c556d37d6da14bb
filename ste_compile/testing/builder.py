"""A random program, drawn statement by statement.

Each statement is run as it is drawn, so that shapes and dtypes are known and nothing fails later. Each variable has a `support`:
the values that it may be a sum of. The operands of a site share none of these. So nothing cancels but what the spelling says, and
the program knows each site's value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .program import SITE, Line, Program
from .spellings import NEAR, SITES, Spelling, adds_a_number
from .vocabulary import DTYPES, FUNCTIONS, HARD, IMAGE_LAYOUTS, IN_PLACE, LAYERS, LAYOUTS, SCALED, SHAPES, UNARY, VIEWS

COMPUTED = ("sin", "cos", "tanh", "abs")  # what spellings compute of their operands
Draw = Callable[[int], int]  # a number below the one given, smaller is simpler


@dataclass
class Variable:
    name: str
    tensor: Tensor
    key: Any  # the text that computed it, and its operands' keys; variables that may be equal have equal keys
    support: frozenset[Any]
    used: bool = False
    mutable: bool = True


@dataclass
class Builder:
    """A program as it grows: its text, and the values it has computed so far."""

    draw: Draw
    lines: list[Line] = field(default_factory=list)
    modules: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)
    scope: dict[str, Any] = field(default_factory=dict)
    autocast: str = ""
    zeros: list[str] = field(default_factory=list)  # returned by the program, and read by no statement
    names: int = 0

    def pick(self) -> Variable:
        """A variable; the smaller the number drawn, the later it was made."""
        return self.variables[-1 - self.draw(len(self.variables))]

    def name(self) -> str:
        self.names += 1
        return f"v{self.names}"

    def argument(self, dims: int) -> None:
        name, shape = f"x{len(self.arguments)}", SHAPES[dims]
        layouts = IMAGE_LAYOUTS if dims == 2 else LAYOUTS
        layout = layouts[self.draw(len(layouts))]
        expression = layout.format(shape=shape, minus=", ".join(["-1"] * len(shape.split(","))))
        if layout is LAYOUTS[0] and self.draw(4) == 3:
            expression += HARD.format(shape=shape)
        if dtype := self.draw(len(DTYPES)):
            expression += f".to({DTYPES[dtype]})"
        if needs_grad := self.draw(3) < 2:
            expression += ".requires_grad_()"
        tensor = eval(expression, {"torch": torch})
        self.arguments[name] = expression
        self.scope[name] = tensor.detach()
        self.variables.append(Variable(name, self.scope[name], name, frozenset([name]), mutable=not needs_grad))

    def run(self, texts: list[str]) -> bool:
        """Run lines in the scope; whether they are valid."""
        context = torch.autocast("cpu", eval(self.autocast) if self.autocast else None, enabled=bool(self.autocast))
        try:
            with torch.no_grad(), context:
                for text in texts:
                    exec(SITE.sub(r"(\1)", text), self.scope)
        except (RuntimeError, IndexError, TypeError):  # a shape or a dtype that does not fit
            return False
        return True

    def add(self, lines: list[Line], name: str, operands: list[Variable], key: Any, extra: frozenset[Any] = frozenset()) -> None:
        if not self.run([line.text for line in lines]):
            return
        tensor = self.scope[name]
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.numel() > 400 or not tensor.numel():
            return
        self.lines += lines
        read = {word for line in lines for word in re.findall(r"\w+", line.text.partition("=")[2] or line.text)}
        for operand in operands:
            operand.used |= operand.name in read
        self.variables.append(Variable(name, tensor, key, frozenset([key]) | extra))

    def apply(self, text: str, *, linear: bool) -> None:
        """A new variable from one other. `linear`: it may be a sum of the values that the other is a sum of."""
        a, out = self.pick(), self.name()
        key = text, a.key
        number = {"number"} if adds_a_number(text) else set()
        self.add([Line(f"{out} = {text.format(a=a.name)}")], out, [a], key, a.support | number if linear else frozenset())

    def unary(self) -> None:
        self.apply(UNARY[self.draw(len(UNARY))], linear=False)

    def scaled(self) -> None:
        self.apply(SCALED[self.draw(len(SCALED))], linear=True)

    def cast(self) -> None:
        self.apply(f"{{a}}.to({DTYPES[self.draw(len(DTYPES))]})", linear=True)

    def view(self) -> None:
        self.apply(VIEWS[self.draw(len(VIEWS))], linear=True)

    def layer(self) -> None:
        which = self.draw(len(LAYERS) + len(FUNCTIONS))
        a = self.pick()
        narrow = "" if a.tensor.dtype == torch.float32 else ".float()"
        if which >= len(LAYERS):
            text = FUNCTIONS[which - len(LAYERS)]
            return self.apply(text, linear="dropout" in text)
        name, expression, dims = LAYERS[which]
        if a.tensor.ndim < dims or a.tensor.shape[-1 if dims == 1 else 1] != 4:
            return None
        if name == "batch":  # its kernel gives other strides to a permuted result than its fake kernel says (2.13)
            narrow += ".contiguous()"
        name = f"{name}{len(self.modules)}"
        self.scope["self"].add_module(name, eval(expression, {"nn": torch.nn}))
        out, count = self.name(), len(self.lines)
        passed = a.support if "dropout" in name else frozenset()  # in inference it returns its operand
        self.add([Line(f"{out} = self.{name}({a.name}{narrow})")], out, [a], (name, a.key), passed)
        if len(self.lines) > count:
            self.modules[name] = expression
        return None

    def binary(self) -> None:
        a, b, out = self.pick(), self.pick(), self.name()
        if a.support.isdisjoint(b.support):
            sign = "+-*"[self.draw(3)]
            self.add([Line(f"{out} = {a.name} {sign} {b.name}")], out, [a, b], (sign, a.key, b.key), a.support | b.support)

    def in_place(self) -> None:
        a, b = self.pick(), self.name()
        self.scope[b] = a.tensor.clone()
        text = IN_PLACE[self.draw(len(IN_PLACE))].format(a=a.name, b=b)
        self.add([Line(f"{b} = {a.name}.clone()"), Line(text)], b, [a], (text, b, a.key), a.support | {(text, a.key)})

    def mutate_argument(self) -> None:
        """An argument that needs no gradient and that nothing has read is written to."""
        free = [v for v in self.variables if v.name in self.arguments and v.mutable and not v.used]
        if free:
            a = free[self.draw(len(free))]
            text = IN_PLACE[self.draw(len(IN_PLACE))].format(a="x0", b=a.name)
            self.scope[a.name] = a.tensor.clone()
            if self.run([text]):
                self.lines.append(Line(text))
                a.tensor, a.key, a.used = self.scope[a.name], (text, a.key), True
                a.support = frozenset([a.key])
                self.variables.remove(a)
                self.variables.append(a)

    def spelled(self, spellings: tuple[Spelling, ...], near: bool) -> None:
        spelling = spellings[self.draw(len(spellings))]
        v, s, out = self.pick(), self.pick(), self.name()
        names = {"v": v.name, "s": s.name, "out": out, "a": f"{out}a", "b": f"{out}b", "c": f"{out}c"}
        if any("{m}" in text for text in spelling.lines):
            names["m"] = self.magic()
        lines, surrogate = [], s.support
        if not any("{s}" in text for text in spelling.lines):
            s, surrogate = v, frozenset()
        elif not v.support.isdisjoint(s.support) or "constant" in s.support:  # nothing to detach
            lines, names["s"], surrogate = [Line(f"{out}s = {s.name}.exp()", near)], f"{out}s", frozenset([("{a}.exp()", s.key)])
        inner: frozenset[Any] = frozenset((f"{{a}}.{name}()", x.key) for name in COMPUTED for x in (v, s))
        inner |= {"number"} if spelling.adds_a_number else set()
        unequal = v.tensor.shape != s.tensor.shape or v.tensor.dtype != s.tensor.dtype
        if not v.support.isdisjoint(surrogate | inner) or not surrogate.isdisjoint(inner) or (spelling.same and unequal):
            return
        lines += [Line(text.format(**names), near, spelling.untraced) for text in spelling.lines]
        constant = {"constant"} if spelling.is_number else set()
        self.add(lines, out, [v, s], (spelling.name, v.key, s.key), v.support | surrogate | inner | constant)
        if spelling.name == "no_residual" and self.variables[-1].name == out:
            self.zeros.append(self.variables.pop().name)  # a sum with it would be a site

    def magic(self) -> str:
        """A number to round by: a buffer, or an argument."""
        expression, number = "torch.tensor(12582912.0)", torch.tensor(12582912.0)
        if self.draw(2):
            name = f"x{len(self.arguments)}"
            self.arguments[name], self.scope[name] = expression, number
            return name
        name = f"magic{len(self.modules)}"
        self.modules[name] = f"nn.Buffer({expression})"
        setattr(self.scope["self"], name, number)
        return f"self.{name}"

    def site(self) -> None:
        self.spelled(SITES, False)

    def near_site(self) -> None:
        self.spelled(NEAR, True)

    def again(self) -> None:
        """Draw a site, after moving a variable that has been read already to where `pick` finds it first: so one variable may be
        the surrogate or value of two sites."""
        used = [v for v in self.variables if v.used]
        if used:
            v = used[self.draw(len(used))]
            self.variables.remove(v)
            self.variables.append(v)
            self.site()


STATEMENTS = (
    Builder.site,
    Builder.unary,
    Builder.site,
    Builder.binary,
    Builder.layer,
    Builder.scaled,
    Builder.cast,
    Builder.view,
    Builder.near_site,
    Builder.in_place,
    Builder.again,
    Builder.mutate_argument,
)


def build(draw: Draw, statements: int = 8) -> Program:
    """A program from choices: `draw(n)` gives a number below `n`."""
    builder = Builder(draw)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        builder.scope |= {"torch": torch, "F": F, "self": torch.nn.Module()}
        builder.autocast = ("", "torch.bfloat16")[draw(4) == 3]
        dims = draw(len(SHAPES))
        for _ in range(2 + draw(2)):
            builder.argument(dims)
        for _ in range(1 + draw(statements)):
            STATEMENTS[draw(len(STATEMENTS))](builder)
    unused = [v for v in builder.variables if not v.used and v.name not in builder.arguments]
    extra = [v for v in builder.variables if v.used and draw(6) == 5]
    returned = [*(v.name for v in unused + extra), *builder.zeros] or [builder.variables[-1].name]
    return Program(builder.modules, builder.arguments, tuple(builder.lines), tuple(returned), builder.autocast)
