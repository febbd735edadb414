"""What every output of a stream is."""

from abc import ABC, abstractmethod
from types import TracebackType

import numpy as np
from jaxtyping import UInt8

Pictures = UInt8[np.ndarray, "frames height width 3"]


class StreamOutput(ABC):
    """Takes video frames as they come, and cuts between them. Use it as a context: leaving it completes the output."""

    @abstractmethod
    def write(self, frames: Pictures) -> None:
        """Append RGB frames.

        Raises:
            VideoFileError: the system refuses to write more; what was written until then stays.
            GeometryError: frames of another size than the first.
        """

    @abstractmethod
    def mark_cut(self) -> None:
        """The next frame does not go on from the one before. Nothing happens before the first frame."""

    @abstractmethod
    def close(self) -> None:
        """Complete the output. Closing twice does no harm."""

    def __enter__(self) -> "StreamOutput":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
