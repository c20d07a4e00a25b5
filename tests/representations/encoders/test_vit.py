"""The ViT against three other implementations: `experiments/make_vit_golden.py` wrote the files."""

import functools
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hume_jax.errors import UserError
from hume_jax.representations.encoders import positions, vit_names, weights
from hume_jax.representations.encoders.vit import ViT

GOLDEN = pathlib.Path(__file__).parent / "golden"
# The golden files' positions are for images of 28 pixels.
TRAINED, SMALLER, LARGER = 28, 20, 36

tiny = functools.partial(ViT, size=TRAINED, patch=4, width=16, depth=2, heads=2, hidden=32)
clip = functools.partial(
    tiny, activation="quick_gelu", epsilon=1e-5, patch_bias=False, pre_norm=True, projection=12
)
dinov2 = functools.partial(tiny, layer_scale=True)
gated = functools.partial(dinov2, activation="swiglu", hidden=24)
MODELS: dict[str, Any] = {
    "clip": clip,
    "siglip": functools.partial(
        tiny, activation="gelu_tanh", class_token=False, head=True, output="map"
    ),
    "dinov2": dinov2,
    "dinov2_gated": gated,
    "dinov2_registers": functools.partial(dinov2, registers=3),
    "authors": dinov2,
    "authors_gated_registers": functools.partial(gated, registers=3),
    "timm_gated_registers": functools.partial(gated, registers=3),
    "timm_clip": functools.partial(clip, projection=0),
}

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "vit_expected.npz") as file:
        return dict(file)


def tensors_of(name: str) -> dict[str, np.ndarray]:
    return dict(weights.read(GOLDEN / f"vit_{name}.safetensors"))


def build(model: ViT, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    rules = vit_names.rules(model, list(tensors))
    return weights.assemble(rules, tensors, where="FILE", ignored=vit_names.IGNORED)


def run(model: ViT, tensors: Mapping[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    params = build(model, tensors)
    return np.asarray(jax.jit(model.apply)({"params": params}, jnp.asarray(images, jnp.float32)))


def check_parity(got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.dtype == np.float32
    assert np.abs(wanted).max() > 0.5
    # Near float32's rounding, so that another epsilon in a norm shows too.
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [SMALLER, LARGER])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "siglip"])
def test_tokens_are_those_of_another_implementation(
    name: str, size: int, expected: dict[str, np.ndarray]
) -> None:
    model = MODELS[name](size=size, output="cls_mean_patch")
    got = run(model, tensors_of(name), expected[f"pixels_{size}"])
    wanted = [expected[f"{name}/{output}_{size}"] for output in ("cls", "mean_patch")]
    check_parity(got, np.concatenate(wanted, axis=1))


@pytest.mark.parametrize(
    ("name", "output", "size"),
    [
        ("clip", "projection", TRAINED),
        ("clip", "mean_patch", TRAINED),
        ("dinov2", "cls", TRAINED),
        ("dinov2_registers", "mean_patch", TRAINED),
        ("siglip", "map", TRAINED),
        ("siglip", "map", SMALLER),
        ("siglip", "mean_patch", LARGER),
    ],
)
def test_outputs_are_those_of_another_implementation(
    name: str, output: str, size: int, expected: dict[str, np.ndarray]
) -> None:
    model = MODELS[name](size=size, output=output)
    got = run(model, tensors_of(name), expected[f"pixels_{size}"])
    check_parity(got, expected[f"{name}/{output}_{size}"])


def test_bfloat16_products_give_nearly_the_same_float32_rows(
    expected: dict[str, np.ndarray],
) -> None:
    tensors, images = tensors_of("dinov2"), expected[f"pixels_{SMALLER}"]
    model = dinov2(size=SMALLER, output="mean_patch", dtype=jnp.bfloat16)
    got, wanted = run(model, tensors, images), expected[f"dinov2/mean_patch_{SMALLER}"]
    assert got.dtype == np.float32
    # bfloat16 has 8 bits; that there is a difference shows that the products are in it.
    assert 1e-4 < np.abs(got - wanted).max() < 0.03


@pytest.mark.parametrize("name", MODELS)
def test_the_rules_make_the_parameters_that_the_model_has(name: str) -> None:
    for output in MODELS[name]().outputs:
        model = MODELS[name](output=output)
        images = jax.ShapeDtypeStruct((1, TRAINED, TRAINED, 3), jnp.float32)
        wanted = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
        params = build(model, tensors_of(name))
        assert jax.tree.structure(params) == jax.tree.structure(wanted)
        assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, wanted)


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_is_used_or_known_to_lie_beside_the_encoder(name: str) -> None:
    tensors = tensors_of(name)
    rules = vit_names.rules(MODELS[name](output=MODELS[name]().outputs[-1]), list(tensors))
    used = {name for rule in rules.values() for name in rule.names}
    beside = {re.sub(r"^text_model\..*", "text_model", name) for name in set(tensors) - used}
    known = {
        "clip": {"text_model", "text_projection.weight", "logit_scale"},
        "siglip": {"text_model", "logit_scale", "logit_bias"},
        "timm_gated_registers": set[str](),
        "timm_clip": set[str](),
    }
    mask = "mask_token" if name.startswith("authors") else "embeddings.mask_token"
    assert beside == known.get(name, {mask})


