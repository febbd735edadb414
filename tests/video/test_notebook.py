"""A notebook shows a finished video from the HTML alone, and only a frame of one that is too large for it."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from arl2.pipeline.pipeline import ARL2PipelineOutput
from arl2.video import notebook
from arl2.video.notebook import video_html
from arl2.video.reading import read_video


def shown(count: int = 9, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def test_the_video_is_inside(tmp_path: Path) -> None:
    html = video_html(shown(), fps=16)
    data = re.fullmatch(r'<video [^>]*src="data:video/mp4;base64,([^"]+)"></video>', html)
    assert data is not None
    (tmp_path / "a.mp4").write_bytes(base64.b64decode(data[1]))
    assert read_video(tmp_path / "a.mp4").shape == (9, 256, 256, 3)


@pytest.mark.parametrize(
    ("frames", "why"), [(shown(height=33), "cannot be an mp4"), (shown(), "0 MB"), (shown(count=1000), "too large")]
)
def test_of_another_the_first_frame_is_shown(frames: np.ndarray, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "LARGEST", 1000)
    monkeypatch.setattr(notebook, "_MOST_PIXELS", 100_000)
    monkeypatch.setattr(notebook, "_SHOWN_SIDE", 1)
    html = video_html(frames, fps=16)
    assert html.startswith('<figure><img src="data:image/png;base64,')
    assert why in html
    assert 'save("video.mp4")' in html


def test_the_output_of_a_call_is_shown() -> None:
    video = torch.rand(2, 5, 3, 16, 16)
    assert (ARL2PipelineOutput(frames=video)._repr_html_() or "").count("<video") == 2
    assert ARL2PipelineOutput(frames=torch.randn(1, 16, 3, 8, 8))._repr_html_() is None
