"""A paired codec encodes with one and decodes with the other, as a whole and in pieces."""

import pytest
import torch

from arl2.errors import ConfigError, MemoryMismatchError
from arl2.video.codec import VideoCodec
from arl2.video.pairing import PairedCodec
from arl2.video.tiny_codec import TinyCodec
from arl2.video.wan_codec import WanCodec
from support import randn
from video.tiny_wan import narrow_vae


def parts() -> tuple[WanCodec, TinyCodec]:
    torch.manual_seed(0)
    tiny = TinyCodec(encoder_widths=(4, 4, 4, 4), decoder_widths=(8, 4, 4, 4), memory_layers=1)
    return WanCodec(narrow_vae()), tiny.eval()


@torch.no_grad()
def test_each_direction_is_its_own_codec_in_pieces_too():
    full, tiny = parts()
    pair = PairedCodec(full, tiny)
    assert isinstance(pair, VideoCodec)
    video = randn(1, 3, 9, 16, 16).clamp(-1, 1)
    latents = pair.encode(video)
    assert torch.equal(latents, full.encode(video))
    whole = pair.decode(latents)
    assert torch.equal(whole, tiny.decode(latents))
    assert whole.shape[2] == pair.frames_of(0, 3)
    cache = pair.new_cache()
    assert torch.equal(torch.cat([pair.decode(one, cache) for one in latents.split(1, dim=2)], dim=2), whole)
    with pytest.raises(MemoryMismatchError):
        pair.decode(latents, pair.new_cache("encoder"))


def test_codecs_of_other_latents_are_refused():
    full, _ = parts()
    other = TinyCodec(latent_channels=4, encoder_widths=(4, 4, 4, 4), decoder_widths=(8, 4, 4, 4), memory_layers=1)
    with pytest.raises(ConfigError, match="give the tiny decoder of this VAE"):
        PairedCodec(full, other)
