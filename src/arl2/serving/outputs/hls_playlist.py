"""The playlist of a growing video (HTTP Live Streaming, RFC 8216): which segments there are, in which order.

It is replaced in one step whenever a segment is done, so a reader, at any moment and after a crash, finds a whole one
that names whole segments.
"""

import math
import re
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from arl2.files.atomic import remove_all_stale, write_atomically
from arl2.files.locks import is_locked
from arl2.files.regular import first_line, read_text
from arl2.video.formats import VideoFileError

PLAYLIST = "index.m3u8"
# Segments, and parts of them and of the playlist.
_OURS = re.compile(r"segment-\d{8,}\.ts|\.(segment-\d{8,}\.ts|index\.m3u8)\.[0-9a-f]{8}\.part")
_SEGMENT = re.compile(r"segment-\d{8,}\.ts")
# A comment, which players pass over: which frames of which stream the next segment shows.
_PLACE = re.compile(r"# arl2 first_frame=(\d{1,15}) stream=([0-9a-f]{1,64})")
# Digits of a stream's whole name, and of the part that is the same for all its prompts.
_NAME, _ORIGIN = 24, 8
_LARGEST = 64_000_000  # bytes; a year of segments is smaller


def is_hls_video(folder: Path) -> bool:
    """Whether a folder holds a playlist and segments as they are written here, and nothing else."""
    names = {one.name for one in folder.iterdir()} - {PLAYLIST}
    return bool(names) and all(_OURS.fullmatch(name) for name in names)


def clear_hls(folder: Path) -> None:
    """Remove the video of a folder that ``is_hls_video`` accepts: the playlist first, so that it names no lost file."""
    (folder / PLAYLIST).unlink(missing_ok=True)
    for file in folder.iterdir():
        if _OURS.fullmatch(file.name):
            file.unlink()


@dataclass(frozen=True)
class Segment:
    """A piece of video.

    Attributes:
        name: of its file.
        seconds: its length.
        cut: whether it does not continue the one before.
        first: number of its first video frame in its stream, and ``stream``, which one that is; None and empty where
            the writer was not told.
    """

    name: str
    seconds: float
    cut: bool = False
    first: int | None = None
    stream: str = ""


@dataclass
class Playlist:
    """Segments in order.

    Attributes:
        folder: of playlist and segments.
        longest: seconds that no segment exceeds.
        keep: seconds of video that stay in the playlist; None keeps all.
        first: number of the first listed segment.
        cuts_before: cuts that left the playlist.
        listed: what players see.
        leaving: what they no longer see, but may still be loading.
    """

    folder: Path
    longest: int
    keep: float | None = None
    first: int = 0
    cuts_before: int = 0
    listed: deque[Segment] = field(default_factory=deque)
    leaving: deque[Segment] = field(default_factory=deque)

    @property
    def next_name(self) -> str:
        """File name of the next segment."""
        return f"segment-{self.first + len(self.listed):08d}.ts"

    def add(self, segment: Segment) -> None:
        """List a segment, whose file is there already; old ones leave, and some time later their files.

        Raises:
            OSError: the system refuses.
        """
        self.listed.append(segment)
        self.longest = max(self.longest, math.ceil(segment.seconds))
        if self.keep is not None:
            while len(self.listed) > 1 and _seconds(self.listed) - self.listed[0].seconds >= self.keep:
                old = self.listed.popleft()
                self.first += 1
                self.cuts_before += old.cut
                self.leaving.append(old)
        self._write(ended=False)
        if self.keep is not None:
            # A player that read the playlist just before may load what it named for as long as that lasts.
            while _seconds(self.leaving) > self.keep + self.longest:
                (self.folder / self.leaving.popleft().name).unlink(missing_ok=True)

    def end(self) -> None:
        """Say that no segment follows; raises ``OSError`` as ``add``."""
        if self.listed:
            self._write(ended=True)
        while self.leaving:
            (self.folder / self.leaving.popleft().name).unlink(missing_ok=True)

    def text(self, *, ended: bool) -> str:
        """As the file has it."""
        lines = [
            "#EXTM3U",
            "#EXT-X-VERSION:6",
            f"#EXT-X-TARGETDURATION:{self.longest}",
            f"#EXT-X-MEDIA-SEQUENCE:{self.first}",
            f"#EXT-X-DISCONTINUITY-SEQUENCE:{self.cuts_before}",
            "#EXT-X-INDEPENDENT-SEGMENTS",
        ]
        if self.keep is None:
            lines.append("#EXT-X-PLAYLIST-TYPE:EVENT")
        for segment in self.listed:
            if segment.cut:
                lines.append("#EXT-X-DISCONTINUITY")
            if segment.first is not None:
                lines.append(f"# arl2 first_frame={segment.first} stream={segment.stream}")
            lines += [f"#EXTINF:{segment.seconds:.6f},", segment.name]
        return "\n".join([*lines, *(["#EXT-X-ENDLIST"] if ended else []), ""])

    def listed_until(self, frame: int, stream: str, *, fps: int) -> tuple[int, bool] | None:
        """Up to which frame of its stream the list goes, for somebody who continues it.

        Args:
            frame: where the stream continues.
            stream: which one, as in ``Segment``.
            fps: video frames a second.

        Returns:
            The frame after the last one listed, and whether what is listed from ``frame`` on is of the same stream;
            None where the segments do not say.
        """
        # Numbers start over where an earlier run went back: what it left behind does not count.
        last: list[tuple[range, str]] = []
        for segment in reversed(self.listed):
            if segment.first is None or (last and segment.first >= last[-1][0].start):
                break
            frames = range(segment.first, segment.first + round(segment.seconds * fps))
            last.append((frames, segment.stream))
        if not last:
            return None
        repeated = [other for frames, other in last if frames.stop > frame]
        return last[0][0].stop, not repeated or repeated[-1] == stream

    def is_of_another(self, stream: str) -> bool:
        """Whether the list ends with a stream of another model or seed; False where its name does not say.

        Names of earlier versions are shorter, and tell nothing but that the prompt, model or seed is another.
        """
        last = self.listed[-1].stream if self.listed else ""
        return len(last) == len(stream) == _NAME and last[:_ORIGIN] != stream[:_ORIGIN]

    def _write(self, *, ended: bool) -> None:
        write_atomically(self.folder / PLAYLIST, self.text(ended=ended).encode())


