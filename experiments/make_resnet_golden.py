"""Makes the golden files of tests/representations/encoders/test_resnet.py.

    python -m pip install ".[golden]"
    python experiments/make_resnet_golden.py

Tiny networks with random weights, batch norms' statistics among them, in torchvision's classes (v1)
and timm's (v2): weights under their own names, and what the networks give; `google_names` writes
the latter's under Google's names. Of the networks in their real size only what they give is kept,
because their weights are computed from their names on both sides (`seeded`).
"""

import argparse
import pathlib
import sys
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

GOLDEN = pathlib.Path(__file__).parents[1] / "tests" / "representations" / "encoders" / "golden"
# Odd, so that padding is not the same on both sides by accident.
TINY_SIDE = 41
CIFAR_SIDE = 16
# Makes images so flat that what a group norm adds to a variance is seen.
FAINT = 2.0**-12
REAL_SIDE = 64


def seeded(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a tensor that follows from its name, float32.

    Uniform numbers from the raw integers of PCG64, which NumPy guarantees not to change; scales as
    in a trained network: kernels by their fan-in, norms' factors and variances around 1.

    Args:
      name: of a tensor, under PyTorch's names.
      shape: of the tensor; kernels are (out, in, height, width).
    """
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    uniform = (raw >> np.uint64(40)).astype(np.float32).reshape(shape) / np.float32(2**23) - 1
    if len(shape) == 4:
        # A variance of 1 / fan-in: a ReLU's half is what keeps sums of residuals small.
        return uniform * np.float32(np.sqrt(3 / np.prod(shape[1:])))
    if name.endswith(("weight", "running_var")):
        return 1 + uniform / 2
    return uniform / 4


def images(side: int) -> np.ndarray:
    """Two images of a side, (2, side, side, 3) float32 in [-1, 1)."""
    return seeded(f"images of {side}", (2, side * side * 3)).reshape(2, side, side, 3) * 4


def google_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Writes timm's tensors of a ResNet v2 under the names of Google's files.

    As timm's own `_load_weights` reads them; kernels (height, width, in, out).
    """
    found = {}
    for name, tensor in tensors.items():
        value = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor
        found[f"resnet/{_google_name(name)}"] = value
    return found


def _google_name(name: str) -> str:
    kernel = "standardized_conv2d/kernel"
    *where, part = name.split(".")
    norm = f"group_norm/{'gamma' if part == 'weight' else 'beta'}"
    if where[0] == "stem":
        return f"root_block/{kernel}"
    if where[0] == "norm":
        return norm
    if where[0] == "head":
        return f"head/conv2d/{'kernel' if part == 'weight' else 'bias'}"
    _, stage, _, unit, *layer = where
    unit_name = f"block{int(stage) + 1}/unit{int(unit) + 1:02d}"
    if layer[0] == "downsample":
        return f"{unit_name}/a/proj/{kernel}"
    letter = "abc"[int(layer[0][-1]) - 1]
    return f"{unit_name}/{letter}/{norm if layer[0].startswith('norm') else kernel}"


def narrow_torchvision(block: Any, blocks: tuple[int, ...], width: int, *, cifar: bool) -> Any:
    """torchvision's network with a stem of `width` channels in place of 64, and no head."""
    import torchvision

    model = torchvision.models.ResNet(block, blocks)
    model.inplanes = width
    model.bn1 = _torch().nn.BatchNorm2d(width)
    for i, count in enumerate(blocks):
        stage = model._make_layer(block, width * 2**i, count, stride=2 if i else 1)
        setattr(model, f"layer{i + 1}", stage)
    model.conv1 = _torch().nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    if cifar:
        # As solo-learn changes it (`solo/methods/base.py`).
        model.conv1 = _torch().nn.Conv2d(3, width, 3, stride=1, padding=2, bias=False)
        model.maxpool = _torch().nn.Identity()
    model.fc = _torch().nn.Identity()
    return model


def narrow_timm() -> Any:
    """timm's BiT with two narrow stages and a head, which is not used."""
    import functools

    from timm.layers import GroupNormAct, StdConv2d
    from timm.models.resnetv2 import ResNetV2

    return ResNetV2(
        layers=(2, 1),
        channels=(64, 128),
        stem_chs=16,
        stem_type="fixed",
        num_classes=3,
        conv_layer=functools.partial(StdConv2d, eps=1e-8),
        norm_layer=functools.partial(GroupNormAct, num_groups=8),
    )


def _torch() -> Any:
    import torch

    return torch


def _randomise(model: Any) -> None:
    """Gives every tensor values that float16 holds exactly, so that files are half as large."""
    torch = _torch()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                values = seeded(f"tiny {name}", tuple(tensor.shape))
                tensor.copy_(torch.from_numpy(values).half())


def _seed_from_names(model: Any) -> None:
    torch = _torch()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.from_numpy(seeded(name, tuple(tensor.shape))))


def _outputs(model: Any, pixels: np.ndarray) -> np.ndarray:
    torch = _torch()
    model.eval()
    x = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        if hasattr(model, "forward_head"):
            return np.asarray(model.forward_head(model.forward_features(x), pre_logits=True))
        return np.asarray(model(x))


def _tensors(model: Any) -> dict[str, np.ndarray]:
    """Tensors in float16; counters as they are."""
    return {
        name: tensor.half().numpy() if tensor.is_floating_point() else tensor.numpy()
        for name, tensor in model.state_dict().items()
    }


def main(arguments: list[str]) -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args(arguments)
    """Writes the files."""
    import timm
    import torchvision
    from safetensors.numpy import save_file
    from torchvision.models.resnet import BasicBlock, Bottleneck

    _torch().set_num_threads(2)
    tiny = {
        "basic": (narrow_torchvision(BasicBlock, (2, 1, 1, 1), 4, cifar=False), TINY_SIDE),
        "cifar": (narrow_torchvision(BasicBlock, (1, 1, 1, 1), 4, cifar=True), CIFAR_SIDE),
        "bottleneck": (narrow_torchvision(Bottleneck, (2, 1, 1, 1), 4, cifar=False), TINY_SIDE),
        "bit": (narrow_timm(), TINY_SIDE),
    }
    expected = {}
    for name, (model, side) in tiny.items():
        _randomise(model)
        expected[name] = _outputs(model, images(side))
        if name == "bit":
            expected["bit_faint"] = _outputs(model, images(side) * FAINT)
        save_file(_tensors(model), GOLDEN / f"resnet_{name}.safetensors")
    real = {
        "resnet18": torchvision.models.resnet18(),
        "resnet50": torchvision.models.resnet50(),
        "resnetv2_50x1_bit": timm.create_model("resnetv2_50x1_bit", num_classes=0),
    }
    for name, model in real.items():
        _seed_from_names(model)
        if hasattr(model, "fc"):
            model.fc = _torch().nn.Identity()
        expected[name] = _outputs(model, images(REAL_SIDE))
    np.savez_compressed(GOLDEN / "resnet_expected.npz", allow_pickle=False, **expected)
    for name, values in expected.items():
        print(f"{name}: {values.shape}, largest {np.abs(values).max():.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
