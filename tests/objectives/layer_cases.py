"""Every layer of `torch.nn`, ready to stand in the middle of a discriminator: helpers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from exactness import first
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as spectral_norm_by_hook
from torch.nn.utils import weight_norm as weight_norm_by_hook


class Shaped(nn.Module):
    """`layer` on 64 features a sample in `shape`; a tuple's first output counts."""

    def __init__(self, layer: nn.Module, *shape: int) -> None:
        super().__init__()
        self.layer, self.shape = layer, shape

    def forward(self, h: Tensor) -> Tensor:
        return first(self.layer(h.reshape(len(h), *self.shape))).flatten(1)


class Calls(nn.Module):
    """Any use of one layer, written as a function of it and of h `[N, 8, 8]`."""

    def __init__(self, layer: nn.Module, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.use = layer, use

    def forward(self, h: Tensor) -> Tensor:
        return self.use(self.layer, h.view(-1, 8, 8)).flatten(1)


class Unpooled(nn.Module):
    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.pool = getattr(nn, f"MaxPool{dimensions}d")(2, return_indices=True)
        self.unpool = getattr(nn, f"MaxUnpool{dimensions}d")(2)

    def forward(self, h: Tensor) -> Tensor:
        return self.unpool(*self.pool(h))


class Projected(nn.Module):
    """A projection discriminator's head: embedding(label)·h beside the plain logit."""

    def __init__(self, embedding: nn.Module, labels: Tensor) -> None:
        super().__init__()
        self.embedding, self.labels = embedding, labels

    def forward(self, h: Tensor) -> Tensor:
        return h + (self.embedding(self.labels[: len(h)]) * h).sum(1, keepdim=True)


class Tied(nn.Module):
    """W and Wᵀ."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(64, 64), nn.Linear(64, 64)
        self.outer.weight = self.inner.weight

    def forward(self, h: Tensor) -> Tensor:
        return self.outer(self.inner(h).tanh()).tanh() @ self.inner.weight


class Pair(nn.Module):
    """Two maps of h, for layers that compare."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.other = layer, nn.Linear(8, 8)

    def forward(self, h: Tensor) -> Tensor:
        return self.layer(h, self.other(h))


SHAPES: dict[int, tuple[int, ...]] = {1: (8, 8), 2: (4, 4, 4), 3: (1, 4, 4, 4)}
WIDE: dict[int, tuple[int, ...]] = {1: (8, 8), 2: (4, 4, 4), 3: (4, 2, 2, 4)}
LABELS = torch.tensor([2, 0, 1, 2])
ELEMENTWISE = (
    "ReLU LeakyReLU RReLU PReLU ELU SELU CELU GELU SiLU Mish Sigmoid Tanh Softplus Softsign "
    "Tanhshrink Hardswish Hardtanh ReLU6 LogSigmoid Softshrink Hardshrink Identity Dropout "
    "AlphaDropout FeatureAlphaDropout"
)


def layers() -> dict[str, Callable[[], nn.Module]]:
    made: dict[str, Callable[[], nn.Module]] = {}

    def add(name: str, make: Callable[[], nn.Module], *shape: int) -> None:
        assert name not in made
        made[name] = lambda: Shaped(make(), *shape)

    def use(name: str, make: Callable[[], nn.Module], how: Callable[[Any, Tensor], Any]) -> None:
        made[name] = lambda: Calls(make(), how)

    for d in (1, 2, 3):
        shape, wide = SHAPES[d], WIDE[d]
        for kind in ("Conv", "ConvTranspose"):
            layer = getattr(nn, f"{kind}{d}d")
            add(f"{kind}{d}d", partial(layer, wide[0], 3, 3, padding=1), *wide)
        for pad in ("Reflection", "Replication", "Circular", "Zero"):
            add(f"{pad}Pad{d}d", partial(getattr(nn, f"{pad}Pad{d}d"), 1), *shape)
        add(f"ConstantPad{d}d", partial(getattr(nn, f"ConstantPad{d}d"), 1, 0.5), *shape)
        for pool in ("Avg", "Max"):
            add(f"{pool}Pool{d}d", partial(getattr(nn, f"{pool}Pool{d}d"), 2), *shape)
            adaptive = f"Adaptive{pool}Pool{d}d"
            add(adaptive, partial(getattr(nn, adaptive), 2), *shape)
        add(f"LPPool{d}d", partial(getattr(nn, f"LPPool{d}d"), 2, 2), *shape)
        add(f"MaxUnpool{d}d", partial(Unpooled, d), *shape)
        batch, instance = getattr(nn, f"BatchNorm{d}d"), getattr(nn, f"InstanceNorm{d}d")
        add(f"BatchNorm{d}d", partial(batch, wide[0]), *wide)
        add(f"BatchNorm{d}d evaluation", lambda c=batch, n=wide[0]: c(n).eval(), *wide)
        add(f"InstanceNorm{d}d", partial(instance, wide[0], affine=True), *wide)
        tracking = {"affine": True, "track_running_stats": True}
        add(f"InstanceNorm{d}d tracking", partial(instance, wide[0], **tracking), *wide)
        add(f"Dropout{d}d", partial(getattr(nn, f"Dropout{d}d"), 0.3), *wide)
    add("BatchNorm1d cumulative", lambda: nn.BatchNorm1d(8, momentum=None), 8, 8)
    for kind in ("FractionalMaxPool2d", "FractionalMaxPool3d"):
        add(kind, partial(getattr(nn, kind), 2, output_size=2), *SHAPES[int(kind[-2])])
    for mode in ("nearest", "bilinear", "bicubic"):
        add(f"Upsample {mode}", partial(nn.Upsample, scale_factor=2, mode=mode), 4, 4, 4)
    add("Upsample trilinear", lambda: nn.Upsample(scale_factor=2, mode="trilinear"), 1, 4, 4, 4)
    add("UpsamplingBilinear2d", lambda: nn.UpsamplingBilinear2d(scale_factor=2), 4, 4, 4)
    add("UpsamplingNearest2d", lambda: nn.UpsamplingNearest2d(scale_factor=2), 4, 4, 4)
    add("PixelShuffle", lambda: nn.PixelShuffle(2), 4, 4, 4)
    add("PixelUnshuffle", lambda: nn.PixelUnshuffle(2), 4, 4, 4)
    add("ChannelShuffle", lambda: nn.ChannelShuffle(2), 4, 4, 4)
    add(
        "Unfold",
        lambda: nn.Sequential(nn.Unfold(2), nn.Unflatten(1, (4, 4)), nn.Flatten()),
        4,
        4,
        4,
    )
    add("Fold", lambda: nn.Fold((3, 3), 2), 16, 4)
    add("LocalResponseNorm", lambda: nn.LocalResponseNorm(2), 4, 4, 4)
    add("GroupNorm", lambda: nn.GroupNorm(2, 4), 4, 4, 4)
    add("LayerNorm", lambda: nn.LayerNorm(8), 8, 8)
    add("LayerNorm plain", lambda: nn.LayerNorm((8, 8), elementwise_affine=False), 8, 8)
    add("RMSNorm", lambda: nn.RMSNorm(8), 8, 8)
    for name in ELEMENTWISE.split():
        add(name, getattr(nn, name), 8, 8)
    add("GELU tanh", lambda: nn.GELU("tanh"), 8, 8)
    add("Threshold", lambda: nn.Threshold(0.1, 0.0), 8, 8)
    add("ReLU in place", lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True)), 8, 8)
    for name in ("Softmax", "Softmin", "LogSoftmax", "GLU"):
        add(name, partial(getattr(nn, name), -1), 8, 8)
    add("Softmax2d", nn.Softmax2d, 4, 4, 4)
    for form, spectral in (
        ("parametrised", parametrizations.spectral_norm),
        ("by hook", spectral_norm_by_hook),
    ):
        add(f"spectral_norm {form}", lambda s=spectral: s(nn.Linear(8, 8)), 8, 8)
        conv = f"spectral_norm {form}, convolution"
        add(conv, lambda s=spectral: s(nn.Conv2d(4, 4, 3)), 4, 4, 4)
    add("weight_norm", lambda: parametrizations.weight_norm(nn.Linear(8, 8)), 8, 8)
    add("weight_norm by hook", lambda: weight_norm_by_hook(nn.Linear(8, 8)), 8, 8)
    add("orthogonal", lambda: parametrizations.orthogonal(nn.Linear(8, 8)), 8, 8)
    add("Bilinear", lambda: Pair(nn.Bilinear(8, 8, 4)), 8, 8)
    add("CosineSimilarity", lambda: Pair(nn.CosineSimilarity(-1)), 8, 8)
    add("PairwiseDistance", lambda: Pair(nn.PairwiseDistance()), 8, 8)
    add("Embedding", lambda: Projected(nn.Embedding(3, 64), LABELS), 64)
    bags = LABELS[:, None].repeat(1, 2)
    add("EmbeddingBag", lambda: Projected(nn.EmbeddingBag(3, 64), bags), 64)
    add("tied weights", Tied, 64)
    add("RNN", lambda: nn.RNN(8, 8, batch_first=True), 8, 8)
    add("GRU", lambda: nn.GRU(8, 8, num_layers=2, dropout=0.3, batch_first=True), 8, 8)
    add("LSTM", lambda: nn.LSTM(8, 8, bidirectional=True, batch_first=True), 8, 8)
    use("RNNCell", lambda: nn.RNNCell(8, 8), lambda m, h: m(h[:, 1], m(h[:, 0])))
    use("GRUCell", lambda: nn.GRUCell(8, 8), lambda m, h: m(h[:, 1], m(h[:, 0])))
    use("LSTMCell", lambda: nn.LSTMCell(8, 8), lambda m, h: m(h[:, 1], m(h[:, 0]))[0])
    use("one module twice", lambda: nn.LayerNorm(8), lambda m, h: m(2 * m(h).tanh()))
    use(
        "spectral_norm, one module twice",
        lambda: parametrizations.spectral_norm(nn.Linear(8, 8)),
        lambda m, h: m(m(h).tanh()),
    )
    attention = {"num_heads": 2, "batch_first": True}
    for weights in (True, False):
        use(
            "MultiheadAttention" + (" with weights" if weights else ""),
            lambda: nn.MultiheadAttention(8, dropout=0.2, **attention),
            lambda m, h, weights=weights: m(h, h, h, need_weights=weights)[0],
        )
    block = {"d_model": 8, "nhead": 2, "dim_feedforward": 16, "batch_first": True}
    add("TransformerEncoderLayer", lambda: nn.TransformerEncoderLayer(**block), 8, 8)
    modern = {**block, "activation": "gelu", "norm_first": True}
    add(
        "TransformerEncoderLayer evaluation",
        lambda: nn.TransformerEncoderLayer(**modern).eval(),
        8,
        8,
    )
    one = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    use("Transformer", lambda: nn.Transformer(**block, **one), lambda m, h: m(h, h.flip(1)))
    return made


