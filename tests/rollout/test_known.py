"""Images and videos as the start of a video: what is encoded, what is cut off, what is refused."""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from arl2.errors import Arl2Error, GeometryError
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.streams.conditioning import (
    fit_picture,
    image_latents,
    image_prefix,
    video_latents,
    video_prefix,
    whole_blocks,
)
from arl2.video.formats import VideoFileError
from arl2.video.images import read_image
from arl2.video.pixels import from_bytes, to_bytes
from arl2.video.reading import clip_frames, count_clip_frames
from arl2.video.writers import open_video
from pipeline.stand_in import SETTINGS, stand_in_pipeline
from support import tiny_model


@pytest.fixture(scope="module")
def pipe() -> ARL2Pipeline:
    return stand_in_pipeline()


@pytest.fixture(scope="module")
def framewise(pipe: ARL2Pipeline) -> ARL2Pipeline:
    transformer = tiny_model("SH", block_frames=1, text_len=pipe.text.length)
    one = ARL2Pipeline(transformer, pipe.codec, pipe.text, SETTINGS)
    one.set_progress_bar_config(disable=True)
    return one


def clip(frames: int, height: int = 64, width: int = 64) -> np.ndarray:
    """Every frame has a grey of its own."""
    grey = (10 + 12 * np.arange(frames)).astype(np.uint8)
    return np.broadcast_to(grey[:, None, None, None], (frames, height, width, 3)).copy()


def greys(path: Path, *, fps: int) -> list[int]:
    """Which frames of ``clip`` a file gives at a rate."""
    return [round((float(frame.mean()) - 10) / 12) for frame in clip_frames(path, fps=fps)]


def written(path: Path, frames: np.ndarray, *, fps: int = 16) -> Path:
    with open_video(path, fps=fps) as writer:
        writer.write(frames)
    return path


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_an_image_is_the_first_frame(pipe: ARL2Pipeline, framewise: ARL2Pipeline, tmp_path: Path) -> None:
    image = picture(64, 64)
    Image.fromarray(image).save(tmp_path / "image.png")
    with torch.no_grad():
        expected = pipe.codec.encode(from_bytes(image[None])[None])
    first_of_one = ARL2Pipeline(pipe.transformer, pipe.codec, pipe.text, replace(SETTINGS, first_block_frames=1))
    for one, frames in ((framewise, 9), (first_of_one, 13)):
        known = image_prefix(one, tmp_path / "image.png")
        assert torch.equal(known.latents, expected)
        assert (known.video_frames, known.left_out) == (1, 0)
        blocks = list(one.stream("red", num_frames=frames, known=known.latents))
        assert torch.equal(blocks[0].latents, expected)
        assert sum(block.video.shape[2] for block in blocks) == frames
        with torch.no_grad():
            assert torch.equal(blocks[0].video, one.codec.decode(expected))
        # What follows depends on the image.
        other = list(one.stream("red", num_frames=frames, known=expected + 1))
        assert not torch.allclose(blocks[1].latents, other[1].latents, atol=1e-3)
    with pytest.raises(GeometryError, match=r"this model's first block has 3, .* Framewise models can"):
        image_prefix(pipe, tmp_path / "image.png")


def test_images_of_any_mode_and_size(pipe: ARL2Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    see_through = Image.new("RGBA", (8, 4), (255, 0, 0, 0))
    see_through.putpixel((0, 0), (255, 0, 0, 255))
    see_through.save(path)
    assert [read_image(path).getpixel(place) for place in ((0, 0), (1, 0))] == [(255, 0, 0), (255, 255, 255)]
    for mode in ("1", "L", "P", "LA", "I;16", "CMYK"):
        saved = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
        Image.new(mode, (30, 70)).save(saved)
        latents = image_latents(pipe.codec, read_image(saved), height=32, width=48)
        assert latents.shape == (1, 3, 1, 4, 6)
    turned = Image.new("RGB", (20, 10), "red")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (10, 20)


def test_what_is_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(Arl2Error, match="cannot be read as an image"):
        read_image(tmp_path / "text.png")
    Image.fromarray(picture(64, 64)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:3000])
    with pytest.raises(Arl2Error, match="cannot be read as an image"):
        read_image(tmp_path / "cut.png")
    for missing in ("missing.png", "."):
        with pytest.raises(Arl2Error, match=r"There is no image|cannot be read \(No such file"):
            read_image(tmp_path / missing)
    Image.new("L", (64, 8)).save(tmp_path / "wide.png")
    monkeypatch.setattr("arl2.video.images.MAX_SIDE", 32)
    with pytest.raises(Arl2Error, match="claims 64 x 8 pixels; at most 32 a side"):
        read_image(tmp_path / "wide.png")


