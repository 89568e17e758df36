"""S3, Google Cloud Storage, Azure and whatever else obstore speaks, behind the Storage interface.

The object store must offer put-if-absent (`If-None-Match: *`; `check_put_new` tries it), multipart upload, range reads,
and listings that show what was put before; a rename is not needed. Endpoint, region and credentials come from the
environment, as obstore reads them (`AWS_ENDPOINT_URL`, `AWS_ALLOW_HTTP`, ...). Give the bucket a lifecycle rule that
aborts old multipart uploads: that of a writer that was killed stays invisible, but is paid for.
"""

from __future__ import annotations

import fcntl
import os
import posixpath
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import obstore
from numpy.typing import NDArray
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import from_url

from embedding_store.errors import ChecksumError, InvalidArgumentError, MissingFileError, StorageAccessError
from embedding_store.native.mapping import BLOCK, crc32c_blocks
from embedding_store.storage.base import Entry, Sink, WritableFile, check_size, is_named

if TYPE_CHECKING:
    from obstore.store import ObjectStore

PART_BYTES = 16 << 20  # of a multipart upload: 10,000 parts at most make 160 GB
RANGE_BYTES = 8 << 20  # of a download; a multiple of BLOCK
CONNECTIONS = 4  # a file is uploaded, or downloaded, over so many at once
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|specified bucket does not exist", re.IGNORECASE)
_PUT_ID = "putid"  # metadata of an object; one word, because Azure takes no hyphen and some proxies no underscore


def default_cache() -> Path:
    """Where downloaded files go unless told otherwise: below the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "embedding_store"


class _Upload:
    """A multipart upload as a file. Its errors are the storage's own, to tell from those of whoever writes."""

    def __init__(self, storage: ObjectStorage, path: str, file: WritableFile) -> None:
        self._storage, self._path, self._file = storage, path, file

    def write(self, data: bytes | memoryview, /) -> int:
        with self._storage._write_errors(self._path):
            return self._file.write(bytes(data))  # a copy: it is kept until sent, and a buffer has other rows by then


