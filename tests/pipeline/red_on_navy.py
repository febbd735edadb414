"""What a shipped model must draw of "a red circle moves right on navy"."""

from torch import Tensor


def assert_red_on_navy(frame: Tensor) -> None:
    """One video frame ``[3, H, W]`` in -1 to 1: some of it red, most of it navy."""
    assert frame.isfinite().all()
    red = (frame[0] > 0.3) & (frame[1] < -0.3) & (frame[2] < -0.3)
    navy = (frame[0] < -0.5) & (frame[2] < 0.3) & (frame[2] > -0.5)
    assert red.sum() > 60
    assert navy.sum() > 2000
