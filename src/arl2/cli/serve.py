"""``arl2 serve``: live streams on a page, an API for programs, and video for players."""

import asyncio
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from arl2.cli.checks import check_source
from arl2.cli.options import Command
from arl2.cli.standard_streams import say_error
from arl2.errors import ConfigError
from arl2.files.cache import state_folder
from arl2.model.registry import find_card
from arl2.pipeline.options import ModelSource

if TYPE_CHECKING:
    from arl2.serving.live.settings import HostSettings
    from arl2.serving.web.process import Opened

KEY_VARIABLE = "ARL2_API_KEY"
_BYTES = 1_000_000_000
_SHOWN_SIDE = 256  # pixels, of frames that are enlarged


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may come in.

    Attributes:
        api_key: Key that every request needs, the page aside; better given as the environment variable ARL2_API_KEY,
            since other users of the machine see command lines (default: none).
        allow_origin: Pages of other servers that may use this one, such as https://example.org.
        allow_host: More names that the server answers to, such as demo.example.org; with a key it answers to all.
        max_sockets: Viewers' sockets at once; with --ray, of each front.
    """

    api_key: str | None = None
    allow_origin: tuple[str, ...] = ()
    allow_host: tuple[str, ...] = ()
    max_sockets: int = 1000


@dataclass(frozen=True, kw_only=True)
class Streams:
    """Running and keeping streams.

    Attributes:
        store: Folder, or address that fsspec knows, where streams outlive the server (default: streams in the user's
            folder of states, ~/.local/state/arl2).
        max_streams: Streams that run at once; sleeping ones do not count.
        memory: Gigabytes that streams may take together (default: most of what is free).
        sleep_after: Seconds without a viewer after which a stream goes to sleep, or never.
        point_every: Blocks between two kept points, from which a stream can be rewound, forked and recovered.
        keep_points: Points that are kept of each stream.
        scale: Factor that enlarges every pixel (default: 4 for 64-pixel videos, 1 for large ones).
    """

    store: str | None = None
    max_streams: int = 64
    memory: float | None = None
    sleep_after: float | Literal["never"] = 30.0
    point_every: int = 4
    keep_points: int = 32
    scale: int | None = None


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Several processes or machines.

    Attributes:
        ray: Serve from several workers through Ray Serve; a worker that is killed loses nothing.
        workers: Processes with a warm model; with --most-workers, the fewest.
        most_workers: Workers come and go up to this number, with the share of real time that the streams take.
        fronts: Processes that hold the viewers' sockets.
        gpus: GPUs of each worker, or a part of one.
        ray_address: Ray cluster to join, such as auto (default: one of this machine, which ends with the command).
    """

    ray: bool = False
    workers: int = 2
    most_workers: int | None = None
    fronts: int = 1
    gpus: float | None = None
    ray_address: str | None = None


