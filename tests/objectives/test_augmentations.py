"""Augmentations pixel by pixel, their derivatives, and that a sample's numbers alone decide."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dgan
from dgan.objectives.augment import (
    DIFF_AUGMENT_NUMBERS,
    adapted,
    diff_augment,
    instance_noise,
    one_of,
)
from dgan.objectives.augment_adaptive import (
    ADAPTIVE_NUMBERS,
    BLIT,
    CENTRE,
    COLOR,
    CUTOUT,
    DELAY,
    GEOMETRY,
    SYM6,
    adaptive_augment,
)

EXACT = {"rtol": 1e-10, "atol": 1e-12}
ONE = torch.tensor(1.0)
NEVER, ALWAYS, STILL = 0.999, 0.0, 0.5
"""Of uniform numbers: a gate that stays shut at p < 1, one that opens, a parameter that does
nothing."""


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(rows: int, count: int, seed: int = 0) -> Tensor:
    return torch.rand(rows, count, generator=torch.Generator().manual_seed(seed))


def images(rows: int = 5, channels: int = 3, size: int = 8) -> Tensor:
    return numbers(rows, channels, size, size).tanh()


def diff(**values: float) -> Tensor:
    names = ["brightness", "saturation", "contrast", "down", "right", "row", "column"]
    return torch.tensor([[values.get(name, STILL) for name in names]])


def ada(**values: float) -> Tensor:
    """One row of ADA's numbers, all gates shut but those of the transforms that are named."""
    gates = ["flip", "turn", "shift"], ["scale", "before", "stretch", "after", "move"]
    gates += ["brightness", "contrast", "invert", "hue", "saturation"], ["cut"]
    own = ["flip", "turn", "down", "right"], ["scale", "before", "stretch", "after", "y", "x"]
    own += gates[2], ["row", "column"]
    of = {"down": "shift", "right": "shift", "y": "move", "x": "move"}
    of |= {"row": "cut", "column": "cut"}
    opened = {of.get(name, name) for name in values}
    row: list[float] = []
    for names, parameters, sizes in zip(gates, own, (BLIT, GEOMETRY, COLOR, CUTOUT)):
        assert (len(names), len(parameters)) == sizes
        row += [ALWAYS if name in opened else NEVER for name in names]
        row += [values.get(name, STILL) for name in parameters]
    return torch.tensor([row], dtype=torch.float64)


P = torch.tensor(0.99)
"""At which gates of `NEVER` stay shut."""


def test_diff_augments_colors() -> None:
    x = images(1)
    result = diff_augment(x, diff(brightness=0.9, saturation=0.25, contrast=0.8), ["color"])
    y = x + 0.4
    grey = y.mean(1, keepdim=True)
    y = grey + 0.5 * (y - grey)
    y = y.mean() + 1.3 * (y - y.mean())
    torch.testing.assert_close(result, y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("number", "shift"), [(0.0, -1), (0.4, 0), (0.99, 1), (1.0, 1)])
def test_diff_augments_translation(number: float, shift: int) -> None:
    x = images(1)
    padded = F.pad(x, (1, 1, 1, 1))
    down = diff_augment(x, diff(down=number), ["translation"])
    assert torch.equal(down, padded[:, :, 1 + shift : 9 + shift, 1:9])
    right = diff_augment(x, diff(right=number), ["translation"])
    assert torch.equal(right, padded[:, :, 1:9, 1 + shift : 9 + shift])


@pytest.mark.parametrize("size", [7, 8])
def test_diff_augments_cutout(size: int) -> None:
    x = images(1, size=size)
    # Centres 0 … size, or size − 1: the square of side 4 around them, cut at the border.
    centres = size + 1 - 4 % 2
    for centre in range(centres):
        result = diff_augment(x, diff(row=(centre + 0.5) / centres, column=0.0), ["cutout"])
        hidden = torch.zeros(size, size, dtype=torch.bool)
        hidden[max(centre - 2, 0) : centre + 2, :2] = True
        assert torch.equal(result, x * ~hidden)


