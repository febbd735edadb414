"""Tiny Wan 2.1 VAEs with random weights, and the same weights under the original names."""

from itertools import product
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from torch import Tensor

MEAN, STD = [0.1, -0.2, 0.3, 0.0], [0.5, 1.0, 2.0, 1.5]

SMALLEST: dict[str, Any] = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 2, 2, 2],
    "num_res_blocks": 1,
    "latents_mean": MEAN,
    "latents_std": STD,
}


def tiny_vae(seed: int = 0, **sizes: Any) -> AutoencoderKLWan:
    """A VAE that runs in milliseconds, every parameter random; without sizes the smallest one."""
    vae = AutoencoderKLWan(**(sizes or SMALLEST))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if name.endswith("gamma"):
                parameter.uniform_(0.5, 1.5, generator=draw)
            else:
                parameter.normal_(0, 0.8 * parameter[0].numel() ** -0.5, generator=draw)
    return vae.eval()


def narrow_vae(seed: int = 0) -> AutoencoderKLWan:
    """Published depth, channels and statistics, a small width: what the original layout can hold."""
    return tiny_vae(seed, base_dim=4)


def original_tensors(vae: AutoencoderKLWan) -> dict[str, Tensor]:
    """The weights under the names of the first release: all names that it could have, those that this VAE has."""
    leaves = ["weight", "bias", "gamma"]
    inside = [
        *(f"residual.{place}.{leaf}" for place, leaf in product((0, 2, 3, 6), leaves)),
        *(f"{layer}.{leaf}" for layer, leaf in product(("shortcut", "time_conv", "resample.1"), leaves)),
        *(f"{layer}.{leaf}" for layer, leaf in product(("norm", "to_qkv", "proj"), leaves)),
    ]
    places = [f"{part}.middle.{i}" for part, i in product(("encoder", "decoder"), range(3))]
    places += [f"{stage}.{i}" for stage, i in product(("encoder.downsamples", "decoder.upsamples"), range(16))]
    ends = ["conv1", "conv2", "encoder.conv1", "decoder.conv1"]
    ends += [f"{part}.head.{i}" for part, i in product(("encoder", "decoder"), (0, 2))]
    candidates = [f"{place}.{leaf}" for place, leaf in (*product(places, inside), *product(ends, leaves))]
    weights = vae.state_dict()
    originals = {}
    for candidate in candidates:
        (name,) = convert_wan_vae_to_diffusers({candidate: 0})
        if name in weights:
            originals[candidate] = weights[name]
    assert len(originals) == len(weights)
    return originals
