"""Networks and R1 as users of each library would write them; `others.py` trains with these.

A preparation takes plain networks, a discriminator and perhaps a generator, with `.blocks`; it
gives them as the library does.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dgan import gradient_penalty
from penalties.quality import approximated_r1

LEARNING_RATE = 0.01
SIGMA = 0.1
"""FastGen's `gan_r1_reg_alpha`."""


@dataclass(frozen=True, kw_only=True)
class Player:
    """A network as a library prepared it.

    Attributes:
        network: what is called.
        clear: forget the gradients.
        update: backward and optimizer step.
        weights: all of them, gathered; reading them changes nothing.
    """

    network: nn.Module
    clear: Callable[[], None]
    update: Callable[[Tensor], None]
    weights: Callable[[], list[Tensor]]


def double_backward(discriminator: nn.Module, real: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and R1, as it is written everywhere."""
    real = real.detach().requires_grad_()
    logits = discriminator(real)
    (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return logits, 0.5 * gradient.square().flatten(1).sum(1).mean()


def noise_approximation(discriminator: nn.Module, real: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and what APT and FastGen put in R1's place, weighted to have its expectation.

    FastGen: `gan_loss_ar1` in fastgen/methods/distribution_matching/ladd.py, ‖D(x) − D(x + σn)‖².
    """
    return discriminator(real), approximated_r1(discriminator, real, SIGMA, seed=rank())


def no_penalty(discriminator: nn.Module, real: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and nothing, to see what else a library cannot do."""
    logits = discriminator(real)
    return logits, torch.zeros_like(logits).sum()


def dgan_penalty(discriminator: nn.Module, real: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and R1."""
    output = gradient_penalty(discriminator, real)
    return output.logits, output.loss


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def sgd(network: nn.Module) -> torch.optim.Optimizer:
    """Without momentum: the first step is the gradient."""
    return torch.optim.SGD(network.parameters(), LEARNING_RATE)


def whole(weight: Tensor) -> Tensor:
    full = weight.full_tensor() if isinstance(weight, DTensor) else weight
    return full.detach().double().cpu().clone()


def player(
    network: nn.Module,
    optimizer: Any,
    *,
    backward: Callable[[Tensor], None] = Tensor.backward,
    before_step: Callable[[], None] = lambda: None,
) -> Player:
    """Where a library has a loss's backward and an optimizer's step."""

    def update(loss: Tensor) -> None:
        backward(loss)
        before_step()
        optimizer.step()

    def weights() -> list[Tensor]:
        # The optimizer's, because a module that is kept gathered shows its gathered copies.
        return [whole(weight) for group in optimizer.param_groups for weight in group["params"]]

    return Player(
        network=network,
        clear=optimizer.zero_grad,
        update=update,
        weights=weights,
    )


def one_process(networks: list[nn.Module], device: torch.device) -> list[Player]:
    """The reference."""
    return [player(network, sgd(network)) for network in networks]


def ddp(
    networks: list[nn.Module], device: torch.device, checkpoint: bool = False, **options: Any
) -> list[Player]:
    """DistributedDataParallel with `options`; `checkpoint` recomputes the blocks' activations."""
    join(device)
    if checkpoint:
        checkpoint_blocks(networks)
    replicas = [DistributedDataParallel(network, **options) for network in networks]
    return [player(network, sgd(network)) for network in replicas]


def fsdp2(
    networks: list[nn.Module],
    device: torch.device,
    checkpoint: bool = False,
    keep: bool = False,
    reshard: bool = False,
    **options: Any,
) -> list[Player]:
    """`fully_shard` with `options` on each block and on the whole.

    Args:
        checkpoint: recompute the blocks' activations.
        keep: gathered weights stay after a backward, so that a second one finds them.
        reshard: free them by hand before each optimizer step.
        options: of `fully_shard`.
    """
    join(device)
    if checkpoint:
        checkpoint_blocks(networks)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    players = []
    for network in networks:
        shard(network, mesh, **options)
        units = [module for module in network.modules() if isinstance(module, FSDPModule)]
        for unit in units if keep else []:
            unit.set_reshard_after_backward(False)

        def free(units: list[FSDPModule] = units) -> None:
            for unit in units if reshard else []:
                unit.reshard()

        players.append(player(network, sgd(network), before_step=free))
    return players


def join(device: torch.device) -> None:
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def checkpoint_blocks(networks: list[nn.Module]) -> None:
    for blocks in (network.blocks for network in networks):
        for index, block in enumerate(blocks):
            blocks[index] = checkpoint_wrapper(block)


def shard(network: nn.Module, mesh: DeviceMesh, **options: Any) -> nn.Module:
    for unit in (*network.blocks, network):
        fully_shard(unit, mesh=mesh, **options)
    return network


def deepspeed(
    networks: list[nn.Module],
    device: torch.device,
    stage: int,
    checkpoint: bool = False,
    as_engine: bool = False,
) -> list[Player]:
    """An engine a network; the module is called and cleared, as in DeepSpeed's GAN tutorial.

    Args:
        networks: a discriminator and perhaps a generator.
        device: of this rank.
        stage: of ZeRO.
        checkpoint: recompute the blocks' activations.
        as_engine: call the engine, which clears the gradients itself, as in its other tutorials.
    """
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 1,  # it accumulates nothing: the batch's size is free
        "gradient_clipping": 0.0,
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": 0,  # shard small parameters too
            "memory_efficient_linear": False,  # its own Function has first derivatives only
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo")
    if checkpoint:
        checkpoint_blocks(networks)
    players = []
    for network in networks:
        engine, *_ = deepspeed.initialize(model=network, optimizer=sgd(network), config=config)

        def update(loss: Tensor, engine: Any = engine) -> None:
            engine.backward(loss)
            engine.step()

        def weights(engine: Any = engine) -> list[Tensor]:
            parameters = list(engine.module.parameters())
            gathered = deepspeed.zero.GatheredParameters(parameters) if stage == 3 else None
            with gathered or nullcontext():
                return [whole(parameter) for parameter in parameters]

        called = engine if as_engine else network
        clear = (lambda: None) if as_engine else network.zero_grad
        players.append(Player(network=called, clear=clear, update=update, weights=weights))
    return players


def accelerate(
    networks: list[nn.Module],
    device: torch.device,
    together: bool = False,
    checkpoint: bool = False,
    shards: bool = True,
) -> list[Player]:
    """Accelerate with its FSDP2 plugin, or with DDP.

    Args:
        together: all networks in one call of `prepare`, else each with its optimizer in its own.
        checkpoint: the plugin's option.
        shards: by FSDP2.
    """
    from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Block"],
        activation_checkpointing=checkpoint,
        cpu_ram_efficient_loading=False,
    )
    on_cpu = device.type == "cpu"
    accelerator = Accelerator(fsdp_plugin=plugin if shards else None, cpu=on_cpu)
    if shards and on_cpu:
        # It takes the plugin up on accelerators only: put it into the state that it has there.
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    optimizers = [sgd(network) for network in networks]
    if together:
        prepared = accelerator.prepare(*networks, *optimizers)
        pairs = list(zip(prepared[: len(networks)], prepared[len(networks) :]))
    else:
        pairs = [accelerator.prepare(*pair) for pair in zip(networks, optimizers)]
    return [
        player(network, optimizer, backward=accelerator.backward) for network, optimizer in pairs
    ]


def fabric(
    networks: list[nn.Module], device: torch.device, checkpoint: bool = False, shards: bool = True
) -> list[Player]:
    """Lightning Fabric: ModelParallelStrategy, in which users call `fully_shard`, or DDP."""
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import ModelParallelStrategy

    size = int(os.environ["WORLD_SIZE"])
    sharding = ModelParallelStrategy(
        lambda network, mesh: shard(network, mesh["data_parallel"]),
        data_parallel_size=size,
        tensor_parallel_size=1,
    )
    fabric = Fabric(accelerator=device.type, devices=size, strategy=sharding if shards else "ddp")
    fabric.launch()
    if checkpoint:
        checkpoint_blocks(networks)
    players = []
    for network in networks:
        prepared = fabric.setup_module(network)
        optimizer = fabric.setup_optimizers(sgd(prepared))
        players.append(player(prepared, optimizer, backward=fabric.backward))
    return players
