"""The layers that the small codec is a chain of. Frames lie along the batch axis, clip by clip."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def conv3x3(channels_in: int, channels_out: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the size, or divides it by ``stride``."""
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=bias)


class SoftClamp(nn.Module):
    """Keeps latents within (-3, 3), smoothly: an outlier cannot blow up what the decoder remembers."""

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        return torch.tanh(x / 3) * 3


class MemoryLayer(nn.Module):
    """Residual convolutions over a frame and the frame before it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            conv3x3(2 * channels, channels),
            nn.ReLU(),
            conv3x3(channels, channels),
            nn.ReLU(),
            conv3x3(channels, channels),
        )
        self.act = nn.ReLU()

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        previous: Float[Tensor, "batch channels height width"],
    ) -> Float[Tensor, "batch channels height width"]:
        return self.act(self.conv(torch.cat((x, previous), dim=1)) + x)


class MergeFrames(nn.Module):
    """``stride`` neighbouring frames become one."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels * stride, channels, 1, bias=False)

    def forward(
        self, x: Float[Tensor, "batch_frames channels height width"]
    ) -> Float[Tensor, "batch_merged channels height width"]:
        _, channels, height, width = x.shape
        return self.conv(x.reshape(-1, self.stride * channels, height, width))


class SplitFrame(nn.Module):
    """One frame becomes ``stride`` neighbouring ones."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels, channels * stride, 1, bias=False)

    def forward(
        self, x: Float[Tensor, "batch_frames channels height width"]
    ) -> Float[Tensor, "batch_split channels height width"]:
        _, channels, height, width = x.shape
        return self.conv(x).reshape(-1, channels, height, width)
