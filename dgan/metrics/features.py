"""Feature extractors by name: a classifier of the data's own labels, TorchScript, InceptionV3.

features = open_features("classifier:runs/digits/classifier.safetensors")
features(images)                # uint8 [N, C, H, W] → float32 [N, D]
features.probabilities(images)  # float32 [N, K], the classifier alone
"""

import torch

from dgan.metrics.base import Features
from dgan.metrics.classifier import ClassifierFeatures
from dgan.metrics.pretrained import InceptionFeatures, Pixels, TorchScriptFeatures
from dgan.metrics.stacked import StackedFeatures
from dgan.metrics.training import train_classifier

__all__ = [
    "ClassifierFeatures",
    "Features",
    "InceptionFeatures",
    "StackedFeatures",
    "TorchScriptFeatures",
    "open_features",
    "train_classifier",
]

CHOICES = (
    'choose "classifier" (the one trained for this run), "classifier:PATH" or "PATH.safetensors" '
    '(a saved classifier), "stacked:PATH" (that classifier, a channel at a time), "PATH.pt" '
    '(TorchScript) or "inception:PATH" (torch-fidelity\'s weights)'
)


def open_features(
    spec: str,
    *,
    classifier: ClassifierFeatures | None = None,
    pixels: Pixels = "uint8",
    resize: int | None = None,
    device: torch.device | str = "cpu",
) -> Features:
    """The features that `spec` names, on `device`.

    Args:
        spec: "classifier" gives `classifier` back; "classifier:PATH" or "PATH.safetensors" loads
            one that was saved; "stacked:PATH" is that one, of grey images, at each channel of
            colour images; "PATH.pt" is TorchScript; "inception:PATH" is torch-fidelity's
            InceptionV3 with the weights at PATH.
        classifier: what a plain "classifier" means, usually just trained by `train_classifier`.
        pixels: how TorchScript is called, see `TorchScriptFeatures`.
        resize: side TorchScript's images are resized to, see `TorchScriptFeatures`.
        device: where the network runs.

    Raises:
        FileNotFoundError: the file that `spec` names is missing.
        ModuleNotFoundError: "inception:" without torch-fidelity.
        ValueError: an unknown `spec`, "classifier" without one, or a file of another kind.
    """
    kind, _, path = spec.partition(":")
    if kind == "inception" and path:
        return InceptionFeatures(path).to(device)
    if kind == "classifier" and path:
        return ClassifierFeatures.load(path, device=device)
    if kind == "stacked" and path:
        return StackedFeatures(ClassifierFeatures.load(path)).to(device)
    if spec == "classifier":
        if classifier is None:
            raise ValueError(
                '"classifier" needs a trained one: pass classifier=train_classifier(...), or name '
                'a saved one as "classifier:PATH"'
            )
        return classifier.to(device)
    if spec.endswith(".safetensors"):
        return ClassifierFeatures.load(spec, device=device)
    if spec.endswith(".pt"):
        return TorchScriptFeatures(spec, pixels=pixels, resize=resize, device=device)
    raise ValueError(f"unknown features {spec!r}; {CHOICES}")