@dataclass(frozen=True, kw_only=True)
class Serve(Command):
    """Serve live streams: a page to watch and steer them, an API for programs, video for players.

    Ctrl-C lets every stream finish its block and saves it; the next start continues them. A second one ends at once,
    and the next start continues as well.

    Attributes:
        host: Address to listen at; 0.0.0.0 for other machines, with an API key.
        port: Port to listen at; 0 takes a free one.
        log: What is written to standard error: text for people, json with a line for each request.
        threads: CPU threads (default: 1 for small models, else all cores).
    """

    positional: ClassVar = ("model",)
    light: ClassVar = True
    examples: ClassVar = (
        "arl2 serve",
        "arl2 serve shapes-75 --host 0.0.0.0 --port 8080 --store streams --log json",
        "arl2 serve --ray --workers 2 --store streams",
    )
    host: str = "127.0.0.1"
    port: int = 8000
    log: Literal["text", "json"] = "text"
    threads: int | None = None
    access: Access = field(default_factory=Access)
    streams: Streams = field(default_factory=Streams)
    cluster: Cluster = field(default_factory=Cluster)
    source: ModelSource = field(default_factory=ModelSource)

    @property
    def api_key(self) -> str | None:
        """The key, from wherever it was given."""
        return self.access.api_key or os.environ.get(KEY_VARIABLE) or None

    @property
    def store(self) -> str:
        """Where streams are kept."""
        return self.streams.store or str(state_folder() / "streams")

    @property
    def _videos(self) -> Path:
        """Where video jobs are kept: beside the streams, if those are in a folder."""
        return state_folder() / "videos" if "://" in self.store else Path(self.store) / "videos"

    def run(self) -> int:
        """Bind, load, serve; the exit code."""
        check_source(self.source)
        self._check()
        _require_extra()

        from arl2.serving.web.logs import log_as_json
        from arl2.serving.web.process import run_server
        from arl2.serving.web.server import address_of, bind

        if self.log == "json":
            log_as_json()
        say = _voice()
        if self.cluster.ray:
            return self._run_cluster(say)
        with bind(self.host, self.port) as listening:
            url = address_of(listening)
            self._warn(say)
            say(f"loading {self.source.name}; streams are kept in {self.store}")
            return run_server(listening, self._load, say=say, url=url)

    def _warn(self, say: Callable[[str], None]) -> None:
        if not self._is_local() and self.api_key is None:
            say(f"warning: everybody who reaches {self.host} may use this server; set {KEY_VARIABLE}")

    def _check(self) -> None:
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise ConfigError("The API key has characters that no header can carry; give letters and digits.")
        for origin in self.access.allow_origin:
            scheme, _, rest = origin.partition("://")
            if scheme not in ("http", "https") or not rest or "/" in rest:
                raise ConfigError(f"Got --allow-origin '{origin:.80}'; give an origin such as https://example.org.")

    def _host_settings(self, scale: int) -> "HostSettings":
        from arl2.serving.live.settings import HostSettings

        chosen = self.streams
        return HostSettings(
            point_every=chosen.point_every,
            keep_points=chosen.keep_points,
            sleep_after=None if chosen.sleep_after == "never" else chosen.sleep_after,
            most_streams=chosen.max_streams,
            memory_bytes=None if chosen.memory is None else int(chosen.memory * _BYTES),
            scale=scale,
        )

    def _run_cluster(self, say: Callable[[str], None]) -> int:
        if self.threads is not None:
            raise ConfigError("--threads does not go with --ray: Ray gives each worker its threads; leave it out.")
        if importlib.util.find_spec("ray") is None:
            raise ConfigError('arl2 serve --ray needs the package ray, which is missing: pip install "arl2[cluster]".')
        from arl2.serving.cluster import ClusterSettings, run

        asked, access = self.cluster, self.access
        settings = ClusterSettings(
            store=self.store,
            source=self.source,
            host=self._host_settings(self.streams.scale or _card_scale(self.source.name)),
            workers=asked.workers,
            most_workers=asked.most_workers,
            fronts=asked.fronts,
            gpus=asked.gpus or 0.0,
            api_key=self.api_key,
            allow_origins=access.allow_origin,
            allow_hosts=access.allow_host,
            most_sockets=access.max_sockets,
        )
        self._warn(say)
        return int(run(settings, address=asked.ray_address, host=self.host, port=self.port, say=say))

    def _is_local(self) -> bool:
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    async def _load(self) -> "Opened":
        from arl2.cli.loading import load_pipeline
        from arl2.pipeline.options import SamplingOptions
        from arl2.serving.engine import shown_scale
        from arl2.serving.live.host import LocalHost
        from arl2.serving.live.store import StreamStore
        from arl2.serving.videos.service import VideoService, VideoSettings
        from arl2.serving.web.app import create_app
        from arl2.serving.web.facts import facts_of
        from arl2.serving.web.process import Opened
        from arl2.serving.web.settings import WebSettings
        from arl2.serving.web.videos import videos_router

        # Another server may have it, which is to be told before anything is loaded.
        store = await asyncio.to_thread(StreamStore, self.store)
        pipe = await asyncio.to_thread(load_pipeline, self.source, SamplingOptions(), threads=self.threads)
        access = self.access
        host = LocalHost(pipe, store, self._host_settings(self.streams.scale or shown_scale(pipe)))
        settings = WebSettings(
            model=facts_of(pipe, self.source.name),
            api_key=self.api_key,
            allow_origins=access.allow_origin,
            allow_hosts=access.allow_host,
            most_sockets=access.max_sockets,
        )

        service = await asyncio.to_thread(
            VideoService, pipe, self._videos, VideoSettings(model=self.source.name), host.turns
        )

        async def drain() -> None:
            await asyncio.gather(host.drain(), asyncio.to_thread(service.close))

        async def close() -> None:
            await asyncio.to_thread(service.close)
            await host.close()

        app = create_app(host, settings, routers=(videos_router(service),), jobs=service.counts)
        return Opened(app, host.warm, drain, close)


def _card_scale(model: str) -> int:
    """How much workers enlarge the frames of a model that is not loaded here."""
    try:
        return max(1, _SHOWN_SIDE // find_card(model).settings.height)
    except ConfigError:  # a path
        return 1


def _require_extra() -> None:
    """Refuse to begin without what the web server is made of."""
    for name in ("fastapi", "uvicorn", "websockets", "prometheus_client", "multipart"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f'arl2 serve needs the package {name}, which is missing: pip install "arl2[serve]".')


def _voice() -> Callable[[str], None]:
    return lambda sentence: say_error(f"arl2 serve: {sentence}")