def test_transforms_keep_their_numbers() -> None:
    x, u = images(), uniform(5, DIFF_AUGMENT_NUMBERS)
    one_by_one = x
    for name in ("color", "translation", "cutout"):
        one_by_one = diff_augment(one_by_one, u, [name])
    assert torch.equal(diff_augment(x, u), one_by_one)
    assert torch.equal(diff_augment(x, u, []), x)
    v, p = uniform(5, ADAPTIVE_NUMBERS), torch.tensor(0.7)
    one_by_one = x
    for group in "bgc":
        one_by_one = adaptive_augment(one_by_one, v, p, group)
    torch.testing.assert_close(adaptive_augment(x, v, p), one_by_one, **EXACT)


@pytest.mark.parametrize("number", [0.0, 0.99])
def test_ada_blits_whole_pixels(number: float) -> None:
    x = images(1)
    sure = {"flip": [x, x.flip(3)], "turn": [x.rot90(k, (2, 3)) for k in range(4)]}
    for name, results in sure.items():
        for index, expected in enumerate(results):
            u = ada(**{name: (index + 0.5) / len(results)})
            found = adaptive_augment(x, u, P, "b")
            alternatives = [expected, expected.rot90(2, (2, 3))] if name == "turn" else [expected]
            assert any(torch.equal(found, e) for e in alternatives)
    # A shift by one of eight pixels, its border reflected: the pixel beyond the last is the one
    # before it.
    step = -1 if number == 0.0 else 1
    moved = F.pad(x, (1, 1, 1, 1), mode="reflect")
    found = adaptive_augment(x, ada(down=number), P, "b")
    assert torch.equal(found, moved[:, :, 1 - step : 9 - step, 1:9])
    found = adaptive_augment(x, ada(right=number), P, "b")
    assert torch.equal(found, moved[:, :, 1:9, 1 - step : 9 - step])


def test_ada_turns_by_all_four_quarters() -> None:
    x = images(1)
    found = [adaptive_augment(x, ada(turn=(k + 0.5) / 4), P, "b") for k in range(4)]
    for quarter in range(4):
        assert sum(torch.equal(x.rot90(quarter, (2, 3)), result) for result in found) == 1


def test_the_filter_is_orthogonal_with_six_vanishing_moments() -> None:
    taps = np.array(SYM6)
    assert taps.sum() == pytest.approx(math.sqrt(2))
    for shift in range(6):
        product = float(taps[2 * shift :] @ taps[: len(taps) - 2 * shift])
        assert product == pytest.approx(float(shift == 0), abs=1e-9)
    signs = (-1.0) ** np.arange(12)
    for power in range(6):
        assert signs * taps @ (np.arange(12) - 5.5) ** power == pytest.approx(0, abs=1e-6)
    # Even and odd taps move a ramp by the same.
    ramp = np.arange(12)
    for part in (slice(0, None, 2), slice(1, None, 2)):
        moved = taps[part] @ ramp[part] / taps[part].sum()
        assert moved == pytest.approx(DELAY + CENTRE, abs=1e-9)


