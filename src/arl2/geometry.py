"""Pixels, latent frames, tokens and blocks: pure integers, no tensors.

One vocabulary: a *video frame* is a picture; a *frame* is one time step of the latent; a *token* is one patch of a
frame; a *block* is the frames denoised together.
"""

from dataclasses import dataclass

from arl2.errors import GeometryError


@dataclass(frozen=True)
class TokenGrid:
    """Rows and columns of tokens in one latent frame."""

    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        """Tokens of one frame."""
        return self.rows * self.columns


def token_grid(height: int, width: int, patch: tuple[int, int, int]) -> TokenGrid:
    """The token grid of a ``height x width`` latent under ``patch`` (frames, rows, columns).

    Raises:
        GeometryError: height or width is not a positive multiple of the patch.
    """
    _, patch_rows, patch_columns = patch
    for name, size, step in (("height", height, patch_rows), ("width", width, patch_columns)):
        if size < step or size % step:
            nearest = max(step, round(size / step) * step)
            raise GeometryError(
                f"Latent {name} {size} is not a multiple of the patch size {step}; use {nearest}, for example."
            )
    return TokenGrid(height // patch_rows, width // patch_columns)


@dataclass(frozen=True)
class FrameRange:
    """Frames ``[start, stop)`` of a stream."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def split_blocks(frames: int, block_frames: int, first_block_frames: int | None = None) -> tuple[FrameRange, ...]:
    """Cut ``frames`` latent frames into blocks of ``block_frames``; the first may be shorter.

    Args:
        frames: latent frames of the whole clip.
        block_frames: frames denoised together.
        first_block_frames: size of the first block, if it differs (``independent_first_frame`` models: 1).

    Raises:
        GeometryError: the frames do not fit the blocks; the message names the nearest numbers that do.
    """
    first = block_frames if first_block_frames is None else first_block_frames
    if not 1 <= first <= block_frames:
        raise GeometryError(f"The first block has {first} frames; it must have 1 to {block_frames}.")
    rest = frames - first
    if rest < 0 or rest % block_frames:
        below = first + max(0, rest // block_frames) * block_frames
        choices = [str(below)] if rest < 0 else [str(below), str(below + block_frames)]
        shape = f"blocks of {block_frames}" + (f" after a first one of {first}" if first != block_frames else "")
        raise GeometryError(f"{frames} latent frames do not fit {shape}; use {' or '.join(choices)}.")
    starts = [0, *range(first, frames, block_frames)]
    return tuple(FrameRange(a, b) for a, b in zip(starts, [*starts[1:], frames], strict=True))


def latent_frames_of(video_frames: int, temporal_stride: int) -> int:
    """Latent frames of a video: the first latent frame is one video frame, later ones ``temporal_stride`` each.

    Raises:
        GeometryError: the count is not ``1 + k * temporal_stride``.
    """
    rest = video_frames - 1
    if rest < 0 or rest % temporal_stride:
        below = 1 + max(0, rest // temporal_stride) * temporal_stride
        raise GeometryError(
            f"{video_frames} video frames are not 1 + a multiple of {temporal_stride}; "
            f"use {below} or {below + temporal_stride}."
        )
    return 1 + rest // temporal_stride


def video_frames_of(latent_frames: int, temporal_stride: int) -> int:
    """Video frames that ``latent_frames`` decode to, counted from the stream's start."""
    return 1 + (latent_frames - 1) * temporal_stride
