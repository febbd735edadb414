"""What every writer of video files is."""

from abc import ABC, abstractmethod
from types import TracebackType

import numpy as np
from jaxtyping import UInt8

from arl2.errors import GeometryError


class VideoWriter(ABC):
    """Takes video frames as they come. Use it as a context: leaving it, by an error too, completes the file."""

    @abstractmethod
    def write(self, frames: UInt8[np.ndarray, "frames height width 3"]) -> None:
        """Append RGB frames, all of the size of the first; raises ``GeometryError`` for another size."""

    @abstractmethod
    def close(self) -> None:
        """Complete the file. Closing twice does no harm."""

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def require_same_size(came: tuple[int, ...], first: tuple[int, ...]) -> None:
    """Raise ``GeometryError`` unless a frame has the size of the first."""
    if came != first:
        raise GeometryError(
            f"A video frame of {came[1]} x {came[0]} came into a video of {first[1]} x {first[0]}; all frames of a "
            "file have one size."
        )
