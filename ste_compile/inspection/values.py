"""What eager's arithmetic makes of each site on real inputs: `explain(..., values=True)`.

The forward runs once more, node by node, on eager's own kernels. Where a site's result is computed, it is held against the value
that the estimator stands for; both are looked at in pieces, and nothing outlives the site that it is for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node

from .. import _torch
from ..backends import from_dynamo
from ..passes import Site, Sum, number_values, recognise
from ..testing.compare import ULP_DTYPES, ulp_distance
from . import source
from .report import Report, Values

PIECE = 2**20  # elements looked at in one go
MOST = 2**16  # distinct values that are counted, and distances in ulp that are told apart

Place = tuple[bool, str, int, str]  # (training, file, line, expression)


@dataclass
class Tally:
    """What is known of one site so far. A surrogate, a value and a result are looked at piece by piece."""

    dtype: torch.dtype
    elements: int = 0
    off: int = 0
    not_finite: int = 0
    near: Tensor = field(default_factory=lambda: torch.zeros(MOST, dtype=torch.int64))  # how often each distance below MOST
    far: Counter[int] = field(default_factory=Counter)  # how often each other one; of more than MOST, by powers of two
    furthest: int = 0
    distinct: list[Tensor | None] = field(default_factory=lambda: [torch.empty(0), torch.empty(0)])  # of the result, of the value

    def look(self, result: Tensor, value: Tensor) -> None:
        differs = (result != value) & ~(result.isnan() & value.isnan())
        self.elements += result.numel()
        self.off += int(differs.sum())
        if self.dtype in ULP_DTYPES:
            apart = differs & result.isfinite() & value.isfinite()
            distances = ulp_distance(result[apart], value[apart]).cpu()
            self.furthest = max(self.furthest, int(distances.max()) if distances.numel() else 0)
            self.near += torch.bincount(distances[distances < MOST], minlength=MOST)
            for distance in distances[distances >= MOST].tolist():
                self.far[distance if distance in self.far or len(self.far) < MOST else _bound(distance)] += 1
        for i, each in enumerate((result, value)):
            if (known := self.distinct[i]) is not None:
                found = torch.cat([known.to(each), each]).unique()
                self.distinct[i] = found if len(found) <= MOST else None

    def values(self) -> Values:
        counts = [(distance, int(self.near[distance])) for distance in self.near.nonzero().flatten().tolist()]
        counts += sorted(self.far.items())
        histogram: Counter[int] = Counter()
        for distance, count in counts:
            histogram[_bound(distance)] += count
        before, median = 0, 0
        for distance, count in counts:
            before += count
            if 2 * before >= sum(count for _, count in counts):
                median = distance
                break
        distinct, meant = (None if each is None else len(each) for each in self.distinct)
        name = str(self.dtype).removeprefix("torch.")
        return Values(
            name,
            self.elements,
            self.off,
            self.furthest,
            median,
            distinct,
            meant,
            self.not_finite,
            tuple(sorted(histogram.items())),
        )


def _bound(distance: int) -> int:
    """The least power of two that is no less."""
    return 1 << (distance - 1).bit_length()


@dataclass
class _Found:
    """A site of a joint or inference graph; `terms` are, of each node that its measure needs and of its root, the names of all
    nodes with that value: the partitioner keeps one of them."""

    site: Site
    place: Place
    terms: dict[str, list[str]]
    tally: Tally | None = None


class _Measuring(Interpreter):
    """Runs a forward graph, and looks at the sites in it."""

    def __init__(self, module: GraphModule, found: Sequence[_Found]) -> None:
        super().__init__(module)
        named = {node.name: node for node in module.graph.nodes}
        self.nodes: dict[str, Node] = {}  # name in the joint graph -> the node here
        self.at: defaultdict[Node, list[_Found]] = defaultdict(list)  # root -> its sites
        self.awaited: Counter[Node] = Counter()
        for each in found:
            here = {name: next((named[other] for other in names if other in named), None) for name, names in each.terms.items()}
            if each.site.refusal or None in here.values():
                continue
            self.nodes |= {name: node for name, node in here.items() if node is not None}
            self.at[self.nodes[each.site.root.name]].append(each)
            self.awaited.update(self.nodes[name] for name in set(_names(each.site)))
        self.held: dict[Node, Any] = {}

    def run(self, *args: Any, initial_env: dict[Node, Any] | None = None, **kwargs: Any) -> Any:
        self.held |= {node: value for node, value in (initial_env or {}).items() if node in self.awaited}  # of `boxed_run`
        return super().run(*args, initial_env=initial_env, **kwargs)

    def run_node(self, node: Node) -> Any:
        result = super().run_node(node)
        if node in self.awaited:
            self.held[node] = result
        for each in self.at.get(node, ()):
            if isinstance(result, Tensor) and not result.is_complex():
                with torch.no_grad():
                    each.tally = self.tally(each.site, result)
            for term in map(self.nodes.__getitem__, set(_names(each.site))):
                self.awaited[term] -= 1
                if not self.awaited[term]:
                    self.held.pop(term, None)
        return result

    def tally(self, site: Site, result: Tensor) -> Tally:
        tally = Tally(result.dtype)
        for surrogate in site.surrogates:
            tally.not_finite += int((~self.value_of(surrogate).isfinite()).sum())
        value = torch.as_tensor(self.meant(site, result.dtype), device=result.device).to(result.dtype).expand(result.shape)
        for piece, meant in zip(_pieces(result), _pieces(value)):
            tally.look(piece, meant)
        return tally

    def value_of(self, node: Any) -> Any:
        return self.held[self.nodes[node.name]] if isinstance(node, Node) else node

    def meant(self, site: Site, dtype: torch.dtype) -> Any:
        """The value that the estimator stands for, added up as a rewrite would."""
        if not isinstance(site.value, Sum):
            return -self.value_of(site.value) if site.negated else self.value_of(site.value)
        total: Any = None
        for sign, each in site.value.addends:
            addend = self.value_of(each).to(dtype) if isinstance(each, Node) else each
            total = sign * addend if total is None else total + addend if sign > 0 else total - addend
        return total


def _addends(site: Site) -> list[Any]:
    return site.value.nodes() if isinstance(site.value, Sum) else [site.value]


def _names(site: Site) -> Iterator[str]:
    """The nodes that the measure of a site needs."""
    yield from (node.name for node in (*_addends(site), *site.surrogates) if isinstance(node, Node))


def _boxed(run: Callable[[list[Any]], Any]) -> Callable[..., Any]:
    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The elements in order, in pieces."""
    rows = tensor.reshape(1) if tensor.ndim == 0 else tensor
    if rows.ndim > 1 and rows[0].numel() > PIECE:
        for row in rows:
            yield from _pieces(row)
        return
    count = max(1, PIECE // max(1, rows[0].numel() if len(rows) else 1))
    yield from (piece.reshape(-1) for piece in rows.split(count))


class ValueMeter:
    """A backend that runs the forward as it is, and what it saw of the sites, by place: those of one place in order."""

    def __init__(self) -> None:
        self.found: defaultdict[Place, list[Values | None]] = defaultdict(list)

    def __call__(self, gm: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        found: list[_Found] = []

        def note(graph: Graph, training: bool) -> None:
            number = number_values(graph).number
            alike: defaultdict[int, list[str]] = defaultdict(list)
            for node in number:
                alike[number[node]].append(node.name)
            for site in recognise(graph, _torch.differentiable(graph)):
                nodes = [site.root, *site.surrogates, *_addends(site)]
                terms = {node.name: [node.name, *alike[number[node]]] for node in nodes if isinstance(node, Node)}
                found.append(_Found(site, place(training, site), terms))

        def partition(joint: GraphModule, *args: Any, **kwargs: Any) -> Any:
            note(joint.graph, True)
            return _torch.min_cut_rematerialization_partition(joint, *args, **kwargs)

        def compiled(module: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
            def run(args: list[Any]) -> Any:
                results = _Measuring(module, found).boxed_run(args)
                for each in found:  # of the first run: a loop may call the graph again
                    self.found[each.place].append(each.tally and each.tally.values())
                found.clear()
                return results

            return _boxed(run)

        def inference(module: GraphModule, given: Sequence[Any]) -> Callable[..., Any]:
            note(module.graph, False)
            return compiled(module, given)

        def plain(module: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
            return _boxed(lambda args: Interpreter(module).boxed_run(args))

        aot = _torch.aot_autograd(
            fw_compiler=compiled,
            bw_compiler=plain,
            inference_compiler=inference,
            partition_fn=partition,
            keep_inference_input_mutations=True,
        )
        with from_dynamo(gm):
            result: Callable[..., Any] = aot(gm, inputs)
        return result

    def fill_in(self, report: Report) -> Report:
        """The report, with what was seen of each site."""
        waiting = {where: iter(values) for where, values in self.found.items()}
        graphs = []
        for graph in report.graphs:
            places = [(graph.training, site.file, site.line, site.expression) for site in graph.sites]
            found = [next(waiting.get(where, iter(())), None) for where in places]
            graphs.append(replace(graph, sites=tuple(replace(site, values=each) for site, each in zip(graph.sites, found))))
        return replace(report, graphs=tuple(graphs))


def place(training: bool, site: Site) -> Place:
    """Where a site is in the source: how it is found again in another compilation of the same function."""
    stack = source.frames(site.root)
    user, inner = source.users_frame(stack), stack[-1] if stack else None
    return training, user.file if user else "", user.line if user else 0, inner.code if inner else ""
