"""What ``arl2 serve`` takes on this machine, with real sockets: one JSON line a part.

    python benchmarks/serve_figures.py --parts first prompt sockets sleeping long

The viewers run in this process and share the cores with the server: times are pessimistic, orders hold.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil
import websockets

from arl2.serving.live.wire import FRAME_HEADER
from served import Served, served

PROMPT, OTHER = "a red circle moves right on navy", "a blue circle moves left on navy"
IDLE, WATCHING, SLEEPING = 100, 20, 100


def main() -> None:
    parts = {"first": first, "prompt": prompt, "sockets": sockets, "sleeping": sleeping, "long": long}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--minutes", type=float, default=5.0, help="of the long part")
    asked = parser.parse_args()
    for name in asked.parts:
        with tempfile.TemporaryDirectory() as folder, served(Path(folder) / "store", "--sleep-after", "5") as server:
            more = {"minutes": asked.minutes} if name == "long" else {}
            figures = asyncio.run(parts[name](server, **more))
        print(json.dumps({"part": name, **figures, "load": round(os.getloadavg()[0], 1)}), flush=True)


def begin(server: Served, seed: int, **more: object) -> str:
    return str(server.post("/v1/streams", prompt=PROMPT, seed=seed, **more)["id"])


def watching(server: Served, stream: str, query: str = "") -> websockets.connect:
    address = f"ws://127.0.0.1:{server.port}/v1/streams/{stream}/live{query}"
    return websockets.connect(address, max_queue=None, open_timeout=60, close_timeout=1)


def rss(server: Served) -> int:
    assert server.process is not None
    return int(psutil.Process(server.process.pid).memory_info().rss)


async def first(server: Served) -> dict[str, object]:
    """Seconds from the request of a stream to its first frame; the same again, whose first block is there already."""
    figures = {}
    for name, seeds in (("new", (1, 2, 3)), ("shared", (1, 2, 3))):
        took = []
        for seed in seeds:
            begun = time.perf_counter()
            async with watching(server, begin(server, seed)) as socket:
                while isinstance(await socket.recv(), str):
                    pass
            took.append(time.perf_counter() - begun)
        figures[f"{name}_seconds"] = round(median(took), 3)
    return figures


async def prompt(server: Served) -> dict[str, object]:
    """Seconds from a new prompt to the first frame made with it, and how many blocks that is."""
    took, blocks = [], []
    async with watching(server, begin(server, 1)) as socket:
        block, asked_at, asked_in, wanted = -1, 0.0, -1, None
        while len(took) < 6:
            got = await socket.recv()
            if isinstance(got, bytes):
                block = FRAME_HEADER.unpack_from(got)[0]
                if wanted is not None and block == wanted:
                    took.append(time.perf_counter() - asked_at)
                    blocks.append(block - asked_in)
                    asked_in, wanted = block, None
                elif asked_at == 0.0 or (wanted is None and block >= asked_in + 3):
                    asked_at, asked_in, wanted = time.perf_counter(), block, -1
                    words = OTHER if len(took) % 2 == 0 else PROMPT
                    message = {"type": "session.interaction", "action": "prompt", "prompt": words}
                    await socket.send(json.dumps(message))
            elif '"session.interaction.applied"' in got:
                wanted = json.loads(got)["block"]
                if wanted == block:
                    wanted = None
    return {"median_seconds": round(median(took), 2), "longest_seconds": round(max(took), 2), "blocks": blocks}


async def sockets(server: Served) -> dict[str, object]:
    """20 viewers of one stream, beside 100 sockets on a stream that is paused."""
    still, stream = begin(server, 1), begin(server, 2)
    server.post(f"/v1/streams/{still}/pause")
    seconds = 20.0

    async def idle() -> None:
        async with watching(server, still) as socket:
            await asyncio.sleep(seconds)
            await socket.close()

    async def viewer() -> tuple[int, int, list[float]]:
        """Frames, frames lost, and delays."""
        numbers, delays, end = [], [], time.monotonic() + seconds
        async with watching(server, stream) as socket:
            while time.monotonic() < end:
                got = await socket.recv()
                if isinstance(got, bytes):
                    _, number, _, _, released = FRAME_HEADER.unpack_from(got)
                    numbers.append(number)
                    delays.append(time.time() - released)
        return len(numbers), numbers[-1] - numbers[0] + 1 - len(numbers), delays

    idling = [asyncio.create_task(idle()) for _ in range(IDLE)]
    before = figures_of(server)
    seen = await asyncio.gather(*(viewer() for _ in range(WATCHING)))
    after = figures_of(server)
    await asyncio.gather(*idling)
    delays = sorted(delay for _, _, found in seen for delay in found[WATCHING:])
    sent, encoded = (
        after.get(name, 0.0) - before.get(name, 0.0)
        for name in ('arl2_sent_bytes_total{way="socket h264"}', "arl2_encoded_bytes_total")
    )
    return {
        "idle": IDLE,
        "watching": WATCHING,
        "frames_each": median(frames for frames, _, _ in seen),
        "frames_lost": sum(lost for _, lost, _ in seen),
        "sent_over_encoded": round(sent / encoded, 1),
        "delay_p50_ms": round(1000 * delays[len(delays) // 2], 1),
        "delay_p95_ms": round(1000 * delays[int(0.95 * len(delays))], 1),
    }


def figures_of(server: Served) -> dict[str, float]:
    lines = server.http.get("/metrics").text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


async def sleeping(server: Served) -> dict[str, object]:
    """Memory of 100 streams that sleep, and how long one takes to wake."""
    stream = begin(server, 1)
    async with watching(server, stream) as socket:
        while isinstance(await socket.recv(), str):
            pass
    before = rss(server)
    names = [begin(server, seed, realtime=False, blocks=50) for seed in range(SLEEPING)]
    until = time.monotonic() + 600
    while any(one["state"] == "running" for one in server.http.get("/v1/streams").json()["data"]):
        assert time.monotonic() < until
        await asyncio.sleep(0.5)
    after, took = rss(server), []
    for name in names[::25]:
        begun = time.perf_counter()
        async with watching(server, name) as socket:
            while isinstance(await socket.recv(), str):
                pass
        took.append(time.perf_counter() - begun)
    grown = round(100 * (after / before - 1), 1)
    return {"sleeping": SLEEPING, "memory_grown_percent": grown, "wake_seconds": round(max(took), 2)}


async def long(server: Served, minutes: float) -> dict[str, object]:
    """Memory of the process while one stream is made as fast as it can be."""
    stream, end, samples = begin(server, 1, realtime=False), time.monotonic() + 60 * minutes, []
    async with watching(server, stream) as socket:
        block = 0
        while time.monotonic() < end:
            got = await socket.recv()
            if isinstance(got, bytes) and FRAME_HEADER.unpack_from(got)[0] != block:
                block = FRAME_HEADER.unpack_from(got)[0]
                samples.append(rss(server))
    info = server.http.get(f"/v1/streams/{stream}").json()
    tenth = max(1, len(samples) // 10)
    early, late = median(samples[tenth : 2 * tenth]), median(samples[-tenth:])
    return {
        "minutes": minutes,
        "video_minutes": round(info["frame"] / info["fps"] / 60, 1),
        "memory_grown_percent": round(100 * (late / early - 1), 2),
        "memory_mb": round(late / 1e6),
    }


if __name__ == "__main__":
    main()
