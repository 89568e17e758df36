"""Every key of a config with its default and its meaning, as TOML: what `recsys config` prints.

The meaning is the docstring under the field. Python keeps none at runtime: it is read from the class's source, which
an installed package has too.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, get_args, get_origin, get_type_hints

from recsys.config.reading import join

_WIDTH = 118


def listing(kind: type, tables: Mapping[str, str] = MappingProxyType({})) -> str:
    """All keys of a config as TOML that can be edited: comments say what each means, defaults are filled in.

    `must be given` marks what has no default. Lines that begin with `#` and no space are keys and tables that may be
    left out altogether, and are by default.

    Args:
        kind: a dataclass whose fields have docstrings.
        tables: field -> what its table is called in the TOML, where that is something else.
    """
    shown: set[type] = set()
    lines = [*_comment(inspect.getdoc(kind) or ""), *_table(kind, "", shown, tables, optional=False)]
    return "\n".join(lines).rstrip() + "\n"


@cache
def meanings(kind: type) -> dict[str, str]:
    """Field -> the docstring under it, of a dataclass and of those that it inherits from."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if not is_dataclass(each):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                doc = text.value if isinstance(text, ast.Expr) else None
                said = doc.value if isinstance(doc, ast.Constant) and isinstance(doc.value, str) else ""
                if said or field.target.id not in found:
                    found[field.target.id] = " ".join(said.split())
    return found


def _table(kind: Any, path: str, shown: set[type], called: Mapping[str, str], *, optional: bool) -> Iterator[str]:
    """The keys of a class, then the tables in it."""
    shown.add(kind)
    hints, tables = get_type_hints(kind), list[tuple[Field, Any, bool]]()
    off = "#" if optional else ""
    for entry in fields(kind):
        inner, many = _class_in(hints[entry.name])
        if inner is not None:
            tables.append((entry, inner, many))
            continue
        yield from _comment(meanings(kind)[entry.name])
        yield _key(entry, hints[entry.name], off)
        yield ""
    for entry, inner, many in tables:
        name, may = join(path, called.get(entry.name, entry.name)), optional or entry.default is None
        may = may or (many and entry.default == () and entry.name not in called)  # those are what a schema is made of
        may = may or entry.default_factory is dict  # nothing is named
        if get_origin(hints[entry.name]) is dict:
            name += ".NAME"  # a table for each name that is given
        said, more = meanings(kind)[entry.name], inspect.getdoc(inner) or ""
        yield from _comment("" if more.startswith(said.rstrip(".")) else said)
        yield from _comment(more)
        header = f"[[{name}]]" if many else f"[{name}]"
        required = entry.default is MISSING and entry.default_factory is MISSING
        note = "  # must be given; once for each of them" if many else "  # must be given" if required else ""
        if inner in shown:
            yield from _comment(f"{header} has the keys that are listed above for the same thing.")
            yield ""
            continue
        yield f"{'#' if may else ''}{header}{note}"
        yield from _table(inner, name, shown, called, optional=may)


def _key(entry: Field, hint: Any, off: str) -> str:
    if entry.default is None:
        return f"#{entry.name} =  # not given"
    if entry.default is not MISSING:
        return f"{off}{entry.name} = {json.dumps(entry.default)}"  # TOML writes what there is as JSON does
    if entry.default_factory is not MISSING:
        return f"{off}{entry.name} = {json.dumps(entry.default_factory())}"
    empty = '""' if hint is str else "{}" if get_origin(hint) is dict else "[]"
    return f"{off}{entry.name} = {empty}  # must be given"


def _class_in(hint: Any) -> tuple[type | None, bool]:
    """The config class that a field holds, if it does, and whether it holds several."""
    if is_dataclass(hint):
        return hint, False  # type: ignore[return-value]
    inner = [each for each in get_args(hint) if is_dataclass(each)]
    many = bool(inner) and get_origin(hint) is tuple
    return (inner[0], many) if inner else (None, False)  # type: ignore[return-value]


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(" ".join(text.split()), _WIDTH, break_long_words=False)]
