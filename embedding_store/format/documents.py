"""The store's small JSON files: series, manifests, tags, each with a format name, a format version and a checksum.

The first line holds the checksum of every byte after it, so that any reader can check it without knowing how another
language writes numbers; the file as a whole is plain JSON.
"""

from __future__ import annotations

import json
import re
import sys
import zlib
from typing import Any

from embedding_store.errors import ChecksumError, FileFormatError, NewerFormatError

FORMAT_VERSION = 3
OLDEST_VERSION = 2  # that is read: 3 has the overlays of deltas more
_CHECKSUM = re.compile(r"[a-z0-9]{1,16}:[0-9a-f]{8,64}")


def checksum(data: bytes | memoryview) -> str:
    """`crc32:` and eight hexadecimal digits."""
    return checksum_text(zlib.crc32(data))


def checksum_text(crc: int) -> str:
    """A running zlib.crc32 as it is stored. The prefix lets a later format choose another function."""
    return f"crc32:{crc:08x}"


def encode(kind: str, fields: dict[str, Any]) -> bytes:
    """A file of this kind (`series`, `manifest`, `tag`): one line a key."""
    document = {"format": f"embedding_store.{kind}", "format_version": FORMAT_VERSION, **fields}
    lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in document.items()]
    body = (",\n".join(lines) + "\n}\n").encode()
    return f'{{"checksum": "{checksum(body)}",\n'.encode() + body


def decode(data: bytes, kind: str, path: str) -> Fields:
    """The keys of a file of this kind; `path` is for messages.

    Raises:
        FileFormatError: not JSON, not of this kind, without the keys every file has, or of format version 1.
        NewerFormatError: its format version is later than this package's.
        ChecksumError: the bytes are not those that were written.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        raise FileFormatError(path, f"is not JSON ({error})") from None
    if not isinstance(document, dict):
        raise FileFormatError(path, f"holds a JSON {type(document).__name__}, not an object")
    fields = Fields(document, path)
    if fields.text("format") != f"embedding_store.{kind}":
        raise FileFormatError(path, f"format is {document['format']!r}, expected 'embedding_store.{kind}'")
    version = fields.integer("format_version", least=1)
    if version > FORMAT_VERSION:  # before the checksum: a later format may compute it in another way
        raise NewerFormatError(path, f"format_version is {version}, this package reads {FORMAT_VERSION}: upgrade")
    if version < OLDEST_VERSION:
        raise FileFormatError(
            path, f"format_version is {version}: written before the format was settled: write it again"
        )
    stored, actual = fields.checksum("checksum"), checksum(data.partition(b"\n")[2])
    if stored != actual:
        raise ChecksumError(path, f"checksum is {actual}, the file says {stored}: its bytes have changed")
    return fields


class Fields:
    """A JSON object whose values are checked as they are read: a wrong one is a FileFormatError naming file and key."""

    def __init__(self, document: dict[str, Any], path: str, prefix: str = "") -> None:
        self._document = document
        self.path = path
        """For messages."""
        self._prefix = prefix

    def integer(self, key: str, *, least: int = -(2**63)) -> int:
        """An int64 of at least `least`."""
        value = self._get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
            self._refuse(key, f"an integer of at least {least}")
        return value

    def optional_integer(self, key: str, *, least: int = -(2**63)) -> int | None:
        """An int64 of at least `least`, or null."""
        return None if self._get(key) is None else self.integer(key, least=least)

    def given(self, key: str) -> bool:
        """Whether there is a value: not null, nor left out by a writer that did not know the key."""
        return self._document.get(key) is not None

    def null(self, key: str) -> bool:
        """Whether the value is null."""
        return self._get(key) is None

    def text(self, key: str) -> str:
        """A string that is not empty."""
        value = self._get(key)
        if not isinstance(value, str) or not value:
            self._refuse(key, "a non-empty string")
        return value

    def checksum(self, key: str) -> str:
        """A checksum's text: which function, and eight hexadecimal digits."""
        value = self.text(key)
        if not _CHECKSUM.fullmatch(value):
            self._refuse(key, "a checksum like 'crc32c:9a3e1b70'")
        return value

    def boolean(self, key: str, *, absent: bool) -> bool:
        """True or false; `absent` where an earlier writer left the key out."""
        value = self._document.get(key, absent)
        if not isinstance(value, bool):
            self._refuse(key, "true or false")
        return value

    def number(self, key: str) -> float:
        """A finite number."""
        value = self._get(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
            self._refuse(key, "a finite number")
        return float(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers."""
        return tuple(Fields({key: value}, self.path, self._prefix).number(key) for value in self._list(key))

    def integers(self, key: str, *, least: int) -> tuple[int, ...]:
        """A list of int64 of at least `least`."""
        entries = self._list(key)
        return tuple(Fields({key: value}, self.path, self._prefix).integer(key, least=least) for value in entries)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings that are not empty."""
        return tuple(Fields({key: value}, self.path, self._prefix).text(key) for value in self._list(key))

    def object(self, key: str) -> Fields:
        """An object."""
        value = self._get(key)
        if not isinstance(value, dict):
            self._refuse(key, "an object")
        return Fields(value, self.path, f"{self._prefix}{key}.")

    def objects(self, key: str) -> list[Fields]:
        """A list of objects."""
        entries = enumerate(self._list(key))
        return [Fields({f"{key}[{i}]": value}, self.path, self._prefix).object(f"{key}[{i}]") for i, value in entries]

    def optional_objects(self, key: str) -> list[Fields]:
        """A list of objects; none where the key is absent."""
        return self.objects(key) if key in self._document else []

    def _list(self, key: str) -> list[Any]:
        value = self._get(key)
        if not isinstance(value, list):
            self._refuse(key, "a list")
        return value

    def _get(self, key: str) -> Any:
        if key not in self._document:
            raise FileFormatError(self.path, f"has no key {self._prefix}{key}")
        return self._document[key]

    def _refuse(self, key: str, wanted: str) -> None:
        value = repr(self._document[key])
        shown = value if len(value) <= 80 else value[:77] + "..."
        raise FileFormatError(self.path, f"{self._prefix}{key} is {shown}, expected {wanted}")
