"""Configs from and to TOML: strictly, every mistake with the whole path to it, as `upstreams.ctr.model.heads`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Self, TypeVar, Union, get_args, get_origin, get_type_hints

import tomli_w

from recsys.config.rules import ConfigError

T = TypeVar("T")


class Config:
    """What the config of a job can do beside holding values: be read, and written."""

    MOVED: ClassVar[Mapping[str, str]] = {}
    """Key that is not one of this class -> what to do about it; for keys that an earlier format had here."""

    def save(self, path: str | Path) -> None:
        """Write the complete config, defaults included, as TOML."""
        Path(path).write_text(tomli_w.dumps(to_dict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a TOML config.

        Raises:
            ConfigError: no such file, no TOML, an unknown key, a wrong type or value; the message starts with the path.
        """
        try:
            return from_dict(cls, tomllib.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ConfigError) as error:
            raise ConfigError(f"{path}: {error}") from None


def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested dicts and lists that TOML can hold: without what is None."""
    return _without_none(asdict(config))


def from_dict(kind: type[T], document: Mapping[str, Any]) -> T:
    """Build a config from nested dicts and lists.

    Raises:
        ConfigError: an unknown or a missing key, a wrong type or value; with the path to it.
    """
    return _build(kind, document, "")


def override(config: T, assignments: tuple[str, ...]) -> T:
    """Apply `path=value` assignments, values in TOML: `upstreams.0.training.epochs=2`, `rankers.seeds=[0]`.

    A path may name an upstream instead of its index: `upstreams.ctr.training.epochs=2`.

    Raises:
        ConfigError: no such path, or a value that does not fit.
    """
    document = to_dict(config)
    for path, value in map(parse_assignment, assignments):
        node: Any = document
        *parents, last = path.split(".")
        for key in parents:
            node = _child(node, key, path)
        if not isinstance(node, dict) or last not in node:
            raise ConfigError(f"override {path!r}: no such key; see recsys/config/")
        node[last] = value
    return from_dict(type(config), document)


def parse_assignment(assignment: str) -> tuple[str, Any]:
    """Path and value of `path=value`, in TOML or else a bare word, a string: `name=mine`. Raises ConfigError."""
    path, equals, text = assignment.partition("=")
    if not equals:
        raise ConfigError(f"override {assignment!r} has no '='; write path=value")
    try:
        return path, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return path, text


def _build(kind: Any, value: Any, path: str) -> Any:
    """`value` as an instance of `kind`, the annotation of the field at `path`."""
    if is_dataclass(kind):
        return _build_table(kind, _of_type(value, dict, path), path)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):  # of a type and None, which TOML cannot hold
        (kind,) = (entry for entry in arguments if entry is not NoneType)
        return _build(kind, value, path)
    if origin is tuple:
        entries = _of_type(value, list, path)
        return tuple(_build(arguments[0], entry, _join(path, _label(entry, i))) for i, entry in enumerate(entries))
    if origin is dict:
        table = _of_type(value, dict, path)
        return {key: _build(arguments[1], entry, _join(path, key)) for key, entry in table.items()}
    return float(_of_type(value, float, path)) if kind is float else _of_type(value, kind, path)


def _build_table(kind: Any, table: Mapping[str, Any], path: str) -> Any:
    known = {entry.name: entry for entry in fields(kind)}
    unknown = [_join(path, key) + _moved(kind, key) for key in table if key not in known]
    if unknown:
        raise ConfigError(f"unknown key {', '.join(unknown)}; see recsys/config/ for every key and its meaning")
    for name, entry in known.items():
        if name not in table and entry.default is MISSING and entry.default_factory is MISSING:
            raise ConfigError(f"{_join(path, name)} is missing; see recsys/config/ for every key and its meaning")
    hints = get_type_hints(kind)
    values = {key: _build(hints[key], value, _join(path, key)) for key, value in table.items()}
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(_join(path, str(error))) from None


def _moved(kind: type, key: str) -> str:
    hint = getattr(kind, "MOVED", {}).get(key)
    return f" ({hint})" if hint else ""


def _of_type(value: Any, wanted: type, path: str) -> Any:
    allowed = {float: (int, float), list: (list, tuple)}.get(wanted, (wanted,))
    if not isinstance(value, allowed) or (isinstance(value, bool) and wanted is not bool):  # to Python, true is an int
        names = {dict: "a table", list: "a list", str: "a string", int: "an integer", float: "a number"}
        names[bool] = "true or false"
        raise ConfigError(f"{path} is {value!r}; it must be {names[wanted]}")
    return value


def _label(entry: Any, index: int) -> str:
    """How an entry of a list is called in a path: by its name, if it has one."""
    name = entry.get("name") if isinstance(entry, dict) else None
    return name if isinstance(name, str) and name else str(index)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _child(node: Any, key: str, path: str) -> Any:
    if isinstance(node, list):
        for index, entry in enumerate(node):
            if key == str(index) or (isinstance(entry, dict) and key == entry.get("name")):
                return entry
    elif isinstance(node, dict) and key in node:
        return node[key]
    raise ConfigError(f"override {path!r}: no {key!r} there; see recsys/config/")


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(v) for v in value]
    return value
