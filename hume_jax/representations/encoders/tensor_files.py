"""Files of named tensors, in the formats that weights are published in.

Nothing in a file is executed: safetensors and NumPy's archives hold no code, and a PyTorch pickle
is read in the mode that only accepts tensors.
"""

import errno
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from hume_jax.errors import UserError
from hume_jax.representations.arrays import npz

_TORCH_SUFFIXES = (".pth", ".pt", ".tar", ".bin")
# Levels of a PyTorch checkpoint that hold the model beside an optimiser, a step count and the like.
_LEVELS = ("state_dict", "model")
# Names in a message.
_LISTED = 6
# What safetensors and PyTorch raise over a damaged file.
_DAMAGED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class TensorFile(Mapping[str, np.ndarray]):
    """The tensors of a file by name, each read when it is asked for; shapes are known before."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], load: Callable[[str], np.ndarray]
    ) -> None:
        """Takes the shape of every tensor, and what reads one of them."""
        self._shapes = dict(shapes)
        self._load = load

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads a tensor in the dtype it is stored in.

        Raises:
          UserError: the file is damaged there.
        """
        if name not in self._shapes:
            raise KeyError(name)
        return self._load(name)

    def __contains__(self, name: object) -> bool:
        """Whether there is such a tensor; unlike `Mapping`'s own, this does not read it."""
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        """Names in the file's order."""
        return iter(self._shapes)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._shapes[name]


def read(path: str | Path) -> TensorFile:
    """Opens a file of weights by its ending.

    Args:
      path: `.safetensors`; `.npz`; `.pth`, `.pt`, `.pth.tar` or `.bin` of PyTorch, of which a level
        `state_dict` or `model` is stepped into.

    Returns:
      Its tensors, float16, bfloat16, float32 or any other dtype it has.

    Raises:
      UserError: no such file, another ending, damaged or cut short, Python objects in it, or
        PyTorch is needed and not installed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise UserError(f"the weights {path}: this file {what}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    if needs_torch(path):
        return _read_torch(path)
    raise UserError(
        f"the weights {path}: files that end in '{path.suffix}' are not known; "
        "give .safetensors, .npz, .pth, .pt, .pth.tar or .bin"
    )


def needs_torch(name: str | Path) -> bool:
    """Whether a file of this name is PyTorch's."""
    return Path(name).suffix in _TORCH_SUFFIXES


def check_readable(name: str | Path) -> None:
    """Raises a `UserError` where a file of this name could not be read for want of PyTorch."""
    if needs_torch(name):
        _torch(name)


def _read_safetensors(path: Path) -> TensorFile:
    try:
        import safetensors
    except ModuleNotFoundError as error:
        raise UserError(
            f'reading {path} needs safetensors: pip install "hume_jax[images]"'
        ) from error

    try:
        file = safetensors.safe_open(path, framework="numpy")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise _damaged(path, error) from error

    def load(name: str) -> np.ndarray:
        try:
            return file.get_tensor(name)
        # TypeError, AttributeError: a dtype that NumPy does not have.
        except (safetensors.SafetensorError, OSError, TypeError, AttributeError) as error:
            raise _damaged(path, error) from error

    return TensorFile(shapes, load)


def _read_npz(path: Path) -> TensorFile:
    hint = "save every tensor as an array of numbers, np.savez(file, **tensors)"
    stored = {name: npz.find(path, name, hint) for name in npz.names(path)}

    def load(name: str) -> np.ndarray:
        array = stored[name].read()
        # NumPy writes bfloat16 as two bytes without a meaning; Google's files hold such arrays.
        return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array

    return TensorFile({name: array.shape for name, array in stored.items()}, load)


def _torch(path: str | Path) -> Any:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UserError(
            f'reading {path} needs PyTorch: pip install "hume_jax[torch]", or give the same '
            "weights as .safetensors"
        ) from error
    return torch


def _read_torch(path: Path) -> TensorFile:
    torch = _torch(path)
    tensors = _torch_tensors(path, torch)

    def load(name: str) -> np.ndarray:
        tensor = tensors[name].detach()
        try:
            # NumPy has no bfloat16 of its own, so PyTorch does not convert it.
            return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
        except (TypeError, RuntimeError) as error:
            raise _damaged(path, error) from error

    return TensorFile({name: tuple(tensor.shape) for name, tensor in tensors.items()}, load)


def _torch_tensors(path: Path, torch: Any) -> dict[str, Any]:
    """The named tensors of a PyTorch file, read in the mode that executes nothing."""
    import pickle  # Only for the name of the exception with which PyTorch refuses an object.

    mapped = zipfile.is_zipfile(path)
    # The oldest versions of PyTorch wrote such, which are read by pickle alone.
    if not mapped and tarfile.is_tarfile(path):
        raise UserError(f"the weights {path}: this is a tar archive, not a file of torch.save")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged or holds Python objects other than tensors, which are not read: "
            "save the model's state_dict alone, torch.save(model.state_dict(), file), or give the "
            "same weights as .safetensors"
        ) from error
    except _DAMAGED as error:
        raise _damaged(path, error) from error
    for level in _LEVELS:
        if isinstance(found, dict) and isinstance(found.get(level), dict):
            found = found[level]
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path} holds no tensors by name but a {type(found).__name__}")
    others = [str(name) for name, value in found.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise UserError(
            f"{path} holds values that are no tensors ({', '.join(others[:_LISTED])}): "
            "save the model's state_dict alone, torch.save(model.state_dict(), file)"
        )
    return {str(name): value for name, value in found.items()}


def _damaged(path: Path, error: BaseException) -> UserError:
    # EINVAL: a place to read from before the beginning, which only a file cut short can name.
    if isinstance(error, OSError) and error.strerror and error.errno != errno.EINVAL:
        return UserError(f"{path} cannot be read: {error.strerror}")
    # A library's message may be empty or a bare number, or long and quote the file.
    said = str(error)[:200]
    if not any(character.isalpha() for character in said):
        said = "not of its format"
    return UserError(f"{path} is damaged or cut short ({said}): get the file anew")
