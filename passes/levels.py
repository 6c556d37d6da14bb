"""The three levels: what each promises about a site's forward value, and so what it may remove.

| level | the forward value of a site | removes |
|---|---|---|
| `exact` | bit for bit eager's, on the same inputs: NaN, Inf, the sign of zero, overflow of a cast, every rounding | nothing |
| `finite` | `==` eager's where what cancels, cast, and its factors (1 / a divisor) are finite | what cancels exactly, `t - t'` |
| `algebraic` | the value the estimator stands for, no further from eager's than eager's own rounding | also `x + (q - x)'` |

Gradients follow from the same formulas at every level. (A NaN is a NaN: IEEE 754 leaves its sign and payload open, and so do
eager's vectorised kernels.)

Each module may have its own level: `{"": "exact", "encoder.quantizer": "algebraic", "seeds.*": "finite"}`. A key is a path of
`named_modules()`, of the module and all inside it; `*` is any part of one name between dots; "" is the whole model. A site
belongs to two modules: the one whose code it is, and the one that computes its surrogate. The longest key that matches either
decides. Where a site has several surrogates, the one of their levels that promises most decides.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Numerics = Literal["exact", "finite", "algebraic"]


@dataclass(frozen=True)
class Level:
    """One level. `removes` are the needs (`Site.needs`) of the sites that it cancels. `backend` is its name for
    `torch.compile(backend=...)`, an entry point in pyproject.toml. `compared` is how `ste_compile.testing` holds a model with
    cancelled sites against eager: to the bit, by `==`, or within eager's own rounding. `costs` is what is given up for it."""

    removes: frozenset[str]
    backend: str
    compared: Literal["bits", "values", "bound"]
    costs: str


LEVELS: dict[Numerics, Level] = {
    "exact": Level(frozenset(), "ste", "bits", "nothing"),
    "finite": Level(frozenset({"finite"}), "ste_finite", "values", "a cancelled NaN or infinity no longer reaches the output"),
    "algebraic": Level(
        frozenset({"finite", "algebraic"}),
        "ste_algebraic",
        "bound",
        "the value may differ from eager's by eager's own rounding error",
    ),
}
DEFAULT: Numerics = "exact"


@dataclass(frozen=True)
class Rules:
    """Which level decides on which site: (module path, level), each path once, sorted, the path "" among them."""

    rules: tuple[tuple[str, Numerics], ...]

    def __str__(self) -> str:
        """As on the command line: `exact, seeds.*=finite`."""
        return ", ".join(f"{path}={level}" if path else level for path, level in self.rules)

    @property
    def by_module(self) -> bool:
        """Whether it depends on the module which level a site has."""
        return len(self.rules) > 1

    @property
    def removes(self) -> bool:
        """Whether any of its levels cancels anything."""
        return any(LEVELS[level].removes for _, level in self.rules)

    @property
    def least(self) -> Numerics:
        """That of its levels which promises least."""
        return max((level for _, level in self.rules), key=RANK.__getitem__)

    def deciding(self, terms: Iterable[Collection[str]]) -> tuple[str, Numerics]:
        """The rule for a site. `terms` has, for each of its surrogates, the two module paths that count (`module_paths`)."""
        if not self.by_module:
            return self.rules[0]
        found = [max((rule for rule in self.rules if _matches(rule[0], paths)), key=_length) for paths in terms]
        return min(found, key=lambda rule: RANK[rule[1]], default=self.rules[0])


Levels = Numerics | Mapping[str, Numerics] | Rules  # one for all, or one for each module
RANK = {level: rank for rank, level in enumerate(LEVELS)}  # the first promises most


def _matches(pattern: str, paths: Collection[str]) -> bool:
    """Whether one of the paths is that of a module which the pattern names, or is inside of one."""
    form = re.escape(pattern).replace(r"\*", r"[^.]*") + r"(\..*)?" if pattern else ".*"
    return any(re.fullmatch(form, path) for path in paths)


def _length(rule: tuple[str, Numerics]) -> tuple[int, int, int]:
    """How closely a rule names a module; of two that do alike, the one that promises more is taken."""
    path, level = rule
    return len(path.split(".")) if path else 0, len(path.replace("*", "")), -RANK[level]


def check(numerics: object) -> Rules:
    """A level, or a mapping of module paths to levels, as rules. A `ValueError` names what came and what is allowed."""
    if isinstance(numerics, Rules):
        return numerics
    if not isinstance(numerics, Mapping):
        return Rules((("", _level(numerics, "numerics")),))
    for path in numerics:
        if not isinstance(path, str) or (path and "" in path.split(".")):
            raise ValueError(f"numerics has the key {path!r}; allowed: module paths, as 'encoder.quantizer' or 'seeds.*', and ''")
    given = {
        path: _level(level, f"numerics[{path!r}]" if path else "numerics") for path, level in {"": DEFAULT, **numerics}.items()
    }
    return Rules(tuple(sorted(given.items())))


def _level(level: object, name: str) -> Numerics:
    if not isinstance(level, str) or level not in LEVELS:
        raise ValueError(f"{name}={level!r} is not a level; allowed: {', '.join(map(repr, LEVELS))}")
    return level


class Unmatched(ValueError):
    """A rule is for a module without a site."""


def check_matched(rules: Rules, paths: Iterable[str]) -> None:
    """Raise `Unmatched` where a rule matches no site; `paths` are the module paths of all sites."""
    if words := unmatched(rules, paths):
        raise Unmatched(words)


def unmatched(rules: Rules, paths: Iterable[str]) -> str:
    """Which rules match no site, in words; "" where every rule matches one. `paths` are the module paths of all sites."""
    known = sorted(set(paths))
    missing = ", ".join(repr(path) for path, _ in rules.rules if path and not _matches(path, known))
    where = f"the sites are in {', '.join(map(repr, known))}" if known else "there are no sites"
    return missing and f"numerics has {missing}, which matches no site; {where}"


def parsed(texts: Iterable[str]) -> Rules:
    """What `--numerics` was given: `finite`, `seeds.*=finite`, or several of these with commas between.

    >>> str(parsed(["finite", "encoder.quantizer=algebraic"]))
    'finite, encoder.quantizer=algebraic'
    """
    given: dict[str, str] = {}
    for text in ",".join(texts).split(","):
        path, _, level = text.strip().rpartition("=")
        if path in given:
            raise ValueError(f"numerics has two levels for {path!r}: {given[path]!r} and {level!r}")
        given[path] = level
    return check(given)
