"""Beside what else people use: loss scaling, parametrizations, autocast, hooks, averages, wrappers that pass only a string."""

import copy
import importlib.metadata
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import ste_compile
from ste_compile.hooks import JOINT, POST_GRAD
from ste_compile.testing import bitwise_equal

from .against_eager import LEVELS, Seeded, assert_like_eager, levels, seed
from .test_backends import Recorder, outcomes

FINITE = {"backend": "ste_aot_eager", "options": {"numerics": "finite"}}


def gradients(model, called, x):
    model.zero_grad()
    called(x).sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def same(ours, eager):
    return len(ours) == len(eager) and all(map(bitwise_equal, ours, eager))


# --- passes of the user's


@pytest.mark.parametrize("how", ("backend", "options"))
def test_post_grad_passes_and_lists_of_the_users(how):
    """Given post-grad passes of the user's, a list ahead of ours and one in the hook we do not use, all run, also through
    `inductor_options` on the stock backend; and ours, found in the config, is not run twice.
    Breaks if the list in the post-grad hook is lost, or the post-pass hook, or ours is chained to itself."""
    calls = []
    theirs = {
        POST_GRAD: [Recorder(calls, "pre 1"), Recorder(calls, "pre 2")],
        "post_grad_custom_post_pass": Recorder(calls, "post"),
    }
    options = theirs if how == "backend" else ste_compile.inductor_options(options=theirs)
    assert outcomes(backend="ste" if how == "backend" else "inductor", options=options) == ["fused"]
    assert calls == ["pre 1", "pre 2", "post"]
    with torch._inductor.config.patch(ste_compile.inductor_options()):
        assert type(ste_compile.inductor_options()[JOINT]) is ste_compile.hooks.JointPass


def test_a_caller_that_can_pass_nothing():
    """Given a wrapper that knows stock's backend alone (Accelerate's `DynamoBackend` is an enumeration), the options work as
    Inductor's config: with any mode, and with no word of us in the call.
    Breaks if `inductor_options` holds what is no setting of Inductor's."""
    with torch._inductor.config.patch(ste_compile.inductor_options(numerics="finite")):
        assert outcomes(backend="inductor", mode="default", fullgraph=False, dynamic=None) == ["cancelled"]


def test_callers_that_can_pass_only_a_string():
    """Given the names that `torch.compile` lists, each entry point is found by its string, with the keywords wrappers add: a mode,
    and options that are None or empty; Lightning compiles a module and calls its steps through `dynamo_ctx`.
    Breaks if an entry point is renamed, or a backend refuses a keyword it can ignore."""
    names = {
        entry.name for entry in importlib.metadata.entry_points(group="torch_dynamo_backends") if entry.name.startswith("ste")
    }
    assert names == {"ste_aot_eager", *(level.backend for level in LEVELS.values())} <= set(torch.compiler.list_backends())
    for name in sorted(names):
        torch._dynamo.reset()
        torch.compile(seed, backend=name, mode="default" if name != "ste_aot_eager" else None, dynamic=None)(
            torch.ones(2), torch.ones(2)
        )
    assert outcomes(backend="ste_finite", options={}) == ["cancelled"]
    model, x = Seeded(), torch.randn(4, 6)
    compiled = torch.compile(model, **FINITE)
    with ste_compile.collect() as recorder:
        step = compiled.dynamo_ctx(model.forward)  # `lightning.pytorch.utilities.compile.from_compiled`
        assert same(gradients(model, step, x), gradients(model, model, x))
    assert [site.action for site in recorder.sites()] == ["cancelled"]


# --- numbers that must not be hidden


class Overflows(Seeded):
    def forward(self, x):
        return seed(self.host(x), self.seed(x) * torch.inf)


