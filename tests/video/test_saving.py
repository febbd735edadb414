"""A finished video is saved alike from every output type; what is no video is refused before a file is made."""

from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

import arl2
from arl2.errors import ConfigError, GeometryError
from arl2.pipeline.pipeline import ARL2PipelineOutput
from arl2.video.formats import VideoFileError
from arl2.video.reading import read_video, video_info


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), dtype=np.uint8)


def output_types(pixels: np.ndarray) -> dict[str, object]:
    unit = pixels.astype(np.float32) / 255
    return {
        "pil": [Image.fromarray(frame) for frame in pixels],
        "np": unit,
        "pt": torch.from_numpy(unit).permute(0, 3, 1, 2),
        "bytes": pixels,
    }


@pytest.mark.parametrize("kind", ["pil", "np", "pt", "bytes"])
def test_every_output_type_saves_the_same_frames(kind: str, pixels: np.ndarray, tmp_path: Path) -> None:
    arl2.save_video(output_types(pixels)[kind], tmp_path / "frames")
    assert np.array_equal(read_video(tmp_path / "frames"), pixels)


def test_rate_and_scale(pixels: np.ndarray, tmp_path: Path) -> None:
    arl2.save_video(pixels, tmp_path / "clip.mp4", fps=8, scale=2)
    info = video_info(tmp_path / "clip.mp4")
    assert (info.width, info.height, info.fps) == (48, 32, pytest.approx(8))


def test_an_output_saves_one_of_its_videos_at_its_own_rate(pixels: np.ndarray, tmp_path: Path) -> None:
    output = ARL2PipelineOutput(frames=np.stack([pixels, pixels[::-1]]), fps=8)
    output.save(tmp_path / "second.gif", index=1)
    assert video_info(tmp_path / "second.gif").fps == pytest.approx(8, rel=0.05)
    output.save(tmp_path / "second", index=1)
    assert np.array_equal(read_video(tmp_path / "second"), pixels[::-1])


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(16, 4, 8, 8), "Latents are not video frames: decode them"),
        (torch.randn(16, 3, 8, 8), "Latents are not video frames: decode them"),
        (torch.full((2, 3, 8, 8), float("nan")), "Got values from nan"),
        (np.zeros((2, 5, 16, 24, 3), dtype=np.uint8), "one video is"),
        ([], "Got shape"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 16))], "differ in size"),
    ],
)
def test_what_is_no_video_is_refused(frames: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match=message):
        arl2.save_video(frames, tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


def test_unknown_extension_is_refused(pixels: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(VideoFileError, match="accepted are"):
        arl2.save_video(pixels, tmp_path / "clip.avi")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"scale": 1.5}, "Got scale 1.5; give a whole number from 1"),
        ({"scale": True}, "Got scale True"),
        ({"scale": None}, "Got scale None"),
        ({"path": 5}, "Got path 5; give the name of a file"),
        ({"path": None}, "Got path None"),
        ({"path": ""}, "Got path ''"),
        ({"fps": 29.97}, "Got fps 29.97; give a whole number from 1 to 1000"),
        ({"fps": float("nan")}, "Got fps nan"),
        ({"fps": "a"}, "Got fps 'a'"),
        ({"frames": None}, "Got frames of type NoneType"),
        ({"frames": "text"}, "Got frames of type str"),
        ({"overwrite": "yes"}, "Got overwrite 'yes'"),
    ],
)
def test_an_argument_of_another_type_is_named(
    given: dict[str, object], said: str, pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in use, where nothing checks annotations
    with pytest.raises(ConfigError, match=said):
        arl2.save_video(**{"frames": pixels, "path": tmp_path / "clip.mp4", **given})
    if "frames" not in given and "fps" not in given:
        with pytest.raises(ConfigError, match=said):
            ARL2PipelineOutput(frames=pixels[None]).save(**{"path": tmp_path / "clip.mp4", **given})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("index", [5, -1, 0.5])
def test_a_prompt_that_is_not_there_is_named(index: object, pixels: np.ndarray, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ConfigError, match=f"Got index {index}; give a whole number from 0 to 0"):
        ARL2PipelineOutput(frames=pixels[None]).save(tmp_path / "clip.mp4", index=index)


@pytest.mark.parametrize("name", ["clip.gif", "frames"])
def test_a_video_is_replaced_only_when_asked(name: str, pixels: np.ndarray, tmp_path: Path) -> None:
    arl2.save_video(pixels, tmp_path / name)
    with pytest.raises(VideoFileError, match=r"\(Python: overwrite=True\)"):
        arl2.save_video(pixels[:2], tmp_path / name)
    assert len(read_video(tmp_path / name)) == 5
    ARL2PipelineOutput(frames=pixels[None, :2]).save(tmp_path / name, overwrite=True)
    assert len(read_video(tmp_path / name)) == 2
