"""Residual networks as frozen encoders: ResNet v1 (MoCo v2) and ResNet v2 (BiT) in one module.

* Version 1 (He et al. 2016, arXiv:1512.03385) as torchvision has it: a stage's stride lies in its
  first 3x3 convolution, and a batch norm follows every convolution. With stored statistics a batch
  norm is one affine map, which the loader multiplies into the convolution: what runs here is a
  convolution with a bias.
* Version 2 (He et al. 2016, arXiv:1603.05027) as BiT has it (Kolesnikov et al. 2020,
  arXiv:1912.11370): group norm and ReLU before every convolution, whose weights are standardised
  (Qiao et al. 2019, arXiv:1903.10520), and zeros around the input of the max-pool.

Both are folded once, on load (`resnet_names`): an encoder is frozen, so that a batch norm's factor
and a kernel's mean and variance would come out the same in every call.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

# Added to a variance; the same in all published implementations of BiT.
_GROUP_NORM_EPSILON = 1e-5


class Convolution(NamedTuple):
    """A convolution without its weights. Padding is torch's, the same on both sides."""

    size: int
    channels_in: int
    channels_out: int
    stride: int
    padding: int


class Block(NamedTuple):
    """A residual block without its weights."""

    stage: int
    unit: int
    path: tuple[Convolution, ...]
    shortcut: Convolution | None  # None: the input as it is

    @property
    def name(self) -> str:
        """Its level in the parameters."""
        return f"stage_{self.stage}_block_{self.unit}"


class ResNet(nn.Module):
    """A residual network up to its global average pool.

    Parameters, kernels being (height, width, in, out), K = 0, 1 in a basic block and 0, 1, 2 in a
    bottleneck, `shortcut` only where a block changes the shape:

    * version 1: `stem/{kernel,bias}`, `stage_I_block_J/conv_K/{kernel,bias}`,
      `stage_I_block_J/shortcut/{kernel,bias}`, batch norms multiplied in;
    * version 2: `stem/kernel`, `stage_I_block_J/norm_K/{scale,bias}`,
      `stage_I_block_J/conv_K/kernel`, `stage_I_block_J/shortcut/kernel` and `norm/{scale,bias}`,
      kernels standardised.
    """

    version: Literal[1, 2]
    blocks: tuple[int, ...]  # of each stage
    bottleneck: bool = True
    width: int = 64  # channels of the stem
    # 7x7 of stride 2, then a max-pool; or solo-learn's for images of 32 pixels: 3x3, no pool.
    stem: Literal["imagenet", "cifar"] = "imagenet"
    groups: int = 32  # of a group norm
    output: Literal["pool"] = "pool"
    dtype: Any = jnp.float32  # of products; means and variances are float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Encodes images.

        Args:
          images: (b, s, s, 3) floating, normalised by mean and standard deviation.

        Returns:
          (b, d) float32, the mean over the positions of the last stage.
        """
        first = self.version == 1
        x = _convolve(root(self), first, self.dtype, "stem")(images)
        if first:
            x = nn.relu(x)
        if self.stem == "imagenet":
            x = _max_pool(x, -jnp.inf if first else 0.0)
        for block in plan(self):
            if first:
                x = _Block1(block, self.dtype, name=block.name)(x)
            else:
                x = _Block2(block, self.groups, self.dtype, name=block.name)(x)
        if not first:
            x = _NormRelu(self.groups, name="norm")(x)
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


def root(model: ResNet) -> Convolution:
    """Returns a model's first convolution."""
    if model.stem == "cifar":
        return Convolution(3, 3, model.width, 1, 2)
    return Convolution(7, 3, model.width, 2, 3)


def plan(model: ResNet) -> Iterator[Block]:
    """Yields a model's blocks in order."""
    channels = model.width
    for stage, count in enumerate(model.blocks):
        middle = model.width * 2**stage
        out = 4 * middle if model.bottleneck else middle
        for unit in range(count):
            stride = 2 if stage > 0 and unit == 0 else 1
            if model.bottleneck:
                path: tuple[Convolution, ...] = (
                    Convolution(1, channels, middle, 1, 0),
                    Convolution(3, middle, middle, stride, 1),
                    Convolution(1, middle, out, 1, 0),
                )
            else:
                path = (Convolution(3, channels, out, stride, 1), Convolution(3, out, out, 1, 1))
            same = stride == 1 and channels == out
            shortcut = None if same else Convolution(1, channels, out, stride, 0)
            yield Block(stage, unit, path, shortcut)
            channels = out


class _Block1(nn.Module):
    """Convolution and ReLU, ..., convolution, sum, ReLU."""

    block: Block
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = x
        if self.block.shortcut is not None:
            shortcut = _convolve(self.block.shortcut, True, self.dtype, "shortcut")(x)
        for k, convolution in enumerate(self.block.path):
            if k > 0:
                x = nn.relu(x)
            x = _convolve(convolution, True, self.dtype, f"conv_{k}")(x)
        return nn.relu(x + shortcut)


class _Block2(nn.Module):
    """Norm, ReLU and convolution, ..., sum; the shortcut starts after the first ReLU or before."""

    block: Block
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = x
        for k, convolution in enumerate(self.block.path):
            x = _NormRelu(self.groups, name=f"norm_{k}")(x)
            if k == 0 and self.block.shortcut is not None:
                shortcut = _convolve(self.block.shortcut, False, self.dtype, "shortcut")(x)
            x = _convolve(convolution, False, self.dtype, f"conv_{k}")(x)
        return x + shortcut


class _NormRelu(nn.Module):
    """Group norm (Wu and He 2018, arXiv:1803.08494), then ReLU."""

    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        grouped = x.astype(jnp.float32).reshape(*x.shape[:3], self.groups, channels // self.groups)
        mean = jnp.mean(grouped, axis=(1, 2, 4), keepdims=True)
        variance = jnp.mean(jnp.square(grouped - mean), axis=(1, 2, 4), keepdims=True)
        normed = (grouped - mean) * jax.lax.rsqrt(variance + _GROUP_NORM_EPSILON)
        shifted = normed.reshape(x.shape) * scale[None, None, None] + bias[None, None, None]
        return nn.relu(shifted).astype(x.dtype)


def _convolve(convolution: Convolution, use_bias: bool, dtype: Any, name: str) -> nn.Conv:
    return nn.Conv(
        convolution.channels_out,
        (convolution.size, convolution.size),
        strides=convolution.stride,
        padding=convolution.padding,
        use_bias=use_bias,
        dtype=dtype,
        name=name,
    )


def _max_pool(x: jax.Array, outside: float) -> jax.Array:
    """3x3 of stride 2 with one row and column of the value `outside` on every side."""
    around = ((0, 0), (1, 1), (1, 1), (0, 0))
    padded = jnp.pad(x, around, constant_values=outside)
    return nn.max_pool(padded, (3, 3), strides=(2, 2), padding="VALID")
