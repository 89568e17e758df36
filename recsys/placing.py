"""A run's store elsewhere than in its folder: in a bucket, where rankers and services of other machines find it."""

from __future__ import annotations

from pathlib import Path

from embedding_store import EmbeddingStore
from recsys.atomic import write_json
from recsys.config import ConfigError
from recsys.folders import STORE_NOTE, make_out, store_folder, store_of


def place_store(out: Path, store: str) -> None:
    """Note that a run keeps its store at this path or URL, once and for all its jobs; "": in its folder.

    Tries whether series can be made there, before anything is trained.

    Raises:
        ConfigError: the run has its store elsewhere already, or another run has its own there.
        StorageAccessError: nothing can be put there, or not only if it is absent.
    """
    if not store:
        return
    opened = EmbeddingStore(store)  # noted as it is found from any folder, whichever a job is started in
    if (out / STORE_NOTE).is_file() or store_folder(out).exists():
        if EmbeddingStore(store_of(out)).location != opened.location:
            raise ConfigError(
                f"store is {store!r}, but the run in {out} keeps its own in {store_of(out)}: choose another --out, or "
                "leave the store where it is"
            )
        return
    if found := opened.list():
        raise ConfigError(
            f"store is {store!r}, which has series already ({', '.join(found[:5])}), and {out} is not the run that "
            "made them: give every run a folder or prefix of its own"
        )
    opened.check_writable()
    make_out(out)
    write_json(out / STORE_NOTE, {"store": opened.location})
