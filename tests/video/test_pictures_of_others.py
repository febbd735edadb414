"""Pictures and videos that others made: shown as a player shows them, or refused with a sentence."""

import os
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
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
            with pytest.raises(VideoFileError, match="is a pipe or a device; give a regular file"):
                read(tmp_path / "pipe.mp4")


CORNERS = np.array([[[220, 30, 30], [30, 170, 50]], [[40, 70, 230], [245, 245, 245]]], dtype=np.uint8)
"""Red, green; blue, white: no turn or mirror of it is another one."""
# By EXIF orientation: how the picture is stored so that it is shown as CORNERS.
STORED = {
    1: lambda shown: shown,
    2: lambda shown: shown[:, ::-1],
    3: lambda shown: shown[::-1, ::-1],
    4: lambda shown: shown[::-1],
    5: lambda shown: shown.transpose(1, 0, 2),
    6: lambda shown: np.rot90(shown, 1),
    7: lambda shown: shown[::-1, ::-1].transpose(1, 0, 2),
    8: lambda shown: np.rot90(shown, -1),
}


def enlarged(corners: np.ndarray, height: int = 24, width: int = 40) -> np.ndarray:
    return np.ascontiguousarray(corners.repeat(height // 2, 0).repeat(width // 2, 1))


def corners_of(frame: np.ndarray) -> np.ndarray:
    height, width, _ = frame.shape
    return frame[height // 4 :: height // 2, width // 4 :: width // 2].astype(int)


def every_reading(path: Path) -> np.ndarray:
    """The first frame, the same by every way to read a file."""
    frame = read_video(path, max_frames=1)[0]
    np.testing.assert_array_equal(frame, next(clip_frames(path, fps=16)))
    info = video_info(path)
    assert (info.height, info.width) == frame.shape[:2]
    return frame


@pytest.mark.parametrize("orientation", STORED)
def test_pictures_are_turned_as_their_file_says(tmp_path: Path, orientation: int) -> None:
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation](enlarged(CORNERS))))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.png", "a.webp"):
        image.save(tmp_path / name, exif=exif, lossless=True)
        np.testing.assert_array_equal(corners_of(np.array(read_image(tmp_path / name))), CORNERS)
    (tmp_path / "folder").mkdir()
    image.save(tmp_path / "folder" / "0.png", exif=exif)
    np.testing.assert_array_equal(corners_of(every_reading(tmp_path / "folder")), CORNERS)


@pytest.mark.parametrize("mode", ["1", "I;16", "I;16B", "RGBA", "palette with transparency"])
def test_more_modes(tmp_path: Path, mode: str) -> None:
    path, grey = tmp_path / "a.tiff", np.full((4, 4), 128 * 257, np.uint16)
    expected = 128
    if mode == "1":
        Image.new("1", (4, 4), 1).save(path)
        expected = 255
    elif mode == "RGBA":
        Image.new("RGBA", (4, 4), (0, 0, 0, 127)).save(path)
    elif mode.startswith("palette"):
        path, expected = tmp_path / "a.png", 255
        Image.new("P", (4, 4), 0).save(path, transparency=0)
    else:
        stored = grey.astype(">u2" if mode == "I;16B" else "<u2")
        Image.frombytes(mode, (4, 4), stored.tobytes()).save(path)
    assert np.array(read_image(path)).astype(int) == pytest.approx(expected, abs=1)


def test_sixteen_bits_of_colour_are_scaled(tmp_path: Path) -> None:
    """Written by hand: Pillow writes no such file."""
    pixels = np.full((4, 4, 3), [0, 128 * 257, 65535], dtype=">u2")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(data)
    assert np.unique(np.array(read_image(tmp_path / "a.png")).reshape(-1, 3), axis=0).tolist() == [[0, 128, 255]]


def encoded(path: Path, frame: np.ndarray, *, aspect: Fraction | None = None, **context: int) -> None:
    """Three times the frame as H.264, with these fields of its header."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = frame.shape[1], frame.shape[0], "yuv420p"
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for _ in range(3):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            full = context.get("color_range") == 2
            container.mux(stream.encode(picture.reformat(format="yuv420p", dst_color_range=2 if full else 1)))
        container.mux(stream.encode(None))


# By EXIF orientation: the turn in the header of a film, as (a, b, c, d).
MATRICES = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


@pytest.mark.parametrize("orientation", MATRICES)
def test_films_are_turned_as_their_file_says(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.mp4"
    encoded(path, np.ascontiguousarray(STORED[orientation](enlarged(CORNERS, 64, 96))))
    data = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in MATRICES[orientation])
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix stands 40 bytes into the box
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))
    frame = every_reading(path)
    assert frame.shape == (64, 96, 3)
    assert np.abs(corners_of(frame) - CORNERS).max() < 14


@pytest.mark.parametrize(("aspect", "shape"), [(Fraction(2), (64, 192)), (Fraction(1, 2), (128, 96)), (None, (64, 96))])
def test_pixels_of_every_shape_become_square(tmp_path: Path, aspect: Fraction | None, shape: tuple[int, int]) -> None:
    encoded(tmp_path / "a.mp4", enlarged(CORNERS, 64, 96), aspect=aspect)
    frame = every_reading(tmp_path / "a.mp4")
    assert frame.shape[:2] == shape
    assert np.abs(corners_of(frame) - CORNERS).max() < 14


def test_the_full_range_is_not_stretched(tmp_path: Path) -> None:
    encoded(tmp_path / "a.mp4", np.full((32, 32, 3), 20, np.uint8), color_range=2)
    assert every_reading(tmp_path / "a.mp4").astype(int) == pytest.approx(20, abs=2)


@pytest.mark.parametrize(("transfer", "signal"), [(16, 148), (18, 191)])
@pytest.mark.parametrize("primaries", [1, 9])
def test_diffuse_white_of_hdr_is_white(tmp_path: Path, transfer: int, signal: int, primaries: int) -> None:
    """203 cd/m2 is 58 % of a PQ signal and 75 % of an HLG one (ITU-R BT.2408)."""
    frame = np.full((32, 32, 3), signal, np.uint8)
    encoded(tmp_path / "a.mp4", frame, color_trc=transfer, color_primaries=primaries)
    assert every_reading(tmp_path / "a.mp4").min() > 240
    encoded(tmp_path / "a.mp4", np.zeros_like(frame), color_trc=transfer, color_primaries=primaries)
    assert every_reading(tmp_path / "a.mp4").max() < 10
