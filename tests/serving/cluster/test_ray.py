"""Real streams on a real cluster: two workers and a front on this machine."""

import contextlib
import os
import signal
import time
import urllib.error
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from websockets.exceptions import InvalidMessage, InvalidStatus

from arl2 import ARL2Pipeline
from cluster.running import Running, Viewer, last_frame, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

RED, BLUE = "a red circle moves right on navy", "a blue circle moves right on navy"


def digests(blocks: int, *, seed: int, changes: Sequence[tuple[int, str]] = ()) -> list[str]:
    """Of a stream that nothing befell, made in this process."""
    from hashlib import blake2b

    found, pipe = [], ARL2Pipeline.from_pretrained("shapes-75")
    with torch.no_grad(), pipe.stream(RED, seed=seed) as stream:
        for number in range(blocks):
            for block, prompt in changes:
                if block == number:
                    stream.change_prompt(prompt)
            found.append(blake2b(next(stream).pixels().tobytes(), digest_size=16).hexdigest())
    return found


def test_a_stream_has_one_worker_whoever_asks(cluster: Running) -> None:
    """Fails where Ray's experimental router does something else than its name says."""
    owners = {f"stream-{number}": cluster.ask(do="owner", stream=f"stream-{number}", times=6) for number in range(8)}
    assert all(len(found) == 1 for found in owners.values())
    assert {tuple(found[0]) for found in owners.values()} == {tuple(one) for one in cluster.ask(do="processes")}


def test_a_killed_worker_is_not_noticed_by_viewers(cluster: Running) -> None:
    stream = cluster.create()
    _, process = cluster.owner(stream)
    viewer = Viewer(cluster, stream)
    until(viewer.whole(2))
    viewer.send(action="prompt", prompt=BLUE, key="blue")
    until(lambda: any(one["type"].endswith("applied") for one in viewer.receipts))
    changed = next(one for one in viewer.receipts if one["type"].endswith("applied"))["block"]
    until(viewer.whole(max(5, changed + 1)))
    frames = len(viewer.frames)
    until(lambda: len(viewer.frames) >= frames + 2)  # in the middle of a block
    shown = len(viewer.frames)
    os.kill(process, signal.SIGKILL)
    until(lambda: cluster.has_moved(stream, process))
    until(viewer.whole(len(viewer.heads) + 3), seconds=60)
    viewer.check()
    heads = list(viewer.heads)
    viewer.close()
    gap = max(after - before for before, after in pairwise(viewer.times[shown - 1 :]))
    print(f"\nkilled at frame {shown}; longest gap {gap:.2f} s at load {os.getloadavg()[0]:.1f}")
    assert [head["digest"] for head in heads] == digests(len(heads), seed=3, changes=[(changed, BLUE)])
    cluster.http("DELETE", f"/v1/streams/{stream}")
    cluster.workers(2)


def test_streams_move_as_workers_go_and_come(cluster: Running) -> None:
    """Nothing is lost where a worker is drained, nor where another one gets a part of the streams."""
    streams = [cluster.create(prompt, seed=seed) for seed, prompt in enumerate([RED, BLUE, RED, BLUE])]
    viewers = {stream: Viewer(cluster, stream) for stream in streams}

    def further(blocks: int) -> None:
        for viewer in viewers.values():
            until(viewer.whole(len(viewer.heads) + blocks), seconds=60)
        for stream, viewer in viewers.items():
            viewer.check()
            until(lambda stream=stream: cluster.ask(do="running", stream=stream) == [True, 1])

    further(2)
    owners = {stream: cluster.owner(stream) for stream in streams}
    for _ in range(4):  # drawn names may all be given to one worker: once in eight times
        cluster.ask(do="scale", workers=1, fronts=1)
        assert len({cluster.owner(stream) for stream in streams}) == 1
        further(2)
        cluster.ask(do="scale", workers=2, fronts=1)
        further(2)
        before, owners = owners, {stream: cluster.owner(stream) for stream in streams}
        if len(set(owners.values())) == 2:
            break
    assert len(set(owners.values())) == 2
    assert owners != before
    for stream, viewer in viewers.items():
        assert viewer.closed is None
        viewer.close()
        cluster.http("DELETE", f"/v1/streams/{stream}")


def test_after_a_killed_front_viewers_continue_where_they_were(cluster: Running) -> None:
    stream = cluster.create()
    viewer = Viewer(cluster, stream)
    until(viewer.whole(3))
    (_, process), *_ = cluster.ask(do="processes", of="front")
    os.kill(process, signal.SIGKILL)
    until(lambda: viewer.closed is not None)
    viewer.check()
    cut = viewer.heads[-1]
    shown = cut["block"] if viewer.frames[-1][1] == last_frame(cut) else cut["block"] - 1

    def again() -> Viewer | None:
        with contextlib.suppress(OSError, TimeoutError, InvalidStatus, InvalidMessage, EOFError):
            return Viewer(cluster, stream, after=shown)
        return None

    end, back = time.monotonic() + 60, None
    while back is None:
        assert time.monotonic() < end
        back = again()
    until(back.whole(2), seconds=60)
    back.check(first=shown + 1)
    # The worker does not count the front that is dead.
    until(lambda: cluster.http("GET", f"/v1/streams/{stream}")["viewers"] == 1)
    back.close()
    cluster.http("DELETE", f"/v1/streams/{stream}")


def test_errors_come_through(cluster: Running) -> None:
    for path, status in (("/v1/streams/nobody", 404), ("/v1/streams/nobody/live.mp4", 404)):
        with pytest.raises(urllib.error.HTTPError) as found:
            cluster.http("GET", path)
        assert found.value.code == status
        assert "There is no stream 'nobody'." in found.value.read().decode()
    with pytest.raises(urllib.error.HTTPError) as found:
        cluster.http("POST", "/v1/streams", {"prompt": RED, "options": {"height": 31}})
    assert found.value.code == 422
    assert "Traceback" not in found.value.read().decode()