def smooth(
    size: int,
    down: float = 0.0,
    right: float = 0.0,
    angle: float = 0.0,
    zoom: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """A smooth picture, moved, turned about its centre and enlarged by formula."""
    grid = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    rows, columns = (grid[:, None] - down) / zoom[0], (grid - right) / zoom[1]
    cos, sin = math.cos(angle), math.sin(angle)
    rows, columns = cos * rows + sin * columns, cos * columns - sin * rows
    scale = 2 * math.pi / size
    picture = torch.stack(
        [
            torch.exp(-((rows - 2) ** 2 + columns**2) / size),
            torch.exp(-(rows**2) / (2 * size) - (columns + 3) ** 2 / size),
            torch.cos(scale * (rows + columns) / 2) * torch.exp(-(rows**2 + columns**2) / size),
        ]
    )
    return picture[None]


def inner(x: Tensor, margin: int) -> Tensor:
    return x[:, :, margin:-margin, margin:-margin]


NORMAL = torch.distributions.Normal(0.0, 1.0)


def test_ada_moves_by_fractions_and_turns() -> None:
    size = 32
    x = smooth(size)
    one = NORMAL.cdf(ONE).item()  # one standard deviation: an eighth of the size
    half = NORMAL.cdf(torch.tensor(0.4)).item()
    for u, expected in (
        (ada(y=half), smooth(size, down=0.4 * size / 8)),
        (ada(x=half), smooth(size, right=0.4 * size / 8)),
        (ada(y=one, x=half), smooth(size, down=size / 8, right=0.4 * size / 8)),
    ):
        found = adaptive_augment(x, u, P, "g")
        torch.testing.assert_close(inner(found, 6), inner(expected, 6), rtol=0, atol=0.01)
        assert (inner(x, 6) - inner(expected, 6)).abs().max() > 0.2, "the test cannot tell"
    for name in ("before", "after"):
        found = adaptive_augment(x, ada(**{name: 0.5 + 1 / 8}), P, "g")  # an eighth of a turn
        errors = [
            (inner(found, 7) - inner(smooth(size, angle=sign * math.pi / 4), 7)).abs().max()
            for sign in (1, -1)
        ]
        assert min(errors) < 0.01
        assert max(errors) > 0.2


def test_ada_scales() -> None:
    size = 32
    x = smooth(size)
    u = NORMAL.cdf(torch.tensor(1.5)).item()  # in units of a fifth of an octave
    grown = adaptive_augment(x, ada(scale=u), P, "g")
    expected = smooth(size, zoom=(2**0.3, 2**0.3))
    torch.testing.assert_close(inner(grown, 4), inner(expected, 4), rtol=0, atol=0.01)
    assert (inner(expected, 4) - inner(x, 4)).abs().max() > 0.1, "the test cannot tell"
    # As much larger one way as smaller the other.
    stretched = adaptive_augment(x, ada(stretch=u), P, "g")
    errors = [
        (inner(stretched, 6) - inner(smooth(size, zoom=zoom), 6)).abs().max()
        for zoom in ((2**0.3, 2**-0.3), (2**-0.3, 2**0.3))
    ]
    assert min(errors) < 0.01
    assert max(errors) > 0.1


def by_matrices(x: Tensor, brightness: float, contrast: float, invert: bool, hue: float, s: float):
    """Homogeneous 3×3 colour matrices as the paper composes them."""
    v = torch.full((3, 1), 3**-0.5, dtype=torch.float64)
    luma, eye = v @ v.T, torch.eye(3, dtype=torch.float64)
    cross = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64) / 3**0.5
    # Rodrigues' rotation about v.
    turn = eye + math.sin(hue) * cross + (1 - math.cos(hue)) * cross @ cross
    matrix = (luma + (eye - luma) * s) @ turn @ (eye - 2 * invert * luma) * contrast
    return torch.einsum("ij,njhw->nihw", matrix, x + brightness)


def test_ada_colors() -> None:
    x = images(1)
    q = {a: NORMAL.cdf(torch.tensor(a, dtype=torch.float64)).item() for a in (-0.5, 0.7, 1.2)}
    cases: list[tuple[dict[str, float], tuple]] = [
        ({"brightness": q[0.7]}, (0.2 * 0.7, 1, False, 0, 1)),
        ({"contrast": q[1.2]}, (0, 2 ** (0.5 * 1.2), False, 0, 1)),
        ({"invert": 0.9}, (0, 1, True, 0, 1)),
        ({"invert": 0.1}, (0, 1, False, 0, 1)),
        ({"hue": 0.6}, (0, 1, False, 0.1 * 2 * math.pi, 1)),
        ({"saturation": q[-0.5]}, (0, 1, False, 0, 2**-0.5)),
        (
            {"brightness": q[-0.5], "contrast": q[0.7], "invert": 0.6, "hue": 0.1}
            | {"saturation": q[1.2]},
            (-0.1, 2**0.35, True, -0.8 * math.pi, 2**1.2),
        ),
    ]
    for values, expected in cases:
        found = adaptive_augment(x, ada(**values), P, "c")
        torch.testing.assert_close(found, by_matrices(x, *expected), rtol=1e-7, atol=1e-7)
        # A grey image is a colour image whose channels are equal.
        grey = adaptive_augment(x[:, :1], ada(**values), P, "c")
        wanted = by_matrices(x[:, :1].expand(-1, 3, -1, -1), *expected)
        torch.testing.assert_close(grey, wanted[:, :1], rtol=1e-7, atol=1e-7)


