"""Walks and truncation: closed forms, and a StyleGAN2 whose noise is not zero."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dgan.draws import latents, seeds_from_latents
from dgan.inside.spaces import MEAN_OF, LatentSpace, StyleSpace, loop, slerp, space_of
from dgan.networks.mlp import MLPGenerator
from dgan.networks.stylegan2 import StyleGAN2Generator


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at(share: float) -> Tensor:
    return torch.tensor(share, dtype=torch.float64)


def test_slerp_is_a_rotation_in_the_plane_of_both() -> None:
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (normal(5, 7), normal(5, 7, seed=1)))
    cosine = (a * b).sum(1, keepdim=True)
    aside = b - cosine * a
    aside = aside / aside.norm(dim=1, keepdim=True)
    for share in (0.0, 0.125, 0.5, 0.9, 1.0):
        angle = share * torch.arccos(cosine)
        expected = torch.cos(angle) * a + torch.sin(angle) * aside
        found = slerp(a, b, at(share))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_slerp_of_unequal_lengths_has_both_as_its_ends() -> None:
    a, b = normal(4, 9), 3 * normal(4, 9, seed=1)
    torch.testing.assert_close(slerp(a, b, at(0.0)), a)
    torch.testing.assert_close(slerp(a, b, at(1.0)), b)
    x, y = a.numpy(), b.numpy()
    unit = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    omega = np.arccos(unit)[:, None]
    expected = (np.sin(0.7 * omega) * x + np.sin(0.3 * omega) * y) / np.sin(omega)
    found = slerp(a, b, at(0.3))
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-13)


def test_slerp_without_a_great_circle_is_straight() -> None:
    a = normal(1, 4)
    for b in (a, 2 * a, -a):
        found = slerp(a, b, at(0.25))
        torch.testing.assert_close(found, 0.75 * a + 0.25 * b)


def test_a_loop_passes_through_all_points_and_closes() -> None:
    points = normal(3, 6)
    path = loop(points, 4, slerp)
    assert path.shape == (12, 6)
    torch.testing.assert_close(path[::4], points)
    torch.testing.assert_close(path[11], slerp(points[2], points[0], at(0.75)))


@pytest.fixture(scope="module")
def styles() -> StyleGAN2Generator:
    torch.manual_seed(0)
    generator = StyleGAN2Generator(
        resolution=8, channels=1, classes=3, z_dim=6, w_dim=8, mapping_layers=2, widths=(8, 6)
    )
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            torch.nn.init.constant_(parameter, 0.5)
    return generator.eval().requires_grad_(False)


def test_only_stylegan2_has_a_w(styles: StyleGAN2Generator) -> None:
    assert isinstance(space_of(styles, 6), StyleSpace)
    mlp = MLPGenerator(resolution=8, channels=1, z_dim=6, widths=(8,))
    assert isinstance(space_of(mlp, 6), LatentSpace)


def test_z_is_walked_on_great_circles_and_w_straight(styles: StyleGAN2Generator) -> None:
    a, b = normal(3, 6), normal(3, 6, seed=1)
    plain = LatentSpace(torch.nn.Identity())
    assert torch.equal(plain.between(a, b, at(0.3)), slerp(a, b, at(0.3)))
    straight = StyleSpace(styles, 6).between(a, b, at(0.3))
    torch.testing.assert_close(straight, 0.7 * a + 0.3 * b)


def test_truncation_0_is_the_mean_image_of_the_class(styles: StyleGAN2Generator) -> None:
    space, labels = StyleSpace(styles, 6), torch.tensor([0, 2, 0, 1])
    w = space.points(latents(4, 6, seed=1, purpose="sample"), labels)
    middle = space.truncated(w, labels, 0.0)
    images = space.images(middle, labels)
    # The noise does not tell the two of class 0 apart; and the classes are not the same.
    assert torch.equal(images[0], images[2])
    assert (images[0] - images[1]).abs().max() > 1e-3
    # The mean over the latents of another seed, to the error of a mean.
    z = latents(MEAN_OF, 6, seed=7, purpose="other")
    for row, label in enumerate(labels):
        sample = styles.mapping(z, label.expand(MEAN_OF))
        error = (middle[row] - sample.mean(0)).abs() / (sample.std(0) * (2 / MEAN_OF) ** 0.5)
        assert error.max() < 4.5, error


def test_truncation_in_w_is_linear_and_1_leaves_it(styles: StyleGAN2Generator) -> None:
    space = StyleSpace(styles, 6)
    labels = torch.tensor([1, 1])
    w = space.points(latents(2, 6, seed=1, purpose="sample"), labels)
    middle = space.truncated(w, labels, 0.0)
    torch.testing.assert_close(space.truncated(w, labels, 1.0), w)
    torch.testing.assert_close(space.truncated(w, labels, 0.25), 0.75 * middle + 0.25 * w)


def test_synthesis_from_w_is_the_generator(styles: StyleGAN2Generator) -> None:
    z, labels = latents(3, 6, seed=2, purpose="sample"), torch.tensor([0, 1, 2])
    w = styles.mapping(z, labels)
    assert torch.equal(styles.synthesise(w, seeds_from_latents(z)), styles(z, labels))