def test_pictures_are_cropped_around_their_centre() -> None:
    frame = picture(48, 64)
    assert fit_picture(frame, height=48, width=64) is frame
    assert np.array_equal(fit_picture(frame.repeat(3, 0).repeat(3, 1), height=48, width=64), frame)
    wide = np.zeros((48, 100, 3), dtype=np.uint8)
    wide[:, 18:82] = frame
    assert np.array_equal(fit_picture(wide, height=48, width=64), frame)
    for size in ((1, 8000), (8000, 1), (7, 5), (481, 833)):
        assert fit_picture(picture(*size), height=480, width=832).shape == (480, 832, 3)
    smooth = np.tile(np.linspace(0, 255, 200).astype(np.uint8)[None, :, None], (100, 1, 3))
    assert np.abs(np.diff(fit_picture(smooth, height=50, width=100)[25, :, 0].astype(int))).max() <= 4


@pytest.mark.parametrize(
    ("video_frames", "first", "latent_frames"),
    [(9, None, 3), (20, None, 3), (21, None, 6), (1, 1, 1), (12, 1, 1), (13, 1, 4)],
)
def test_whole_blocks(video_frames: int, first: int | None, latent_frames: int) -> None:
    found = whole_blocks(video_frames, temporal_factor=4, block_frames=3, first_block_frames=first)
    assert found == latent_frames


@pytest.mark.parametrize("video_frames", [0, 1, 8])
def test_less_than_a_block(video_frames: int) -> None:
    with pytest.raises(GeometryError, match="first block takes 9; give a longer video"):
        whole_blocks(video_frames, temporal_factor=4, block_frames=3)


def test_a_video_goes_on(pipe: ARL2Pipeline, tmp_path: Path) -> None:
    video = picture(24, 64 * 64).reshape(24, 64, 64, 3)
    known = video_prefix(pipe, written(tmp_path / "clip", video))
    assert (known.video_frames, known.left_out, known.latents.shape[2]) == (21, 3, 6)
    with torch.no_grad():
        at_once = pipe.codec.encode(from_bytes(video[3:])[None])
    assert torch.equal(known.latents, at_once)
    blocks = list(pipe.stream("red", num_frames=33, known=known.latents))
    assert [block.video.shape[2] for block in blocks] == [9, 12, 12]
    with torch.no_grad():
        shown = pipe.codec.decode(at_once)
    assert torch.equal(torch.cat([block.video for block in blocks[:2]], dim=2), shown)
    assert np.array_equal(to_bytes(shown[0])[:9], blocks[0].pixels())


