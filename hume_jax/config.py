"""Config files: find them, load them, fill in the preset, check every value.

A config file defines `get_config(arg="")` and starts from the fields of `configs/common.py`:

    from hume_jax.config import common

Fields that a preset fills are `None` until `resolve`; whatever a file or a flag sets wins over it.
"""

import contextlib
import functools
import hashlib
import importlib.util
import inspect
import itertools
import json
import re
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from hume_jax import config_checks
from hume_jax.errors import UserError

PACKAGE = Path(__file__).resolve().parent

# One field holds either one path or several; this is its type for `ml_collections`.
PATHS = (str, tuple)

_FIELD_FLAG = re.compile(r"--(no)?config\.(?P<name>[^=]+)(=.*)?", re.DOTALL)

# The types of `class_prior` and of `n_classes`: numbers, or a word.
PRIOR = (tuple, str)
NUMBER = (int, str)

# Fields that say how fast a run is, what it tells and what it keeps meanwhile; but for rounding
# they change nothing of what it finds.
SPEED = (
    "encode.batch",
    "encode.threads",
    "mesh.task",
    "mesh.data",
    "report",
    "log_every",
    "checkpoint_seconds",
)


class _PathsParser(flags.ArgumentParser):
    """Reads `a.npy` as one path and `('a.npy','b.npy')` as several."""

    def parse(self, argument: Any) -> str | tuple[str, ...]:
        if isinstance(argument, str) and argument[:1] in ("(", "["):
            return tuple(config_flags.tuple_parser.TupleParser().parse(argument))
        return argument

    def flag_type(self) -> str:
        return "path or tuple of paths"


class _NumberParser(flags.ArgumentParser):
    """Reads `10` as a number and `auto` as the word."""

    def parse(self, argument: Any) -> int | str:
        return argument if argument == config_checks.AUTO else int(argument)

    def flag_type(self) -> str:
        return "whole number or auto"


# Without a parser of its own the field would be a boolean flag to absl, and `--field a.npy`, with a
# space, would be read as `True`.
config_flags.register_flag_parser_for_type(PATHS, _PathsParser())
config_flags.register_flag_parser_for_type(PRIOR, _PathsParser())
config_flags.register_flag_parser_for_type(NUMBER, _NumberParser())


def __getattr__(name: str) -> types.ModuleType:
    """Gives `common`, the module of `configs/common.py`, loaded when it is first asked for."""
    if name == "common":
        return _common()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _common() -> types.ModuleType:
    return _load_module(config_folder() / "common.py", "hume_jax_configs_common")


def config_folder() -> Path:
    """Returns the folder of the configs that come with the package.

    In a wheel that is `hume_jax/configs`, in a checkout `configs` next to the package.
    """
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def locate(path: str) -> Path:
    """Finds a config file.

    Args:
      path: as typed, without the part after a colon, e.g. `configs/stl10.py`.

    Returns:
      The file at `path` seen from the current folder, or else the file of that name among the
      configs that come with the package (only for `NAME.py` and `configs/NAME.py`).

    Raises:
      UserError: there is no such file.
    """
    asked = Path(path).expanduser()
    if asked.is_file():
        return asked.resolve()
    folder = config_folder()
    if asked.parent in (Path("."), Path("configs")) and (folder / asked.name).is_file():
        return folder / asked.name
    # Of stems, since `configs/` and `.py` alone would make any two names alike.
    near = config_checks.nearest(asked.stem, (Path(name).stem for name in names()))
    hint = f"; did you mean 'configs/{near}.py'?" if near else ""
    raise UserError(
        f"config file not found: {path} (looked in {Path.cwd()} and {folder}){hint}; "
        f"the package has {', '.join(names())}"
    )


def names() -> list[str]:
    """Returns the configs that come with the package, as `configs/NAME.py`."""
    files = sorted(config_folder().glob("*.py"))
    # What starts with an underscore is Python's own.
    return [f"configs/{f.name}" for f in files if f.name != "common.py" and f.name[0] != "_"]


def load(spec: str) -> config_dict.ConfigDict:
    """Loads a config as `--config` names it.

    Args:
      spec: `FILE.py` or `FILE.py:variant`.

    Returns:
      What the file's `get_config` returns, locked, presets not yet filled in.

    Raises:
      UserError: no such file, or it fails, or it knows no such variant.
    """
    name, colon, variant = spec.partition(":")
    path = locate(name)
    with _its_errors(path):
        module = _load_module(path, "hume_jax_config_file")
        if not hasattr(module, "get_config"):
            raise UserError(f"{path} defines no function get_config")
        config = module.get_config(variant) if colon else module.get_config()
    if not isinstance(config, config_dict.ConfigDict):
        raise UserError(f"{path}: get_config returns {type(config).__name__}, not a ConfigDict")
    return config.lock()


