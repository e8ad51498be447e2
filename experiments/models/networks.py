"""The example networks (Flax Linen): residual networks for images and a multi-layer perceptron.

Every network takes images as they are stored (uint8 or float, [b, h, w, c]), standardises them
itself, and offers ``__call__(x, train) -> logits`` and ``features(x, train) -> (features, logits)``.
Residual networks follow He et al. (2016), https://arxiv.org/abs/1512.03385.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from crest_jax.flax import WeightedBatchNorm

Array = jax.Array
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
"""Initialiser of He et al. (2015, equation 10): mean 0, variance ``2 / fan_in``, not truncated."""


def standardise(x: Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any) -> Array:
    """Return ``(x - mean) / std`` per channel, computed in float32, as ``dtype``.

    ``mean`` and ``std`` are in the units of ``x`` (0 to 255 for uint8 images) and have one entry,
    or one for every channel of ``x`` [b, ..., channels].
    """
    shape = (1,) * (x.ndim - 1) + (-1,)
    centre = np.asarray(mean, np.float32).reshape(shape)
    scale = np.asarray(std, np.float32).reshape(shape)
    return ((x.astype(jnp.float32) - centre) / scale).astype(dtype)


def pad_shortcut(x: Array, channels: int, stride: int) -> Array:
    """Return the parameter-free shortcut of He et al. (2016, section 3.3, option A).

    Takes every ``stride``-th pixel of ``x`` [b, h, w, c] and puts zero channels around its own, half
    before and half after -> [b, ceil(h / stride), ceil(w / stride), channels].
    """
    extra = channels - x.shape[-1]
    padding = ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2))
    return jnp.pad(x[:, ::stride, ::stride, :], padding)


Norm = Literal["weighted_batch", "batch", "group"]
GROUP = 8  # channels that GroupNorm normalises together


class ConvNorm(nn.Module):
    """A convolution without bias, padded by ``kernel // 2``, then a normalisation.

    ``norm`` is "weighted_batch", BatchNorm that heeds weights; "batch", which does not; or "group", of
    eight channels of each example by itself.
    """

    channels: int
    kernel: int
    stride: int
    norm_decay: float
    dtype: Any
    norm: Norm = "weighted_batch"

    @nn.compact
    def __call__(self, x: Array, train: bool, weights: Array | None = None) -> Array:
        """Map ``x`` [b, h, w, c] to [b, ceil(h / stride), ceil(w / stride), channels]."""
        pad = self.kernel // 2
        x = nn.Conv(
            self.channels,
            (self.kernel, self.kernel),
            self.stride,
            padding=((pad, pad), (pad, pad)),
            use_bias=False,
            kernel_init=he_normal,
            dtype=self.dtype,
        )(x)
        if self.norm == "group":
            return nn.GroupNorm(max(1, self.channels // GROUP), dtype=self.dtype)(x)
        norm = WeightedBatchNorm(self.norm_decay, dtype=self.dtype, name="BatchNorm_0")
        weights = weights if self.norm == "weighted_batch" else None
        return norm(x, use_running_average=not train, weights=weights)


class ResidualBlock(nn.Module):
    """One residual block: two 3x3 convolutions, or 1x1, 3x3 and 1x1 with ``bottleneck``.

    The shortcut is the identity where the shapes agree; elsewhere it is a strided 1x1 convolution
    with BatchNorm (``projection``) or `pad_shortcut`.
    """

    width: int
    stride: int
    bottleneck: bool
    projection: bool
    norm_decay: float
    dtype: Any
    norm: Norm = "weighted_batch"

    @nn.compact
    def __call__(self, x: Array, train: bool, weights: Array | None = None) -> Array:
        """Map ``x`` [b, h, w, c] to [b, ceil(h / stride), ceil(w / stride), width or 4 width]."""

        def conv(y: Array, channels: int, kernel: int, stride: int) -> Array:
            layer = ConvNorm(channels, kernel, stride, self.norm_decay, self.dtype, self.norm)
            return layer(y, train, weights)

        if self.bottleneck:
            channels = 4 * self.width
            y = nn.relu(conv(x, self.width, 1, 1))
            y = nn.relu(conv(y, self.width, 3, self.stride))
            y = conv(y, channels, 1, 1)
        else:
            channels = self.width
            y = nn.relu(conv(x, channels, 3, self.stride))
            y = conv(y, channels, 3, 1)
        if self.stride == 1 and x.shape[-1] == channels:
            shortcut = x
        elif self.projection:
            shortcut = conv(x, channels, 1, self.stride)
        else:
            shortcut = pad_shortcut(x, channels, self.stride)
        return nn.relu(shortcut + y)


class ResNet(nn.Module):
    """A residual network: a stem, stages of blocks whose width doubles, the mean, a linear layer.

    ``stage_sizes`` are the blocks of each stage; every stage but the first halves the image. The
    stem is a 3x3 convolution, or with ``imagenet_stem`` a 7x7 one of stride 2 and a 3x3 max-pool of
    stride 2. ``norm_decay`` is the share of the old value in BatchNorm's running statistics; ``norm``
    is that of ``ConvNorm``.
    Parameters, BatchNorm statistics and logits are float32; ``dtype`` is that of the activations.
    """

    stage_sizes: tuple[int, ...]
    width: int
    num_classes: int
    bottleneck: bool = False
    projection: bool = True
    imagenet_stem: bool = False
    norm_decay: float = 0.9
    norm: Norm = "weighted_batch"
    dtype: Any = jnp.float32
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @nn.compact
    def features(
        self, x: Array, train: bool = False, weights: Array | None = None
    ) -> tuple[Array, Array]:
        """Return the features [b, d] that the last layer reads, and the logits [b, c], float32."""
        x = standardise(x, self.mean, self.std, self.dtype)
        kernel, stride = (7, 2) if self.imagenet_stem else (3, 1)
        stem = ConvNorm(self.width, kernel, stride, self.norm_decay, self.dtype, self.norm)
        x = nn.relu(stem(x, train, weights))
        if self.imagenet_stem:
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, size in enumerate(self.stage_sizes):
            for position in range(size):
                x = ResidualBlock(
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and position == 0 else 1,
                    bottleneck=self.bottleneck,
                    projection=self.projection,
                    norm_decay=self.norm_decay,
                    norm=self.norm,
                    dtype=self.dtype,
                )(x, train, weights)
        x = x.mean(axis=(1, 2)).astype(jnp.float32)
        return x, nn.Dense(self.num_classes, kernel_init=he_normal)(x)

    def __call__(self, x: Array, train: bool, weights: Array | None = None) -> Array:
        """Return the logits [b, c] of ``x`` [b, h, w, channels]; ``weights`` [b] go to BatchNorm."""
        return self.features(x, train, weights)[1]


class MLP(nn.Module):
    """A multi-layer perceptron with ReLU on flattened inputs; ``hidden`` are the hidden widths."""

    hidden: tuple[int, ...] = (512, 512)
    num_classes: int = 10
    dtype: Any = jnp.float32
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @nn.compact
    def features(self, x: Array, train: bool = False) -> tuple[Array, Array]:
        """Return the last hidden layer [b, d] and the logits [b, c], both float32."""
        x = standardise(x, self.mean, self.std, self.dtype).reshape(len(x), -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, kernel_init=he_normal, dtype=self.dtype)(x))
        x = x.astype(jnp.float32)
        return x, nn.Dense(self.num_classes, kernel_init=he_normal)(x)

    def __call__(self, x: Array, train: bool) -> Array:
        """Return the logits [b, c] of ``x`` [b, ...]; training and evaluation are the same."""
        return self.features(x, train)[1]


def resnet8(num_classes: int, *, width: int = 8, **fields: Any) -> ResNet:
    """Return three stages of one basic block, with parameter-free shortcuts."""
    return ResNet((1, 1, 1), width, num_classes, projection=False, **fields)


def resnet20(num_classes: int, *, width: int = 16, **fields: Any) -> ResNet:
    """Return three stages of three basic blocks, with parameter-free shortcuts."""
    return ResNet((3, 3, 3), width, num_classes, projection=False, **fields)


def resnet18(num_classes: int, *, width: int = 64, **fields: Any) -> ResNet:
    """Return four stages of two basic blocks, with projection shortcuts."""
    return ResNet((2, 2, 2, 2), width, num_classes, **fields)


def resnet50(num_classes: int, *, width: int = 64, **fields: Any) -> ResNet:
    """Return stages of 3, 4, 6 and 3 bottleneck blocks, with projection shortcuts."""
    return ResNet((3, 4, 6, 3), width, num_classes, bottleneck=True, **fields)


def mlp(num_classes: int, *, width: int = 512, **fields: Any) -> MLP:
    """Return two hidden layers of ``width`` units."""
    return MLP((width, width), num_classes, **fields)


_MAKERS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": resnet8,
    "resnet20": resnet20,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mlp": mlp,
}
MODELS: tuple[str, ...] = tuple(_MAKERS)


def build(
    name: str,
    num_classes: int,
    *,
    width: int | None = None,
    input_shape: tuple[int, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    **fields: Any,
) -> nn.Module:
    """Return the network called ``name`` (one of `MODELS`) for one kind of input.

    ``input_shape`` is the shape of one example, ``mean`` and ``std`` are those of its channels in
    the units of the stored data, and ``fields`` (``norm_decay``, ``norm``, ``imagenet_stem``,
    ``dtype``) go to the network as they are.

    Raises:
        ValueError: if a name, a size or a statistic does not fit.

    >>> model = build("resnet8", 10, width=8, input_shape=(28, 28, 1), mean=(73.0,), std=(90.0,))
    >>> images = jnp.zeros((2, 28, 28, 1), jnp.uint8)
    >>> shapes = jax.eval_shape(lambda key: model.init(key, images, train=False), jax.random.key(0))
    >>> sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    19074
    """
    if name not in _MAKERS:
        raise ValueError(f"name is {name!r}, but must be one of {', '.join(MODELS)}.")
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}, but must be 2 or more.")
    if width is not None and width < 1:
        raise ValueError(f"width is {width}, but must be 1 or more; leave it out for the usual one.")
    if name != "mlp" and len(input_shape) != 3:
        raise ValueError(
            f"input_shape is {input_shape}, but {name} takes images: pass (height, width, channels)."
        )
    for label, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, input_shape[-1]):
            raise ValueError(
                f"{label} has {len(values)} entries, but inputs of shape {input_shape} have "
                f"{input_shape[-1]} channels: pass one entry, or one for every channel."
            )
    if not all(math.isfinite(value) and value > 0 for value in std):
        raise ValueError(f"std is {std}, but must be finite and positive; use 1.0 not to scale.")
    if width is not None:
        fields["width"] = width
    return _MAKERS[name](num_classes, mean=mean, std=std, **fields)
