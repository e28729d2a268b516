"""A network that a discriminator judges by, and what it finds: helpers."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

SHAPE = (3, 32, 32)
STAGES = ("stem", "middle", "last")


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Pretrained(nn.Module):
    """Takes images to maps of 16×16, 8×8 and 4×4, and to a score."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.BatchNorm2d(5), nn.SiLU())
        self.middle = nn.Sequential(nn.Conv2d(5, 6, 3, 2, 1), nn.GroupNorm(2, 6), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(6, 7, 3, 2, 1), nn.Dropout(0.5))
        self.score = nn.Linear(7, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.last(self.middle(self.stem(x))).mean((2, 3)))


class Maps(Pretrained):
    """The same, with its maps as what it returns."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.stem(x)
        middle = self.middle(fine)
        return {"fine": fine, "middle": middle, "coarse": self.last(middle)}


class Listed(Maps):
    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.stem(x)
        return [fine, self.middle(fine)]


def pretrained(kind: type[nn.Module] = Pretrained) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = kind()
        network.stem[1].running_mean.normal_()
        network.stem[1].running_var.uniform_(0.5, 2)
    return network


def reference_maps(x: Tensor) -> list[Tensor]:
    network = pretrained().eval().double()
    maps = [x]
    for name in STAGES:
        maps.append(getattr(network, name)(maps[-1]))
    return maps[1:]


def save_torchscript(folder: Path) -> str:
    path = folder / "network.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(pretrained(Maps)).save(path)
    return str(path)
