"""Two hosts with a real model on one store: a stream that moves and is cut off has the bits of one that is not."""

import asyncio
import contextlib
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import torch

from arl2 import ARL2Pipeline
from arl2.serving.cluster.host import ClusterHost
from arl2.serving.live.host import LocalHost
from arl2.serving.live.settings import HostSettings
from arl2.serving.live.store import StreamStore
from arl2.serving.live.wire import BlockHead, Command, EncodedFrame, Ended, StreamRequest, WatchItem
from serving.cluster.fakes import Cluster, settle

RED, BLUE = "a red circle moves right on navy", "a blue circle moves right on navy"


def digests(pipe: ARL2Pipeline, blocks: int, *, seed: int, changes: Sequence[tuple[int, str]] = ()) -> list[str]:
    """Of a stream that nothing befell."""
    found = []
    with torch.no_grad(), pipe.stream(RED, seed=seed) as stream:
        for number in range(blocks):
            for block, prompt in changes:
                if block == number:
                    stream.change_prompt(prompt)
            found.append(blake2b(next(stream).pixels().tobytes(), digest_size=16).hexdigest())
    return found


def test_a_stream_that_moves_and_loses_its_worker_has_the_same_bits(tmp_path: Path) -> None:
    pipe = ARL2Pipeline.from_pretrained("shapes-75")
    settings = HostSettings(point_every=3, shared=True)

    async def watch() -> tuple[list[WatchItem], int]:
        cluster = Cluster(
            tmp_path, "8", "f", make=lambda name: LocalHost(pipe, StreamStore(tmp_path, shared=True), settings)
        )
        for worker in cluster.workers.values():
            await worker.look()
        host = ClusterHost(cluster, "front")
        stream = (await host.create(StreamRequest(prompt=RED, seed=5, realtime=False, blocks=12))).id
        await host.give(stream, Command(action="pause"))
        first = cluster.named(stream)
        second = next(name for name in cluster.ring if name != first)
        seen: list[WatchItem] = []

        async def collect() -> None:
            async with contextlib.aclosing(host.watch(stream, after=-1)) as items:  # type: ignore[type-var]
                async for item in items:
                    seen.append(item)

        def heads() -> int:
            return sum(isinstance(item, BlockHead) for item in seen)

        watching = asyncio.create_task(collect())
        await host.give(stream, Command(action="play"))
        await settle(lambda: heads() >= 3, seconds=30)
        await host.give(stream, Command(action="pause"))
        receipt = await host.give(stream, Command(action="prompt", prompt=BLUE))
        # The first worker is to end; the stream moves as it is, in its pause.
        cluster.ring.remove(first)
        await cluster.workers[first].look()
        assert not cluster.hosts[first].running()
        await settle(lambda: bool(cluster.hosts[second].running()), seconds=30)
        # It makes the blocks before its pause again, then stands still as it did.
        await settle(lambda: cluster.hosts[second].running()[0].state == "paused", seconds=30)
        await host.give(stream, Command(action="play"))
        before = heads()
        await settle(lambda: heads() >= before + 2 or watching.done(), seconds=30)
        # The first one is back, and the second dies: what it does from now on reaches nobody.
        cluster.add("0" if first == "8" else "e")
        cluster.kill(second)
        await cluster.hosts[second].close()
        await asyncio.wait_for(watching, 60)
        for name in cluster.hosts:
            if name != second:
                await cluster.hosts[name].drain()
                await cluster.hosts[name].close()
        assert receipt.block is not None
        return seen, receipt.block

    seen, changed = asyncio.run(watch())
    found = [item for item in seen if isinstance(item, BlockHead)]
    frames = [item.frame for item in seen if isinstance(item, EncodedFrame)]
    assert [head.block for head in found] == list(range(12))
    assert frames == list(range(len(frames)))
    assert frames[-1] == found[-1].frame + found[-1].frames - 1
    assert seen[-1] == Ended("end")
    assert [head.digest for head in found] == digests(pipe, 12, seed=5, changes=[(changed, BLUE)])
