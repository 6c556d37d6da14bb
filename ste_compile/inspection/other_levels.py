"""Sites that their level leaves or fuses, and that a level which removes more would cancel.

    x + (q - x).detach()    numerics={"": "exact"}    ->    numerics={"": "exact", "encoder.quantizer": "algebraic"}

One edit for each module and level. Modules whose paths differ only in the index of a list share one: `blocks.*.quantizer`.
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
    """For the sites of each module: the lowest level that cancels them."""
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
    """The lowest level that cancels sites with these `needs`."""
    return next(level for level in LEVELS if needs in LEVELS[level].removes)


def _paths(site: Site) -> Paths:
    """The path of the module whose code the site is in. Where that is the outermost module, or none: the paths of the modules
    called to compute its surrogates; () if not every surrogate comes from such a module."""
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
    """The user's rules, with `level` for the modules in `where`. If a closer rule of the user's still decides for a site, the
    deciding rules are changed instead. None where this is not enough either."""
    terms = [module_paths(seen.records[number].sites[index]) for number, index in sites]
    closest = tuple(dict.fromkeys(seen.rules.deciding(each)[0] for each in terms))
    for changed in (where or ("",), closest):
        rules = check(dict(seen.rules.rules) | dict.fromkeys(changed, level))
        if all(RANK[rules.deciding(each)[1]] >= RANK[level] for each in terms):
            return rules
    return None


def _written(rules: Rules) -> str:
    """The rules as a value of the argument `numerics`."""
    if not rules.by_module:
        return f'"{rules.least}"'
    return "{" + ", ".join(f'"{path}": "{level}"' for path, level in rules.rules) + "}"
