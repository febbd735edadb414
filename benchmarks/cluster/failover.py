"""How long viewers wait when the worker of their stream is killed, with a warm worker to spare.

    python benchmarks/cluster/failover.py [KILLS]

Starts Ray on this machine, kills the worker in mid-block, and waits for a new one before the next kill. Prints the
longest wait between two frames around each kill, beside the longest without one, and ends with a line of JSON.
"""

import json
import os
import platform
import signal
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from cluster.running import Running, Viewer, running, until

PROMPT = "a red circle moves right on navy"


def kill_once(cluster: Running) -> tuple[float, float]:
    """Longest waits in seconds: before, and around the kill."""
    stream = cluster.create(PROMPT)
    viewer = Viewer(cluster, stream)
    until(viewer.whole(4))
    frames = len(viewer.frames)
    until(lambda: len(viewer.frames) >= frames + 3)
    _, process = cluster.owner(stream)
    shown = len(viewer.frames)
    os.kill(process, signal.SIGKILL)
    until(lambda: cluster.has_moved(stream, process))
    until(viewer.whole(len(viewer.heads) + 3), seconds=60)
    viewer.check()
    viewer.close()
    cluster.http("DELETE", f"/v1/streams/{stream}")
    waits = [after - before for before, after in pairwise(viewer.times)]
    return max(waits[: shown - 1]), max(waits[shown - 1 :])


def main(kills: int) -> None:
    with tempfile.TemporaryDirectory() as home, running(Path(home), Path(home) / "store") as cluster:
        found = []
        for _ in range(kills):
            cluster.workers(2)
            calm, gap = kill_once(cluster)
            found.append(gap)
            print(f"calm {calm:.2f} s, killed {gap:.2f} s, load {os.getloadavg()[0]:.1f}", flush=True)
        cluster.workers(2)
    print(json.dumps({"kills": kills, "gap_seconds": [round(one, 3) for one in found], "machine": platform.machine()}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
