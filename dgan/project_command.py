"""`dgan project`: what can a generator not make?"""

from pathlib import Path
from typing import Literal

from dgan.command_checks import (
    Given,
    labels_of,
    named,
    require,
    require_images,
    require_no_embedding,
    require_pixels,
)


def project(
    run: Given[Path],
    image: Given[Path],
    /,
    *,
    out: Path = Path("projection.png"),
    label: int | None = None,
    starts: int = 4,
    steps: int = 300,
    seed: int = 0,
    features: str | None = None,
    step: int | Literal["best"] | None = None,
) -> None:
    """Find the latent whose image comes nearest to a given one: what can the generator not make?

    Optimises z, of StyleGAN2 w, by Adam on the squared distance of pixels and of feature maps.
    Prints it, and draws a row a start: target and reconstruction, and the way there.

    Args:
        run: the run's directory.
        image: PNG, JPEG or WebP of the generator's resolution.
        out: the sheet, a PNG.
        label: its class; without it, of a conditional generator, each start's is the one that
            comes nearest at first.
        starts: the best of 32 times as many random latents.
        steps: of Adam.
        seed: of the random latents.
        features: whose maps are compared: by default the classifier that the recipe's scores have
            trained; a .safetensors of one; a TorchScript file that returns maps; or `pixels`, none.
        step: of another checkpoint than the newest, or `best`: the one with the best score.
    """
    import torch

    from dgan.draws import latents
    from dgan.inside.projection import CANDIDATES, distance_to, project
    from dgan.inside.sheets import save_sheet
    from dgan.inside.spaces import space_of
    from dgan.inside.targets import open_maps, read_target
    from dgan.opening import open_images
    from dgan.parallel.world import launch
    from dgan.trained import load_run
    from dgan.visible import to_uint8

    for name, value, least in (("starts", starts, 1), ("steps", steps, 1), ("seed", seed, 0)):
        require(name, value, least)
    out = named(out, "projection.png")
    trained = load_run(run, step)
    require_images(run, trained)
    require_pixels(run, trained)
    require_no_embedding(run, trained, "a projection")
    recipe, count = trained.recipe, CANDIDATES * starts
    target = read_target(image, recipe.data.channels, recipe.data.resolution)
    labels = labels_of(trained, count, label)
    with (
        launch(precision=recipe.train.precision) as world,
        open_images(recipe, recipe.data.shards) as dataset,
    ):
        maps = open_maps(
            features or recipe.evaluation.features,
            dataset,
            (recipe.data.channels, recipe.data.resolution, recipe.data.resolution),
            seed=recipe.train.seed,
            cache=run / "classifier.safetensors",
            world=world,
        )
        target = target.to(world.device, world.dtype)
        z = latents(count, trained.z_dim, seed=seed, purpose="projection")
        found = project(
            space_of(trained.network.to(world.device), trained.z_dim),
            z.to(world.device, world.dtype),
            None if labels is None else labels.to(world.device),
            distance_to(target, maps),
            starts=starts,
            steps=steps,
        )
    rows = []
    for row in range(starts):
        of_class = "" if found.labels is None else f"class {found.labels[row]}\n"
        shown = [target[None], found.images[row][None], found.progress[row]]
        pictures = torch.cat([to_uint8(images).cpu() for images in shown])
        rows.append((f"{of_class}{found.after[row]:.4f}", pictures))
    save_sheet(rows, out, apart=2)
    print(
        f"distance {found.after[0]:.4f} (at first {found.before[0]:.4f}; mean square of pixels"
        f"{'' if maps is None else ' and of feature maps'}), step {trained.step}, in {out}"
    )