def load_resolved(spec: str, fields: Sequence[str] = ()) -> config_dict.ConfigDict:
    """Loads a config and sets fields of it as the flags of `hume_jax.main` do.

    Args:
      spec: `FILE.py` or `FILE.py:variant`.
      fields: `--config.FIELD=VALUE` each.

    Returns:
      The resolved config.

    Raises:
      UserError: no such config or field, or a value out of range.
    """
    config = load(spec)
    for field in fields:
        match = _FIELD_FLAG.fullmatch(field)
        if not match:
            raise UserError(f"{field!r} is not of the form --config.FIELD=VALUE")
        check_field(match["name"], config)
    values, argv = flags.FlagValues(), ["", *fields]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except flags.Error as error:
        raise UserError(str(error)) from error
    return resolve(values["config"].value)


def load_sweep(spec: str) -> list[dict[str, Any]]:
    """Loads the settings that a config file's `sweep()` lists.

    Args:
      spec: `FILE.py` or `FILE.py:variant`; a `sweep` that takes an argument is given the variant.

    Returns:
      Fields and values of each setting, in the file's order.

    Raises:
      UserError: no such file or function, or what it returns is no list of mappings.
    """
    name, colon, variant = spec.partition(":")
    path = locate(name)
    with _its_errors(path):
        module = _load_module(path, "hume_jax_config_file")
        if not hasattr(module, "sweep"):
            raise UserError(f"{path} defines no function sweep, which lists the settings to run")
        takes = colon and inspect.signature(module.sweep).parameters
        settings = list(module.sweep(variant) if takes else module.sweep())
    if not settings or not all(isinstance(setting, Mapping) for setting in settings):
        raise UserError(
            f"{path}: sweep must return mappings of config fields to values, at least one"
        )
    return [dict(setting) for setting in settings]