def test_ada_cuts_out_half_the_size_around_a_point() -> None:
    """Pixel i of 8 lies at (i + ½)/8; those nearer than ¼ to the point are 0 both ways."""
    x = images(1)
    for row, rows in ((0.5, slice(2, 6)), (0.0, slice(0, 2)), (0.95, slice(6, 8))):
        found = adaptive_augment(x, ada(row=row, column=0.3), P, cutout=1.0)
        expected = x.clone()
        expected[:, :, rows, :4] = 0
        torch.testing.assert_close(found, expected, **EXACT)
    torch.testing.assert_close(adaptive_augment(x, ada(row=0.5), P), x, **EXACT)


def test_colors_and_cutout_have_chances_of_their_own() -> None:
    x = torch.linspace(-1, 1, 48).view(1, 3, 4, 4).expand(3000, -1, -1, -1)
    u = uniform(3000, ADAPTIVE_NUMBERS, seed=3)
    cut = adaptive_augment(x, u, 0.8, "g", cutout=0.25)
    plain = adaptive_augment(x, u, 0.8, "g")
    assert (cut != plain).flatten(1).any(1).float().mean().item() == pytest.approx(0.2, abs=0.03)
    # Each transform of colour but luma inversion, half of which does nothing, is seen.
    u[:, sum(BLIT) + sum(GEOMETRY) + 2] = NEVER
    change = adaptive_augment(x, u, 0.8, "c", color=0.5) - x
    colored = (change.abs() > 1e-4).flatten(1).any(1)
    assert colored.float().mean().item() == pytest.approx(1 - 0.6**4, abs=0.03)


def test_without_a_chance_nothing_happens() -> None:
    x, u = images(), uniform(5, ADAPTIVE_NUMBERS)
    torch.testing.assert_close(adaptive_augment(x, u, torch.tensor(0.0)), x, rtol=0, atol=1e-15)


@pytest.mark.parametrize("chance", [0.0, 0.3, 1.0])
def test_each_transform_falls_on_a_share_of_the_images(chance: float) -> None:
    """Of a linear ramp through colour every transform of group c but hue and luma is seen."""
    x = torch.linspace(-1, 1, 4 * 3 * 16).view(1, 3, 4, 16)[..., :4].expand(4000, -1, -1, -1)
    u = uniform(4000, ADAPTIVE_NUMBERS, seed=3)
    changed = (adaptive_augment(x, u, torch.tensor(chance), "g") != x).flatten(1).any(1)
    # Scale, stretch, translation with p, and one of two rotations.
    assert changed.float().mean().item() == pytest.approx(1 - (1 - chance) ** 4, abs=0.03)


AUGMENTS: dict[str, tuple[int, Callable[[Tensor, Tensor], Tensor]]] = {
    "diff": (DIFF_AUGMENT_NUMBERS, diff_augment),
    "ada": (ADAPTIVE_NUMBERS, lambda x, u: adaptive_augment(x, u, torch.tensor(0.8))),
    "scheduled": (ADAPTIVE_NUMBERS, lambda x, u: adaptive_augment(x, u, 0.7, cutout=0.9)),
}


