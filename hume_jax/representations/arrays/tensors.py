"""Tensors in `.safetensors` files, memory-mapped.

The library checks the header (sizes, overlaps, gaps, that it covers the file); where a tensor lies
is then read from the header itself, because the library can only copy.
"""

import json
from pathlib import Path

import numpy as np

from hume_jax.errors import UserError
from hume_jax.representations.arrays.stored import Stored, choose, reason

_LENGTH_BYTES = 8
_DTYPES = {
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "I8": "<i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "U8": "<u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
    "BOOL": "?",
}


def find(file: Path, member: str, hint: str) -> Stored:
    """Memory-maps a tensor of a .safetensors file.

    bfloat16 stays bfloat16 in the file and becomes float32 block by block, as float16 does.

    Args:
      file: the file.
      member: name of the tensor, '' for the only one.
      hint: not needed: the format holds only numbers.

    Raises:
      UserError: no such file or tensor, a damaged or cut header, or a dtype that NumPy lacks.
    """
    del hint
    names = _checked_names(file)
    chosen = choose(str(file), member, names, "tensor")
    name = f"{file}:{chosen}" if member else str(file)
    with open(file, "rb") as content:
        length = int.from_bytes(content.read(_LENGTH_BYTES), "little")
        entry = json.loads(content.read(length))[chosen]
    dtype = _dtype(name, entry["dtype"])
    shape = tuple(entry["shape"])
    if 0 in shape:
        raise UserError(f"{name} is empty: its shape is {shape}")
    offset = _LENGTH_BYTES + length + entry["data_offsets"][0]
    array = np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=shape)
    return Stored(name, shape, dtype, lambda: array)


def _checked_names(file: Path) -> list[str]:
    """Names of all tensors of a file that the library finds to be sound."""
    try:
        import safetensors
    except ImportError as error:
        raise UserError(
            f'{file} needs safetensors to be read: pip install "hume_jax[arrays]"'
        ) from error
    try:
        with safetensors.safe_open(file, framework="numpy") as content:
            return sorted(content.keys())
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    except (safetensors.SafetensorError, ValueError, MemoryError) as error:
        raise UserError(
            f"{file} is not a .safetensors file, or it is damaged: {reason(error)}"
        ) from error


def _dtype(name: str, stored: str) -> np.dtype:
    if stored == "BF16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    if stored not in _DTYPES:
        raise UserError(f"{name} has dtype {stored}: save it as F16 or F32")
    return np.dtype(_DTYPES[stored])