@pytest.mark.parametrize("name", MODELS)
def test_a_tensor_more_or_less_is_named(name: str) -> None:
    model, tensors = MODELS[name](), tensors_of(name)
    rules = vit_names.rules(model, list(tensors))
    needed = rules["block_1/attention/out/bias"].names[0]
    with pytest.raises(UserError, match=f"1 missing: {needed}"):
        build(model, {key: value for key, value in tensors.items() if key != needed})
    added = needed.replace("1", "2", 1)
    with pytest.raises(UserError, match=f"1 unexpected: {added}"):
        build(model, tensors | {added: tensors[needed]})


@pytest.mark.parametrize("name", ["clip", "dinov2_gated", "authors", "timm_gated_registers"])
def test_a_prefix_of_all_names_makes_no_difference(name: str) -> None:
    model, tensors = MODELS[name](), tensors_of(name)
    prefixed = {f"module.{key}": value for key, value in tensors.items()}
    jax.tree.map(np.testing.assert_array_equal, build(model, prefixed), build(model, tensors))


def test_clip_without_its_text_half_and_without_a_prefix_is_the_same() -> None:
    model, tensors = clip(), tensors_of("clip")
    vision = {
        key.removeprefix("vision_model."): value
        for key, value in tensors.items()
        if key.startswith("vision_model.")
    }
    jax.tree.map(np.testing.assert_array_equal, build(model, vision), build(model, tensors))
    with pytest.raises(UserError, match=r"1 missing: visual_projection\.weight"):
        build(clip(output="projection"), vision)


@pytest.mark.parametrize(
    ("model", "weights_of", "what"),
    [
        (clip(), "dinov2", "a norm before the blocks"),
        (clip(output="projection", pre_norm=False), "dinov2", "output=projection"),
        (MODELS["siglip"](), "authors", "output=map"),
        (dinov2(), "clip", "layer scale"),
        (tiny(registers=3), "clip", "registers"),
        (tiny(activation="swiglu"), "clip", "a gated MLP"),
    ],
)
def test_weights_of_another_family_are_told_by_what_they_lack(
    model: ViT, weights_of: str, what: str
) -> None:
    with pytest.raises(UserError, match=f"this encoder has {what}, which weights with a tensor"):
        build(model, tensors_of(weights_of))


def test_weights_of_another_size_of_the_family_are_told_by_their_shapes() -> None:
    tensors = tensors_of("dinov2")
    with pytest.raises(UserError, match=r"patch_embeddings\.projection\.weight \(16, 3, 4, 4\)"):
        build(dinov2(width=32), tensors)
    with pytest.raises(UserError, match=r"18 missing: encoder\.layer\.2\.norm1\.weight"):
        build(dinov2(depth=3), tensors)
    with pytest.raises(UserError, match=r"18 unexpected: encoder\.layer\.1"):
        build(dinov2(depth=1), tensors)


def test_names_of_no_vit_are_told() -> None:
    with pytest.raises(
        UserError, match=r"no known layout of a ViT; missing: .*; unexpected: bn1, conv1"
    ):
        vit_names.rules(tiny(), ["conv1", "bn1"])


def test_positions_that_are_no_square_are_named() -> None:
    tensors = tensors_of("dinov2")
    name = "embeddings.position_embeddings"
    tensors[name] = tensors[name][:, :-1]
    with pytest.raises(UserError, match=rf"FILE, {name}: 48 positions .* not those of a square"):
        build(dinov2(), tensors)


@pytest.mark.parametrize("antialias", [False, True])
def test_resizing_keeps_what_is_constant_and_its_own_size(
    antialias: bool, rng: np.random.Generator
) -> None:
    table = rng.normal(size=(49, 3)).astype(np.float32)
    assert positions.resize(table, 7, antialias=antialias, offset=0.1) is table
    for side in (1, 2, 5, 6, 8, 21):
        constant = positions.resize(np.ones_like(table), side, antialias=antialias)
        assert constant.shape == (side**2, 3)
        np.testing.assert_allclose(constant, 1, rtol=0, atol=1e-6)


def test_resizing_treats_rows_and_columns_alike(rng: np.random.Generator) -> None:
    square = rng.normal(size=(7, 7, 3)).astype(np.float32)
    resized, other = (
        positions.resize(s.reshape(49, 3), 5, antialias=False, offset=0.1).reshape(5, 5, 3)
        for s in (square, square.swapaxes(0, 1))
    )
    np.testing.assert_allclose(resized, other.swapaxes(0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "near"), [(30, "size=28 or size=32"), (3, "size=4 or size=8")])
def test_a_size_between_two_patches_is_refused(size: int, near: str) -> None:
    with pytest.raises(UserError, match=f"size={size} is not a multiple .* take {near}"):
        _ = tiny(size=size).grid


def test_an_output_that_a_model_does_not_have_is_refused() -> None:
    images = jax.ShapeDtypeStruct((1, TRAINED, TRAINED, 3), jnp.float32)
    for model, known in (
        (dinov2(output="projection"), "cls, mean_patch, cls_mean_patch"),
        (MODELS["siglip"](output="cls"), "mean_patch, map"),
    ):
        with pytest.raises(UserError, match=f"output={model.output} is not one .*: {known}"):
            jax.eval_shape(model.init, jax.random.key(0), images)


def test_images_of_another_shape_are_refused() -> None:
    images = jax.ShapeDtypeStruct((1, TRAINED, LARGER, 3), jnp.float32)
    with pytest.raises(ValueError, match=r"\(1, 28, 36, 3\) are not \(b, 28, 28, 3\)"):
        jax.eval_shape(tiny().init, jax.random.key(0), images)
