"""Two codecs of one latent space as one: the VAE encodes, a tiny decoder decodes."""

import torch
from torch import nn

from arl2.errors import ConfigError
from arl2.video.codec import CodecCache, Latents, Side, Video, VideoCodec


class PairedCodec(nn.Module):
    """Implements ``arl2.video.codec.VideoCodec``.

    Args:
        encoder: makes latents (``encode`` alone is used).
        decoder: makes video (``decode`` alone is used).

    Raises:
        ConfigError: codecs of different latent spaces.
    """

    def __init__(self, encoder: VideoCodec, decoder: VideoCodec) -> None:
        super().__init__()
        sizes = [(one.latent_channels, one.spatial_factor, one.temporal_factor) for one in (encoder, decoder)]
        if sizes[0] != sizes[1]:
            raise ConfigError(
                f"The decoder has (channels, space, time) {sizes[1]} but the model's latents {sizes[0]}; "
                "give the tiny decoder of this VAE."
            )
        self.encoder_codec, self.decoder_codec = encoder, decoder
        self.latent_channels, self.spatial_factor, self.temporal_factor = sizes[0]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def new_cache(self, side: Side = "decoder") -> CodecCache:
        return (self.encoder_codec if side == "encoder" else self.decoder_codec).new_cache(side)

    def encode(self, video: Video, cache: CodecCache | None = None) -> Latents:
        return self.encoder_codec.encode(video, cache)

    def decode(self, latents: Latents, cache: CodecCache | None = None) -> Video:
        return self.decoder_codec.decode(latents, cache)

    def frames_of(self, first_frame: int, latent_frames: int) -> int:
        return self.decoder_codec.frames_of(first_frame, latent_frames)

    def extra_repr(self) -> str:
        return f"encoder {type(self.encoder_codec).__name__}, decoder {type(self.decoder_codec).__name__}"
