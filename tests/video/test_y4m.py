"""Raw y4m: what other programs read from a file or a pipe; and what every writer does when the disk is full."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from arl2.errors import GeometryError
from arl2.video.formats import STANDARD_OUTPUT, VideoFileError, check_writable
from arl2.video.reading import iterate_video, read_video, video_info
from arl2.video.writers import open_video

# A device that takes nothing, as a full disk does.
FULL = Path("/dev/full")
needs_full_device = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


def gradient(frames: int, height: int, width: int) -> np.ndarray:
    """Smooth colours that move, so that halved chroma costs little."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    red, green, blue = 40 + 180 * x / width, 220 - 160 * y / height, 60 + 10 * t + 60 * (x + y) / (width + height)
    return np.stack([red, green, blue], axis=-1).round().astype(np.uint8)


def noise(frames: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (frames, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize(("size", "pixels", "mean"), [((48, 64), "yuv420p", 2), ((47, 63), "yuv444p", 1)])
def test_other_programs_read_it_back(tmp_path: Path, size: tuple[int, int], pixels: str, mean: float) -> None:
    video, path = gradient(5, *size), tmp_path / "clip.y4m"
    with open_video(path, fps=24) as writer:
        writer.write(video[:2])
        writer.write(video[2:])
    assert path.read_bytes().startswith(b"YUV4MPEG2 W%d H%d F24:1 " % size[::-1])
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 24
        assert stream.codec_context.color_range == 1
        assert stream.pix_fmt == pixels
        assert sum(1 for _ in container.decode(stream)) == 5
    assert (video_info(path).width, video_info(path).height, video_info(path).fps) == (*size[::-1], 24)
    difference = np.abs(read_video(path).astype(int) - video)
    assert difference.max() <= 6
    assert difference.mean() < mean


def test_scale_and_sizes(tmp_path: Path) -> None:
    with open_video(tmp_path / "clip.y4m", scale=3) as writer:
        writer.write(noise(1, 32))
        with pytest.raises(GeometryError, match="one size"):
            writer.write(noise(1, 16))
    assert read_video(tmp_path / "clip.y4m").shape == (1, 96, 96, 3)
    open_video(tmp_path / "empty.y4m").close()
    assert not (tmp_path / "empty.y4m").exists()


def test_standard_output(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert check_writable(STANDARD_OUTPUT) == "y4m"
    with open_video("-") as writer:
        writer.write(noise(3))
    print("still open")
    written, said, _ = capfdbinary.readouterr().out.partition(b"still open")
    assert said
    (tmp_path / "clip.y4m").write_bytes(written)
    assert read_video(tmp_path / "clip.y4m").shape == (3, 64, 64, 3)


def test_a_reader_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, end = os.pipe()
    with os.fdopen(end, "w") as pipe, open_video("-") as writer:
        monkeypatch.setattr(sys, "stdout", pipe)
        writer.write(noise(1, 8))
        os.close(reader)
        with pytest.raises(VideoFileError, match=r"standard output failed .*; does its reader still run"):
            writer.write(noise(1, 8))


@needs_full_device
@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.webp", "clip.y4m"])
def test_a_full_disk_is_an_error_and_no_crash(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(FULL)
    writer = open_video(tmp_path / name)

    def write() -> None:
        with writer:
            for _ in range(3):
                writer.write(noise(20))

    with pytest.raises(VideoFileError, match=f"No space left on device.*part .* is in '.*{name}'"):
        write()
    writer.close()


@pytest.fixture
def small_disk() -> Iterator[int]:
    """No file may grow beyond this many bytes."""
    resource = pytest.importorskip("resource", reason="limits of a process are POSIX's")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    yield 300_000
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_what_was_written_before_the_disk_was_full_can_be_played(tmp_path: Path, small_disk: int) -> None:
    path = tmp_path / "clip.mp4"

    def write() -> None:
        with open_video(path) as writer:
            for _ in range(20):
                writer.write(noise(16))

    with pytest.raises(VideoFileError, match=r"Writing failed \(File too large\); the part of the video"):
        write()
    assert path.stat().st_size == small_disk
    seen = 0
    with pytest.raises(VideoFileError, match="is it complete"):  # noqa: PT012  # it reads until the cut
        for _ in iterate_video(path):
            seen += 1
    assert seen >= 16
