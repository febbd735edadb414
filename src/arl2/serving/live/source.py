"""What a live session's two threads see as one stream: its blocks are counted as they are shown.

The model's stream inside is exchanged where it is rewound; the numbers of blocks and frames go on.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from arl2.rollout.blocks import Block, VideoBlock
from arl2.serving.live.turns import Turns
from arl2.streams.stream import Stream

Opening = Callable[[], tuple[Stream, VideoBlock | None]]


@dataclass(frozen=True)
class Made:
    """What a block's numbers do not say.

    Attributes:
        index: its place in the model's stream.
        prompt: that it was made with.
    """

    index: int
    prompt: str


@dataclass(frozen=True)
class _UnderWay:
    """A block that is not decoded yet, with the stream that it is of; of a block that was given, all of it."""

    stream: Stream
    block: Block
    whole: VideoBlock | None


class LiveSource:
    """A ``BlockStream`` for ``KeepUp``, whose ``index`` is the number of the next block that is shown.

    Args:
        opening: gives the stream, and its next block where that is made already; called in the thread that denoises,
            before the first block or command.
        block, frame: numbers of the next ones.
        turns: that the streams of the model take.
        end: number of the block before which it ends; None: the stream's own end.
    """

    def __init__(self, opening: Opening, *, block: int, frame: int, turns: Turns, end: int | None = None) -> None:
        self._opening: Opening | None = opening
        self._stream: Stream | None = None
        self._given: deque[tuple[VideoBlock, str]] = deque()  # with their prompts
        self._block, self._frame, self._turns, self._end = block, frame, turns, end
        self._cut = False
        self.memory_bytes = 0  # of the stream; it is measured once, as it hardly changes
        self._under_way: dict[int, _UnderWay] = {}
        self._made: dict[int, Made] = {}

    @property
    def index(self) -> int:
        """Number of the next block that is handed out."""
        return self._block

    @property
    def next_made(self) -> int:
        """Number of the next block that is not made yet: what a command can still change."""
        return self._block + len(self._given)

    @property
    def frame(self) -> int:
        """Number of the next frame, once all blocks are decoded."""
        return self._frame

    @property
    def next_frame(self) -> int:
        """Number of the first frame of ``next_made``, once all blocks are decoded."""
        return self._frame + sum(block.video.shape[2] for block, _ in self._given)

    @property
    def opened(self) -> bool:
        """Whether there is a stream yet."""
        return self._stream is not None

    @property
    def stream(self) -> Stream:
        """The model's stream; opens it. Between blocks only."""
        if self._stream is None:
            assert self._opening is not None
            self._stream, given = self._opening()
            self._opening = None
            if given is not None:
                self._given.append((given, prompt_of(self._stream)))
        return self._stream

    @property
    def prompt(self) -> str:
        """Of the next block that is made."""
        return prompt_of(self.stream)

    def latents_next(self) -> Block:
        """As ``Stream.latents_next``, in turn."""
        stream = self.stream
        if self._end is not None and self._block >= self._end:
            raise StopIteration
        whole, prompt = None, prompt_of(stream)
        if self._given:
            whole, prompt = self._given.popleft()
            made = Block(
                whole.index, whole.frames, whole.latents, whole.denoise_seconds, whole.commit_seconds, whole.cut
            )
        else:
            with self._turns.denoise:
                made = stream.latents_next()
        number, cut = self._block, made.cut or self._cut
        if not self.memory_bytes:
            self.memory_bytes = stream.memory_bytes
        self._made[number] = Made(made.index, prompt)
        self._under_way[number] = _UnderWay(stream, made, whole)
        self._block, self._cut = number + 1, False
        return replace(made, index=number, cut=cut)

    def decode(self, block: Block) -> VideoBlock:
        """As ``Stream.decode``, in turn; the block's number and that of its first frame are those that are shown."""
        one = self._under_way.pop(block.index)
        video = one.whole
        if video is None:
            with self._turns.decode:
                video = one.stream.decode(one.block)
        first, self._frame = self._frame, self._frame + video.video.shape[2]
        return replace(video, index=block.index, first_video_frame=first, cut=block.cut)

    def made(self, block: int) -> Made:
        """Of a block that was handed out; told once."""
        return self._made.pop(block)

    def exchange(self, stream: Stream) -> None:
        """Another stream follows, with a cut. Between blocks only."""
        before, self._stream, self._opening, self._cut = self._stream, stream, None, True
        self._given.clear()
        if before is not None:
            before.close()

    def close(self) -> None:
        """Let go of the stream."""
        if self._stream is not None:
            self._stream.close()
        self._given.clear()


def prompt_of(stream: Stream) -> str:
    """As text; empty where it was given as embeddings."""
    prompt = stream.prompt
    return prompt if isinstance(prompt, str) else (prompt or [""])[0]
