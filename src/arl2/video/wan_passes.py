"""One pass of the Wan 2.1 VAE over some latent frames of a stream: our order of operations, diffusers' weights.

Everything is channels last, ``[batch, frames, height, width, channels]``. A layer does not add up what it computed:
it returns a ``Sum``, and what reads it next adds, normalises, activates and puts the result behind the frames that its
convolution remembers, in one pass over memory (:func:`arl2.kernels.causal_input.causal_input`). Zeros around a picture
are left to the convolution. Where a GPU would add a convolution's bias in a pass of its own, the bias waits as well.

Source: ``diffusers.models.autoencoders.autoencoder_kl_wan``, whose numbers these are, up to the order of sums.
"""

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanCausalConv3d,
    WanDecoder3d,
    WanEncoder3d,
    WanMidBlock,
    WanResample,
    WanResidualBlock,
    WanRMS_norm,
)
from jaxtyping import Float
from torch import Tensor, nn

from arl2.kernels.causal_input import Frames, Interleaved, causal_input, interleaved, pixels
from arl2.video.wan_streaming import Past, lookback

Picture = Float[Tensor, "batch video_frames video_height video_width rgb"]
Moments = Float[Tensor, "batch latent_frames latent_height latent_width moments"]

_TENSOR_CORE = 16  # channels: a result is filled up to a multiple, as matrix units want it


class Sum:
    """``value + bias + residual``, not yet added up. It is read once, and lets go of its parts then.

    These are the largest tensors there are; callers further up would keep them until their own step is over.
    """

    def __init__(self, value: Interleaved, bias: Tensor | None = None, residual: Frames | None = None) -> None:
        self._parts = [(value, bias, residual)]

    def take(self) -> tuple[Interleaved, Float[Tensor, " channels"] | None, Frames | None]:
        """The three parts, the one time that they are taken."""
        return self._parts.pop()