def product(fields: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All combinations of values, for a `sweep()`.

    `product({"inner.adjoint": ("implicit", "first_order"), "seed": range(3)})` gives six settings.
    """
    return [
        dict(zip(fields, values, strict=True)) for values in itertools.product(*fields.values())
    ]


@contextlib.contextmanager
def _its_errors(path: Path) -> Iterator[None]:
    """Names file and line where a config file fails."""
    try:
        yield
    except UserError:
        raise
    # Anything may go wrong in a file of the user's own; the line is what they need.
    except Exception as error:
        raise UserError(f"{_where(path, error)}: {type(error).__name__}: {error}") from error


def parse_variant(arg: str, **choices: tuple[str, ...]) -> dict[str, str]:
    """Reads what stands after the colon: `transductive,phi2=clip,preset=paper`.

    Args:
      arg: the text; a bare word is a setting.
      **choices: the allowed names, each with its allowed values, () for any.

    Returns:
      The names given, with their values.

    Raises:
      UserError: an unknown name or value, with the nearest known one, or a name given twice.
    """
    found: dict[str, str] = {}
    for word in filter(None, (part.strip() for part in arg.split(","))):
        name, equals, value = word.partition("=")
        if not equals:
            name, value = "setting", word
        if name not in choices:
            raise UserError(
                f"unknown variant {word!r}{config_checks.suggest(name, choices)}; "
                f"this config takes {', '.join(choices)}"
            )
        if choices[name] and value not in choices[name]:
            allowed = choices[name] if equals else (*choices[name], *(f"{n}=" for n in choices))
            raise UserError(
                f"unknown variant {word!r}{config_checks.suggest(value, allowed)}; "
                f"{name} is one of {', '.join(choices[name])}"
            )
        if name in found:
            raise UserError(
                f"variant {arg!r} gives {name} twice, {found[name]!r} and {value!r}: keep one"
            )
        found[name] = value
    return found


def apply_variant(
    config: config_dict.ConfigDict, arg: str, **choices: tuple[str, ...]
) -> dict[str, str]:
    """Sets `setting` and `preset` as the variant says and returns what else it says.

    Args:
      config: changed in place.
      arg: what stands after the colon.
      **choices: names beside these two, as for `parse_variant`.
    """
    shared = {name: config_checks.CHOICES[name] for name in ("setting", "preset")}
    found = parse_variant(arg, **shared, **choices)
    config.setting = found.pop("setting", config.setting)
    config.preset = found.pop("preset", config.preset)
    return found


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested values under their dotted names: `{"search.steps": 200, ...}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping | config_dict.ConfigDict):
            flat.update(flatten(dict(value.items()), f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def check_field(name: str, config: config_dict.ConfigDict) -> None:
    """Raises a `UserError` that names the nearest field if `config` has no field `name`."""
    known = flatten(config)
    if name in known:
        return
    if any(field.startswith(f"{name}.") for field in known):
        raise UserError(f"config field {name!r} is a section: set one of its fields, as {name}.X")
    # Presets repeat the names of the fields they fill; the field itself is what is meant.
    fields = [field for field in known if not field.startswith("presets.")]
    # The field's own name may be right and only its section wrong or missing.
    section, _, last = name.rpartition(".")
    same = [field for field in fields if field.rpartition(".")[2] == last]
    hint = config_checks.suggest(name, same or fields) if section or not same else ""
    if same and not hint:
        hint = f"; did you mean {' or '.join(map(repr, same))}?"
    raise UserError(f"unknown config field {name!r}{hint}")


def has_images(config: config_dict.ConfigDict) -> bool:
    """Whether arrays may have to be encoded."""
    return any(config.images[split] for split in ("train", "test")) or any(
        config.encode[name] for name in ("phi1", "phi2")
    )


def check_images(config: config_dict.ConfigDict) -> None:
    """Raises a `UserError` where images are to be searched and a space of them has no encoder."""
    for name in ("phi1", "phi2"):
        wanted = config.images.train and not config.data.train[name]
        if wanted and not config.encode[name]:
            raise UserError(
                f"'images.train' names images, but config field 'encode.{name}' no encoder and "
                f"'data.train.{name}' no array: --config.encode.{name}=dinov2_vits14 (`python -m "
                f"hume_jax.encode --list` shows them), or --config.data.train.{name}=FILE.npy"
            )


def resolve(config: config_dict.ConfigDict, *, search: bool = True) -> config_dict.ConfigDict:
    """Fills what is still open from the preset and checks every value.

    Args:
      config: as a config file and the flags left it, or one that is already resolved.
      search: whether a search follows, which needs a number of classes.

    Returns:
      A locked config without `presets` in which no field is None.

    Raises:
      UserError: an unknown or missing field, or a value out of range.
    """
    values = config_dict.ConfigDict(config).to_dict()
    _check_names(config)
    config_checks.check_choice("preset", values["preset"])
    presets = values.pop("presets", {})
    _fill(values, presets.get(values["preset"], {}))
    for name in ("phi1", "phi2"):
        values["encode"][name] = config_checks.specs(name, values["encode"][name])
    for split in ("train", "test"):
        for name, value in values["data"][split].items():
            coming = values["encode"].get(name, "") if values["images"][split] else ""
            values["data"][split][name] = config_checks.paths(f"data.{split}.{name}", value, coming)
    if not search and not values["n_classes"]:
        values["n_classes"] = 2
    values["class_prior"] = config_checks.prior(values["class_prior"], values["n_classes"])
    config_checks.check_values(flatten(values))
    return config_dict.ConfigDict(values).lock()


def to_json(config: config_dict.ConfigDict) -> str:
    """Returns the config as sorted, indented JSON, the text of `config.json`."""
    return json.dumps(config.to_dict(), sort_keys=True, indent=2) + "\n"


def config_hash(config: config_dict.ConfigDict) -> str:
    """Returns the SHA-256 of the resolved config, but for `SPEED`, in hexadecimal."""
    values = {name: value for name, value in flatten(config).items() if name not in SPEED}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lists the fields in which two configs differ, as `search.steps: 200 -> 300`, but for `SPEED`.

    Either may be a ConfigDict or what JSON gives back, so a tuple equals a list.
    """
    before, after = flatten(old), flatten(new)
    texts = ({name: json.dumps(value) for name, value in flat.items()} for flat in (before, after))
    was, now = texts
    return [
        f"{name}: {was.get(name, 'absent')} -> {now.get(name, 'absent')}"
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name) and name not in SPEED
    ]


def default_workdir(spec: str, config: config_dict.ConfigDict) -> Path:
    """Returns `runs/<stem of the config file>-<first 8 digits of the hash>`.

    Args:
      spec: as given to `--config`.
      config: resolved.
    """
    return Path("runs") / f"{Path(spec.partition(':')[0]).stem}-{config_hash(config)[:8]}"


def _load_module(path: Path, name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _where(path: Path, error: Exception) -> str:
    """Names the file and, if it is known, the line in it that raised."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def _fill(values: dict[str, Any], preset: Mapping[str, Any]) -> None:
    """Puts the preset's values where there are none."""
    for name, value in preset.items():
        if isinstance(value, Mapping):
            _fill(values[name], value)
        elif values[name] is None:
            values[name] = value


def _check_names(config: config_dict.ConfigDict) -> None:
    known = _common().get_config()
    given, fields = flatten(config), flatten(known)
    for name in given:
        if name not in fields and not name.startswith("presets."):
            check_field(name, known)
    for name in fields:
        if name not in given and not name.startswith("presets."):
            raise UserError(f"the config has no field {name!r}: start from common.get_config()")
