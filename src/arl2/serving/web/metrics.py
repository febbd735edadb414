"""What Prometheus reads at ``/metrics``: streams, viewers, blocks, requests, and the process itself."""

import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from arl2.serving.live.wire import StreamInfo
from arl2.serving.web.settings import ModelFacts

CONTENT_TYPE = CONTENT_TYPE_LATEST
_STATES = ("running", "paused", "asleep", "ended", "failed")
_BLOCK_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class _Histogram(Collector):
    """A histogram that takes many equal values in one step; the library's takes each of them alone."""

    def __init__(self, name: str, documentation: str, bounds: tuple[float, ...]) -> None:
        self._name, self._documentation, self._bounds = name, documentation, bounds
        self._counts, self._sum = [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float, times: int) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def collect(self) -> Iterable[HistogramMetricFamily]:
        names = [*map(str, self._bounds), "+Inf"]
        buckets = list(zip(names, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=self._sum)


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
        self._block_seconds = _Histogram(
            "arl2_block_seconds",
            "Seconds to make a block, each as the average of its stream's last blocks.",
            _BLOCK_SECONDS,
        )
        registry.register(self._block_seconds)
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
            # Of streams that were there before the past is not ours. Forks and uploads do not begin at 0.
            begun_here = one.created >= self._since
            first = (one.first_block, one.first_frame, 0) if begun_here else now
            blocks, frames, sent = self._counted.get(one.id, first)
            for counter, amount in ((self._frames, one.frame - frames), (self._encoded, now[2] - sent)):
                counter.inc(max(0, amount))
            made = max(0, one.block - blocks)
            self._blocks.inc(made)
            self._block_seconds.observe(one.figures.block_seconds, made)
        self._counted = found
