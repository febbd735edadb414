"""A host of streams whose blocks come when a test says so; frames are real H.264 of plain colours."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import numpy as np

from arl2.errors import SnapshotError, StreamError
from arl2.serving.live.wire import (
    BlockHead,
    Command,
    DrainingError,
    EncodedFrame,
    Ended,
    Figures,
    NoRoomError,
    Point,
    Receipt,
    StreamInfo,
    StreamRequest,
    UnknownStreamError,
    WatchItem,
)
from arl2.video.h264 import H264Encoder

SIDE, FPS, FRAMES = 64, 16, 4  # frames of a block
MAGIC = b"fake snapshot"


@dataclass
class Made:
    """A stream, with all that it has ever told its viewers."""

    info: StreamInfo
    encoder: H264Encoder = field(default_factory=lambda: H264Encoder(SIDE, SIDE, FPS))
    items: list[WatchItem] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    viewers: int = 0
    commands: list[Command] = field(default_factory=list)


class FakeHost:
    """``StreamHost``; ``room`` streams fit."""

    def __init__(self, room: int = 8) -> None:
        self.room, self.made, self.draining, self.closed = room, dict[str, Made](), False, False
        self.is_ready = True
        self.opened = 0  # watches, in all

    def _of(self, stream: str) -> Made:
        if stream not in self.made:
            raise UnknownStreamError(f"There is no stream '{stream}'.")
        return self.made[stream]

    async def create(self, request: StreamRequest) -> StreamInfo:
        if self.draining:
            raise DrainingError("The server is about to end; ask again in a moment.")
        if len(self.made) >= self.room:
            raise NoRoomError("There is no memory for another stream; end one.", retry_after=7)
        name = f"s{len(self.made)}"
        seed = 1 if request.seed is None else request.seed
        info = StreamInfo(
            id=name,
            state="running",
            request=replace(request, seed=seed),
            prompt=request.prompt,
            width=SIDE,
            height=SIDE,
            fps=FPS,
            block=0,
            frame=0,
            created=time.time(),
            points=(Point(block=0, frame=0, index=0, prompt=request.prompt, made=1.0),),
            figures=Figures(block_seconds=0.02, share=0.1, memory_bytes=1000),
        )
        self.made[name] = Made(info)
        return info

    async def resume(self, snapshot: bytes, *, prompt: str | None = None, name: str = "") -> StreamInfo:
        if not snapshot.startswith(MAGIC):
            raise SnapshotError("These bytes are no snapshot; give those that a stream was saved in.")
        return await self.create(StreamRequest(prompt=prompt or "as before", name=name))

    async def streams(self) -> list[StreamInfo]:
        return [one.info for one in self.made.values()]

    async def info(self, stream: str) -> StreamInfo:
        return self._of(stream).info

    async def delete(self, stream: str) -> None:
        await self.tell(stream, Ended("deleted"))
        del self.made[stream]

    async def give(self, stream: str, command: Command) -> Receipt:
        made = self._of(stream)
        made.commands.append(command)
        queued = Receipt(stream=stream, action=command.action, key=command.key, state="queued")
        await self.tell(stream, queued)
        if command.prompt == "raise":
            raise StreamError("The stream has ended.")
        if command.prompt == "no room":
            await self.tell(stream, replace(queued, state="refused", error="There is no memory."))
            raise NoRoomError("There is no memory.", told=True)
        if command.prompt == "refuse":
            last = replace(queued, state="refused", error="No such colour.")
        else:
            last = replace(queued, state="applied", block=made.info.block)
        if command.action == "prompt" and last.state == "applied":
            made.info = replace(made.info, prompt=str(command.prompt))
        await self.tell(stream, last)
        return last

    async def snapshot(self, stream: str, kind: str = "exact", block: int | None = None) -> bytes:
        if block not in (None, 0):
            raise UnknownStreamError(f"Stream '{stream}' keeps no point at block {block}; it keeps 0.")
        return MAGIC + f" of {self._of(stream).info.id}, {kind}".encode()

    async def watch(self, stream: str, *, after: int | None = None) -> AsyncIterator[WatchItem]:
        made = self._of(stream)
        self.opened += 1
        heads = [n for n, one in enumerate(made.items) if isinstance(one, BlockHead)]
        first = heads[-1] if heads and after is None else 0
        place = next((n for n in heads if after is not None and made.items[n].block > after), first)
        if after is not None and heads and made.items[heads[-1]].block <= after:
            place = len(made.items)
        made.viewers += 1
        try:
            while True:
                async with made.changed:
                    while len(made.items) <= place:
                        await made.changed.wait()
                yield made.items[place]
                if isinstance(made.items[place], Ended):
                    return
                place += 1
        finally:
            made.viewers -= 1

    async def recent(self, stream: str) -> list[tuple[BlockHead, list[EncodedFrame]]]:
        items = self._of(stream).items
        frames = [one for one in items if isinstance(one, EncodedFrame)]
        heads = [one for one in items if isinstance(one, BlockHead)]
        return [(head, [one for one in frames if one.block == head.block]) for head in heads]

    async def ready(self) -> bool:
        return self.is_ready and not self.draining

    async def drain(self) -> None:
        self.draining = True
        for stream in self.made:
            await self.tell(stream, Ended("draining"))

    async def close(self) -> None:
        self.closed = True

    # -- for tests -----------------------------------------------------------------------------------------------

    async def tell(self, stream: str, item: WatchItem) -> None:
        """Give all viewers an item."""
        made = self._of(stream)
        async with made.changed:
            made.items.append(item)
            made.changed.notify_all()

    async def advance(self, stream: str, blocks: int = 1) -> None:
        """Make blocks."""
        made = self._of(stream)
        for _ in range(blocks):
            info = made.info
            head = BlockHead(
                block=info.block,
                index=info.block,
                frame=info.frame,
                frames=FRAMES,
                cut=False,
                prompt=info.prompt,
                denoise_seconds=0.01,
                commit_seconds=0.001,
                decode_seconds=0.001,
                digest="00",
                codec="avc1.42c00a",
            )
            await self.tell(stream, head)
            for number in range(info.frame, info.frame + FRAMES):
                picture = np.full((SIDE, SIDE, 3), number * 7 % 256, dtype=np.uint8)
                picture[: number % SIDE] = 255
                key = number == info.frame
                (packet,) = made.encoder.encode(picture, number, key=key)
                await self.tell(stream, EncodedFrame(info.block, number, key, bytes(packet), 1000.0 + number))
            figures = replace(info.figures, sent_bytes=info.figures.sent_bytes + 100)
            made.info = replace(info, block=info.block + 1, frame=info.frame + FRAMES, figures=figures)
