"""What the passes cost, counted and not timed: each rewrite costs what it changes, whatever else is in the graph."""

import pytest
import torch
from ste_compile.passes import cancel, memory, new_nodes, recognise, replace
from torch.fx.experimental.proxy_tensor import make_fx

from ste_compile import ste_forward


def chain(h, seeds):
    for s in seeds:
        h = ste_forward(h, s)
    return h


def chain_of_results(h, seeds):
    return [h := ste_forward(h, s) for s in seeds]


def results(h, seeds):
    return [ste_forward(s.exp(), s) for s in seeds]


def results_that_are_views(h, seeds):
    return [(h := ste_forward(h, s)).view(1, 2) for s in seeds]


def read_on_the_way(h, seeds):
    """Every site is read by a seed, through a marker, and by the result."""
    read = []
    for s in seeds:
        seed = h.detach().exp() * s
        h = ste_forward(h, seed)
        read += [seed, h.sin()]
    return read


def beside_parameters(h, seeds):
    for s in seeds:
        h = ste_forward(h, s.sin()).relu()
    return h, [s.exp() for s in seeds]


def numbers(h, seeds):
    return [h + (1.0 - s.detach() + s) for s in seeds]


SHAPES = [chain, chain_of_results, results, results_that_are_views, read_on_the_way, beside_parameters, numbers]


@pytest.mark.parametrize("joint", (False, True), ids=("inference", "joint"))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_a_site_costs_the_same_in_any_graph(shape, joint, monkeypatch):
    """Given n sites with n inputs, of which none, the last or all are results, then the memory of a node is asked for, a fake value
    made and a reader's argument changed as often for the second ten of them as for the third.

    Broken by: `Memory` made for each site; sites cancelled from the last to the first (where they are read on the way); results
    exchanged one by one (where there are n); seen to fail."""
    counted = []
    for name, owner in (("storages", memory), ("storages", replace), ("fake_value", replace), ("fake_value", new_nodes)):
        right = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, right=right: counted.append(1) or right(*args))
    update = torch.fx.Node.replace_all_uses_with

    def replace_all_uses_with(node, by, delete_user_cb=lambda user: True, **more):
        counted.extend(a for user in node.users if delete_user_cb(user) for a in user.all_input_nodes)
        return update(node, by, delete_user_cb, **more)

    monkeypatch.setattr(torch.fx.Node, "replace_all_uses_with", replace_all_uses_with)

    def cost(sites):
        names = [f"primals_{i}" for i in range(sites)] + ["tangents_1"] * joint
        source = f"lambda h, {', '.join(names)}: shape(h, [{', '.join(names[:sites])}])"
        graph = make_fx(eval(source, {"shape": shape}), tracing_mode="fake")(*(torch.ones(2) for _ in ("h", *names))).graph
        for node in graph.find_nodes(op="placeholder")[1 + sites :]:
            node.meta["partitioner_tag"] = "is_backward"
        counted.clear()
        assert [outcome.action for outcome in cancel(graph, recognise(graph), "algebraic")] == ["cancelled"] * sites
        graph.lint()
        return len(counted)

    ten, twenty, thirty = map(cost, (10, 20, 30))
    assert thirty - twenty == twenty - ten