def decode_pass(decoder: WanDecoder3d, raw: Frames, past: Past, merging: Tensor) -> Picture:
    """Video frames of raw latents.

    The last stage, whose numbers are half of all, goes latent frame by latent frame: so its working memory is a third
    of what a block would take.

    Args:
        decoder: ``AutoencoderKLWan.decoder``.
        raw: after ``post_quant_conv``; at the start of a stream its first latent frame alone.
        past: of this stream; updated.
        merging: from ``merging_matrix``.
    """
    x = _conv3d(decoder.conv_in, _read(Sum(interleaved(raw)), conv=decoder.conv_in, past=past))
    x = _middle(decoder.mid_block, x, past)
    *stages, last = decoder.up_blocks
    for i, stage in enumerate(stages):
        for block in stage.resnets:
            x = _residual(block, x, past)
        upsampler = stage.upsamplers[0]
        frames, conv = _doubled_in_time(upsampler, x, past), upsampler.resample[1]
        weight = _merged(conv.weight, merging)
        if i < len(stages) - 1:
            x = _doubled_in_space(frames, conv, weight)
            del frames
    taps = _taps(decoder.conv_out.weight)
    video = []
    for part in frames.split(frames.shape[1] // raw.shape[1], dim=1):
        x = _doubled_in_space(part, conv, weight)
        for block in last.resnets:
            x = _residual(block, x, past)
        video.append(_pixels(decoder, taps, x, past))
    return torch.cat(video, dim=1)


def encode_pass(encoder: WanEncoder3d, pixels: Frames, past: Past, *, latent_frames: int) -> Moments:
    """Moments, before ``quant_conv``, of video frames.

    The first stage goes latent frame by latent frame, like the last one of ``decode_pass``.

    Args:
        encoder: ``AutoencoderKLWan.encoder``.
        pixels: ``[batch, frames, height, width, 3]``; at the start of a stream its first video frame alone.
        past: of this stream; updated.
        latent_frames: that they stand for.
    """
    layers = list(encoder.down_blocks)
    end = 1 + next(i for i, layer in enumerate(layers) if isinstance(layer, WanResample))
    parts = []
    for part in pixels.split(pixels.shape[1] // latent_frames, dim=1):
        x = _conv3d(encoder.conv_in, _read(Sum(interleaved(part)), conv=encoder.conv_in, past=past))
        for layer in layers[:end]:
            x = _down(layer, x, past)
        parts.append(x)
    x = _joined(parts)
    for layer in layers[end:]:
        x = _down(layer, x, past)
    x = _middle(encoder.mid_block, x, past)
    x = _conv3d(encoder.conv_out, _read(x, norm=encoder.norm_out, conv=encoder.conv_out, past=past))
    return _read(x)


def merging_matrix() -> Float[Tensor, "16 9"]:
    """Weights of a 3 x 3 convolution of an enlarged picture to those of four 2 x 2 ones of the picture itself.

    Where every pixel is there twice, two of three taps see the same one: output row ``2 i`` sees rows ``i - 1`` and
    ``i``, with taps 0 and 1 + 2, and row ``2 i + 1`` sees ``i`` and ``i + 1``, with taps 0 + 1 and 2. The enlarged
    picture is never made, and 4 of 9 multiplications are left.
    """
    one = torch.tensor([[1.0, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 1]])  # (which row, which tap) x tap of three
    return torch.kron(one, one)


def _read(
    x: Sum,
    *,
    norm: WanRMS_norm | None = None,
    silu: bool = True,
    conv: WanCausalConv3d | None = None,
    past: Past | None = None,
    margin: int = 0,
) -> Frames:
    """What a layer reads: the sum, normalised and activated if there is a norm, behind the frames of its past."""
    return _read_with_sum(x, norm=norm, silu=silu, conv=conv, past=past, margin=margin, want_sum=False)[1]


def _read_with_sum(
    x: Sum,
    *,
    norm: WanRMS_norm | None,
    silu: bool = True,
    conv: WanCausalConv3d | None = None,
    past: Past | None = None,
    margin: int = 0,
    want_sum: bool = True,
) -> tuple[Tensor, Tensor]:
    """The sum as well, for the way around the layer."""
    value, bias, residual = x.take()
    held, back = (None, 0) if past is None or conv is None else (past[conv], lookback(conv))
    total, frames, kept = causal_input(
        value,
        bias=bias,
        residual=residual,
        gamma=None if norm is None else norm.gamma.flatten(),
        past=held,
        lookback=back,
        margin=margin,
        silu=silu and norm is not None,
        want_sum=want_sum,
    )
    if past is not None and conv is not None:
        past[conv] = kept
    return total, frames


def _residual(block: WanResidualBlock, x: Sum, past: Past) -> Sum:
    skip, frames = _read_with_sum(x, norm=block.norm1, conv=block.conv1, past=past)
    inner = _conv3d(block.conv1, frames)
    del frames
    value, bias, _ = _conv3d(block.conv2, _read(inner, norm=block.norm2, conv=block.conv2, past=past)).take()
    if isinstance(block.conv_shortcut, nn.Identity):
        return Sum(value, bias, skip)
    around, more, _ = _conv3d(block.conv_shortcut, skip).take()
    return Sum(value, None if bias is None or more is None else bias + more, pixels(around))


def _joined(parts: list[Sum]) -> Sum:
    """One after the other in time; they have one bias and no residual."""
    taken = [one.take() for one in parts]
    return Sum(torch.cat([value for value, _, _ in taken], dim=1), taken[0][1])


def _middle(block: WanMidBlock, x: Sum, past: Past) -> Sum:
    x = _residual(block.resnets[0], x, past)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        x = _residual(resnet, _attention(attention, x), past)
    return x


def _attention(block: WanAttentionBlock, x: Sum) -> Sum:
    """One head over the pixels of each frame."""
    skip, normed = _read_with_sum(x, norm=block.norm, silu=False)
    rows = normed.flatten(0, 1).flatten(1, 2).unsqueeze(1)  # [batch * frames, head, pixels, channels]
    q, k, v = F.linear(rows, block.to_qkv.weight.flatten(1), block.to_qkv.bias).chunk(3, dim=-1)
    mixed = F.linear(F.scaled_dot_product_attention(q, k, v), block.proj.weight.flatten(1), block.proj.bias)
    return Sum(interleaved(mixed.view(skip.shape)), residual=skip)


def _doubled_in_time(upsampler: WanResample, x: Sum, past: Past) -> Frames:
    """Two frames for one where the layer doubles time; the stream's first passes alone, and is not remembered."""
    if upsampler.mode == "upsample2d":
        return _read(x)
    conv = upsampler.time_conv
    if past[conv] is None:
        frames = _read(x)
        batch, _, *picture = frames.shape
        past[conv] = frames.new_zeros(batch, lookback(conv), *picture)
        return frames
    both = F.conv3d(_channels_first(_read(x, conv=conv, past=past)), conv.weight, conv.bias)
    batch, channels, count, height, width = both.shape
    pairs = both.view(batch, 2, channels // 2, count, height, width).permute(0, 3, 1, 4, 5, 2)
    return pairs.reshape(batch, 2 * count, height, width, channels // 2)


def _merged(weight: Tensor, merging: Tensor) -> Tensor:
    """Weights of the four 2 x 2 convolutions: see ``merging_matrix``."""
    out, channels = weight.shape[:2]
    taps = weight.flatten(2) @ merging.to(weight).T
    four = taps.view(out, channels, 2, 2, 2, 2).permute(2, 4, 0, 1, 3, 5).reshape(4 * out, channels, 2, 2)
    return four.contiguous(memory_format=torch.channels_last)


def _doubled_in_space(frames: Frames, conv: nn.Conv2d, weight: Tensor) -> Sum:
    """Nearest neighbours and a 3 x 3 convolution, from the picture as it is."""
    (batch, count, height, width, _), out = frames.shape, conv.out_channels
    four = F.conv2d(_pictures(frames), weight, padding=1)
    # Row 2 i + p is row i + p of convolution p, and the same for columns: a view that steps along both at once.
    picture, channel, row, column = four.stride()
    size = (batch, count, height, 2, width, 2, out)
    steps = (count * picture, picture, row, 2 * out * channel + row, column, out * channel + column, channel)
    return Sum(four.as_strided(size, steps, four.storage_offset()), conv.bias)


def _down(layer: WanResidualBlock | WanResample, x: Sum, past: Past) -> Sum:
    if not isinstance(layer, WanResample):
        return _residual(layer, x, past)
    conv = layer.resample[1]
    frames = _read(x, margin=1)
    waits = frames.is_cuda
    half = F.conv2d(_pictures(frames), conv.weight, None if waits else conv.bias, stride=2)
    half = half.permute(0, 2, 3, 1).unflatten(0, frames.shape[:2])
    x = Sum(interleaved(half), conv.bias if waits else None)
    if layer.mode == "downsample2d":
        return x
    begins = past[layer.time_conv] is None
    frames = _read(x, conv=layer.time_conv, past=past)
    # The stream's first frame passes alone, but is remembered.
    return Sum(interleaved(frames[:, lookback(layer.time_conv) :])) if begins else _conv3d(layer.time_conv, frames)


def _taps(weight: Tensor) -> Tensor:
    """The weights of a causal convolution as those of a plain one with a result for each tap in time."""
    taps = weight.permute(2, 0, 1, 3, 4).flatten(0, 1)
    taps = F.pad(taps, (0, 0, 0, 0, 0, 0, 0, -len(taps) % _TENSOR_CORE))
    return taps.contiguous(memory_format=torch.channels_last)


def _pixels(decoder: WanDecoder3d, weight: Tensor, x: Sum, past: Past) -> Frames:
    """The last convolution, which has 3 channels to give, one tap in time after another.

    What the last two frames add to the next two is remembered, not these frames of many channels.
    """
    conv = decoder.conv_out
    back, out = lookback(conv), conv.out_channels
    frames = _read(x, norm=decoder.norm_out)
    batch, count, *picture, _ = frames.shape
    parts = F.conv2d(_pictures(frames), weight, padding=1).permute(0, 2, 3, 1).unflatten(0, (batch, count))
    work = torch.promote_types(parts.dtype, torch.float32)
    video = parts.new_zeros(batch, count + back, *picture, out, dtype=work)
    held = past[conv]
    if held is not None:
        video[:, :back] = held
    for tap in range(back + 1):
        later = back - tap
        video[:, later : later + count] += parts[..., tap * out : (tap + 1) * out]
    past[conv] = video[:, count:].clone()
    return (video[:, :count] + conv.bias).to(parts.dtype)


def _conv3d(conv: WanCausalConv3d, frames: Frames) -> Sum:
    """Of frames that stand behind their past. On CUDA, where a bias would be a pass of its own, it waits."""
    waits = frames.is_cuda
    around = conv.kernel_size[1] // 2
    stride, padding = conv.stride, (0, around, around)
    value = F.conv3d(_channels_first(frames), conv.weight, None if waits else conv.bias, stride, padding)
    return Sum(interleaved(value.permute(0, 2, 3, 4, 1)), conv.bias if waits else None)


def _channels_first(frames: Frames) -> Tensor:
    return frames.permute(0, 4, 1, 2, 3)


def _pictures(frames: Frames) -> Tensor:
    """``[batch * frames, channels, height, width]`` in the same memory."""
    return frames.flatten(0, 1).permute(0, 3, 1, 2)
