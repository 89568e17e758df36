"""Configs from and to TOML, and changes of single values of them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from recsys.config.reading import from_dict, label
from recsys.config.rules import ConfigError
from recsys.mistakes import meant

T = TypeVar("T")


class Config:
    """What the config of a job can do beside holding values: be read, and written."""

    MOVED: ClassVar[Mapping[str, str]] = {}
    """Key that is not one of this class -> what to do about it; for keys that an earlier format had here."""

    def save(self, path: str | Path) -> None:
        """Write the complete config, defaults included, as TOML."""
        import tomli_w  # here, so that a training on a borrowed machine, which writes none, does without

        Path(path).write_text(tomli_w.dumps(to_dict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a TOML config.

        Raises:
            ConfigError: no such file, no TOML, unknown keys, wrong types or values; each starts with the path.
        """
        document = read_document(path)
        try:
            return from_dict(cls, document)
        except ConfigError as error:
            raise ConfigError(*(f"{path}: {told}" for told in error.told)) from None


def read_document(path: str | Path) -> dict[str, Any]:
    """The content of a TOML file. Raises ConfigError, whose message starts with the path."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the path of a TOML config") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}; correct the TOML there") from None


def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested dicts and lists that TOML can hold: without what is None."""
    return _without_none(asdict(config))


def override(config: T, assignments: tuple[str, ...]) -> T:
    """Apply `path=value` assignments, values in TOML: `upstreams.0.training.epochs=2`, `rankers.seeds=[0]`.

    A path may name an upstream instead of its index: `upstreams.ctr.training.epochs=2`.

    Raises:
        ConfigError: no such path, or a value that does not fit.
    """
    document = to_dict(config)
    assign(document, assignments)
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


def assign(document: dict[str, Any], assignments: Sequence[str]) -> None:
    """Change a document by `path=value` assignments; a path may name an entry of a list instead of its index.

    Raises:
        ConfigError: an assignment without a value, or a path through something that is no table.
    """
    mistakes = list[str]()
    for assignment in assignments:
        try:
            path, value = parse_assignment(assignment)
            node: Any = document
            *parents, last = path.split(".")
            for key in parents:
                node = _child(node, key, path)
            if not isinstance(node, dict) or not last:
                raise ConfigError(f"override {path!r}: no such key; `recsys config` lists every key")
            node[last] = value
        except ConfigError as error:
            mistakes += error.told
    if mistakes:
        raise ConfigError(*mistakes)


def _child(node: Any, key: str, path: str) -> Any:
    if isinstance(node, list):
        for index, entry in enumerate(node):
            if key in (str(index), label(entry, index)):
                return entry
        known = [label(entry, index) for index, entry in enumerate(node)]
        raise ConfigError(f"override {path!r}: no {key!r} there{meant(key, known)} (there are: {', '.join(known)})")
    if isinstance(node, dict) and key:
        return node.setdefault(key, {})
    raise ConfigError(f"override {path!r}: no {key!r} there; `recsys config` lists every key")


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(v) for v in value]
    return value
