"""``arl2 serve --ray``: Ray and its Serve are started, or joined, and ended together with the command."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import ray
from ray import serve

from arl2.errors import ConfigError
from arl2.files.regular import first_line
from arl2.serving.cluster.deployments import application
from arl2.serving.cluster.settings import ClusterSettings
from arl2.serving.live.store import StreamStore

logger = logging.getLogger(__name__)

APP = "arl2"
_INTERRUPTED = 130
# A worker that computes is slow to answer; the router is not to pass it over for another one at once.
_PATIENT = {
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "1.0",
    "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "5.0",
}


def run(
    settings: ClusterSettings,
    *,
    address: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    dashboard: bool = False,
    say: Callable[[str], None] = logger.info,
) -> int:
    """Serve until the first Ctrl-C or SIGTERM: then every stream finishes its block and is saved. A second one ends at
    once.

    Args:
        settings: of the cluster.
        address: of a Ray cluster that runs, such as "auto"; None: one of this machine alone, which ends with this.
        host, port: at which the proxies listen.
        dashboard: whether Ray's own page is started, on this machine alone.
        say: gets sentences for people.

    Returns: the exit code.

    Raises:
        ConfigError: no cluster at the address, or the application does not come up.
        StoreError: a server without a cluster uses the store.
    """
    ending = threading.Event()
    with contextlib.ExitStack() as held:
        if address is None:  # otherwise this machine need not see the store
            held.enter_context(contextlib.closing(StreamStore(settings.store, shared=True)))
        held.enter_context(_signals_as_before())
        held.enter_context(_ray(address, dashboard))
        _end_by_signals(ending)  # after Ray, which takes SIGTERM for itself as it starts, and would end at once
        try:
            serve.start(http_options={"host": host, "port": port}, proxy_location="EveryNode")
            serve.run(application(settings), name=APP, route_prefix="/")
        except Exception as error:  # of Ray: a port in use, a worker that does not start
            raise ConfigError(f"The cluster did not come up: {first_line(error)} See Ray's logs.") from error
        say(f"serving at http://{host}:{port} with {settings.workers} workers; Ctrl-C ends")
        ending.wait()
        say("ending: streams finish their blocks and are saved; once more ends at once")
        if address is None:
            serve.shutdown()
        else:
            serve.delete(APP)
    return 0


@contextlib.contextmanager
def _ray(address: str | None, dashboard: bool) -> Iterator[None]:
    """A connection to a cluster, or a cluster of this machine, reached from this machine alone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for name, value in _PATIENT.items():
        os.environ.setdefault(name, value)
    try:
        if address is not None:
            ray.init(address=address, log_to_driver=False)
        else:
            ray.init(include_dashboard=dashboard, log_to_driver=False, _node_ip_address="127.0.0.1")
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = "on this machine" if address is None else f"at '{address}'"
        raise ConfigError(f"Ray cannot be used {where}: {first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _signals_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_by_signals(ending: threading.Event) -> None:
    def end(number: int, frame: FrameType | None) -> None:
        if ending.is_set():
            os._exit(_INTERRUPTED)
        ending.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