def read_playlist(folder: Path, *, longest: int, keep: float | None = None) -> Playlist:
    """The playlist that an earlier run left in a folder, to be continued.

    Segments that it does not list, and what a killed process left, are removed; errors as for ``check_playlist``.
    """
    playlist = check_playlist(folder, longest=longest, keep=keep)
    listed = {segment.name for segment in playlist.listed}
    remove_all_stale(folder)
    for file in folder.iterdir():
        if _SEGMENT.fullmatch(file.name) and file.name not in listed:
            file.unlink()
    return playlist


def check_playlist(folder: Path, *, longest: int = 1, keep: float | None = None) -> Playlist:
    """The playlist of a folder whose files are those that a run, ended or killed at any moment, leaves; nothing is
    changed.

    A segment's file is there before the playlist names it, and a playlist is written only when there is a segment to
    name. So a killed run leaves one file at most that is not listed yet, the one after the last listed; older files
    than the first listed are there for players that still load them. A list that names nothing beside files, or that
    ends two files or more before the last one, was damaged: to continue it would remove video.

    Raises:
        VideoFileError: no playlist, one that this program did not write, one that was cut, or one whose files are
            missing, empty, or more than it says.
    """
    playlist = _parsed(folder, longest=longest, keep=keep)
    path = folder / PLAYLIST
    for segment in playlist.listed:
        file = folder / segment.name
        if not file.is_file() or not file.stat().st_size:
            state = "is empty" if file.is_file() else "is missing"
            raise VideoFileError(
                f"'{path}' lists {segment.name}, which {state}; put the file back, or give a new folder to continue in."
            )
    there = sorted(int(file.stem.split("-")[1]) for file in folder.iterdir() if _SEGMENT.fullmatch(file.name))
    end = playlist.first + len(playlist.listed)
    if there and (not playlist.listed or there[-1] > end):
        raise VideoFileError(
            f"'{path}' lists {len(playlist.listed)} segments, but '{folder}' holds {len(there)}, which continuing "
            "would remove; put the whole playlist back, or give a new folder to continue in."
        )
    return playlist


def _parsed(folder: Path, *, longest: int, keep: float | None) -> Playlist:
    path = folder / PLAYLIST
    text = read_text(path, limit=_LARGEST, error=VideoFileError)
    playlist = Playlist(folder, longest, keep)
    seconds, cut, first, stream = 0.0, False, None, ""
    begun = bool(text) and not text.endswith("\n")
    try:
        for line in text.splitlines():
            tag, _, value = line.partition(":")
            if tag == "#EXT-X-TARGETDURATION":
                playlist.longest = max(longest, int(value))
            elif tag == "#EXT-X-MEDIA-SEQUENCE":
                playlist.first = int(value)
            elif tag == "#EXT-X-DISCONTINUITY-SEQUENCE":
                playlist.cuts_before = int(value)
            elif tag == "#EXT-X-DISCONTINUITY":
                cut = True
            elif tag == "#EXTINF":
                seconds = float(value.removesuffix(","))
            elif found := _PLACE.fullmatch(line):
                first, stream = int(found[1]), found[2]
            elif line and not line.startswith("#"):
                if line != playlist.next_name:
                    raise ValueError(line)
                playlist.listed.append(Segment(line, seconds, cut, first, stream))
                seconds, cut, first, stream = 0.0, False, None, ""
    except ValueError as error:
        raise VideoFileError(
            f"'{path}' was not written by this program ({first_line(error)}); choose a new folder."
        ) from error
    if begun or seconds or cut or first is not None:
        raise VideoFileError(
            f"'{path}' ends in the middle of an entry, so it was cut; put the whole one back, or give a new folder to "
            "continue in."
        )
    return playlist


def remove_unlisted_start(folder: Path) -> None:
    """Of a process that was killed before its first playlist: parts, and the one segment that nobody lists.

    A folder that is being written, or that holds anything else, is left as it is.
    """
    try:
        is_ours = folder.is_dir() and not is_locked(folder) and not (folder / PLAYLIST).exists()
    except OSError:  # a name that no system takes: the check of the place says so
        return
    if not is_ours:
        return
    remove_all_stale(folder)
    first = Playlist(folder, longest=1).next_name
    if [one.name for one in folder.iterdir()] == [first]:
        (folder / first).unlink()


def _seconds(segments: deque[Segment]) -> float:
    return sum(segment.seconds for segment in segments)
