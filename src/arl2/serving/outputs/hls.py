"""A stream as a folder of HLS: ``index.m3u8`` and segments of H.264 in MPEG-TS, for browsers, players and web servers.

One encoder and one muxer write the whole video; its bytes are cut at key frames, so times and counters run on from
segment to segment. Each segment begins with a key frame and can be played alone. A cut begins a new segment, marked
with ``EXT-X-DISCONTINUITY``.
"""

import math
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from arl2.errors import ConfigError
from arl2.files.atomic import write_atomically
from arl2.files.locks import lock_folder
from arl2.serving.outputs.hls_playlist import (
    PLAYLIST,
    Playlist,
    Segment,
    clear_hls,
    is_hls_video,
    read_playlist,
    remove_unlisted_start,
)
from arl2.video.formats import VideoFileError, check_place, writing_failed
from arl2.video.h264 import H264Encoder
from arl2.video.pixels import Frame, Frames
from arl2.video.writing import FrameWriter

if TYPE_CHECKING:
    from av import Packet

SEGMENT_SECONDS = 2.0
# Of MPEG-TS; readers pass it over.
_EMPTY_PACKET = b"\x47\x1f\xff\x10" + b"\xff" * 184
_FEWEST_PACKETS = 16


class HlsOutput(FrameWriter):
    """Writes a folder of HLS; one process at a time does.

    Args:
        folder: new or empty; the one of an earlier stream with ``append``.
        fps: video frames a second.
        scale: whole number by which every pixel is enlarged.
        segment_seconds: of each segment; the last one, and one before a cut or a ``flush``, are shorter.
        keep_seconds: of video that stays. Older segments leave the playlist, and their files, as the standard asks,
            after as long again: the folder holds at most twice as much. None keeps everything.
        append: continue the folder's playlist, after a cut. Frames of the stream that it lists already, as ``place``
            tells, are not written twice.
        overwrite: replace an earlier video of the folder.

    Raises:
        VideoFileError: a folder that holds other things, is being written, or cannot be written to; of one that is
            continued, a playlist that does not fit its files or, when the first frame comes, another size.
        ConfigError: segments without length, or nothing to keep.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fps: int,
        scale: int = 1,
        segment_seconds: float = SEGMENT_SECONDS,
        keep_seconds: float | None = None,
        append: bool = False,
        overwrite: bool = False,
    ) -> None:
        super().__init__(folder, fps=fps, scale=scale)
        if not segment_seconds > 0 or (keep_seconds is not None and not keep_seconds > 0):
            raise ConfigError(
                f"Got segments of {segment_seconds} seconds and {keep_seconds} seconds to keep; give more than 0."
            )
        self._segment_frames = max(1, round(segment_seconds * fps))
        longest = max(1, math.ceil(self._segment_frames / fps))
        continued = append and (folder / PLAYLIST).exists()
        with self._telling():
            folder.mkdir(parents=True, exist_ok=True)
            remove_unlisted_start(folder)
            if not continued:
                check_place(folder, "segments", folder=True, overwrite=overwrite, replaceable=is_hls_video)
            self._lock: int | None = lock_folder(folder)
            if not continued:
                clear_hls(folder)
        self._playlist = Playlist(folder, longest, keep_seconds)
        if continued:
            try:
                self._playlist = read_playlist(folder, longest=longest, keep=keep_seconds)
            except BaseException:
                os.close(self._lock)
                raise
        # Segments that are begun and not muxed yet.
        self._starts: deque[_Start] = deque()
        self._cut = bool(self._playlist.listed)
        self._in_segment = self._begun = 0
        self._muxed = _Start(0, cut=False, first=None, stream="")
        self._muxer: _Muxer | None = None
        # Of the stream, where the writer is told: its name, the next frame, and the first one that is not listed yet.
        self._stream, self._unlisted = "", 0
        self._next_frame: int | None = None

    def place(self, video_frame: int, stream: str) -> None:
        """What is written next begins at this frame; before the first one, compare with what is listed.

        ``note`` then says, in a sentence, what of the stream is there already, and what is not.

        Raises:
            VideoFileError: the folder is of a stream of another model or seed.
        """
        if self._stream == "" and self._playlist.is_of_another(stream):
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None
            raise VideoFileError(
                f"'{self._path}' holds a stream of another model or seed, which this one does not continue; give a new "
                "folder."
            )
        if self._stream == "" and self._playlist.listed:
            self._unlisted, self.note = self._continued(video_frame, stream)
        if self._next_frame is not None and video_frame != self._next_frame:
            self._in_segment = self._segment_frames  # numbers run on within a segment
        self._stream, self._next_frame = stream, video_frame

    def _continued(self, frame: int, stream: str) -> tuple[int, str | None]:
        """The first frame to write, and what to say."""
        found = self._playlist.listed_until(frame, stream, fps=self._fps)
        if found is None:
            return frame, None
        end, same = found
        if end == frame:
            if self._playlist.listed[-1].stream == stream:
                return frame, None
            return frame, (
                f"'{self._path}' ends with another prompt, or is another stream's; video frames from {frame} on follow "
                "after a cut"
            )
        if end < frame:
            return (
                frame,
                f"video frames {end} to {frame - 1} are not in '{self._path}'; the stream continues after a cut",
            )
        if same:
            return end, f"'{self._path}' has video frames {frame} to {end - 1} already; they are not written again"
        return frame, (
            f"'{self._path}' has video frames {frame} to {end - 1} of the prompt before; those of this stream follow "
            "after a cut"
        )

    def write(self, frames: Frames) -> None:
        """Append RGB frames that are not listed yet; errors as for ``FrameWriter``."""
        if self._next_frame is not None:
            listed = max(0, min(len(frames), self._unlisted - self._next_frame))
            self._next_frame += listed
            frames = frames[listed:]
        super().write(frames)

    @property
    def pending_frames(self) -> int:
        """In the segment that no playlist names yet."""
        return self._begun + self._count - self._muxed.number if self._muxer is not None else 0

    def _put(self, frame: Frame, *, cut: bool) -> None:
        if self._muxer is None:
            self._refuse_other_size(frame)
            self._muxer = _Muxer(frame.shape[1], frame.shape[0], self._fps)
            # Times run on from an earlier run to this one.
            self._begun = self._next_frame or 0
            self._muxed = _Start(self._begun, cut=False, first=self._next_frame, stream=self._stream)
        number = self._begun + self._count
        begins = cut or self._in_segment >= self._segment_frames or self._count == 0
        if begins:
            self._starts.append(_Start(number, cut=cut, first=self._next_frame, stream=self._stream))
            self._in_segment = 0
        self._take(self._muxer, self._muxer.encode(frame, number, key=begins))
        self._in_segment += 1
        if self._next_frame is not None:
            self._next_frame += 1

    def _refuse_other_size(self, frame: Frame) -> None:
        """Of a folder that is continued; players show a video of one size."""
        import av

        if not self._playlist.listed:
            return
        last = self._path / self._playlist.listed[-1].name
        with self._telling(), av.open(str(last)) as container:
            there = container.streams.video[0].width, container.streams.video[0].height
        height, width = frame.shape[:2]
        if there != (width, height):
            raise VideoFileError(
                f"The video in '{self._path}' is {there[0]} x {there[1]}, but frames of {width} x {height} would "
                "follow; give the --scale it was begun with, or a new folder."
            )

    def flush(self) -> None:
        """End the segment here and list it; raises ``VideoFileError`` as ``write``."""
        if self._muxer is not None and self._in_segment:
            with self._telling():
                self._finish_segment(self._muxer, self._begun + self._count)
                self._in_segment = self._segment_frames

    def close(self) -> None:
        lock, self._lock = self._lock, None
        if lock is None:
            return
        try:
            if self._muxer is not None:
                muxer = self._muxer
                with self._telling():
                    self._take(muxer, muxer.flush())
                    self._finish_segment(muxer, self._begun + self._count)
                    muxer.close()
            with self._telling():
                self._playlist.end()
        finally:
            os.close(lock)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Say in one sentence what the system or the encoder refuses."""
        import av

        try:
            yield
        except (OSError, av.FFmpegError) as error:
            # Closing afterwards is quiet: what is listed is whole.
            self._muxer = None
            failure = error if isinstance(error, OSError) else OSError(error.errno, error.strerror)
            raise writing_failed(self._path, failure) from error

    def _take(self, muxer: "_Muxer", packets: "list[Packet]") -> None:
        for packet in packets:
            number = packet.pts
            if self._starts and number is not None and number >= self._starts[0].number:
                start = self._starts.popleft()
                self._finish_segment(muxer, start.number)
                self._muxed = start
            muxer.mux(packet)

    def _finish_segment(self, muxer: "_Muxer", end: int) -> None:
        """What was muxed up to frame ``end`` becomes a file, then the playlist names it."""
        begun = self._muxed
        if end == begun.number:
            return
        data, name = muxer.taken(), self._playlist.next_name
        # Of fewer packets some players cannot tell the format.
        data += _EMPTY_PACKET * (_FEWEST_PACKETS - len(data) // len(_EMPTY_PACKET))
        write_atomically(self._path / name, data)
        seconds = (end - begun.number) / self._fps
        self._playlist.add(Segment(name, seconds, begun.cut, begun.first, begun.stream))
        self._muxed = replace(begun, number=end, cut=False)


@dataclass(frozen=True)
class _Start:
    """Where a segment begins: ``number`` in this video, ``first`` in the stream."""

    number: int
    cut: bool
    first: int | None
    stream: str


class _Bytes:
    """What FFmpeg writes into: memory, so that a full disk is met here and not inside a muxer."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        """Take all of it."""
        self.data += data
        return len(data)


class _Muxer:
    """H.264 in MPEG-TS, all segments one after the other."""

    def __init__(self, width: int, height: int, fps: int) -> None:
        # PyAV is loaded when it is needed: importing arl2 stays light.
        import av

        self._encoder = H264Encoder(width, height, fps)
        self._sink = _Bytes()
        self._container = av.open(self._sink, "w", format="mpegts", options={"flush_packets": "1"})
        self._stream = self._container.add_mux_stream("h264", rate=fps, width=width, height=height)

    def encode(self, frame: Frame, number: int, *, key: bool) -> "list[Packet]":
        """Packets that are ready, with their frames' numbers as times."""
        return self._encoder.encode(frame, number, key=key)

    def flush(self) -> "list[Packet]":
        return self._encoder.flush()

    def mux(self, packet: "Packet") -> None:
        packet.stream = self._stream
        self._container.mux(packet)

    def taken(self) -> bytes:
        """All bytes since the last call."""
        data, self._sink.data = bytes(self._sink.data), bytearray()
        return data

    def close(self) -> None:
        self._container.close()
