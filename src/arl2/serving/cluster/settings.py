"""Settings of a cluster, from Python, ``serve run`` or a RayService. Loads neither torch nor Ray."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from arl2.errors import ConfigError
from arl2.files.records import record_from_mapping, typed
from arl2.pipeline.options import ModelSource
from arl2.serving.live.settings import HostSettings


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Workers, fronts, and the store that they share.

    Attributes:
        store: a folder that all machines see, or an address that fsspec knows, such as ``s3://bucket/streams``.
        source: the model, and where it runs in a worker.
        host: how a worker runs its streams.
        workers: processes with a warm model; with ``most_workers``, the fewest.
        most_workers: above ``workers``: more of them come and go with the share of real time that the streams take.
        fronts: processes that hold the viewers' sockets.
        cpus, gpus: that each worker takes.
        api_key: that every request needs; None: none.
        allow_origins: pages of other servers that may use this one.
        allow_hosts: names that the server answers to.
        most_sockets: viewers' sockets of one front at once.
        upscale_seconds, downscale_seconds: that more, or fewer, workers must be wanted before they come, or go.
    """

    store: str
    source: ModelSource = field(default_factory=ModelSource)
    host: HostSettings = field(default_factory=HostSettings)
    workers: int = 2
    most_workers: int | None = None
    fronts: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    api_key: str | None = field(default=None, repr=False)
    allow_origins: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    most_sockets: int = 1000
    upscale_seconds: float = 10.0
    downscale_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name in ("workers", "fronts", "most_sockets"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Got {name} {getattr(self, name)}; give 1 or more.")
        if self.most_workers is not None and self.most_workers < self.workers:
            raise ConfigError(f"Got most_workers {self.most_workers}; give at least workers, {self.workers}, or none.")
        for name in ("cpus", "gpus", "upscale_seconds", "downscale_seconds"):
            if getattr(self, name) < 0:
                raise ConfigError(f"Got {name} {getattr(self, name)}; give 0 or more.")
        if not self.store.strip():
            raise ConfigError("Give store, a folder that all machines see, or an address such as s3://bucket/streams.")


def settings_of(given: Mapping[str, Any]) -> ClusterSettings:
    """From the arguments of ``serve run`` or of a RayService: ``model``, and what ``ClusterSettings`` has.

    Settings inside others are written with a dot, ``host.point_every=2``, or nested.

    Raises:
        ConfigError: an unknown name (the nearest is named), a missing one, or a value that is not accepted.
    """
    values: dict[str, Any] = {}
    for name, value in given.items():
        path = ("source", "model") if name == "model" else tuple(name.split("."))
        inside = values
        for part in path[:-1]:
            inside = inside.setdefault(part, {})
            if not isinstance(inside, dict):
                raise ConfigError(f"Got both '{part}' and '{name}'; give one of them.")
        read = typed(value) if isinstance(value, str) and path not in _TEXTS else value
        if isinstance(read, dict) and isinstance(inside.get(path[-1]), dict):
            inside[path[-1]].update(read)
        else:
            inside[path[-1]] = read
    if "store" not in values:
        raise ConfigError(
            "Give store=PLACE, a folder that all machines see, or an address such as s3://bucket/streams."
        )
    return record_from_mapping(ClusterSettings, values, where="arl2.serving.cluster")


_TEXTS = {("source", "model"), ("store",), ("api_key",), ("source", "device"), ("source", "decoder")}
