"""Data folders in S3 and Google Cloud Storage: paths whose files are objects, for whoever reads files through `Path`.

`located("s3://bucket/prefix")` is such a path. It is listed, looked at and opened by pyarrow's file systems, which take
credentials, region and endpoint from the environment as the vendors' own tools do. It is never written to.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from fnmatch import translate
from functools import cache
from pathlib import Path, PosixPath
from re import compile as pattern_of
from typing import Any

import pyarrow as pa
from pyarrow import fs

SCHEMES = ("s3", "gs")
_NS = 1_000_000_000


def located(path: Path) -> Path:
    """The same path; where it names an object store, `s3://bucket/...` or `gs://bucket/...`, one that is read there."""
    scheme = path.parts[0].removesuffix(":") if path.parts else ""
    return ObjectPath(*path.parts) if scheme in SCHEMES and path.parts[0].endswith(":") else path


def opened(path: Path) -> Any:
    """What pyarrow opens a file by: its path; of an object the object, at random access."""
    return path.input() if isinstance(path, ObjectPath) else path


class ObjectPath(PosixPath):
    """`s3:/bucket/key`, as `Path` writes what has two slashes: of `Path`'s methods those that read."""

    _listed: fs.FileInfo | None = None

    def input(self) -> pa.NativeFile:
        """The object, at random access. Raises OSError, a FileNotFoundError where there is none."""
        return _system(self.parts[0]).open_input_file(self._key)

    def open(self, mode: str = "r", *args: Any, **options: Any) -> Any:
        """As `Path.open`, to read."""
        if not set(mode) <= set("rbt"):
            raise OSError(f"{self} is an object that is read: write to a folder on a disk")
        file = self.input()
        return file if "b" in mode else io.TextIOWrapper(file, encoding=options.get("encoding") or "utf-8")

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Size and time of modification; another version of an object has another time."""
        found = self._info()
        if found.type == fs.FileType.NotFound:
            raise FileNotFoundError(f"{self} does not exist")
        kind = stat.S_IFREG if found.is_file else stat.S_IFDIR
        ns = found.mtime_ns or 0
        fields = (kind, 0, 0, 1, 0, 0, found.size or 0, ns // _NS, ns // _NS, ns // _NS)
        times = {"st_atime_ns": ns, "st_mtime_ns": ns, "st_ctime_ns": ns}
        return os.stat_result(fields, times)

    def exists(self, **_: Any) -> bool:
        return self._info().type != fs.FileType.NotFound

    def is_file(self, **_: Any) -> bool:
        """As it is; of what `glob` found, as it was then: each look is a request."""
        return bool((self._listed or self._info()).is_file)

    def is_dir(self, **_: Any) -> bool:
        """Whether a key begins so."""
        return self._info().type == fs.FileType.Directory

    def glob(self, pattern: str, **_: Any) -> Iterator[ObjectPath]:  # type: ignore[override]
        """Files and folders that match, in no order; `**` is any number of folders."""
        parts = [part for part in pattern.split("/") if part]
        fixed = next((at for at, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
        base = self.joinpath(*parts[:fixed])
        if fixed == len(parts):
            yield from [base] if base.exists() else []
            return
        wanted = pattern_of(_regular(parts[fixed:]))
        deep = "**" in parts or len(parts) > fixed + 1
        selector = fs.FileSelector(base._key, recursive=deep, allow_not_found=True)
        for found in _system(self.parts[0]).get_file_info(selector):
            key = found.path.removeprefix(base._key).strip("/")
            if wanted.fullmatch(key):
                path = base / key
                path._listed = found
                yield path

    @property
    def _key(self) -> str:
        return "/".join(self.parts[1:])

    def _info(self) -> fs.FileInfo:
        (found,) = _system(self.parts[0]).get_file_info([self._key])
        return found


def _regular(parts: list[str]) -> str:
    """A glob pattern as a regular expression; no `*` but `**` crosses a slash."""
    found = ""
    for at, part in enumerate(parts):
        last = at == len(parts) - 1
        if part == "**":
            found += "(?:[^/]+(?:/[^/]+)*)?" if last else "(?:[^/]+/)*"
        else:
            body = translate(part).removeprefix("(?s:").removesuffix(r")\Z").removesuffix(r")\z")
            found += body.replace(".*", "[^/]*") + ("" if last else "/")
    return found


@cache
def _system(scheme: str) -> fs.FileSystem:
    """S3's or Google's, once a process."""
    return fs.S3FileSystem(**_endpoint()) if scheme.startswith("s3") else fs.GcsFileSystem()


def _endpoint() -> dict[str, Any]:
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    scheme, _, host = url.rpartition("://")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    options: dict[str, Any] = {"region": region} if region else {}
    return options | ({"endpoint_override": host, "scheme": scheme or "https"} if host else {})