LAYERS = layers()

LOSSES = (
    "AdaptiveLogSoftmaxWithLoss BCELoss BCEWithLogitsLoss CTCLoss CosineEmbeddingLoss "
    "CrossEntropyLoss GaussianNLLLoss HingeEmbeddingLoss HuberLoss KLDivLoss L1Loss "
    "LinearCrossEntropyLoss MSELoss MarginRankingLoss MultiLabelMarginLoss "
    "MultiLabelSoftMarginLoss MultiMarginLoss NLLLoss NLLLoss2d PoissonNLLLoss "
    "SmoothL1Loss SoftMarginLoss "
    "TripletMarginLoss TripletMarginWithDistanceLoss"
)
CONTAINERS = (
    "Container Module ModuleDict ModuleList ParameterDict ParameterList RNNBase RNNCellBase"
)
EXCLUDED: dict[str, str] = {
    **dict.fromkeys(LOSSES.split(), "a loss, not a layer"),
    **dict.fromkeys(CONTAINERS.split(), "a container or base class: what it holds is a layer"),
    "DataParallel": "superseded by DDP, and needs GPUs",
    "SyncBatchNorm": "needs GPUs and a process group",
    "CrossMapLRN2d": "a legacy autograd.Function without second derivative or forward mode",
    "Hardsigmoid": "PyTorch has no double backward to compare with; among the operators above",
}
