"""The PTX of a pointwise kernel, executed on the CPU: all threads at once, each instruction with its own rounding, by numpy.

A register holds the bits of every thread. What ptxas may still do is done here for certain: a product and a sum that both lack
`.rn` are one fused multiply-add. An instruction that is not in the tables raises `NotImplementedError`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .rounding import ARITHMETIC, COMPARE, FLOATS, INTEGER, INTEGERS, Bits, decoded, encoded, flushed, unordered


@dataclass
class _Threads:
    """The registers of all threads, the arguments of the kernel, and which registers hold a product that may be contracted."""

    count: int
    arguments: list[Any]
    registers: dict[str, Bits] = field(default_factory=dict)
    products: dict[str, tuple[str, list[Any]]] = field(default_factory=dict)

    def read(self, operand: str, kind: str) -> Any:
        if operand in self.registers:
            return decoded(self.registers[operand], kind)
        if number := re.fullmatch(r"0[fd]([0-9A-Fa-f]+)", operand):
            bits = np.uint64(int(number[1], 16))
        else:
            bits = np.uint64(int(operand, 0) & (1 << 64) - 1)
        return decoded(np.full(self.count, bits), kind)

    def lanes(self, operand: str, kind: str) -> list[Any]:
        """An operand as numbers: two of them for `x2`, the low half first."""
        if not kind.endswith("x2"):
            return [self.read(operand, kind)]
        kind = kind.removesuffix("x2")
        bits, width = self.read(operand, "b64" if kind == "f32" else "b32"), 32 if kind == "f32" else 16
        return [decoded(bits >> bits.dtype.type(width * i) & bits.dtype.type((1 << width) - 1), kind) for i in (0, 1)]

    def write(self, register: str, lanes: list[Any], kind: str) -> None:
        encoded_lanes = [encoded(lane, kind.removesuffix("x2")) for lane in lanes]
        self.registers[register] = packed(encoded_lanes) if len(lanes) > 1 else encoded_lanes[0]


def packed(parts: list[Bits]) -> Bits:
    """Several registers as one, the first lowest."""
    width = parts[0].itemsize * 8
    wide = [part.astype(f"u{part.itemsize * len(parts)}") << (width * i) for i, part in enumerate(parts)]
    return np.bitwise_or.reduce(wide)


def run(text: str, arguments: list[Any], blocks: int) -> None:
    """Execute a kernel. `arguments` are CPU tensors, which it reads and writes, and numbers."""
    body = text[text.index(".visible .entry") :]
    threads = int(re.findall(r"\.reqntid (\d+)", body)[0])
    state = _Threads(blocks * threads, [_memory(each) for each in arguments])
    state.registers["%tid.x"] = np.tile(np.arange(threads, dtype=np.uint32), blocks)
    state.registers["%ctaid.x"] = np.repeat(np.arange(blocks, dtype=np.uint32), threads)
    with np.errstate(all="ignore"):
        for line in body[body.index("{") + 1 : body.index("ret;")].splitlines():
            for statement in line.partition("//")[0].split(";"):
                statement = re.sub(r"^\{\s*(?=[.}])|^\}$", "", statement.strip())  # a scope for `.reg`
                if statement and not statement.startswith((".", "$", "createpolicy")):
                    _step(state, statement)


def _memory(argument: Any) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    storage = argument.untyped_storage()
    everything = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (len(storage),)).numpy()
    return everything[argument.storage_offset() * argument.itemsize :]


def _step(state: _Threads, statement: str) -> None:
    mask = np.True_
    if guard := re.match(r"@(!?)(%p\d+)\s+(.*)", statement):
        mask, statement = state.registers[guard[2]] ^ bool(guard[1]), guard[3]
    name, rest = statement.split(None, 1)
    modifiers = name.split(".")
    operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", rest)
    for prefix, execute in STEPS.items():
        if name.startswith(prefix):
            return execute(state, modifiers, operands, mask)
    if mask is not np.True_:
        raise NotImplementedError(statement)
    return _compute(state, statement, modifiers, operands)


def _registers(operand: str) -> list[str]:
    return re.findall(r"[^{},\s]+", operand)


def _load_argument(state: _Threads, modifiers: list[str], operands: list[str], mask: Any) -> None:
    index = int(re.findall(r"_param_(\d+)", operands[1])[0])
    value = state.arguments[index] if index < len(state.arguments) else 0
    pointer = isinstance(value, np.ndarray)
    state.registers[operands[0]] = np.full(state.count, index << 48 if pointer else value, np.uint64)


def _address(state: _Threads, operand: str, width: int) -> tuple[Any, Any]:
    """The memory an address points into, as words of `width` bytes, and which of them."""
    base, _, offset = operand.strip("[] ").partition("+")
    address = state.read(base.strip(), "u64") + np.uint64(int(offset or 0))
    memory = state.arguments[int(address[0] >> np.uint64(48))]
    return memory[: len(memory) // width * width].view(f"u{width}"), (address & np.uint64((1 << 48) - 1)) // np.uint64(width)


def _load(state: _Threads, modifiers: list[str], operands: list[str], mask: Any) -> None:
    words, index = _address(state, operands[1], INTEGERS[modifiers[-1]].itemsize)
    for i, register in enumerate(_registers(operands[0])):
        before = state.registers.get(register, np.zeros(state.count, words.dtype))
        state.registers[register] = np.where(mask, words[np.where(mask, index + np.uint64(i), 0)], before)


def _store(state: _Threads, modifiers: list[str], operands: list[str], mask: Any) -> None:
    words, index = _address(state, operands[0], INTEGERS[modifiers[-1]].itemsize)
    chosen = np.broadcast_to(mask, index.shape)
    for i, register in enumerate(_registers(operands[1])):
        words[(index + np.uint64(i))[chosen]] = state.read(register, modifiers[-1])[chosen]


def _move(state: _Threads, modifiers: list[str], operands: list[str], mask: Any) -> None:
    target, source = operands
    width = INTEGERS[modifiers[-1].replace("f", "b")].itemsize
    if source.startswith("{"):
        parts = _registers(source)
        state.registers[target] = packed([state.read(part, f"b{8 * width // len(parts)}") for part in parts])
    elif target.startswith("{"):
        parts, bits = _registers(target), state.read(source, f"b{8 * width}")
        for i, part in enumerate(parts):
            small = 8 * width // len(parts)
            state.registers[part] = (bits >> bits.dtype.type(small * i)).astype(f"u{small // 8}")
    else:
        state.registers[target] = state.read(source, f"b{8 * width}")
        state.products.pop(target, None)
        if source in state.products:
            state.products[target] = state.products[source]


def _convert(state: _Threads, modifiers: list[str], operands: list[str], mask: Any) -> None:
    rounding, (to, source) = modifiers[1:-2], modifiers[-2:]
    lanes = [state.read(operand, source) for operand in reversed(operands[1:])]
    lanes = [np.rint(lane) if "rni" in rounding and source in FLOATS else lane for lane in lanes]
    if set(rounding) - {"rn", "rni"} or (to in INTEGERS and source not in INTEGERS):
        raise NotImplementedError(".".join(modifiers))
    state.write(operands[0], lanes, to)


def _compare(state: _Threads, modifiers: list[str], operands: list[str], mask: Any) -> None:
    a, b = (state.read(operand, modifiers[-1]) for operand in operands[1:])
    a, b = flushed([a, b]) if "ftz" in modifiers else (a, b)
    state.registers[operands[0]] = COMPARE[modifiers[1]](a, b)


def _select(state: _Threads, modifiers: list[str], operands: list[str], mask: Any) -> None:
    kind = modifiers[-1].replace("f", "b")
    a, b = (state.read(operand, kind) for operand in operands[1:3])
    state.registers[operands[0]] = np.where(state.registers[operands[3]], a, b)


STEPS: dict[str, Callable[..., None]] = {
    "ld.param": _load_argument,
    "ld.global": _load,
    "st.global": _store,
    "mov": _move,
    "cvt": _convert,
    "setp": _compare,
    "selp": _select,
}


def _compute(state: _Threads, statement: str, modifiers: list[str], operands: list[str]) -> None:
    name, kind = modifiers[0], modifiers[-1]
    target, *sources = operands
    state.products.pop(target, None)
    if kind == "pred":
        state.registers[target] = INTEGER[name](*(state.registers[each] for each in sources))
        return
    integer = kind in INTEGERS
    if name not in (INTEGER if integer else ARITHMETIC) or set(modifiers[1:-1]) - {"rn", "lo", "wide", "NaN", "ftz", "f32"}:
        raise NotImplementedError(statement)
    if integer:
        values = [state.read(each, kind) for each in sources]
        if "wide" in modifiers:
            kind = kind[0] + "64"
            values = [value.astype(INTEGERS[kind]) for value in values[:2]] + [state.read(each, kind) for each in sources[2:]]
        state.registers[target] = encoded(INTEGER[name](*values), kind)
        return
    kinds = [kind] * len(sources)
    if modifiers[-2] == "f32":  # Blackwell's sums of a float32, the last, and of 16 bits
        kinds, kind = [*kinds[:-1], "f32"], "f32"
    lanes = [state.lanes(*each) for each in zip(sources, kinds)]
    lanes = [flushed(each) for each in lanes] if "ftz" in modifiers else lanes
    free = "rn" not in modifiers
    if free and name in ("add", "sub"):
        name, lanes = _contracted(state, name, kind, sources, lanes)
    result = [ARITHMETIC[name](*each) for each in zip(*lanes)]
    if "NaN" in modifiers:
        result = [np.where(unordered(*each), np.nan, value) for each, value in zip(zip(*lanes), result)]
    state.write(target, flushed(result) if "ftz" in modifiers else result, kind)
    if free and name == "mul":
        state.products[target] = kind, lanes


def _contracted(state: _Threads, name: str, kind: str, sources: list[str], lanes: list[Any]) -> tuple[str, list[Any]]:
    """A sum as ptxas may compute it: with a product in it as one instruction."""
    for index, source in enumerate(sources):
        other = lanes[1 - index]
        if source in state.products and state.products[source][0] == kind:
            a, b = state.products[source][1]
            if name == "sub":
                a, other = (a, [-x for x in other]) if index == 0 else ([-x for x in a], other)
            return "fma", [a, b, other]
    return name, lanes
