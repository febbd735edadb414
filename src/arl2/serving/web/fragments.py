"""Fragmented mp4 of streams that are watched: each frame's fragment is made once, for all who want mp4."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from arl2.serving.live.wire import BlockHead, EncodedFrame, StreamInfo
from arl2.video.fragments import FragmentedMp4

_KEPT_FRAMES = 256  # a viewer that is further behind gets them made again


class SharedFragments:
    """The fragments of one stream; frame numbers are their times.

    Args:
        info: says the video's size and rate.
    """

    def __init__(self, info: StreamInfo) -> None:
        self._mp4 = FragmentedMp4(width=info.width, height=info.height, fps=info.fps)
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self.made = 0
        self.users = 0

    def fragment(self, frame: EncodedFrame) -> bytes:
        """Of one frame; the first one that is asked for is a key frame."""
        kept = self._kept.get(frame.frame)
        if kept is None:
            kept = self._mp4.fragment_of([(frame.data, frame.key)], first=frame.frame)
            self.made += 1
            self._kept[frame.frame] = kept
            if len(self._kept) > _KEPT_FRAMES:
                self._kept.popitem(last=False)
        return kept

    @property
    def init_segment(self) -> bytes:
        """What every viewer gets first; there is one once a fragment was made."""
        return self._mp4.init_segment


class Shelf:
    """The fragments of all streams that are watched as mp4 now."""

    def __init__(self) -> None:
        self._streams: dict[str, SharedFragments] = {}

    @contextmanager
    def of(self, info: StreamInfo) -> Iterator[SharedFragments]:
        """Those of one stream, shared by all that are within at once."""
        shared = self._streams.setdefault(info.id, SharedFragments(info))
        shared.users += 1
        try:
            yield shared
        finally:
            shared.users -= 1
            if not shared.users:
                self._streams.pop(info.id, None)


def whole_mp4(info: StreamInfo, blocks: Sequence[tuple[BlockHead, Sequence[EncodedFrame]]]) -> Iterator[bytes]:
    """One mp4 of whole blocks, a fragment each, that begins at time 0.

    Args:
        info: of the stream.
        blocks: at least one.
    """
    mp4, time = FragmentedMp4(width=info.width, height=info.height, fps=info.fps), 0
    for number, (_, frames) in enumerate(blocks):
        fragment = mp4.fragment_of([(frame.data, frame.key) for frame in frames], first=time)
        time += len(frames)
        if not number:
            yield mp4.init_segment
        yield fragment