@levels
def test_a_scaler_still_sees_a_surrogate_that_overflows(numerics):
    """Given an infinite surrogate, whose value a level may leave out of the forward, its gradients are not finite at any level:
    `GradScaler` skips the step and lowers its scale, as in eager.
    Breaks if a cancelled surrogate loses its gradients, which would train on in silence."""
    model = Overflows()
    compiled = torch.compile(model, backend="ste_aot_eager", options={"numerics": numerics})
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=1.0), torch.amp.GradScaler("cpu", init_scale=8.0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    out = compiled(torch.ones(2, 6))
    assert bool(out.isnan().any()) == (numerics == "exact")
    scaler.scale(out.sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert same([*model.parameters()], before) and scaler.get_scale() == 4.0
    assert not model.seed[2].weight.grad.isfinite().all() and model.host.weight.grad.isfinite().all()


# --- modules


class Sign(nn.Module):
    def forward(self, weight):
        return weight + (weight.sign() - weight).detach()


def test_a_parametrized_weight():
    """Given a weight whose parametrization is an estimator, its site is found, gradients reach the original, and the state keeps
    its names.
    Breaks if a site whose value is derived from a parameter alone is refused."""
    model = nn.Linear(6, 6)
    parametrize.register_parametrization(model, "weight", Sign())
    with torch.no_grad():
        model.parametrizations.weight.original.copy_(torch.randn(6, 6).mul(2).round().div(2))
    assert_like_eager(model, [torch.randn(4, 6).round()], algebraic=1)
    compiled = torch.compile(model, **FINITE)
    compiled(torch.randn(4, 6))
    assert [name.removeprefix("_orig_mod.") for name in compiled.state_dict()] == list(model.state_dict())


@pytest.mark.parametrize("where", ("inside", "around"))
def test_autocast(where):
    """Given autocast inside the compiled function or around its call, dtypes and values are eager's, and leaving autocast compiles
    anew.
    Breaks if a graph made under autocast serves outside it, or a cast is taken for part of the surrogate."""
    model, x = Seeded(), torch.randn(4, 6)

    def fn(x):
        with torch.autocast("cpu", torch.bfloat16, enabled=where == "inside"):
            return model(x)

    for numerics in LEVELS:
        compiled = torch.compile(fn if where == "inside" else model, backend="ste_aot_eager", options={"numerics": numerics})
        for enabled in (True, False):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                ours, eager = compiled(x), (fn if where == "inside" else model)(x)
            assert ours.dtype == eager.dtype and torch.equal(ours, eager)


def test_hooks():
    """Given hooks on modules and parameters, forward and backward, each runs once, and changes what it changes in eager.
    Breaks if a module hook's result is taken for the module's in a cancelled surrogate."""
    model, x, calls = Seeded(), torch.randn(4, 6), []
    model.seed.register_forward_hook(lambda module, args, result: result * 2)
    model.register_full_backward_hook(lambda *grads: calls.append(1))
    model.host.weight.register_hook(lambda grad: grad * 3)
    eager = gradients(model, model, x)
    assert same(gradients(model, torch.compile(model, **FINITE), x), eager) and len(calls) == 2


def test_copies_and_averages():
    """Given an average and a deep copy of a compiled module, each computes with its own parameters.
    Breaks if what was compiled for one module holds on to its parameters."""
    model, x = Seeded(), torch.randn(4, 6)
    compiled = torch.compile(model, **FINITE)
    wanted = compiled(x)
    average, twin = torch.optim.swa_utils.AveragedModel(compiled), copy.deepcopy(compiled)
    with torch.no_grad():
        model.host.bias.add_(1)
    assert torch.equal(compiled(x), model(x)) and not torch.equal(compiled(x), wanted)
    assert torch.equal(average(x), wanted) and torch.equal(twin(x), wanted)
    average.update_parameters(compiled)
    assert torch.equal(average(x), compiled(x))


@levels
def test_backends_and_options_can_be_pickled(numerics):
    """Given a backend or options sent to another process, they arrive equal, with the same identity for the caches.
    Breaks if a backend or a pass holds a closure."""
    backend, options = ste_compile.backend(numerics=numerics), ste_compile.inductor_options(numerics=numerics)
    arrived, passes = pickle.loads(pickle.dumps((backend, options)))
    assert arrived == backend and hash(arrived) == hash(backend) and copy.deepcopy(backend) == backend
    assert {hook: each.uuid() for hook, each in passes.items()} == {hook: each.uuid() for hook, each in options.items()}


@pytest.mark.parametrize("transform", ("vmap", "grad"))
def test_transforms_around_a_compiled_function(transform):
    """Given a compiled function under `torch.func`, where Dynamo (2.13) runs it as it is, the result is eager's.
    Breaks if the backend is called with a transform's own tensors."""
    h, s = torch.randn(4, 6), torch.randn(4, 6)
    compiled = torch.compile(seed, **FINITE)
    around = {
        "vmap": lambda fn: [torch.func.vmap(fn)(h, s)],
        "grad": lambda fn: list(torch.func.grad(lambda h, s: fn(h, s.sin()).square().sum(), argnums=(0, 1))(h, s)),
    }[transform]
    assert same(around(compiled), around(seed))


@pytest.mark.parametrize("kind", ("float8", "int4"))
def test_torchao_layers_in_a_seed(kind):
    """Given torchao's float8 training or quantisation-aware layers as host and seed, whose own estimators are autograd Functions,
    the seed's site is cancelled, and values and gradients are eager's.
    Breaks if what such a Function leaves in the graph is taken for a part of the site."""
    pytest.importorskip("torchao", reason="needs the extra test-third-party")
    model = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(2))
    if kind == "float8":
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

        convert_to_float8_training(model, config=Float8LinearConfig(emulate=True))
    else:
        from torchao.quantization import qat, quantize_

        config = qat.IntxFakeQuantizeConfig(torch.int4, group_size=32)
        quantize_(model, qat.QATConfig(weight_config=config, step="prepare"))
    assert type(model[0]) is not nn.Linear

    def fn(x):
        return seed(model[0](x), model[1](x))

    x = torch.randn(16, 32)
    with ste_compile.collect() as recorder:
        assert same(gradients(model, torch.compile(fn, **FINITE), x), gradients(model, fn, x))
    assert [site.action for site in recorder.sites()] == ["cancelled"]
