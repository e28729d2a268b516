"""Fused operators for adversarial training that can be differentiated twice.

Each operator has a plain PyTorch reference, which is also its CPU path, and Triton kernels for the
forward, backward and double backward pass. Needs torch, and triton on a GPU; nothing else.
"""

from dgan_kernels.bias_act import bias_act

__all__ = ["bias_act"]
