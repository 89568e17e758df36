"""Folders under a manifest, a JSON file that is written last and names the checksum of every other file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CHUNK = 1 << 22


def read_manifest(
    folder: Path, name: str, form: int, *, what: str, command: str, error: type[ValueError]
) -> dict[str, Any]:
    """The manifest of a folder.

    Args:
        folder: where it lies.
        name: of the file.
        form: its `format`, as this version writes it.
        what: the folder is, in a word.
        command: that makes one.
        error: to raise.

    Raises:
        `error`: there is none, or it is damaged or of another format.
    """
    path = folder / name
    try:
        document = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"{folder} is no {what}: it has no {name}; make one by `{command}`") from None
    except ValueError as damaged:
        raise error(f"{path} is damaged ({damaged}): make the {what} anew, or copy it again") from None
    if document.get("format") != form:
        raise error(f"{path} has format {document.get('format')!r}, this version reads {form}: make the {what} anew")
    return document


def fingerprint(path: Path) -> dict[str, Any]:
    """`bytes` and `sha256` of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while part := file.read(_CHUNK):
            digest.update(part)
            size += len(part)
    return {"bytes": size, "sha256": digest.hexdigest()}


def damage(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str:
    """The first file of a folder that is not what `fingerprint` said of it, and how it is; empty if all are.

    Args:
        folder: where they lie.
        files: name -> what `fingerprint` said.
    """
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        found = fingerprint(path)
        if found["bytes"] != wanted["bytes"]:
            return f"{path} is changed ({found['bytes']:,} bytes instead of {wanted['bytes']:,})"
        if found != wanted:
            return f"{path} is changed (other bytes than were written)"
    return ""
