"""The routes by which PyTorch differentiates a network; each leaves gradients on its parameters.

`ROUTES` leave that of a penalty, mean ‖∇ₓD‖²; `PLAIN` names every route.
"""

import torch
import torch.autograd.forward_ad as fwd
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint


def r1(g):
    return g.square().sum((1, 2, 3)).mean()


def penalty(f, x):
    (g,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
    return r1(g)


def functional_penalty(D):
    def loss(params, x):
        g = grad(lambda x: functional_call(D, params, (x,)).sum())(x)
        return r1(g)

    return loss


def reverse_over_reverse(D, x):
    penalty(D, x.clone().requires_grad_()).backward()


def torch_func_grad(D, x):
    functional_penalty(D)(dict(D.named_parameters()), x).backward()


def torch_func_grad_twice(D, x):
    grads = grad(functional_penalty(D))({k: p.detach() for k, p in D.named_parameters()}, x)
    for name, p in D.named_parameters():
        p.grad = grads[name]


def reverse_over_forward(D, x):
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(D(leaf).sum(), leaf)
    with fwd.dual_level():
        tangent = fwd.unpack_dual(D(fwd.make_dual(x, g))).tangent
    (2 * tangent.sum() / len(x)).backward()


def reverse_over_torch_func_jvp(D, x):
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(D(leaf).sum(), leaf)
    params = dict(D.named_parameters())
    _, tangent = jvp(lambda x: functional_call(D, params, (x,)), (x,), (g,))
    (2 * tangent.sum() / len(x)).backward()


def checkpointed(D, x):
    recomputed = lambda x: checkpoint(D, x, use_reentrant=False)  # noqa: E731
    penalty(recomputed, x.clone().requires_grad_()).backward()


def compiled_torch_func(D, x):
    loss = torch.compile(functional_penalty(D), fullgraph=True, backend="aot_eager")
    loss(dict(D.named_parameters()), x).backward()


def compiled_autograd_grad(D, x):
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        loss = torch.compile(lambda x: penalty(D, x), fullgraph=True, backend="aot_eager")
        loss(x.clone().requires_grad_()).backward()


ROUTES = [
    reverse_over_reverse, torch_func_grad, torch_func_grad_twice, reverse_over_forward,
    reverse_over_torch_func_jvp, checkpointed, compiled_torch_func, compiled_autograd_grad,
]  # fmt: skip


def sharded(D, x):
    """By FSDP2, over the ranks there are; weights stay gathered, as two backward passes need."""
    fully_shard(D, reshard_after_forward=False)
    D.set_reshard_after_backward(False)
    D.set_requires_gradient_sync(False)
    leaf = x.clone().requires_grad_()
    logits = D(leaf)
    (g,) = torch.autograd.grad(logits.sum(), leaf, create_graph=True)
    D.set_requires_gradient_sync(True)
    # FSDP2 reduces gradients when a backward pass comes through the output, as a loss's does.
    (r1(g) + 0 * logits.sum()).backward()
    D.reshard()
    _gather_gradients(D)


def _gather_gradients(D):
    for p in D.parameters():
        p.whole_gradient = None if p.grad is None else p.grad.full_tensor()


def vmapped_batches(D, x):
    """Two batches, side by side: also for a network whose samples see one another."""
    params = dict(D.named_parameters())
    loss = lambda x: functional_penalty(D)(params, x)  # noqa: E731
    vmap(loss)(x.unflatten(0, (2, -1))).mean().backward()


def batch_by_batch(D, x):
    for part in x.chunk(2):
        (penalty(D, part.clone().requires_grad_()) / 2).backward()


def autocast(D, x):
    """In bfloat16 what is made for it, in float32 the rest; the kernels see what reaches them."""
    with torch.autocast("cpu", torch.bfloat16):
        loss = penalty(D, x.clone().requires_grad_())
    loss.backward()


def first_order(D, x):
    D(x).square().sum().backward()


def checkpointed_first_order(D, x):
    checkpoint(D, x, use_reentrant=False).square().sum().backward()


def sharded_first_order(D, x):
    fully_shard(D)
    first_order(D, x)
    _gather_gradients(D)


def autocast_first_order(D, x):
    with torch.autocast("cpu", torch.bfloat16):
        loss = D(x).square().sum()
    loss.backward()


def compiled_first_order(D, x):
    first_order(torch.compile(D, fullgraph=True, backend="aot_eager"), x)


def compiled_for_any_size(D, x):
    compiled = torch.compile(D, fullgraph=True, backend="aot_eager", dynamic=True)
    first_order(compiled, x)
    first_order(compiled, torch.cat([x, 2 * x[:1]]))


def two_sizes(D, x):
    first_order(D, x)
    first_order(D, torch.cat([x, 2 * x[:1]]))


def forward_over_reverse(D, x):
    """Leave a Hessian-vector product in the parameters."""
    params = {k: p.detach() for k, p in D.named_parameters()}
    loss = lambda p: functional_call(D, p, (x,)).square().sum()  # noqa: E731
    tangents = {k: torch.cos(p) for k, p in params.items()}
    products = jvp(grad(loss), (params,), (tangents,))[1]
    for name, p in D.named_parameters():
        p.grad = products[name]


def reverse_over_forward_over_forward(D, x):
    """Leave the gradient of a second derivative along x, as a term of curvature has it."""
    params = dict(D.named_parameters())
    f = lambda x: functional_call(D, params, (x,))  # noqa: E731
    along = lambda x: jvp(f, (x,), (torch.sin(x),))[1]  # noqa: E731
    jvp(along, (x,), (torch.cos(x),))[1].sum().backward()


def third_order(D, x):
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(D(leaf).square().sum(), leaf, create_graph=True)
    (h,) = torch.autograd.grad(g.square().sum(), leaf, create_graph=True)
    h.square().sum().backward()


def third_order_func(D, x):
    params = dict(D.named_parameters())
    f = lambda x: functional_call(D, params, (x,)).square().sum()  # noqa: E731
    g = lambda x: grad(f)(x).square().sum()  # noqa: E731
    grad(g)(x).square().sum().backward()


def third_order_compiled(D, x):
    def loss(x):
        (g,) = torch.autograd.grad(D(x).square().sum(), x, create_graph=True)
        (h,) = torch.autograd.grad(g.square().sum(), x, create_graph=True)
        return h.square().sum()

    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        compiled(x.clone().requires_grad_()).backward()


PLAIN = {
    **dict.fromkeys([*ROUTES, sharded, autocast], reverse_over_reverse),
    vmapped_batches: batch_by_batch,
    **dict.fromkeys(
        [first_order, checkpointed_first_order, sharded_first_order, autocast_first_order,
         compiled_first_order], first_order
    ),
    compiled_for_any_size: two_sizes,
    third_order_func: third_order,
    third_order_compiled: third_order,
    **{route: route for route in
       (forward_over_reverse, reverse_over_forward_over_forward, third_order)},
}  # fmt: skip
"""For each route, the plain one that leaves the same gradients."""


def gradients(D):
    """Return each parameter's gradient; None is a zero: no gradient depends on the parameter."""
    found = {n: getattr(p, "whole_gradient", p.grad) for n, p in D.named_parameters()}
    return {n: torch.zeros(()) if g is None else g for n, g in found.items()}


def assert_same_gradients(route, want, got, x, tolerance):
    """`got` by a route has the gradients that `want` has by plain double backward."""
    torch._dynamo.reset()
    reverse_over_reverse(want, x)
    route(got, x)
    for (name, a), b in zip(gradients(got).items(), gradients(want).values()):
        # A gradient that is missing is a zero without a shape.
        a, b = torch.broadcast_tensors(a, b)
        torch.testing.assert_close(a, b, msg=lambda m, n=name: f"{n}: {m}", **tolerance)
