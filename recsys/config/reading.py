"""Configs out of nested dicts and lists, strictly: every mistake at once, each with the whole path to it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from datetime import date
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from recsys.config.rules import NO_STUDY, ConfigError
from recsys.mistakes import closest, collecting

T = TypeVar("T")

_WORDS = {dict: "a table", list: "a list", str: "a string", int: "an integer", float: "a number", bool: "true or false"}
_HELD_AS: dict[Any, type] = {tuple: list, dict: dict}
"""What TOML holds these annotations as."""
ABSENT: Any = object()
"""In place of a value that cannot be made out."""


@dataclass
class Reading:
    """A document that is read as far as its mistakes let it be."""

    mistakes: list[str] = field(default_factory=list)
    """A sentence each, in the order of the document."""
    parts: dict[str, Any] = field(default_factory=dict)
    """Path -> config, of every table that could be read, the whole one (path "") last. A value that is wrong is what
    was probably meant, or the default: a config here is for further checks alone, as long as there are mistakes."""

    wrong: set[str] = field(default_factory=set)
    """Paths of those that checked themselves and found a mistake."""

    def build(self, kind: Any, value: Any, path: str = "") -> Any:
        """`value` as an instance of `kind`, the annotation of the field at `path`; `ABSENT` if it cannot be one."""
        origin, arguments = get_origin(kind), get_args(kind)
        if origin in (Union, UnionType):  # of a type and None, which TOML cannot hold
            (kind,) = (entry for entry in arguments if entry is not NoneType)
            return self.build(kind, value, path)
        wanted = _HELD_AS.get(origin, dict if is_dataclass(kind) else kind)
        value = self._of_type(value, wanted, path, *arguments[:1])
        if value is ABSENT:
            return ABSENT
        if is_dataclass(kind):
            return self._table(kind, value, path)
        if origin is tuple:
            return _whole([self.build(arguments[0], x, join(path, label(x, i))) for i, x in enumerate(value)])
        if origin is dict:
            entries = _whole([self.build(arguments[1], entry, join(path, key)) for key, entry in value.items()])
            return entries if entries is ABSENT else dict(zip(value, entries, strict=True))
        return value

    def _table(self, kind: Any, table: Mapping[str, Any], path: str) -> Any:
        moved: Mapping[str, str] = getattr(kind, "MOVED", {})
        for key in table:
            if moved.get(key) == NO_STUDY:  # then nothing else fits either
                self.mistakes.append(f"unknown key {join(path, key)} ({NO_STUDY})")
                return ABSENT
        known = {entry.name: entry for entry in fields(kind)}
        given = self._named(kind, known, table, path)
        required = [x.name for x in known.values() if x.default is MISSING and x.default_factory is MISSING]
        for name in required:
            if name not in given:
                self.mistakes.append(f"{join(path, name)} is missing; `recsys config` says what each key means")
        hints = get_type_hints(kind)
        values = {name: self.build(hints[name], entry, join(path, key)) for name, (key, entry) in given.items()}
        values = {name: entry for name, entry in values.items() if entry is not ABSENT}
        built = ABSENT
        if all(name in values for name in required):
            with collecting() as found:
                built = kind(**values)
            self.mistakes += [join(path, message) for message in found]
            self.wrong |= {path} if found else set()
        if built is not ABSENT:
            self.parts[path] = built
        return built

    def _named(
        self, kind: Any, known: Collection[str], table: Mapping[str, Any], path: str
    ) -> dict[str, tuple[str, Any]]:
        """Name of a field -> the key that it is given by, and the value: its own, or an unknown one that is like it."""
        given = {key: (key, value) for key, value in table.items() if key in known}
        for key, value in table.items():
            if key in known:
                continue
            moved = getattr(kind, "MOVED", {}).get(key)
            like = None if moved else closest(key, known)
            hint = f" ({moved})" if moved else _suggestion(kind, key, like)
            self.mistakes.append(f"unknown key {join(path, key)}{hint}; `recsys config` lists every key")
            if like and like not in table:
                given.setdefault(like, (key, value))
        return given

    def _of_type(self, value: Any, wanted: Any, path: str, entry: Any = None) -> Any:
        """The value; if it is of another type that is told, and it is what was probably meant, or `ABSENT`."""
        allowed = {float: (int, float), list: (list, tuple)}.get(wanted, (wanted,))
        fits = isinstance(value, allowed) and (wanted is bool or not isinstance(value, bool))  # to Python, true is 1
        if fits:
            return float(value) if wanted is float else value
        if wanted is str and isinstance(value, date):  # TOML has a type for them
            return value.isoformat()
        guess = _guess(value, wanted, entry)
        say = "" if guess is ABSENT else f": {json.dumps(guess)}"
        self.mistakes.append(f"{path or 'the config'} is {value!r}; it must be {_WORDS[wanted]}{say}")
        return guess


def _guess(value: Any, wanted: Any, entry: Any) -> Any:
    """What a value of another type was meant to be, a list of one `entry` say; `ABSENT` where there is no telling."""
    if wanted is list and entry is type(value):
        return [value]
    if wanted is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if wanted in (int, float) and isinstance(value, (str, float)):
        with suppress(ValueError):
            number = float(value)
            return number if wanted is float else int(number) if number.is_integer() else ABSENT
    if wanted is bool and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    return ABSENT


def _suggestion(kind: Any, key: str, like: str | None) -> str:
    """` (did you mean 'epochs'?)` of a key that is not one of this table: one like it, or one of a table in it."""
    if like:
        return f" (did you mean {like!r}?)"
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint) and key in {entry.name for entry in fields(hint)}:
            return f" (did you mean '{name}.{key}'?)"
    return ""


def _whole(entries: list[Any]) -> Any:
    """The entries as a tuple; `ABSENT` if one of them is."""
    return ABSENT if any(entry is ABSENT for entry in entries) else tuple(entries)


def join(path: str, key: str) -> str:
    """Path of a key in the table at `path`."""
    return f"{path}.{key}" if path else key


def label(entry: Any, index: int) -> str:
    """How an entry of a list is called in a path: by its name, if it has one."""
    name = entry.get("name") if isinstance(entry, dict) else None
    return name if isinstance(name, str) and name else str(index)


def from_dict(kind: type[T], document: Mapping[str, Any]) -> T:
    """Build a config from nested dicts and lists.

    Raises:
        ConfigError: unknown and missing keys, wrong types and values; with the path to each.
    """
    reading = Reading()
    config = reading.build(kind, document)
    if reading.mistakes:
        raise ConfigError(*reading.mistakes)
    return config
