"""What Prometheus reads at ``/metrics``: streams, viewers, blocks, requests, and the process itself."""

import time
from collections.abc import Sequence

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from arl2.serving.live.wire import StreamInfo
from arl2.serving.web.settings import ModelFacts

CONTENT_TYPE = CONTENT_TYPE_LATEST
_STATES = ("running", "paused", "asleep", "ended", "failed")
_BLOCK_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Figures of one server. Of streams they are read when Prometheus asks, and cost nothing between.

    Args:
        model: for ``arl2_info``.
    """

    def __init__(self, model: ModelFacts) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        info = Gauge("arl2_info", "Version and model; always 1.", ("version", "model"), registry=registry)
        info.labels(model.version, model.name).set(1)
        self._streams = Gauge("arl2_streams", "Streams by state.", ("state",), registry=registry)
        self._viewers = Gauge("arl2_viewers", "Viewers of all streams.", registry=registry)
        self._share = Gauge(
            "arl2_real_time_share", "Seconds of computing that the running streams need in a second.", registry=registry
        )
        self._memory = Gauge("arl2_stream_memory_bytes", "Held by all streams.", registry=registry)
        self._blocks = Counter("arl2_blocks", "Blocks made.", registry=registry)
        self._frames = Counter("arl2_frames", "Video frames made.", registry=registry)
        self._encoded = Counter("arl2_encoded_bytes", "Encoded, once for all viewers.", registry=registry)
        self._block_seconds = Histogram(
            "arl2_block_seconds",
            "Seconds to make a block, each as the average of its stream's last blocks.",
            buckets=_BLOCK_SECONDS,
            registry=registry,
        )
        self._ready = Gauge("arl2_ready", "1 where /ready says so.", registry=registry)
        self._jobs = Gauge("arl2_jobs", "Video jobs by status.", ("status",), registry=registry)
        self.sockets = Gauge("arl2_sockets", "Sockets that are open.", registry=registry)
        self.sent = Counter("arl2_sent_bytes", "Video sent, to all viewers.", ("way",), registry=registry)
        self.requests = Counter("arl2_requests", "Requests answered.", ("method", "route", "status"), registry=registry)
        self.refused = Counter("arl2_refused", "Requests and sockets not let in.", ("why",), registry=registry)
        # By stream: blocks, frames and bytes that are counted already.
        self._counted: dict[str, tuple[int, int, int]] = {}
        self._since = time.time()

    def text(self, streams: Sequence[StreamInfo], *, ready: bool, jobs: dict[str, int] | None = None) -> bytes:
        """All figures, in Prometheus' format."""
        for state in _STATES:
            self._streams.labels(state).set(sum(one.state == state for one in streams))
        self._viewers.set(sum(one.viewers for one in streams))
        running = [one.figures for one in streams if one.state == "running"]
        self._share.set(sum(one.share for one in running))
        self._memory.set(sum(one.figures.memory_bytes for one in streams))
        self._ready.set(ready)
        for status, count in (jobs or {}).items():
            self._jobs.labels(status).set(count)
        self._count(streams)
        return generate_latest(self._registry)

    def _count(self, streams: Sequence[StreamInfo]) -> None:
        """Add what streams have made since the last time."""
        found = {}
        for one in streams:
            now = found[one.id] = one.block, one.frame, one.figures.sent_bytes
            # Of streams that were there before, and of forks, whose numbers are their parents', the past is not ours.
            begun_here = one.parent is None and one.created >= self._since
            blocks, frames, sent = self._counted.get(one.id, (0, 0, 0) if begun_here else now)
            for counter, amount in ((self._frames, one.frame - frames), (self._encoded, now[2] - sent)):
                counter.inc(max(0, amount))
            for _ in range(one.block - blocks):
                self._block_seconds.observe(one.figures.block_seconds)
                self._blocks.inc()
        self._counted = found
