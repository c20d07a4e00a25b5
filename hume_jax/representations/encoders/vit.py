"""Vision transformers as frozen encoders: those of CLIP, DINOv2 and SigLIP 2 in one module.

A ViT (Dosovitskiy et al. 2021, arXiv:2010.11929) cuts an image into patches, makes a token of each
and puts all of them through blocks of attention and MLP. The three families differ in what stands
before the patches (a class token, registers), a norm before the first block, the MLP's activation,
layer scale, and how the tokens become one vector:

* CLIP (Radford et al. 2021, arXiv:2103.00020): class token, norm before the blocks, `quick_gelu`,
  no bias in the patches, epsilon 1e-5; the image feature is a projection of the class token.
* DINOv2 (Oquab et al. 2024, arXiv:2304.07193): class token, layer scale, `gelu`, or `swiglu` in
  the giant one; registers (Darcet et al. 2024, arXiv:2309.16588) stand behind the class token.
* SigLIP 2 (Tschannen et al. 2025, arXiv:2502.14786): `gelu_tanh`, no class token, one attention of
  a learned probe over all patches.

Positions are parameters for the patches of one image size; `vit_names` resizes those of a file.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from hume_jax.errors import UserError


def _gelu(x: jax.Array) -> jax.Array:
    # `jax.nn.gelu` goes by erfc, which takes longer and gives the same to float32's precision.
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def _gelu_tanh(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


def _swiglu(x: jax.Array) -> jax.Array:
    gate, value = jnp.split(x, 2, axis=-1)
    return jax.nn.silu(gate) * value


_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "swiglu": _swiglu,
}


class ViT(nn.Module):
    """A vision transformer with what makes one vector of its tokens.

    Parameters, kernels being (in, out), D the width, H that of the MLP; what a model does not have
    or `output` does not need is not there:

    * `patch/{kernel,bias}`, the kernel's rows in the order row, column, channel of a patch;
    * `class_token` (D,), `registers` (R, D), `position` (positions, D), the class token's first;
    * `norm_pre/{scale,bias}`;
    * `block_I/norm_1/{scale,bias}`, `block_I/attention/qkv/{kernel,bias}` (D, 3 D),
      `block_I/attention/out/{kernel,bias}`, `block_I/scale_1` (D,),
      `block_I/norm_2/{scale,bias}`, `block_I/mlp/in/{kernel,bias}` (D, H), or (D, 2 H) with the
      gate first in `swiglu`, `block_I/mlp/out/{kernel,bias}`, `block_I/scale_2` (D,);
    * `norm/{scale,bias}`;
    * `projection/kernel` (D, projection);
    * `head/probe` (D,), `head/query/{kernel,bias}`, `head/key_value/{kernel,bias}` (D, 2 D),
      `head/out/{kernel,bias}`, `head/norm/{scale,bias}`, `head/mlp/{in,out}/{kernel,bias}`.
    """

    size: int  # side of the images, a multiple of `patch`
    patch: int
    width: int
    depth: int
    heads: int
    hidden: int  # H
    output: str = "cls"  # one of `outputs`
    activation: str = "gelu"  # or gelu_tanh, quick_gelu, swiglu
    epsilon: float = 1e-6
    class_token: bool = True
    registers: int = 0
    patch_bias: bool = True
    pre_norm: bool = False
    layer_scale: bool = False
    projection: int = 0
    head: bool = False
    dtype: Any = jnp.float32  # of the products; sums, norms and softmax are in float32

    @property
    def grid(self) -> int:
        """Patches along a side.

        Raises:
          UserError: the images cannot be cut into whole patches.
        """
        if self.size < self.patch or self.size % self.patch:
            lower = max(self.size // self.patch, 1) * self.patch
            raise UserError(
                f"size={self.size} is not a multiple of the patch of {self.patch} pixels: take "
                f"size={lower} or size={lower + self.patch}"
            )
        return self.size // self.patch

    @property
    def positions(self) -> int:
        """Tokens that have a position: those of the patches, and the class token."""
        return self.grid**2 + self.class_token

    @property
    def outputs(self) -> tuple[str, ...]:
        """What this model can return.

        All of them are taken behind the last norm: `cls` the class token, `mean_patch` the mean of
        the patches, `cls_mean_patch` both side by side, `projection` a product of the class token,
        `map` attention pooling.
        """
        with_class = ("cls", "mean_patch", "cls_mean_patch")
        return (
            *(with_class if self.class_token else ("mean_patch",)),
            *(("projection",) if self.projection else ()),
            *(("map",) if self.head else ()),
        )

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Encodes a batch.

        Args:
          images: (b, size, size, 3) floating, normalised as the weights ask for.

        Returns:
          (b, d) float32, d the width, twice that for `cls_mean_patch`, or `projection`.

        Raises:
          ValueError: images of another shape.
          UserError: `output` is none of `outputs`, or `size` is no multiple of `patch`.
        """
        if images.shape[1:] != (self.size, self.size, 3):
            raise ValueError(f"images {images.shape} are not (b, {self.size}, {self.size}, 3)")
        if self.output not in self.outputs:
            known = ", ".join(self.outputs)
            raise UserError(f"output={self.output} is not one of this encoder's: {known}")
        x = self._tokens(images)
        for i in range(self.depth):
            x = _Block(
                heads=self.heads,
                hidden=self.hidden,
                activation=self.activation,
                epsilon=self.epsilon,
                layer_scale=self.layer_scale,
                dtype=self.dtype,
                name=f"block_{i}",
            )(x)
        return self._vector(_norm(self.epsilon, "norm")(x)).astype(jnp.float32)

    def _tokens(self, images: jax.Array) -> jax.Array:
        b, g, p = len(images), self.grid, self.patch
        # Patches do not overlap, so that their convolution is one product.
        x = images.reshape(b, g, p, g, p, 3).swapaxes(2, 3).reshape(b, g * g, p * p * 3)
        x = nn.Dense(self.width, use_bias=self.patch_bias, dtype=self.dtype, name="patch")(x)
        x = x.astype(jnp.float32)
        small = nn.initializers.normal(0.02)
        if self.class_token:
            token = self.param("class_token", small, (self.width,))
            x = jnp.concatenate([_for_each(token[None], b), x], axis=1)
        x = x + self.param("position", small, (self.positions, self.width))[None]
        if self.registers:
            registers = self.param("registers", small, (self.registers, self.width))
            x = jnp.concatenate([x[:, :1], _for_each(registers, b), x[:, 1:]], axis=1)
        return _norm(self.epsilon, "norm_pre")(x) if self.pre_norm else x

    def _vector(self, x: jax.Array) -> jax.Array:
        """(b, tokens, D) to (b, d)."""
        if self.output == "map":
            head = _AttentionPool(
                self.heads, self.hidden, self.activation, self.epsilon, self.dtype, name="head"
            )
            return head(x)
        if self.output == "projection":
            product = nn.Dense(self.projection, use_bias=False, dtype=self.dtype, name="projection")
            return product(x[:, 0])
        patches = x[:, self.class_token + self.registers :].mean(axis=1)
        if self.output == "cls_mean_patch":
            return jnp.concatenate([x[:, 0], patches], axis=1)
        return x[:, 0] if self.output == "cls" else patches


