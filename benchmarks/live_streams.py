"""Live streams of the embedded model in one process: eight against one, waking, and a hundred that sleep.

    python benchmarks/live_streams.py [--blocks 12] [--streams 8]

Prints one JSON line for each figure, with the machine's load. Ratios hold on a busy machine, absolute times do not.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.serving.live.host import LocalHost
from arl2.serving.live.settings import HostSettings
from arl2.serving.live.store import StreamStore
from arl2.serving.live.wire import EncodedFrame, StreamRequest

PROMPT = "a red circle moves right on navy"


@asynccontextmanager
async def hosting(pipe: ARL2Pipeline, place: Path) -> AsyncIterator[LocalHost]:
    """A host whose streams are kept when it ends."""
    host = LocalHost(pipe, StreamStore(place), HostSettings(scale=4, first_blocks=0, sleep_after=None))
    try:
        yield host
        await host.drain()
    finally:
        await host.close()


def tell(name: str, **figures: object) -> None:
    """One line."""
    print(json.dumps({"figure": name, **figures, "load": round(os.getloadavg()[0], 1)}), flush=True)


def resident() -> float:
    """Megabytes of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def watched(host: LocalHost, stream: str) -> tuple[int, float]:
    """Frames of a stream that runs as fast as it can, and its seconds, both without the first block."""
    frames, begun, last = 0, 0.0, 0.0
    async for item in host.watch(stream, after=-1):
        if isinstance(item, EncodedFrame) and item.block:
            begun = begun or time.perf_counter()
            frames, last = frames + 1, time.perf_counter()
    return frames, last - begun


async def several(pipe: ARL2Pipeline, place: Path, count: int, blocks: int) -> float:
    """Frames a second of so many streams together."""
    async with hosting(pipe, place) as host:
        infos = [
            await host.create(StreamRequest(prompt=PROMPT, seed=seed, realtime=False, blocks=blocks))
            for seed in range(count)
        ]
        seen = await asyncio.gather(*(watched(host, info.id) for info in infos))
    each = [frames / seconds for frames, seconds in seen]
    total = sum(frames for frames, _ in seen) / max(seconds for _, seconds in seen)
    tell("streams", streams=count, frames_a_second=round(total, 1), slowest=round(min(each), 1))
    return total


async def first_frame(host: LocalHost, stream: str, after: int | None) -> float:
    """Seconds from asking to the first frame."""
    begun = time.perf_counter()
    async for item in host.watch(stream, after=after):
        if isinstance(item, EncodedFrame):
            break
    return time.perf_counter() - begun


async def sleeping(pipe: ARL2Pipeline, place: Path, count: int) -> None:
    """What streams take that sleep, and how long one needs to wake."""
    async with hosting(pipe, place) as host:
        info = await host.create(StreamRequest(prompt=PROMPT, seed=0))
        tell("first picture", seconds=round(await first_frame(host, info.id, -1), 3))
    store = StreamStore(place)
    record, point = store.read(info.id), store.points(info.id)[-1]
    data = store.point_bytes(info.id, point.block)
    for number in range(count - 1):
        store.write(replace(record, id=f"sleeping-{number}"))
        store.add_point(f"sleeping-{number}", point, data)
    store.close()
    before = resident()
    async with hosting(pipe, place) as host:
        asleep = [one for one in await host.streams() if one.state == "asleep"]
        tell("asleep", streams=len(asleep), megabytes=round(resident() - before, 1), in_all=round(resident()))
        times = [await first_frame(host, one.id, None) for one in asleep[1:6]]
        tell("wake", seconds=round(sorted(times)[len(times) // 2], 3), worst=round(max(times), 3))


def main() -> None:
    """All figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=12, help="of each stream")
    parser.add_argument("--streams", type=int, default=8, help="against one")
    parser.add_argument("--asleep", type=int, default=100, help="streams that sleep")
    asked = parser.parse_args()
    pipe = ARL2Pipeline.from_pretrained("shapes-75")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        asyncio.run(several(pipe, place / "warm", 1, 2))
        one = asyncio.run(several(pipe, place / "one", 1, asked.blocks))
        all_of_them = asyncio.run(several(pipe, place / "several", asked.streams, asked.blocks))
        tell("several against one", ratio=round(all_of_them / one, 2))
        asyncio.run(sleeping(pipe, place / "asleep", asked.asleep))


if __name__ == "__main__":
    main()
