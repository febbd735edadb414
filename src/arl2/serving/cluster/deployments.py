"""Workers and fronts as deployments of Ray Serve."""

import asyncio
import contextlib
import logging
import os
from dataclasses import replace
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from arl2.serving.cluster.host import ClusterHost
from arl2.serving.cluster.owners import Owners
from arl2.serving.cluster.peers import RayWorkers, WorkerLostError, actor_lives, own_name
from arl2.serving.cluster.scaling import SHARE
from arl2.serving.cluster.settings import ClusterSettings
from arl2.serving.cluster.worker import StreamWorker
from arl2.serving.live.store import StreamStore
from arl2.serving.web.app import create_app
from arl2.serving.web.settings import ModelFacts, WebSettings

logger = logging.getLogger(__name__)

WORKER, FRONT = "worker", "front"
_ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
_SAVING = 30.0  # seconds for streams to finish their blocks and be saved, before a process is ended
_LOOK_EVERY = 1.0
_MANY = 10_000  # calls at once: a stream belongs to its worker, however busy that is


@serve.deployment(name=WORKER)
class Worker(StreamWorker):
    """A process with a warm model."""

    async def __init__(self, settings: ClusterSettings) -> None:  # type: ignore[misc]  # Ray awaits it
        from arl2.pipeline.source import open_pipeline
        from arl2.serving.engine import shown_scale
        from arl2.serving.live.host import LocalHost
        from arl2.serving.web.facts import facts_of

        pipe = await asyncio.to_thread(open_pipeline, settings.source)
        store = await asyncio.to_thread(StreamStore, settings.store, shared=True)
        scale = settings.host.scale if settings.host.scale > 1 else shown_scale(pipe)
        host = LocalHost(pipe, store, replace(settings.host, shared=True, scale=scale))
        await host.warm()
        own = serve.get_deployment_handle(WORKER, app_name=serve.get_replica_context().app_name)
        super().__init__(
            host,
            Owners(settings.store, actor_lives),
            RayWorkers(own),
            own_name(),
            journal=lambda stream, since: store.entries(stream, since=since),
            lives=actor_lives,
            look_every=_LOOK_EVERY,
        )
        self._facts = facts_of(pipe, settings.source.name)
        self.start()

    async def facts(self, stream: str = "") -> ModelFacts:
        """Of the model, whatever the stream."""
        return self._facts

    async def process(self, stream: str = "") -> tuple[str, int]:
        """Its name, and the number of its process: for those who look after it."""
        return self.name, os.getpid()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray."""
        return {SHARE: self.share()}

    async def __del__(self) -> None:
        """Called by Ray, before the process is ended."""
        await self.close()


@serve.deployment(name=FRONT)
@serve.ingress()
class Front:
    """A process with viewers' sockets, and the web application."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, workers: DeploymentHandle, settings: ClusterSettings
    ) -> None:
        self._name = own_name()
        self._host = ClusterHost(RayWorkers(workers), self._name, ring_bytes=settings.host.ring_bytes)
        self._own = RayWorkers(serve.get_deployment_handle(FRONT, app_name=serve.get_replica_context().app_name))
        facts = await RayWorkers(workers).call("", "facts")
        web = WebSettings(
            model=facts,
            api_key=settings.api_key,
            allow_origins=settings.allow_origins,
            allow_hosts=settings.allow_hosts,
            most_sockets=settings.most_sockets,
        )
        self._web = create_app(self._host, web)
        self._looking = asyncio.get_running_loop().create_task(self._look())

    def __serve_build_asgi_app__(self) -> Any:
        return self._web

    async def who(self) -> str:
        return self._name

    async def process(self) -> tuple[str, int]:
        """As a worker's."""
        return self._name, os.getpid()

    async def _look(self) -> None:
        """End the viewers' sockets once the router names this front no more: it is to end, and they find another."""
        seen = False
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            with contextlib.suppress(WorkerLostError):
                named = self._name in await self._own.ask_all("who")
                if seen and not named:
                    await self._host.drain()
                    return
                seen = seen or named

    async def __del__(self) -> None:
        self._looking.cancel()
        await self._host.close()


def application(settings: ClusterSettings) -> serve.Application:
    """Fronts, bound to workers."""
    number: dict[str, Any] = {"num_replicas": settings.workers}
    if settings.most_workers is not None and settings.most_workers > settings.workers:
        number = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=settings.workers,
                max_replicas=settings.most_workers,
                upscale_delay_s=settings.upscale_seconds,
                downscale_delay_s=settings.downscale_seconds,
                look_back_period_s=10,
                policy=AutoscalingPolicy(policy_function="arl2.serving.cluster.scaling:by_share"),
            )
        }
    lasting: dict[str, Any] = {
        "max_ongoing_requests": _MANY,
        "graceful_shutdown_timeout_s": _SAVING,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": 2,
        "logging_config": {"enable_access_log": False},  # workers look at each other every second
        "health_check_timeout_s": 30,
    }
    workers = Worker.options(  # type: ignore[attr-defined]  # a deployment
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER),  # type: ignore[arg-type]  # as documented
        **number,
        **lasting,
    ).bind(settings)
    return Front.options(  # type: ignore[attr-defined]  # a deployment
        num_replicas=settings.fronts, ray_actor_options={"num_cpus": 0.1}, **lasting
    ).bind(workers, settings)