class ObjectStorage:
    """A prefix of a bucket; the methods are those of Storage.

    Files that are read in place (`local`) are copied into a cache folder on a local disk, where processes share them:
    of those that want a file at once, one fetches it. The cache holds at most what the object store still has; deleting
    it is always safe. What comes in is checked, and a copy that changes later is fetched anew (StoredReader, Mapping).

    A pickled one is its URL and its cache folder.
    """

    copies = True
    _puts_are_new = False  # known to be

    def __init__(self, url: str, cache: Path) -> None:
        self._store = _connect(url)
        self._url = url.rstrip("/")
        self._prefix = ""
        parts = urlsplit(self._url)
        self._cache = cache.absolute() / parts.scheme / parts.netloc / posixpath.normpath("/" + parts.path).lstrip("/")

    def within(self, folder: str) -> ObjectStorage:
        inner = object.__new__(ObjectStorage)
        inner._store, inner._url, inner._prefix = self._store, f"{self._url}/{folder}", f"{self._prefix}{folder}/"
        inner._cache = self._cache / folder
        return inner

    def __getstate__(self) -> dict[str, Any]:
        """Where it is, and nothing of obstore's, which has credentials: who loads it takes those of its environment."""
        return {key: value for key, value in self.__dict__.items() if key != "_store"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._store = _connect(f"{self._url}/".removesuffix(self._prefix))

    def locate(self, path: str) -> str:
        return f"{self._url}/{path}" if path else self._url

    def names(self, folder: str = "") -> list[str]:
        with self._errors(folder):
            found = obstore.list_with_delimiter(self._store, self._prefix + folder)
        paths = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

    def entries(self, folder: str = "") -> list[Entry]:
        skipped = len(self._prefix)
        with self._errors(folder):
            return sorted(
                Entry(entry["path"][skipped:], entry["last_modified"].timestamp())
                for batch in obstore.list(self._store, self._prefix + folder)
                for entry in batch
            )

    def exists(self, path: str) -> bool:
        with suppress(MissingFileError):
            self.size(path)
            return True
        return False

    def size(self, path: str) -> int:
        with self._errors(path):
            return obstore.head(self._store, self._prefix + path)["size"]

    def read(self, path: str) -> bytes:
        with self._errors(path):
            return bytes(obstore.get(self._store, self._prefix + path).bytes())

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        if (size := self.size(path)) <= start:
            return b""
        with self._errors(path):
            return bytes(obstore.get_range(self._store, self._prefix + path, start=start, end=min(stop, size)))

    def local(self, path: str, size: int, crcs: NDArray[np.uint32]) -> Path:
        target = self._cache / path
        if _has(target, size):
            return target
        check_size(self, path, self.size(path), size)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        with _locked(temporary) as file:
            if _has(target, size):  # another has fetched it meanwhile
                return target
            self._download(path, file, size, crcs)
            os.replace(temporary, target)
        self._tidy(path)
        return target

    @contextmanager
    def create(self, path: str) -> Iterator[Sink]:
        with self._write_errors(path):
            file = obstore.open_writer(
                self._store, self._prefix + path, buffer_size=PART_BYTES, max_concurrency=CONNECTIONS
            )
        try:
            yield Sink(_Upload(self, path, file))
        except BaseException:
            with suppress(BaseError, OSError):  # what the block raised matters more
                file.__exit__(*sys.exc_info())  # aborts the upload
            raise
        with self._write_errors(path):
            file.close()

    def sync(self, folder: str) -> None:
        """Nothing: an object is durable when its upload has ended."""

    def put_new(self, path: str, data: bytes) -> None:
        # A put whose answer was lost is sent again by obstore and finds its own object: the id tells it from another's.
        put_id = uuid.uuid4().hex
        while True:
            try:
                with self._errors(path):
                    obstore.put(self._store, self._prefix + path, data, mode="create", attributes={_PUT_ID: put_id})
                return
            except FileExistsError:
                with suppress(MissingFileError):  # the other put failed, so try again
                    with self._errors(path):
                        attributes = obstore.get(self._store, self._prefix + path).attributes
                    if attributes.get(_PUT_ID) == put_id:
                        return
                    raise

    def check_put_new(self, folder: str) -> None:
        if self._puts_are_new:
            return
        path = f"{folder}/.{uuid.uuid4().hex}.tmp"  # a name that no reader looks at
        try:
            for content in (b"first", b"second"):
                self.put_new(path, content)
        except FileExistsError:
            self._puts_are_new = True
            return
        finally:
            with suppress(StorageAccessError):  # it may be that nothing may be deleted here
                self.delete(path)
        reason = "the server replaces an object that it should put only if absent (it ignores If-None-Match: *)"
        remedy = "two writers at once would lose a snapshot; upgrade the server, or use one with conditional writes"
        raise StorageAccessError(f"{self.locate(folder)}: {reason}: {remedy}")

    def delete(self, path: str) -> None:
        with suppress(MissingFileError), self._errors(path):
            obstore.delete(self._store, self._prefix + path)
        (self._cache / path).unlink(missing_ok=True)

    def delete_folder(self, folder: str) -> None:
        paths = [self._prefix + entry.path for entry in self.entries(folder)]
        with suppress(MissingFileError), self._errors(folder):
            obstore.delete(self._store, paths)
        shutil.rmtree(self._cache / folder, ignore_errors=True)

    def delete_empty_folders(self, before: float) -> list[str]:
        return []

    def scratch(self) -> Path:
        return Path(tempfile.gettempdir())

    def _download(self, path: str, file: int, size: int, crcs: NDArray[np.uint32]) -> None:
        """Copy an object in ranges, several at once; memory is bounded by CONNECTIONS x RANGE_BYTES."""

        def fetch(start: int) -> None:
            data = self._checked_range(path, start, min(start + RANGE_BYTES, size), crcs)
            while data:
                written = os.pwrite(file, data, start)
                data, start = data[written:], start + written

        os.ftruncate(file, 0)
        pool = ThreadPoolExecutor(CONNECTIONS)
        try:
            for _ in pool.map(fetch, range(0, size, RANGE_BYTES)):
                pass
        finally:
            pool.shutdown(cancel_futures=True)
        check_size(self, path, os.fstat(file).st_size, size)
        os.fsync(file)

    def _checked_range(self, path: str, start: int, stop: int, crcs: NDArray[np.uint32]) -> memoryview:
        for _ in range(2):  # bytes may also change on their way
            with self._errors(path):
                data = memoryview(obstore.get_range(self._store, self._prefix + path, start=start, end=stop))
            if np.array_equal(crc32c_blocks(data), crcs[start // BLOCK : -(-stop // BLOCK)]):
                return data
        found = f"bytes in {start} .. {stop - 1}, fetched twice, are not those that were written"
        raise ChecksumError(self.locate(path), f"{found}, so the object itself is damaged: restore it from a copy")

    def _tidy(self, path: str) -> None:
        """Drop from the cache what dead downloads left beside a file, and the folders beside its folder that the store
        has deleted."""
        folder, outer = (self._cache / path).parent, posixpath.dirname(posixpath.dirname(path))
        for temporary in folder.glob(".*.tmp"):
            with suppress(OSError), open(temporary, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while somebody downloads into it
                if is_named(file.fileno(), temporary):
                    temporary.unlink()
        siblings = {sibling.name for sibling in (self._cache / outer).iterdir() if sibling.is_dir()} - {folder.name}
        if siblings:  # listed before the store is: a folder was there before it came into the cache
            for name in siblings - set(self.names(outer)):
                shutil.rmtree(self._cache / outer / name, ignore_errors=True)  # a file that is mapped stays readable

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        """obstore's errors as those that Storage promises."""
        try:
            yield
        except FileNotFoundError as error:
            if _NO_BUCKET.search(str(error)):
                raise self._access_error(path, error) from error
            raise MissingFileError(self.locate(path), "does not exist") from None
        except AlreadyExistsError:
            raise FileExistsError(self.locate(path)) from None
        except (BaseError, OSError) as error:
            raise self._access_error(path, error) from error

    @contextmanager
    def _write_errors(self, path: str) -> Iterator[None]:
        """What obstore raises of a new file, of which none is missing or there before."""
        try:
            yield
        except (BaseError, OSError) as error:
            raise self._access_error(path, error) from error

    def _access_error(self, path: str, error: Exception) -> StorageAccessError:
        remedy = "check the URL's bucket and the environment's credentials, region and endpoint"
        reason = "the bucket does not exist" if _NO_BUCKET.search(str(error)) else _first_line(error)
        return StorageAccessError(f"{self.locate(path)}: {reason}: {remedy}")


def _connect(url: str) -> ObjectStore:
    try:
        return from_url(url)
    except (BaseError, ValueError, TypeError) as error:
        remedy = "use say s3://bucket/folder, or set in the environment what is missing"
        raise InvalidArgumentError(f"path is {url!r}: {_first_line(error)}; {remedy}") from None


def _has(target: Path, size: int) -> bool:
    with suppress(FileNotFoundError):
        return target.stat().st_size == size
    return False


@contextmanager
def _locked(temporary: Path) -> Iterator[int]:
    """A descriptor of a file that one process and thread of this host has at a time; in the end it is deleted, unless
    it got another name. The lock ends with its holder, however that ends, and who comes next takes the file over."""
    while True:
        file = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if is_named(file, temporary):
                break
        except OSError as error:
            os.close(file)
            remedy = "give cache= a folder on a local disk"
            raise StorageAccessError(f"{temporary}: the cache cannot lock it ({error.strerror}): {remedy}") from error
        os.close(file)  # of who held it before
    try:
        yield file
    finally:
        if is_named(file, temporary):
            temporary.unlink()
        fcntl.flock(file, fcntl.LOCK_UN)  # a process forked meanwhile holds it too, and closing would not end that
        os.close(file)


def _first_line(error: Exception) -> str:
    """obstore's messages go on with the source's debug text."""
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
