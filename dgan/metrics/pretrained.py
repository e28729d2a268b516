"""Features of networks that come as files: TorchScript, and torch-fidelity's InceptionV3."""

import importlib
import warnings
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgan.metrics.base import Features, file_digest, require_file, to_rgb

Pixels = Literal["uint8", "float"]
ALTERNATIVES = (
    'use "classifier" (trained on the shards\' own labels, nothing to download) or a TorchScript '
    "file (NETWORK.pt)"
)


class TorchScriptFeatures(Features):
    """Features of any TorchScript file that returns [N, D].

    The module is called with RGB images [N, 3, H, W] (grey is repeated to three channels), by
    default as uint8 in 0..255, which is what NVIDIA's `inception-2015-12-05.pt` and `vgg16.pt`
    expect; they resize inside. Where `forward` has an argument `return_features`, as theirs do, it
    is called with True: they would otherwise return class probabilities.

    Args:
        path: file written by `torch.jit.save`.
        pixels: "uint8" passes uint8 in 0..255; "float" passes float32 in [0, 1].
        resize: side that images are resized to (bilinear, antialiased) before the call; None
            passes them as they are.
        batch_size: images a call.
        device: where it runs. Say it here rather than with `to`: a frozen module's weights are
            constants, which stay on the device that they were loaded to.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not TorchScript, or `pixels` is unknown.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        pixels: Pixels = "uint8",
        resize: int | None = None,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
    ) -> None:
        path = Path(path)
        require_file(path, "TorchScript file")
        if pixels not in ("uint8", "float"):
            raise ValueError(f'pixels is {pixels!r}; choose "uint8" (0..255) or "float" ([0, 1])')
        try:
            with (
                warnings.catch_warnings()
            ):  # deprecated for torch.export, yet what networks ship as
                warnings.simplefilter("ignore", DeprecationWarning)
                module = torch.jit.load(path, map_location=torch.device(device))
        except RuntimeError as error:
            raise ValueError(
                f"{path} is not a TorchScript file (write one with torch.jit.script(module).save): "
                f"{str(error).splitlines()[0]}"
            ) from error
        digest = file_digest(path)
        how = "uint8 RGB" if pixels == "uint8" else "RGB in [0, 1]"
        how += f" resized to {resize}×{resize}" if resize else ""
        name = f"torchscript:{digest} ({path.name}, {how})"
        super().__init__(module, name=name, digest=digest, batch_size=batch_size)
        self._device = torch.device(device)
        self.pixels = pixels
        self.resize = resize
        self.resizing = "none before the network, which may resize by itself"
        if resize:
            self.resizing = f"bilinear, antialiased, to {resize}×{resize}"
        arguments = [argument.name for argument in module.forward.schema.arguments]
        self._options = {"return_features": True} if "return_features" in arguments else {}

    def _extract(self, images: Tensor) -> Tensor:
        x = to_rgb(images)
        if self.resize is not None:
            size = (self.resize, self.resize)
            x = F.interpolate(x.float(), size, mode="bilinear", antialias=True, align_corners=False)
            # Back to whole numbers: the network was trained on them, and so that both settings of
            # `pixels` see the same picture.
            x = x.round().clamp(0, 255).to(torch.uint8)
        return self.module(x.float() / 255 if self.pixels == "float" else x, **self._options)


class InceptionFeatures(Features):
    """The 2048-d pool of torch-fidelity's InceptionV3, whose FID agrees with TensorFlow's original.

    Both the package and its weights must be on this machine; nothing is downloaded. The weights are
    torch-fidelity's `weights-inception-2015-12-05-6726825d.pth` (its releases page, v0.2.0).
    Images are passed as uint8 RGB and resized to 299×299 inside, as TensorFlow 1 did.

    Args:
        weights: path of the weights file.
        batch_size: images a call.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: torch-fidelity is not installed.
    """

    def __init__(self, weights: str | Path, *, batch_size: int = 64) -> None:
        weights = Path(weights)
        require_file(weights, "InceptionV3 weights", f"nothing is downloaded: {ALTERNATIVES}")
        try:
            fidelity = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"inception:{weights} needs the package torch-fidelity "
                f"(pip install torch-fidelity); or {ALTERNATIVES}",
                name=error.name,
            ) from error
        module: nn.Module = fidelity.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
        )
        digest = file_digest(weights)
        name = f"inception:{digest} ({weights.name}, 2048-d, torch-fidelity)"
        super().__init__(module, name=name, digest=digest, batch_size=batch_size)
        self.resizing = "bilinear as in TensorFlow 1, not antialiased, to 299×299"

    def _extract(self, images: Tensor) -> Tensor:
        return self.module(to_rgb(images))[0]
