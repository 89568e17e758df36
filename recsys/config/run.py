"""A whole run, and its way from and to TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dacite
import tomli_w

from recsys.config.daily import DailyConfig
from recsys.config.downstream import DownstreamConfig, RetrievalConfig
from recsys.config.rules import ConfigError, require
from recsys.config.upstream import UpstreamConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run: upstreams, the series they publish, the rankers that read them."""

    name: str
    """Shown in the report."""
    note: str = ""
    """What a reader of the report must know about the data: synthetic or real, how rows were split."""
    upstreams: tuple[UpstreamConfig, ...]
    """In the order in which the ablation adds them."""
    downstream: DownstreamConfig
    """The rankers."""
    fragment: DownstreamConfig | None = None
    """The same rankers on one surface alone, if there are several."""
    retrieval: RetrievalConfig | None = None
    """Retrieval figures, if wanted."""
    daily: DailyConfig | None = None
    """The days on which the upstreams learn on, for `recsys refresh` and `recsys daily`."""
    ranks: int = 2
    """Processes of an upstream job: GPUs, or gloo ranks on a CPU."""

    def __post_init__(self) -> None:
        require(len(self.upstreams) > 0, "upstreams is empty; give at least one")
        names = [upstream.name for upstream in self.upstreams]
        require(len(set(names)) == len(names), f"upstreams are named {names}; make the names different")
        require(self.ranks > 0, f"ranks is {self.ranks}; use 1 or more")
        if self.retrieval is not None:
            require(
                self.retrieval.upstream in names,
                f"retrieval.upstream is {self.retrieval.upstream!r}; use one of {', '.join(names)}",
            )

    def days(self) -> DailyConfig:
        """The daily section. Raises ConfigError where there is none."""
        if self.daily is None:
            raise ConfigError("daily is missing: give the config a [daily] section that says where days of events lie")
        return self.daily

    def upstream(self, name: str) -> UpstreamConfig:
        """The upstream of this name. Raises ConfigError listing those that exist."""
        for upstream in self.upstreams:
            if upstream.name == name:
                return upstream
        raise ConfigError(f"unknown upstream {name!r}; the config has: {', '.join(u.name for u in self.upstreams)}")

    def save(self, path: str | Path) -> None:
        """Write the complete config, defaults included, as TOML."""
        Path(path).write_text(tomli_w.dumps(_without_none(asdict(self))), encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> RunConfig:
        """Read a TOML config.

        Raises:
            ConfigError: no such file, no TOML, an unknown key, a wrong type or value; the message starts with the path.
        """
        try:
            return from_dict(tomllib.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ConfigError) as error:
            raise ConfigError(f"{path}: {error}") from None


def from_dict(document: dict[str, Any]) -> RunConfig:
    """Build a RunConfig from nested dicts and lists. Raises ConfigError naming the key and what was wanted."""
    hooks: dict[Any, Callable[[Any], Any]] = {float: _number, int: _integer, str: _string, dict[str, str]: _table}
    for kind in (tuple[str, ...], tuple[int, ...], tuple[tuple[str, ...], ...], tuple[UpstreamConfig, ...]):
        hooks[kind] = _list
    strict = dacite.Config(strict=True, cast=[tuple], type_hooks=hooks)
    try:
        return dacite.from_dict(RunConfig, document, config=strict)
    except dacite.UnexpectedDataError as error:
        unknown = ", ".join(sorted(map(repr, error.keys)))
        raise ConfigError(f"unknown key {unknown}; see recsys/config/ for every key and its meaning") from None
    except dacite.DaciteError as error:
        raise ConfigError(f"{error} (see recsys/config/ for every key and its meaning)") from None


def override(config: RunConfig, assignments: tuple[str, ...]) -> RunConfig:
    """Apply `path=value` assignments, values in TOML: `upstreams.0.training.epochs=2`, `downstream.seeds=[0]`.

    A path may name an upstream instead of its index: `upstreams.ctr.training.epochs=2`.

    Raises:
        ConfigError: no such path, or a value that does not fit.
    """
    document = _without_none(asdict(config))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        require(bool(equals), f"override {assignment!r} has no '='; write path=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text  # a bare word is a string: --set name=mine
        node: Any = document
        *parents, last = path.split(".")
        for key in parents:
            node = _child(node, key, path)
        require(isinstance(node, dict) and last in node, f"override {path!r}: no such key; see recsys/config/")
        node[last] = value
    return from_dict(document)


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


def _number(value: Any) -> float:
    return float(_of_type(float, value, int, float))


def _integer(value: Any) -> int:
    return _of_type(int, value, int)


def _string(value: Any) -> str:
    return _of_type(str, value, str)


def _table(value: Any) -> dict:
    return _of_type(dict, value, dict)


def _list(value: Any) -> Any:
    return _of_type(list, value, list, tuple)  # of a string, dacite would make a tuple of its letters


def _of_type(wanted: type, value: Any, *allowed: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, allowed):  # to Python, true is an int
        raise dacite.WrongTypeError(wanted, value)
    return value
