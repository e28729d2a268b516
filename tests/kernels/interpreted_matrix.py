"""Every operator by every route, against float64: generated, and nothing left out in silence.

What a route cannot do for an operator must raise. Not collected by name: `test_interpreted.py` runs
it with TRITON_INTERPRET=1.
"""

import inspect

import pytest
import routes
import torch
import torch.distributed as dist
from matrix_cases import CASES, Network, images
from matrix_samples import samples
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_leaves

import dgan_kernels

REGISTERED = sorted(
    name.removeprefix("dgan_kernels::")
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("dgan_kernels::")
)

# Where a kernel has no further derivative, and where a tangent's kernel has no tangent.
CURVED = {
    "bias_act silu", "bias_act channels_last", "bias_act scale, noise", "norm_act group",
    "norm_act instance", "norm_act layer", "norm_act rms", "norm_act pixel", "norm_act batch",
    "norm_act batch over ranks", "norm_act AdaLN", "norm_act group in two sweeps", "upsample2d",
    "upfirdn2d", "minibatch_stddev", "modulated_conv2d",
}  # fmt: skip
HIGHER = dict.fromkeys(
    [routes.third_order, routes.third_order_func, routes.third_order_compiled,
     routes.reverse_over_forward_over_forward], CURVED,
)  # fmt: skip
ONCE = {
    routes.first_order, routes.checkpointed_first_order, routes.sharded_first_order,
    routes.autocast_first_order,
}  # fmt: skip
"""The routes of attention_jvp, which is a tangent by itself."""
STATIC = ("test_schema", "test_faketensor", "test_autograd_registration")
TRANSFORMED = {
    routes.forward_over_reverse, routes.reverse_over_forward_over_forward, routes.torch_func_grad,
    routes.torch_func_grad_twice, routes.vmapped_batches, routes.reverse_over_forward,
    routes.reverse_over_torch_func_jvp, routes.third_order_func,
}  # fmt: skip
"""Refused by PyTorch, in its own words, as its Function says nothing of them."""


def refusal(route, case):
    """Return the error by which `route` refuses `case`, with its message; None if it does not."""
    if case == "attention_jvp" and route not in ONCE:
        if "compiled" in route.__name__:
            return torch._dynamo.exc.Unsupported, "disable"
        if route in TRANSFORMED:
            return RuntimeError, "functorch transforms|setup_context|jvp function"
        return NotImplementedError, "differentiated once"
    if case == "norm_act batch over ranks" and route is routes.compiled_torch_func:
        return torch._dynamo.exc.Unsupported, "custom jvp"
    if case in HIGHER.get(route, ()):
        compiled = route is routes.third_order_compiled
        error = torch._dynamo.exc.BackendCompilerFailed if compiled else NotImplementedError
        return error, "backend='reference'"
    return None


@pytest.fixture(autouse=True, scope="module")
def _one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("route", routes.PLAIN, ids=lambda route: route.__name__)
def test_route(route, case):
    torch._dynamo.reset()
    x, got = images(case), Network(case)
    if refused := refusal(route, case):
        with pytest.raises(refused[0], match=refused[1]):
            route(got, x)
        return
    want = Network(case, torch.float64)
    routes.PLAIN[route](want, x.double())
    route(got, x)
    want, got = routes.gradients(want), routes.gradients(got)
    scale = max(g.abs().max() for g in want.values())
    accepted = (2**-4 if "autocast" in route.__name__ else 2**-16) * scale
    for name in want:
        error = (got[name] - want[name]).abs().max()
        assert error <= accepted, f"{name}: {error:.1e}, accepted {accepted:.1e}"
    assert sum(g.abs().max() > scale / 100 for g in want.values()) >= 2


@pytest.mark.parametrize("case", CASES)
def test_a_fake_tensor_has_the_form_of_the_result(case):
    x = torch.randn(2, 2, 3, 2)
    for image in (x.to(memory_format=torch.channels_last), x.bfloat16()):
        vectors = torch.randn(2, 2, dtype=image.dtype)
        tensors = [t.detach().requires_grad_() for t in (image, *vectors)]
        want = forms(case, tensors, None)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            got = forms(case, [mode.from_tensor(t) for t in tensors], None)
        # Strides, too, but of norm_act, which promises none.
        kept = 2 if case.startswith("norm_act") else 3
        assert [form[:kept] for form in got] == [form[:kept] for form in want]


def forms(case, tensors, how):
    y = CASES[case](*tensors, how)
    grads = torch.autograd.grad(y.float().square().sum(), tensors, allow_unused=True)
    return [() if t is None else (t.dtype, t.shape, t.stride()) for t in (y, *grads)]


@pytest.mark.parametrize("name", REGISTERED)
def test_opcheck(name):
    """Also of what the kernels' own fakes say; and of their compiled derivatives, where any."""
    last = name.endswith("_second") or name in ("interpolate", "penalty_direction")
    op = getattr(torch.ops.dgan_kernels, name).default
    for args in samples(op._schema):
        leaves = [a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]
        if not last:
            torch.library.opcheck(op, leaves)
            continue
        with pytest.raises(NotImplementedError, match="backend='reference'"):
            sum(t.sum() for t in tree_leaves(op(*leaves))).backward()
        torch.library.opcheck(op, leaves, test_utils=STATIC)
        constants = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
        torch.library.opcheck(op, constants, test_utils="test_aot_dispatch_dynamic")


def test_nothing_is_left_out():
    assert {case.split()[0] for case in CASES} == set(dgan_kernels.__all__)
    functions = {f for _, f in inspect.getmembers(routes, inspect.isfunction)}
    found = {f for f in functions if list(inspect.signature(f).parameters) == ["D", "x"]}
    assert found == {*routes.PLAIN, *routes.PLAIN.values()}
    assert set(CASES) >= CURVED
    assert len(REGISTERED) > 20