def test_encoding_takes_the_same_memory_for_any_length(pipe: ARL2Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    encode = pipe.codec.encode

    def counting(video: torch.Tensor, cache: object = None) -> torch.Tensor:
        encoded.append(video.shape[2])
        return encode(video, cache)

    def frames() -> Iterator[np.ndarray]:
        for index in range(41):
            # Never more than a latent frame is taken before it is encoded.
            assert index - sum(encoded) < 4
            yield picture(64, 64)

    monkeypatch.setattr(pipe.codec, "encode", counting)
    assert video_latents(pipe.codec, frames(), height=64, width=64).shape[2] == 11
    assert encoded == [1] + [4] * 10
    with pytest.raises(GeometryError, match="multiple of 4"):
        video_latents(pipe.codec, clip(3), height=64, width=64)
    with pytest.raises(GeometryError, match="No video frames"):
        video_latents(pipe.codec, [], height=64, width=64)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.y4m", "clip.gif", "clip.webp", "clip"])
def test_any_rate_by_the_nearest_time(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, clip(12), fps=10)
    assert greys(path, fps=10) == list(range(12))
    assert greys(path, fps=20) == [i // 2 for i in range(24)]
    assert greys(path, fps=5) == [0, 2, 4, 6, 8, 10]
    assert count_clip_frames(path, fps=16) == len(greys(path, fps=16)) == 20


def container(path: Path, times: list[int], *, codec: str = "mpeg4", size: tuple[int, int] = (64, 48)) -> Path:
    """A video whose frame ``i`` is shown from ``times[i]`` milliseconds on."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for time, frame in zip(times, clip(len(times), size[1], size[0]), strict=True):
            shown = av.VideoFrame.from_ndarray(frame, format="rgb24")
            shown.pts, shown.time_base = time, Fraction(1, 1000)
            output.mux(stream.encode(shown))
        output.mux(stream.encode(None))
    return path


def test_uneven_times(tmp_path: Path) -> None:
    path = container(tmp_path / "clip.mkv", [500, 600, 1000, 1100])
    assert greys(path, fps=10)[:7] == [0, 1, 1, 1, 2, 2, 3]
    path = container(tmp_path / "jump.mkv", [0, 100, 100 + 601_000])
    with pytest.raises(VideoFileError, match="jump by 601 seconds"):
        count_clip_frames(path, fps=16)


def test_odd_sizes_and_other_containers(pipe: ARL2Pipeline, tmp_path: Path) -> None:
    for name, codec, size in (("a.avi", "mpeg4", (62, 46)), ("a.mkv", "ffv1", (33, 17)), ("a.mov", "mpeg4", (64, 10))):
        path = container(tmp_path / name, [40 * i for i in range(20)], codec=codec, size=size)
        assert video_prefix(pipe, path).latents.shape[2] == 3


def test_a_telephones_rotation(tmp_path: Path) -> None:
    half = np.zeros((1, 48, 64, 3), dtype=np.uint8)
    half[:, :, :32] = 255
    path = written(tmp_path / "clip.mp4", half)
    data = path.read_bytes()
    matrix = data.index(b"tkhd") + 44
    one = (1 << 16).to_bytes(4, "big")
    quarter = bytes(4) + one + bytes(4) + (-(1 << 16)).to_bytes(4, "big", signed=True) + bytes(8)
    path.write_bytes(data[:matrix] + quarter + data[matrix + 24 :])
    (frame,) = clip_frames(path, fps=16)
    # A quarter clockwise: what was left is above.
    assert frame.shape == (64, 48, 3)
    assert frame[:28].min() > 200
    assert frame[36:].max() < 50


def test_videos_that_are_none(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "audio.mp4"), "w") as output:
        stream = output.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        silence.sample_rate = 44100
        output.mux(stream.encode(silence))
        output.mux(stream.encode(None))
    (tmp_path / "broken.mp4").write_bytes(b"not a video at all")
    whole = container(tmp_path / "whole.mkv", list(range(0, 4000, 40)), codec="ffv1").read_bytes()
    (tmp_path / "cut.avi").write_bytes(b"RIFF" + whole[:2000])
    # A playlist may name any address; that it is refused is told from the file it names being readable.
    written(tmp_path / "part.mp4", clip(20))
    (tmp_path / "list.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/part.mp4\n#EXT-X-ENDLIST\n"
    )
    (tmp_path / "list.ffconcat").write_text("ffconcat version 1.0\nfile part.mp4\n")
    (tmp_path / "empty.y4m").write_bytes(b"YUV4MPEG2 W64 H64 F16:1 Ip A1:1 C444\n")
    for name, said in (
        ("audio.mp4", "holds no video, only audio"),
        ("broken.mp4", "cannot be read as a video"),
        ("cut.avi", "cannot be read as a video"),
        ("list.m3u8", "cannot be read as a video"),
        ("list.ffconcat", "cannot be read as a video"),
        ("empty.y4m", "holds no video frames|cannot be read"),
        ("missing.mp4", "There is no"),
    ):
        with pytest.raises(VideoFileError, match=said):
            count_clip_frames(tmp_path / name, fps=16)
