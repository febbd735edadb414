"""Pictures and videos that others made: shown as a player shows them, or refused with a sentence."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arl2.video.formats import VideoFileError
from arl2.video.images import read_image
from arl2.video.reading import check_clip, clip_frames, count_clip_frames, read_video, video_info
from arl2.video.writers import open_video

CASES = Path(__file__).parent / "cases"


def first_frame(name: str) -> np.ndarray:
    """The same by every way to read it."""
    frame = read_video(CASES / name, max_frames=1)[0]
    np.testing.assert_array_equal(frame, next(clip_frames(CASES / name, fps=16)))
    assert (video_info(CASES / name).height, video_info(CASES / name).width) == frame.shape[:2]
    return frame


def test_sixteen_bits_of_grey_are_scaled(tmp_path: Path) -> None:
    assert np.unique(np.array(read_image(CASES / "grey16.png"))).tolist() == [128]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "0.png").write_bytes((CASES / "grey16.png").read_bytes())
    assert np.unique(read_video(tmp_path / "folder")).tolist() == [128]


@pytest.mark.parametrize(("mode", "expected"), [("L", 128), ("LA", 192), ("P", 128), ("CMYK", 127)])
def test_modes_of_eight_bits(tmp_path: Path, mode: str, expected: int) -> None:
    image = Image.new("L", (4, 4), 128)
    if mode == "LA":
        image.putalpha(127)
    (image if mode == "LA" else image.convert(mode)).save(tmp_path / "a.tiff")
    assert np.array(read_image(tmp_path / "a.tiff")).astype(int) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_range_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "a.tiff")
    with pytest.raises(VideoFileError, match=r"32-bit pixels .* without a fixed range; save it with 8 or 16 bits"):
        read_image(tmp_path / "a.tiff")


def test_mirrors_of_the_display_matrix() -> None:
    frame = first_frame("corners_vflip.mp4").astype(int)
    corners = [frame[y, x] for y in (4, -4) for x in (4, -4)]
    for corner, colour in zip(corners, [(0, 0, 255), (255, 255, 255), (255, 0, 0), (0, 255, 0)], strict=True):
        assert np.abs(corner - colour).max() < 12


def test_pixels_that_are_not_square() -> None:
    red = first_frame("circle_sar.mp4")[..., 0] > 128
    height, width = (np.ptp(np.flatnonzero(red.any(axis=axis))) + 1 for axis in (1, 0))
    assert height == pytest.approx(width, rel=0.02)


def test_white_of_hdr_is_white() -> None:
    assert first_frame("white_hlg.mp4").min() > 245


def test_what_would_be_waited_for_or_is_cut(tmp_path: Path) -> None:
    with open_video(tmp_path / "clip") as writer:
        writer.write(np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8))
    damaged = tmp_path / "clip" / "00001.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(VideoFileError, match=r"00001.png' cannot be read as an image"):
        list(clip_frames(tmp_path / "clip", fps=16))
    for read in (read_image, check_clip, read_video, video_info, lambda path: count_clip_frames(path, fps=16)):
        if os.name == "posix":
            (tmp_path / "pipe.mp4").unlink(missing_ok=True)
            os.mkfifo(tmp_path / "pipe.mp4")
            with pytest.raises(VideoFileError, match="not a file; give a regular file, not a pipe"):
                read(tmp_path / "pipe.mp4")
