"""Encoders by name: 'PRESET' or 'PRESET:option=value,option=value'.

dinov2_vits14                                   the published weights, from the Hugging Face Hub
dinov2_vits14:weights=FILE,size=98,unit_norm    a file of this machine, crops of 98 pixels
clip_vit_l14:weights=OWNER/REPO@REVISION        another repository
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from hume_jax.config_checks import suggest
from hume_jax.errors import UserError
from hume_jax.representations.encoders import hub, tensor_files, weights
from hume_jax.representations.encoders.hub import Fetched
from hume_jax.representations.encoders.published import PRESETS as PRESETS
from hume_jax.representations.encoders.published import Preset as Preset
from hume_jax.representations.encoders.published import Weights as Weights
from hume_jax.representations.encoders.resnet import ResNet
from hume_jax.representations.encoders.vit import ViT
from hume_jax.representations.images.preprocess import Preprocessing

OPTIONS = ("weights", "sha256", "size", "output", "unit_norm", "compute")
_COMPUTE = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_BOOLEANS = {"true": True, "false": False}
# Where the weights file of a repository is not known.
_FILENAME = "model.safetensors"
# OWNER/REPO[@REVISION].
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)
_WEB = ("https://", "http://")
# Of files, which no repository's name ends in.
_SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".tar", ".bin", ".ckpt")


class Encoder(NamedTuple):
    """What a spec stands for."""

    spec: str
    model: nn.Module
    preset: Preset
    preprocessing: Preprocessing
    weights: str  # a file, OWNER/REPO[@REVISION] or a URL; '' if none was given or published
    sha256: str | None  # what the file must have
    unit_norm: bool


def parse(spec: str) -> Encoder:
    """Reads the spec of an encoder.

    Args:
      spec: a preset's name, and after a colon any of these, separated by commas:
        `weights=FILE`, `weights=OWNER/REPO[@REVISION]` or `weights=URL` (which needs PyTorch)
        instead of the published ones; `sha256=DIGITS` of the file; `size=PIXELS`, the side of the
        crop, with which the resize scales; `output=...`, one of the preset's; `unit_norm`, rows of
        norm 1; `compute=bfloat16`, products in less precision.

    Raises:
      UserError: an unknown preset, option or value, with the nearest name.
    """
    name, _, rest = spec.strip().partition(":")
    if name not in PRESETS:
        raise UserError(
            f"encoder {spec!r}: there is no preset {name!r}, known are {', '.join(PRESETS)}"
            f"{suggest(name, PRESETS)}"
        )
    preset = PRESETS[name]()
    options = _options(spec, rest)
    preprocessing = preset.preprocessing
    fields: dict[str, Any] = {}
    if "size" in options:
        size = _size(spec, options["size"], preset.model)
        preprocessing = preprocessing.at(size)
        if isinstance(preset.model, ViT):
            fields["size"] = size
    if "output" in options:
        fields["output"] = _choice(spec, options, "output", {o: o for o in preset.outputs})
    if "compute" in options:
        fields["dtype"] = _choice(spec, options, "compute", _COMPUTE)
    where, sha256 = _weights(spec, options, preset.weights)
    unit_norm = _choice(spec, options, "unit_norm", _BOOLEANS) if "unit_norm" in options else False
    model = preset.model.clone(**fields)
    return Encoder(spec, model, preset, preprocessing, where, sha256, unit_norm)


def load(encoder: Encoder) -> tuple[dict[str, Any], Fetched]:
    """Gets an encoder's weights and builds its parameters.

    Returns:
      The parameters, float32, and the file they are from.

    Raises:
      UserError: no weights (what to download from where, its licence, and how to give the file),
        the Hub's, see `hub.fetch`; a file that is not the required one, or of another model.
    """
    fetched = _fetch(encoder)
    if encoder.sha256 is not None and fetched.sha256 != encoder.sha256:
        raise UserError(
            f"encoder {encoder.spec!r}: {fetched.path} is not the file that is asked for: its "
            f"SHA-256 is {fetched.sha256}, not {encoder.sha256}; get it anew, or correct sha256"
        )
    where = f"encoder {encoder.spec!r}: {fetched.path}"
    try:
        tensors = weights.read(fetched.path)
    except UserError as error:
        raise UserError(f"encoder {encoder.spec!r}: {error}") from error
    try:
        rules = encoder.preset.rules(encoder.model, list(tensors))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return weights.assemble(rules, tensors, where=where, ignored=encoder.preset.ignored), fetched


def meaning(encoder: Encoder) -> str:
    """Returns what an encoder computes, the same text however its spec is written.

    Not of which bytes the weights are, nor how images are prepared. Weights of the Hub are named; a
    file may lie anywhere.
    """
    model = encoder.model
    options = {
        "weights": "" if _is_file(encoder.weights) else encoder.weights,
        "output": getattr(model, "output", ""),
        "unit_norm": str(encoder.unit_norm).lower(),
        "compute": jnp.dtype(getattr(model, "dtype", jnp.float32)).name,
    }
    given = [f"{name}={value}" for name, value in options.items() if value]
    return f"{_name(encoder)}:{','.join(given)}"


def slug(encoder: Encoder) -> str:
    """Returns a file name for an encoder: the preset, and a digest if it has options."""
    if ":" not in encoder.spec:
        return _name(encoder)
    where = Path(encoder.weights).expanduser().resolve() if _is_file(encoder.weights) else ""
    text = f"{meaning(encoder)} {encoder.preprocessing.crop} {where}"
    return f"{_name(encoder)}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def licence(encoder: Encoder) -> str | None:
    """Returns the licence of an encoder's weights, None of those that are the user's own choice."""
    published = encoder.preset.weights
    return published.licence if encoder.weights == _place(published) else None


def _name(encoder: Encoder) -> str:
    return encoder.spec.partition(":")[0].strip()


def width(encoder: Encoder) -> int:
    """Returns the number of columns of an encoder's output, without running it."""
    return _columns(encoder.model, encoder.preprocessing.crop)


