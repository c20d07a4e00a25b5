"""Files of weights: every format, every tensor accounted for, damaged and hostile ones named."""

import io
import pathlib
import struct
import sys
import types
import zipfile
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from hume_jax.errors import UserError
from hume_jax.representations.encoders import weights
from hume_jax.representations.encoders.tensor_files import TensorFile
from hume_jax.representations.encoders.weights import Rule

TENSORS = {
    "stem.weight": np.arange(12, dtype=np.float32).reshape(3, 4) / 8,
    "stem.bias": np.array([1.5, -2, 0.25], np.float32),
}
RULES = {
    "stem/kernel": Rule(("stem.weight",), ((3, 4),), np.transpose),
    "stem/bias": Rule(("stem.bias",), ((3,),), np.asarray),
}
# All of these values are the same in every one of them.
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]


def check(params: dict[str, Any]) -> None:
    """Compares with what `RULES` make of `TENSORS`."""
    assert set(params) == {"stem"}
    kernel, bias = params["stem"]["kernel"], params["stem"]["bias"]
    assert kernel.dtype == bias.dtype == np.float32
    np.testing.assert_array_equal(kernel, TENSORS["stem.weight"].T)
    np.testing.assert_array_equal(bias, TENSORS["stem.bias"])


def message(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("weights")


@pytest.mark.parametrize("dtype", DTYPES)
def test_safetensors_of_every_float_become_float32_parameters(
    tmp_path: pathlib.Path, dtype: Any
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({name: value.astype(dtype) for name, value in TENSORS.items()}, path)
    file = weights.read(path)
    assert set(file) == set(TENSORS)
    assert file.shape("stem.weight") == (3, 4)
    assert file["stem.bias"].dtype == dtype
    check(weights.assemble(RULES, file, where="FILE"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_flat_names_of_levels_becomes_parameters(
    tmp_path: pathlib.Path, save: Callable[..., None], dtype: Any
) -> None:
    path = tmp_path / "model.npz"
    names = {"stem.weight": "img/stem/weight", "stem.bias": "img/stem/bias"}
    save(path, **{names[name]: value.astype(dtype) for name, value in TENSORS.items()})
    file = weights.read(path)
    assert set(file) == set(names.values())
    # Compressed float64 is read as what it becomes in any case.
    assert file["img/stem/bias"].dtype in (dtype, np.float32)
    rules = {
        key: rule._replace(names=tuple(names[name] for name in rule.names))
        for key, rule in RULES.items()
    }
    check(weights.assemble(rules, file, where="FILE"))


def test_fortran_order_in_an_npz_is_read_as_the_same_array(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "model.npz", **{n: np.asfortranarray(v) for n, v in TENSORS.items()})
    check(weights.assemble(RULES, weights.read(tmp_path / "model.npz"), where="FILE"))


def test_without_pytorch_its_files_name_the_extra(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("model.pth", "model.pt", "model.pth.tar", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(b"whatever")
        text = message(lambda name=name: weights.read(tmp_path / name))
        assert str(tmp_path / name) in text
        assert 'pip install "hume_jax[torch]"' in text


def test_without_safetensors_its_files_name_the_extra(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"whatever")
    assert 'pip install "hume_jax[images]"' in message(lambda: weights.read(path))


@pytest.mark.parametrize("level", ["", "state_dict", "model"])
@pytest.mark.parametrize("old_format", [False, True])
def test_pytorch_files_are_read_down_to_the_model(
    tmp_path: pathlib.Path, level: str, old_format: bool
) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensors = {name: torch.from_numpy(value) for name, value in TENSORS.items()}
    tensors["stem.bias"] = tensors["stem.bias"].bfloat16()
    content = {level: tensors, "epoch": 200, "optimizer": {"lr": 0.03}} if level else tensors
    path = tmp_path / "model.pth.tar"
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    check(weights.assemble(RULES, weights.read(path), where="FILE"))


def test_pytorch_files_with_objects_are_refused_unread(tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    path = tmp_path / "model.pth"
    torch.save({"stem.weight": pathlib.PurePosixPath("object")}, path)
    text = message(lambda: weights.read(path))
    assert str(path) in text
    assert "Python objects other than tensors, which are not read" in text
    torch.save({"stem.weight": "text"}, path)
    assert "values that are no tensors (stem.weight)" in message(lambda: weights.read(path))
    torch.save([1, 2], path)
    assert "holds no tensors by name but a list" in message(lambda: weights.read(path))


def test_damaged_pytorch_files_are_named(tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    path = tmp_path / "model.pth"
    torch.save({name: torch.from_numpy(value) for name, value in TENSORS.items()}, path)
    whole = path.read_bytes()
    cut = [whole[:end] for end in (0, 1, 10, len(whole) // 2, -10, -1)]
    for content in (*cut, b"in plain words"):
        path.write_bytes(content)
        text = message(lambda: weights.read(path))
        assert str(path) in text
        assert "damaged" in text


def test_missing_unexpected_and_misshapen_are_listed_in_one_message() -> None:
    tensors = {"stem.weight": np.zeros((4, 3)), "fc.weight": np.zeros(2), "queue": np.zeros(1)}
    text = message(
        lambda: weights.assemble(RULES, tensors, where="a/b.npz", ignored=("que", r"queue\d*"))
    )
    assert text.startswith("a/b.npz does not fit this model")
    assert "1 missing: stem.bias" in text
    assert "1 unexpected: fc.weight" in text
    assert "1 of another shape: stem.weight (4, 3) instead of (3, 4)" in text
    assert "queue" not in text


def test_a_name_is_ignored_only_as_a_whole() -> None:
    tensors = TENSORS | {"head.weight": np.zeros(2)}
    check(weights.assemble(RULES, tensors, where="FILE", ignored=("head.*",)))
    for pattern in ("head", "weight", "ead.weight"):
        with pytest.raises(UserError, match=r"1 unexpected: head\.weight"):
            weights.assemble(RULES, tensors, where="FILE", ignored=(pattern,))


def test_long_lists_are_counted() -> None:
    tensors = TENSORS | {f"extra{i:02d}": np.zeros(1) for i in range(50)}
    text = message(lambda: weights.assemble(RULES, tensors, where="FILE"))
    assert "50 unexpected: extra00, extra01, extra02, extra03, extra04, extra05 and 44 more" in text


@pytest.mark.parametrize("shape", [(3, 5), (3,), (3, 4, 1), (0, 4), (4, 3)])
def test_any_size_stands_for_one_size_only(shape: tuple[int, ...]) -> None:
    rules = RULES | {"table": Rule(("table",), ((3, -1),), np.asarray)}
    tensors = TENSORS | {"table": np.ones(shape, np.float32)}
    if shape == (3, 5):
        params = weights.assemble(rules, tensors, where="FILE")
        assert params["table"].shape == shape
    else:
        with pytest.raises(UserError, match="1 of another shape: table"):
            weights.assemble(rules, tensors, where="FILE")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_as_float32_are_named(value: float) -> None:
    tensors = TENSORS | {"stem.bias": np.array([1, value, 2])}
    text = message(lambda: weights.assemble(RULES, tensors, where="FILE"))
    assert "1 not finite: stem.bias" in text
    assert text.startswith("FILE is damaged")
    assert text.endswith("Get the file anew")


@pytest.mark.parametrize("dtype", [np.int64, bool, ml_dtypes.float8_e4m3fn, np.complex64])
def test_what_is_not_floating_point_is_named(dtype: Any) -> None:
    tensors = TENSORS | {"stem.bias": np.ones(3).astype(dtype)}
    text = message(lambda: weights.assemble(RULES, tensors, where="FILE"))
    assert f"1 not floating-point: stem.bias ({np.dtype(dtype).name})" in text


def test_what_a_rule_finds_wrong_is_said_of_the_file() -> None:
    def refuse(_: np.ndarray) -> np.ndarray:
        raise UserError("is no table")

    rules = RULES | {"stem/bias": Rule(("stem.bias",), ((3,),), refuse)}
    text = message(lambda: weights.assemble(rules, TENSORS, where="FILE"))
    assert text == "FILE, stem.bias: is no table"


def test_nothing_is_read_where_a_shape_is_wrong() -> None:
    def load(name: str) -> np.ndarray:
        raise AssertionError(name)

    file = TensorFile({"stem.weight": (3, 4), "stem.bias": (10**9, 10**9)}, load)
    text = message(lambda: weights.assemble(RULES, file, where="FILE"))
    assert "stem.bias (1000000000, 1000000000) instead of (3,)" in text


def test_files_that_are_not_there_or_of_another_kind_are_named(tmp_path: pathlib.Path) -> None:
    assert "is not there" in message(lambda: weights.read(tmp_path / "none.npz"))
    assert "is a folder" in message(lambda: weights.read(tmp_path))
    for name in ("model.h5", "model"):
        (tmp_path / name).write_bytes(b"")
        text = message(lambda name=name: weights.read(tmp_path / name))
        assert str(tmp_path / name) in text
        assert ".safetensors, .npz, .pth" in text


def safetensors_bytes(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234",
        safetensors_bytes(b"{}", length=2**63),
        safetensors_bytes(b"{}", length=200),
        safetensors_bytes(b"[" * 10_000),
        safetensors_bytes(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(4)),
        safetensors_bytes(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}', bytes(16)),
        safetensors_bytes(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}', bytes(8)),
        safetensors_bytes(b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', bytes(8)),
        safetensors_bytes(b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', bytes(8)),
        safetensors_bytes(
            b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'
        ),
        safetensors_bytes(b'{"a":{"dtype":"OBJ","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    ],
)
def test_damaged_or_hostile_safetensors_are_named(tmp_path: pathlib.Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    text = message(lambda: weights.read(path))
    assert str(path) in text
    assert "damaged or cut short" in text


def test_a_safetensors_dtype_that_numpy_lacks_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.safetensors"
    header = b'{"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}'
    path.write_bytes(safetensors_bytes(header, bytes(2)))
    rules = {"a": Rule(("a",), ((4,),), np.asarray)}
    text = message(lambda: weights.assemble(rules, weights.read(path), where=str(path)))
    assert str(path) in text


def test_pytorch_is_told_to_execute_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not it is installed; with it, files that would execute code are tried above."""
    asked: dict[str, Any] = {}
    tensor = types.SimpleNamespace(shape=(3,))

    def load(path: pathlib.Path, **options: Any) -> dict[str, Any]:
        asked.update(options)
        return {"stem.bias": tensor}

    torch = types.SimpleNamespace(load=load, Tensor=types.SimpleNamespace)
    monkeypatch.setitem(sys.modules, "torch", torch)
    (tmp_path / "model.pth").write_bytes(b"")
    assert list(weights.read(tmp_path / "model.pth")) == ["stem.bias"]
    assert asked["weights_only"] is True


def test_objects_in_an_npz_are_refused_unread(
    tmp_path: pathlib.Path, save_objects: Callable[[pathlib.Path, tuple[int, ...]], None]
) -> None:
    save_objects(tmp_path / "objects.npy", (3,))
    path = tmp_path / "model.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tmp_path / "objects.npy", "stem.bias.npy")
    text = message(lambda: weights.read(path))
    assert str(path) in text
    assert "stem.bias holds Python objects (dtype object), not numbers: save every tensor" in text


def npy_bytes(shape: str, descr: str = "'<f4'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


@pytest.mark.parametrize(
    "member",
    [
        b"",
        b"no array",
        npy_bytes("(3,)"),
        npy_bytes("(3,)") + bytes(8),
        npy_bytes("(3,)") + bytes(16),
        npy_bytes("(-1, -3)") + bytes(12),
        npy_bytes("(1000000000000, 1000000000000)"),
        npy_bytes("(3"),
        npy_bytes("__import__('os').getcwd()"),
        npy_bytes("(3,)", "'nonsense'") + bytes(12),
        npy_bytes("(3,)", "[('a', '<f4', (1000000000,))]") + bytes(12),
        b"\x93NUMPY\x03\x00" + bytes(20),
    ],
)
def test_damaged_or_hostile_npz_are_named(tmp_path: pathlib.Path, member: bytes) -> None:
    path = tmp_path / "model.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("stem.bias.npy", member)
    assert str(path) in message(lambda: weights.read(path))


def test_an_archive_whose_sizes_lie_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("stem.bias.npy", npy_bytes("(1000,)") + bytes(4000))
    content = path.read_bytes()
    # Both lengths of the local header and of the directory say less than there is, or more.
    for lie in (100, 2**31 - 1):
        found = content.replace(struct.pack("<I", len(npy_bytes("(1000,)")) + 4000), b"LIE!")
        path.write_bytes(found.replace(b"LIE!", struct.pack("<I", lie)))
        assert str(path) in message(lambda: weights.read(path))


def complaint(path: pathlib.Path, content: bytes) -> str:
    """What is said of a file; '' if it is read to its end."""
    path.write_bytes(content)
    try:
        weights.assemble(RULES, weights.read(path), where=str(path))
    except UserError as error:
        return str(error)
    return ""


def whole(kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "npz":
        np.savez_compressed(stream, **TENSORS)  # type: ignore[arg-type]
        return stream.getvalue()
    shapes = {"stem.weight": [3, 4], "stem.bias": [3]}
    offset, entries, data = 0, [], b""
    for name, shape in shapes.items():
        end = offset + TENSORS[name].nbytes
        entries.append(
            f'"{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{offset},{end}]}}'
        )
        offset, data = end, data + TENSORS[name].tobytes()
    return safetensors_bytes(f"{{{','.join(entries)}}}".encode(), data)


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_the_file_that_is_corrupted_below_is_read_whole(folder: pathlib.Path, kind: str) -> None:
    path = folder / f"whole.{kind}"
    path.write_bytes(whole(kind))
    check(weights.assemble(RULES, weights.read(path), where="FILE"))


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
@hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
@hypothesis.given(data=st.data())
def test_a_corrupted_file_is_read_or_named(
    folder: pathlib.Path, kind: str, data: st.DataObject
) -> None:
    content = bytearray(whole(kind))
    for _ in range(data.draw(st.integers(0, 4), "bytes changed")):
        where = data.draw(st.integers(0, len(content) - 1), "position")
        content[where] = data.draw(st.integers(0, 255), "byte")
    end = data.draw(st.integers(0, len(content)) | st.just(len(content)), "length")
    start = data.draw(st.just(0) | st.integers(0, 3), "first byte")
    path = folder / f"corrupted.{kind}"
    said = complaint(path, bytes(content[start:end]))
    assert not said or str(path) in said
