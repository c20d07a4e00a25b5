import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from make_resnet_golden import (
    CIFAR_SIDE,
    FAINT,
    REAL_SIDE,
    TINY_SIDE,
    google_names,
    images,
    seeded,
)

from hume_jax.errors import UserError
from hume_jax.representations.encoders import resnet_names, weights
from hume_jax.representations.encoders.resnet import ResNet

GOLDEN = pathlib.Path(__file__).parent / "golden"
TINY = {
    "basic": ResNet(version=1, blocks=(2, 1, 1, 1), bottleneck=False, width=4),
    "cifar": ResNet(version=1, blocks=(1, 1, 1, 1), bottleneck=False, width=4, stem="cifar"),
    "bottleneck": ResNet(version=1, blocks=(2, 1, 1, 1), width=4),
    "bit": ResNet(version=2, blocks=(2, 1), width=16, groups=8),
}
REAL = {
    "resnet18": ResNet(version=1, blocks=(2, 2, 2, 2), bottleneck=False),
    "resnet50": ResNet(version=1, blocks=(3, 4, 6, 3)),
    "resnetv2_50x1_bit": ResNet(version=2, blocks=(3, 4, 6, 3)),
}
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def expected():
    with np.load(GOLDEN / "resnet_expected.npz") as file:
        return dict(file)


def assemble(model, tensors):
    rules = resnet_names.rules(model, list(tensors))
    return weights.assemble(rules, tensors, where="golden", ignored=resnet_names.IGNORED)


def golden(name):
    return weights.read(GOLDEN / f"resnet_{name}.safetensors")


def apply(model, params, pixels):
    return jax.jit(lambda params, x: model.apply({"params": params}, x))(params, pixels)


# ---- parity


@pytest.mark.parametrize("name", TINY)
def test_equals_the_independent_implementation(name, expected):
    side = CIFAR_SIDE if name == "cifar" else TINY_SIDE
    got = apply(TINY[name], assemble(TINY[name], golden(name)), images(side))
    assert got.dtype == jnp.float32
    assert np.abs(expected[name]).max() > 0.5
    np.testing.assert_allclose(got, expected[name], rtol=0, atol=TOLERANCE)


def test_equals_it_on_images_that_are_almost_flat(expected):
    got = apply(TINY["bit"], assemble(TINY["bit"], golden("bit")), images(TINY_SIDE) * FAINT)
    np.testing.assert_allclose(got, expected["bit_faint"], rtol=0, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_equals_the_independent_implementation_in_real_size(name, expected):
    model = REAL[name]
    rules = (resnet_names.torchvision if model.version == 1 else resnet_names.timm)(model)
    tensors = {
        tensor: seeded(tensor, shape)
        for rule in rules.values()
        for tensor, shape in zip(rule.names, rule.shapes, strict=True)
    }
    got = apply(model, assemble(model, tensors), images(REAL_SIDE))
    np.testing.assert_allclose(got, expected[name], rtol=0, atol=TOLERANCE)


def test_batch_size_and_neighbours_do_not_matter(expected):
    params = assemble(TINY["bit"], golden("bit"))
    one = apply(TINY["bit"], params, images(TINY_SIDE)[1:])
    np.testing.assert_allclose(one[0], expected["bit"][1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["bottleneck", "bit"])
def test_bfloat16_stays_near_float32(name, expected):
    model = TINY[name].clone(dtype=jnp.bfloat16)
    got = apply(model, assemble(model, golden(name)), images(TINY_SIDE))
    assert got.dtype == jnp.float32
    # 8 bits of mantissa, over some ten layers.
    error = np.abs(got - expected[name]).max() / np.abs(expected[name]).max()
    assert 1e-5 < error < 0.05


# ---- parameters


@pytest.mark.parametrize("name", TINY)
def test_rules_make_the_parameters_that_the_model_has(name):
    model = TINY[name]
    made = assemble(model, golden(name))
    own = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 41, 41, 3)))["params"]
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, own)


def test_standardised_kernels_have_mean_zero_and_variance_one():
    params = assemble(TINY["bit"], golden("bit"))
    for kernel in (params["stem"]["kernel"], params["stage_1_block_0"]["shortcut"]["kernel"]):
        np.testing.assert_allclose(kernel.mean(axis=(0, 1, 2)), 0, atol=1e-6)
        np.testing.assert_allclose(kernel.var(axis=(0, 1, 2)), 1, atol=1e-5)


# ---- layouts


@pytest.mark.parametrize("numbered", [False, True])
def test_google_names_give_the_same_parameters(numbered, tmp_path):
    tensors = google_names(dict(golden("bit")))
    if numbered:
        tensors = {
            name.replace("standardized_conv2d", f"standardized_conv2d_{i}"): tensor
            for i, (name, tensor) in enumerate(tensors.items())
        }
    np.savez(tmp_path / "bit.npz", **tensors)
    jax.tree.map(
        np.testing.assert_array_equal,
        assemble(TINY["bit"], weights.read(tmp_path / "bit.npz")),
        assemble(TINY["bit"], golden("bit")),
    )


@pytest.mark.parametrize(
    ("prefix", "beside"),
    [
        # A whole MoCo v2 checkpoint: head, momentum encoder and queue.
        (
            "module.encoder_q.",
            (
                "module.encoder_q.fc.0.weight",
                "module.encoder_q.fc.2.bias",
                "module.encoder_k.conv1.weight",
                "module.encoder_k.bn1.num_batches_tracked",
                "module.queue",
                "module.queue_ptr",
            ),
        ),
        # A whole checkpoint of solo-learn's MoCo v2+.
        (
            "backbone.",
            (
                "momentum_backbone.conv1.weight",
                "projector.0.weight",
                "momentum_projector.2.bias",
                "classifier.weight",
                "queue",
                "queue_ptr",
            ),
        ),
        ("", ("fc.weight", "fc.bias")),
    ],
)
def test_whole_checkpoints_are_read(prefix, beside):
    tensors = dict(golden("basic"))
    checkpoint = {prefix + name: tensor for name, tensor in tensors.items()}
    checkpoint |= dict.fromkeys(beside, np.zeros(3, np.float32))
    jax.tree.map(
        np.testing.assert_array_equal,
        assemble(TINY["basic"], checkpoint),
        assemble(TINY["basic"], tensors),
    )


def test_every_tensor_is_accounted_for():
    tensors = dict(golden("basic"))
    del tensors["layer2.0.bn1.running_mean"]
    tensors["layer5.0.conv1.weight"] = np.zeros(3, np.float32)
    tensors["conv1.weight"] = tensors["conv1.weight"][:2]
    with pytest.raises(UserError) as error:
        assemble(TINY["basic"], tensors)
    for part in (
        "1 missing: layer2.0.bn1.running_mean",
        "1 unexpected: layer5.0.conv1.weight",
        "conv1.weight (2, 3, 7, 7) instead of (4, 3, 7, 7)",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(("name", "other"), [("basic", "bit"), ("bit", "bottleneck")])
def test_weights_of_the_other_version_are_refused(name, other):
    with pytest.raises(UserError, match="no known layout of a ResNet of version"):
        assemble(TINY[name], golden(other))


def test_a_deeper_network_of_the_same_layout_is_refused():
    deeper = TINY["basic"].clone(blocks=(2, 2, 1, 1))
    with pytest.raises(UserError, match=r"missing: layer2\.1\.conv1\.weight"):
        assemble(deeper, golden("basic"))
