"""What operators would launch on a GPU that is not here: kernels, their arguments, their code.

Tensors are on the meta device, so that they can have any size: launches are written down as they
reach Triton's runtime, and compiled ahead of time as that runtime would specialise them.
"""

from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import triton.language as tl
from compiled import compile_for
from triton.runtime.jit import JITFunction

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


class Launched(NamedTuple):
    """A kernel on so many programs."""

    kernel: Any
    programs: int
    arguments: dict
    options: dict

    def compile(self, arch):
        """Compile for sm_`arch`, as a launch with these arguments is."""
        constants, signature, aligned = {}, {}, []
        for parameter in self.kernel.params:
            name, value = parameter.name, self.arguments[parameter.name]
            if parameter.is_constexpr or (isinstance(value, int) and value == 1):
                constants[name] = value.value if isinstance(value, tl.constexpr) else value
            elif isinstance(value, torch.Tensor):
                signature[name] = POINTERS[value.dtype]
                aligned += [name] if value.storage_offset() * value.element_size() % 16 == 0 else []
            elif isinstance(value, float):
                signature[name] = "fp32"
            else:
                signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                aligned += [name] if value % 16 == 0 else []
        return compile_for(arch, self.kernel, signature, constants, aligned, **self.options)


@contextmanager
def recorded():
    """Write down, in the list that it gives, what is launched; run none of it."""
    launches = []

    def write_down(kernel, *args, grid, warmup, **kwargs):
        arguments = dict(zip(kernel.arg_names, args))
        options = {k: v for k, v in kwargs.items() if k not in kernel.arg_names}
        arguments |= {k: v for k, v in kwargs.items() if k in kernel.arg_names}
        launches.append(Launched(kernel, grid[0], arguments, options))

    run, JITFunction.run = JITFunction.run, write_down
    try:
        yield launches
    finally:
        JITFunction.run = run


def empty(*shape, dtype=torch.bfloat16, last=False):
    """A leaf of any size without memory; `last`: channels_last."""
    order = torch.channels_last if last else torch.contiguous_format
    x = torch.empty(shape, dtype=dtype, device="meta", memory_format=order)
    return x.requires_grad_()


def every_order(layer, *leaves):
    """Return what `layer` launches forward, backward and in its double backward pass."""
    with recorded() as launches:
        y = layer(*leaves)
        y = y[0] + y[1] if isinstance(y, tuple) else y
        grads = torch.autograd.grad(y.float().sum(), leaves, create_graph=True, allow_unused=True)
        loss = sum(g.float().sum() for g in grads if g is not None)
        if isinstance(loss, torch.Tensor) and loss.requires_grad:
            torch.autograd.grad(loss, leaves, allow_unused=True)
    return launches
