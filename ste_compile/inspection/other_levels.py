"""Sites that this level leaves or fuses, and a higher one would cancel.

    x + (q - x).detach()    numerics={"": "exact"}    ->    numerics={"": "exact", "encoder.quantizer": "algebraic"}

One edit for each module and level. Modules that differ by a number alone, of a list, are one: `blocks.*.quantizer`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from ..passes import Site, module_paths
from ..passes.levels import LEVELS, RANK, Numerics, Rules, check
from ..passes.nodes import module_path, module_stack, uncast
from .edits import Edit, Key, Seen, Try, listed
from .figures import NOTHING

Paths = tuple[str, ...]


def find(seen: Seen) -> Iterator[Edit]:
    """The lowest level that cancels them, for the sites of each module."""
    paths: dict[Key, Paths] = {}
    needs: dict[Key, Numerics] = {}
    for key, record, site in seen.sites():
        found = record.sites[key[1]]
        _, level = seen.rules.deciding(module_paths(found))
        if site.action != "cancelled" and site.needs not in LEVELS[level].removes:
            paths[key], needs[key] = _paths(found), _level(site.needs)
    groups: defaultdict[Paths, list[Key]] = defaultdict(list)
    for group in _alike(paths):
        groups[_folded([paths[key] for key in group])] += group
    for where, group in groups.items():
        for level in sorted({needs[key] for key in group}, key=RANK.__getitem__):
            theirs = tuple(key for key in group if RANK[needs[key]] <= RANK[level])
            if rules := _rules(seen, where, level, theirs):
                frees = [seen.report.graphs[number].sites[index].frees for number, index in theirs]
                places = listed(f"{place.file}:{place.line}" if place.file else "its site" for place in map(seen.place, theirs))
                words = f"Ask for numerics={_written(rules)} for {places}: {LEVELS[level].costs}."
                yield Edit(theirs, words, Try(rules), hope=sum(frees, NOTHING))


def _level(needs: str) -> Numerics:
    """The lowest level that removes what needs that."""
    return next(level for level in LEVELS if needs in LEVELS[level].removes)


def _paths(site: Site) -> Paths:
    """The module whose code a site is; where that is the outermost or none, those that it calls for its surrogates; () where it
    calls none."""
    if path := module_path(site.root):
        return (path,)
    called = [next(filter(None, module_stack(uncast(surrogate))), "") for surrogate in site.surrogates]
    return tuple(dict.fromkeys(called)) if all(called) else ()


def _alike(paths: dict[Key, Paths]) -> Iterator[list[Key]]:
    """The sites whose modules differ by numbers alone."""
    found: defaultdict[str, list[Key]] = defaultdict(list)
    for key, each in paths.items():
        found[re.sub(r"(?<![^.,])\d+(?![^.,])", "*", ",".join(each))].append(key)
    yield from found.values()


def _folded(paths: Sequence[Paths]) -> Paths:
    """One pattern for each path, with `*` where they differ."""
    return tuple(
        ".".join(names[0] if len(set(names)) == 1 else "*" for names in zip(*(path.split(".") for path in same)))
        for same in zip(*paths)
    )


def _rules(seen: Seen, where: Paths, level: Numerics, sites: Sequence[Key]) -> Rules | None:
    """The rules that are there, with that level for these modules. Where a rule of the user's is closer to a site, that rule is
    changed. None where this is not enough."""
    terms = [module_paths(seen.records[number].sites[index]) for number, index in sites]
    closest = tuple(dict.fromkeys(seen.rules.deciding(each)[0] for each in terms))
    for changed in (where or ("",), closest):
        rules = check(dict(seen.rules.rules) | dict.fromkeys(changed, level))
        if all(RANK[rules.deciding(each)[1]] >= RANK[level] for each in terms):
            return rules
    return None


def _written(rules: Rules) -> str:
    """As an argument."""
    if not rules.by_module:
        return f'"{rules.least}"'
    return "{" + ", ".join(f'"{path}": "{level}"' for path, level in rules.rules) + "}"
