"""Fused operators for adversarial training that can be differentiated twice.

Each operator has a plain PyTorch reference, which is also its CPU path, and Triton kernels for the
forward, backward and double backward pass. Needs torch, and triton on a GPU; nothing else.
"""

from dgan_kernels.attention_jvp import attention_jvp
from dgan_kernels.bias_act import bias_act
from dgan_kernels.gradient_penalty import interpolate, penalty_direction, squared_norm
from dgan_kernels.minibatch_stddev import minibatch_stddev
from dgan_kernels.modulated_conv2d import modulated_conv2d
from dgan_kernels.norm_act import norm_act
from dgan_kernels.spectral_norm import spectral_norm_power_iteration
from dgan_kernels.upfirdn2d import downsample2d, filter2d, upfirdn2d, upsample2d

__all__ = [
    "attention_jvp",
    "bias_act",
    "downsample2d",
    "filter2d",
    "interpolate",
    "minibatch_stddev",
    "modulated_conv2d",
    "norm_act",
    "penalty_direction",
    "spectral_norm_power_iteration",
    "squared_norm",
    "upfirdn2d",
    "upsample2d",
]