@pytest.mark.parametrize("name", AUGMENTS)
def test_a_sample_depends_on_its_own_numbers(name: str) -> None:
    count, augment = AUGMENTS[name]
    x, u = images(6), uniform(6, count)
    whole = augment(x, u)
    parts = [augment(x[i : i + 2], u[i : i + 2]) for i in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(augment(x, u.flip(0)), whole)
    narrow = augment(x.float(), u)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", AUGMENTS)
def test_augmentations_are_affine_in_the_images(name: str) -> None:
    count, augment = AUGMENTS[name]
    x, u = images(1, size=4).requires_grad_(), uniform(1, count, seed=5)
    assert torch.autograd.gradcheck(lambda x: augment(x, u), [x], check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: augment(x, u).sin(), [x])


@pytest.mark.parametrize("name", AUGMENTS)
def test_penalties_through_augmentations(name: str) -> None:
    """R1 with respect to the images before: both methods, and the formula ½‖∇ₓ D(T(x))‖²."""
    count, augment = AUGMENTS[name]
    x, u = images(3, size=6), uniform(3, count, seed=5)
    weight = numbers(4, 3 * 36, seed=7).requires_grad_()

    def judge(x: Tensor) -> Tensor:
        return (augment(x, u).flatten(1) @ weight.T).tanh().sum(1)

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(judge(leaf).sum(), leaf, create_graph=True)
    expected = 0.5 * gradient.square().sum((1, 2, 3)).mean()
    (wanted,) = torch.autograd.grad(expected, weight)
    methods: list[Any] = ["double", "forward"]
    for method in methods:
        loss = dgan.gradient_penalty(judge, x, method=method).loss
        torch.testing.assert_close(loss, expected, **EXACT)
        torch.testing.assert_close(torch.autograd.grad(loss, weight)[0], wanted, **EXACT)


def test_noise_on_instances() -> None:
    x, noise = images(), numbers(5, 3, 8, 8, seed=4)
    torch.testing.assert_close(instance_noise(x, noise, 0.3), x + 0.3 * noise, **EXACT)
    assert torch.equal(instance_noise(x, noise, 0.0), x)
    with pytest.raises(ValueError, match="scale of instance noise is -1"):
        instance_noise(x, noise, -1)


def test_the_probability_follows_the_signs() -> None:
    p = torch.tensor(0.5, dtype=torch.float64)
    assert adapted(p, torch.tensor(0.9), 4000).item() == pytest.approx(0.508)
    assert adapted(p, torch.tensor(0.1), 4000).item() == pytest.approx(0.492)
    assert adapted(p, torch.tensor(0.7), 4000, target=0.8, kimg=40).item() == pytest.approx(0.4)
    assert adapted(p, torch.tensor(1.0), 10**6).item() == 1.0
    assert adapted(p, torch.tensor(-1.0), 10**6).item() == 0.0
    p = 0 * p
    for _ in range(124):  # 500 kimg from 0 to 1, 4,000 images at a time
        p = adapted(p, torch.tensor(1.0), 4000)
    assert p.item() == pytest.approx(124 / 125)
    with pytest.raises(ValueError, match=r"kimg is 0; .* must be positive"):
        adapted(p, torch.tensor(1.0), 4, kimg=0)


def test_a_whole_number_of_several() -> None:
    u = torch.tensor([0.0, 0.2499, 0.25, 0.9999, 1.0])
    assert one_of(u, 4).tolist() == [0, 0, 1, 3, 3]


def test_what_does_not_fit_is_named() -> None:
    x = images()
    with pytest.raises(ValueError, match="no transform 'colour'; choose from color, translation"):
        diff_augment(x, uniform(5, DIFF_AUGMENT_NUMBERS), ["colour"])
    with pytest.raises(ValueError, match=r"uniform numbers \(5, 3\); they must be .* \[N, 7\]"):
        diff_augment(x, uniform(5, 3))
    with pytest.raises(ValueError, match="groups is 'bgx'; choose some of 'bgc'"):
        adaptive_augment(x, uniform(5, ADAPTIVE_NUMBERS), P, "bgx")
    with pytest.raises(ValueError, match=r"images are \(3, 8, 6\); ADA takes square ones"):
        adaptive_augment(x[..., :6], uniform(5, ADAPTIVE_NUMBERS), P)
