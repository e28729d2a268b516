"""The routes by which PyTorch differentiates a network twice; each leaves a penalty's gradient.

The penalty is mean ‖∇ₓD‖², or what a discriminator's `measure` makes of ∇ₓD.
"""

import torch
import torch.autograd.forward_ad as fwd
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint


def r1(g):
    return g.square().sum((1, 2, 3)).mean()


def measure_of(D):
    return getattr(D, "measure", r1)


def penalty(D, x, measure=r1):
    (g,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
    return measure(g)


def functional_penalty(D):
    def loss(params, x):
        g = grad(lambda x: functional_call(D, params, (x,)).sum())(x)
        return measure_of(D)(g)

    return loss


def reverse_over_reverse(D, x):
    penalty(D, x.clone().requires_grad_(), measure_of(D)).backward()


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
    penalty(recomputed, x.clone().requires_grad_(), measure_of(D)).backward()


def compiled_torch_func(D, x):
    loss = torch.compile(functional_penalty(D), fullgraph=True, backend="aot_eager")
    loss(dict(D.named_parameters()), x).backward()


def compiled_autograd_grad(D, x):
    measure = measure_of(D)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        loss = torch.compile(lambda x: penalty(D, x, measure), fullgraph=True, backend="aot_eager")
        loss(x.clone().requires_grad_()).backward()


def vmapped_samples(D, x):
    params = dict(D.named_parameters())
    one = lambda x: functional_call(D, params, (x[None],)).sum()  # noqa: E731
    vmap(grad(one))(x).square().sum((1, 2, 3)).mean().backward()


ROUTES = [
    reverse_over_reverse, torch_func_grad, torch_func_grad_twice, reverse_over_forward,
    reverse_over_torch_func_jvp, checkpointed, compiled_torch_func, compiled_autograd_grad,
    vmapped_samples,
]  # fmt: skip


def assert_same_gradients(route, want, got, x, tolerance):
    """`got` by a route has the gradients that `want` has by plain double backward."""
    torch._dynamo.reset()
    reverse_over_reverse(want, x)
    route(got, x)
    for (name, p), q in zip(want.named_parameters(), got.parameters()):
        # None is a zero: no curvature, or a bias on which no gradient of the input depends.
        a, b = (torch.zeros_like(t) if t.grad is None else t.grad for t in (q, p))
        torch.testing.assert_close(a, b, msg=lambda m, n=name: f"{n}: {m}", **tolerance)