def features(encoder: Encoder, params: Mapping[str, Any], pixels: jax.Array) -> jax.Array:
    """Encodes images; pure, to be jitted.

    Args:
      encoder: as parsed.
      params: as loaded.
      pixels: (b, s, s, 3) uint8, crops by `encoder.preprocessing`.

    Returns:
      (b, d) float32; rows of norm 1 with `unit_norm`, except those that are zero.
    """
    mean, std = (
        jnp.asarray(values, jnp.float32)[None, None, None]
        for values in (encoder.preprocessing.mean, encoder.preprocessing.std)
    )
    images = (pixels.astype(jnp.float32) / 255 - mean) / std
    rows = jnp.asarray(encoder.model.apply({"params": params}, images))
    if not encoder.unit_norm:
        return rows
    norm = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.where(norm > 0, norm, 1.0)


def describe() -> str:
    """Returns a table of the presets in Markdown."""
    lines = [
        "| preset | columns | crop | weights | licence | state |",
        "|---|---|---|---|---|---|",
    ]
    for name, make in PRESETS.items():
        preset = make()
        published, crop = preset.weights, preset.preprocessing.crop
        cells = (
            f"`{name}`",
            str(_columns(preset.model, crop)),
            f"{crop} px",
            _table_entry(published),
            published.licence,
            _state(published),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _table_entry(published: Weights) -> str:
    place = _place(published, digits=7)
    if place and tensor_files.needs_torch(published.filename or place):
        return f"{place} (extra `torch`)"
    return place or "none, give your own"


def _state(published: Weights) -> str:
    if published.run:
        return f"weights run, as published in {published.source}"
    return f"names checked against {published.source}, weights not run"


def _options(spec: str, text: str) -> dict[str, str]:
    options: dict[str, str] = {}
    # A comma in a file's name does not stand before `word=` or a bare word.
    for part in re.split(r",(?=\s*\w+\s*(?:=|,|$))", text) if text else ():
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name not in OPTIONS:
            raise UserError(
                f"encoder {spec!r}: there is no option {name!r}, known are {', '.join(OPTIONS)}"
                f"{suggest(name, OPTIONS)}"
            )
        if name in options:
            raise UserError(f"encoder {spec!r}: option {name!r} is given twice")
        if name == "unit_norm" and not equals:
            value = "true"
        if not value:
            raise UserError(f"encoder {spec!r}: option {name!r} has no value, {name}=VALUE")
        options[name] = value
    return options


def _choice(spec: str, options: Mapping[str, str], name: str, values: Mapping[str, Any]) -> Any:
    value = options[name]
    if value not in values:
        raise UserError(
            f"encoder {spec!r}: option {name!r} is {value!r}, it must be one of "
            f"{', '.join(values)}{suggest(value, values)}"
        )
    return values[value]


def _size(spec: str, text: str, model: nn.Module) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise UserError(f"encoder {spec!r}: option 'size' is {text!r}, it must be pixels, size=98")
    size = int(text)
    if isinstance(model, ViT):
        try:
            model.clone(size=size).positions  # noqa: B018
        except UserError as error:
            raise UserError(f"encoder {spec!r}: {error}") from error
    return size


def _weights(spec: str, options: Mapping[str, str], published: Weights) -> tuple[str, str | None]:
    """The weights of a spec and the hash that their file must have."""
    place = _place(published)
    where = options.get("weights", place)
    # The published hash belongs to the published file.
    sha256 = published.sha256 if where == place else None
    if "sha256" in options:
        sha256 = options["sha256"].lower()
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise UserError(
                f"encoder {spec!r}: option 'sha256' is {options['sha256']!r}, it must be 64 "
                "hexadecimal digits, as `sha256sum FILE` prints"
            )
    return where, sha256


def _place(published: Weights, digits: int = 40) -> str:
    """The published weights as a spec names them, '' if there are none."""
    if published.repo is None or published.revision is None:
        return published.repo or published.url or ""
    return f"{published.repo}@{published.revision[:digits]}"


def _fetch(encoder: Encoder) -> Fetched:
    where = encoder.weights
    if not where:
        raise UserError(f"encoder {encoder.spec!r} comes without weights: {_advice(encoder)}")
    if where.startswith(_WEB):
        _check_readable(encoder, where)
        return _download(encoder)
    if _is_file(where):
        try:
            return hub.local(where)
        except UserError as error:
            # A file that is there and cannot be read is not got by a download.
            advice = "" if Path(where).expanduser().exists() else f"; {_advice(encoder)}"
            raise UserError(f"encoder {encoder.spec!r}: {error}{advice}") from error
    repo, _, revision = where.partition("@")
    published = encoder.preset.weights
    filename = (published.filename if repo == published.repo else None) or _FILENAME
    _check_readable(encoder, filename)
    try:
        fetched = hub.fetch(repo, filename, revision or None)
    except UserError as error:
        raise UserError(f"encoder {encoder.spec!r}: {error}; {_advice(encoder)}") from error
    if hub.COMMIT.fullmatch(revision) and fetched.commit != revision:
        raise UserError(
            f"encoder {encoder.spec!r}: {fetched.path} is of commit {fetched.commit}, not of the "
            f"required {revision}: delete it and download it anew"
        )
    return fetched


def _check_readable(encoder: Encoder, name: str) -> None:
    """Raises a `UserError` where a file could not be read here, before it is downloaded."""
    try:
        tensor_files.check_readable(name)
    except UserError as error:
        raise UserError(
            f"encoder {encoder.spec!r}: {error}; `python -m hume_jax.encode --list` names encoders "
            "that do not need it"
        ) from error


def _download(encoder: Encoder) -> Fetched:
    """Gets weights that are not on the Hub."""
    published = encoder.preset.weights
    md5 = published.md5 if encoder.weights == published.url else ""
    try:
        return hub.download(encoder.weights, md5=md5, licence=licence(encoder) or "not known")
    except UserError as error:
        raise UserError(f"encoder {encoder.spec!r}: {error}; {_advice(encoder)}") from error


def _is_file(where: str) -> bool:
    """Tells a path from the name of a repository: it is there, or it can be nothing else."""
    if not where or where.startswith(_WEB):
        return False
    path = Path(where).expanduser()
    return path.exists() or path.suffix in _SUFFIXES or not _REPOSITORY.fullmatch(where)


def _advice(encoder: Encoder) -> str:
    """What to do about weights that are not there."""
    published = encoder.preset.weights
    spec = _with_file(encoder)
    if encoder.weights not in ("", _place(published)) and not _is_file(encoder.weights):
        return f"check the name, or give a file, {spec}"
    places = []
    if published.repo is not None:
        page = f"https://huggingface.co/{published.repo}/resolve/{published.revision or 'main'}"
        places.append(f"{page}/{published.filename}")
    if published.url is not None:
        places.append(published.url)
    if not places:
        return f"none are published ({published.source}), give a file of your own, {spec}"
    return (
        f"download {' or '.join(places)} (licence: {published.licence}) and give the file, {spec}"
    )


def _with_file(encoder: Encoder) -> str:
    """The spec of the same encoder with weights from a file."""
    options = _options(encoder.spec, encoder.spec.partition(":")[2])
    others = [
        name if name == "unit_norm" and value == "true" else f"{name}={value}"
        for name, value in options.items()
        if name not in ("weights", "sha256")
    ]
    return f"{_name(encoder)}:{','.join(['weights=FILE', *others])}"


def _columns(model: nn.Module, size: int) -> int:
    """Columns of a model's output, which do not depend on its depth."""
    if isinstance(model, ViT):
        model = model.clone(depth=1)
    elif isinstance(model, ResNet):
        model = model.clone(blocks=(1,) * len(model.blocks))
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    rows, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    return int(rows.shape[1])