class _Block(nn.Module):
    """Attention, then an MLP, each of the norm of what it is added to."""

    heads: int
    hidden: int
    activation: str
    epsilon: float
    layer_scale: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, t, D) to (b, t, D), float32."""
        y = _norm(self.epsilon, "norm_1")(x)
        y = _Attention(self.heads, self.dtype, name="attention")(y)
        x = x + self._scaled("scale_1", y)
        y = _norm(self.epsilon, "norm_2")(x)
        y = _MLP(self.hidden, self.activation, self.dtype, name="mlp")(y)
        return x + self._scaled("scale_2", y)

    def _scaled(self, name: str, y: jax.Array) -> jax.Array:
        y = y.astype(jnp.float32)
        if not self.layer_scale:
            return y
        return y * self.param(name, nn.initializers.ones, y.shape[-1:])[None, None]


class _Attention(nn.Module):
    """Multi-head self-attention; query, key and value are one product."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, t, D) to (b, t, D)."""
        b, t, d = x.shape
        qkv = nn.Dense(3 * d, dtype=self.dtype, name="qkv")(x)
        query, key, value = jnp.moveaxis(qkv.reshape(b, t, 3, self.heads, -1), 2, 0)
        y = jax.nn.dot_product_attention(query, key, value)
        return nn.Dense(d, dtype=self.dtype, name="out")(y.reshape(b, t, d))


class _MLP(nn.Module):
    """Two products around an activation."""

    hidden: int
    activation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., D) to (..., D)."""
        wide = self.hidden * (2 if self.activation == "swiglu" else 1)
        y = nn.Dense(wide, dtype=self.dtype, name="in")(x)
        y = _ACTIVATIONS[self.activation](y)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="out")(y)


class _AttentionPool(nn.Module):
    """Attention of one learned probe over all tokens, and an MLP: the head of SigLIP."""

    heads: int
    hidden: int
    activation: str
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, t, D) to (b, D)."""
        b, t, d = x.shape
        probe = self.param("probe", nn.initializers.normal(0.02), (d,))
        query = nn.Dense(d, dtype=self.dtype, name="query")(_for_each(probe[None], b))
        key_value = nn.Dense(2 * d, dtype=self.dtype, name="key_value")(x)
        key, value = jnp.moveaxis(key_value.reshape(b, t, 2, self.heads, -1), 2, 0)
        y = jax.nn.dot_product_attention(query.reshape(b, 1, self.heads, -1), key, value)
        y = nn.Dense(d, dtype=self.dtype, name="out")(y.reshape(b, d)).astype(jnp.float32)
        z = _norm(self.epsilon, "norm")(y)
        return y + _MLP(self.hidden, self.activation, self.dtype, name="mlp")(z)


def _norm(epsilon: float, name: str) -> nn.LayerNorm:
    # The fast variance, E[x^2] - E[x]^2, loses digits where the mean is large.
    return nn.LayerNorm(epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)


def _for_each(rows: jax.Array, b: int) -> jax.Array:
    """(r, D) to (b, r, D)."""
    return jnp.broadcast_to(rows[None], (b, *rows.shape))
