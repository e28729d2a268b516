"""Projection finds a latent's own image again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dgan.draws import latents
from dgan.inside.projection import SHOWN, distance_to, project
from dgan.inside.spaces import space_of
from dgan.inside.targets import read_target
from dgan.networks.mlp import MLPGenerator
from dgan.networks.stylegan2 import StyleGAN2Generator

STYLES = {"w_dim": 8, "mapping_layers": 2, "widths": (8, 6), "classes": 2}


def of_family(family: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"resolution": 8, "channels": 1, "z_dim": 4}
    if family == "mlp":
        generator: nn.Module = MLPGenerator(**sizes, widths=(32, 32))
    else:
        generator = StyleGAN2Generator(**sizes, **STYLES)
    return generator.eval().requires_grad_(False)


@pytest.mark.parametrize("family", ["mlp", "stylegan2"])
def test_a_latents_own_image_is_found_again(family: str) -> None:
    generator = of_family(family)
    space, classes = space_of(generator, 4), 2 if family == "stylegan2" else 0
    z, own = (latents(n, 4, seed=3, purpose=name) for n, name in ((24, "candidates"), (1, "own")))
    target = space.images(space.points(own, torch.tensor([1])), torch.tensor([1]))[0]
    labels = torch.arange(24) % 2 if classes else None
    found = project(space, z, labels, distance_to(target, None), starts=3, steps=150)
    assert found.after[0] < found.before.min() / 50, (found.before, found.after)
    assert (found.after <= found.before).all()
    assert found.after.tolist() == sorted(found.after.tolist())
    # What is said of an image is true of it.
    pixels = (found.images - target).square().flatten(1).mean(1)
    torch.testing.assert_close(pixels, found.after)
    assert found.progress.shape == (3, SHOWN, *target.shape)
    assert (found.labels is None) == (not classes)


def test_the_starts_are_the_best_candidates() -> None:
    space = space_of(of_family("mlp"), 4)
    z = latents(20, 4, seed=3, purpose="candidates")
    images = space.images(z, None)
    target = images[11] + 0.01
    every = (images - target).square().flatten(1).mean(1)
    found = project(space, z, None, distance_to(target, None), starts=4, steps=1)
    torch.testing.assert_close(found.before.sort().values, every.sort().values[:4])


def test_the_distance_of_feature_maps_is_lpips_without_weights() -> None:
    random = np.random.default_rng(0)
    images, target = random.normal(size=(3, 2, 4, 4)), random.normal(size=(2, 4, 4))

    def maps(x: Tensor) -> list[Tensor]:
        return [x.sin(), x[:, :, ::2, ::2].cos()]

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=-3, keepdims=True)

    expected = ((images - target) ** 2).mean((1, 2, 3))
    fine = ((unit(np.sin(images)) - unit(np.sin(target))) ** 2).sum(1).mean((1, 2))
    coarse = [np.cos(x[..., ::2, ::2]) for x in (images, target)]
    rough = ((unit(coarse[0]) - unit(coarse[1])) ** 2).sum(1).mean((1, 2))
    expected += (fine + rough) / 2
    found = distance_to(torch.from_numpy(target), maps)(torch.from_numpy(images))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_targets_from_files(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    target = read_target(tmp_path / "a.png", 3, 8)
    assert torch.equal(
        ((target + 1) * 127.5).round().byte(), torch.from_numpy(pixels).permute(2, 0, 1)
    )
    assert read_target(tmp_path / "a.png", 1, 8).shape == (1, 8, 8)
    with pytest.raises(ValueError, match=r"a.png is 8×8, and the generator makes images of 16×16"):
        read_target(tmp_path / "a.png", 3, 16)
    with pytest.raises(FileNotFoundError, match="no image at"):
        read_target(tmp_path / "b.png", 3, 8)
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"b.png: not a readable PNG"):
        read_target(tmp_path / "b.png", 3, 8)
