"""What eager's arithmetic makes of each site on real inputs: `explain(..., values=True)`.

The forward runs once more, node by node, on eager's own kernels. Where a site's result is computed, it is compared with the
value that the estimator stands for. Both are read in pieces, and a tensor is held no longer than the sites that need it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node

from .. import _torch
from ..backends import boxed, from_dynamo, interpreted
from ..passes import Site, Sum, number_values, recognise
from ..testing.tally import Tally
from . import source
from .figures import Values
from .report import Report

Place = tuple[bool, str, int, str]  # (training, file, line, expression)


@dataclass
class _Found:
    """A site of a joint or inference graph. `terms` has its root and each node that measuring it needs, by name, with the names
    of all nodes of the same value: the partitioner may keep only one of them."""

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
            self.awaited.update({self.nodes[name] for name in _names(each.site)})
        self.held: dict[Node, Any] = {}

    def run(self, *args: Any, initial_env: dict[Node, Any] | None = None, **kwargs: Any) -> Any:
        self.held |= {node: value for node, value in (initial_env or {}).items() if node in self.awaited}  # of `boxed_run`
        return super().run(*args, initial_env=initial_env, **kwargs)

    def run_node(self, node: Node) -> Any:
        result = super().run_node(node)
        if node in self.awaited:
            self.held[node] = result
        for each in self.at.get(node, ()):
            terms = {self.nodes[name] for name in _names(each.site)}
            if isinstance(result, Tensor) and not result.is_complex() and terms <= self.held.keys():
                with torch.no_grad():
                    each.tally = self.tally(each.site, result)
            for term in terms:
                self.awaited[term] -= 1
                if not self.awaited[term]:
                    self.held.pop(term, None)
        return result

    def tally(self, site: Site, result: Tensor) -> Tally:
        tally = Tally(result.dtype)
        for surrogate in site.surrogates:
            tally.not_finite += int((~self.value_of(surrogate).isfinite()).sum())
        value = torch.as_tensor(self.meant(site, result.dtype), device=result.device).to(result.dtype).expand(result.shape)
        tally.look(result, value)
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


class ValueMeter:
    """A backend that runs the forward as it is. `found` has the values of the sites by place, those of one place in order."""

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
                    self.found[each.place].append(each.tally.values() if each.tally else None)
                found.clear()
                return results

            return boxed(run)

        def inference(module: GraphModule, given: Sequence[Any]) -> Callable[..., Any]:
            note(module.graph, False)
            return compiled(module, given)

        aot = _torch.aot_autograd(
            fw_compiler=compiled,
            bw_compiler=lambda module, _: interpreted(module),
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
