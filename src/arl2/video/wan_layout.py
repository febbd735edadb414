"""The two layouts in which the Wan 2.1 VAE is published: a diffusers folder and the original single file."""

import inspect
import math
import warnings
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from arl2.errors import CheckpointError, ConfigError, printable
from arl2.files.exact import fill_exactly
from arl2.files.float8 import all_widened, without_scales
from arl2.files.plain import read_json
from arl2.files.tensors import read_tensors, require_weights

_CLASS_NAME = "AutoencoderKLWan"
# The latent statistics that a single file lacks are published for so many channels.
_PUBLISHED_CHANNELS = 16
_PARAMETERS = {k: v for k, v in inspect.signature(AutoencoderKLWan.__init__).parameters.items() if k != "self"}


def vae_of_folder(folder: Path, *, dtype: torch.dtype) -> AutoencoderKLWan:
    """The VAE of a folder with ``config.json`` and one ``.safetensors`` file; see ``WanCodec.from_pretrained``."""
    config = _read_config(folder / "config.json")
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointError(f"{folder} has {len(files)} .safetensors files; leave the one to load.")
    require_wan21(config, where=f"{folder}/config.json")
    known = {key: value for key, value in config.items() if key in _PARAMETERS}
    ignored = sorted(key for key in config if key not in known and not key.startswith("_"))
    if ignored:
        names = printable(", ".join(ignored))
        warnings.warn(f"{folder}/config.json sets {names}, which the VAE does not read.", stacklevel=3)
    vae = _empty_vae(known)
    fill_exactly(vae, _weights(files[0]), dtype=dtype, where=str(files[0]))
    return vae


def vae_of_file(path: Path, *, dtype: torch.dtype) -> AutoencoderKLWan:
    """The VAE of a single file; see ``WanCodec.from_published``."""
    tensors = _in_diffusers_names(_weights(path), path)
    first, last = (_tensor(tensors, f"{part}.weight", 5, path) for part in ("encoder.conv_in", "decoder.conv_out"))
    channels = _tensor(tensors, "post_quant_conv.weight", 5, path).shape[0]
    if channels != _PUBLISHED_CHANNELS or first.shape[1] != 3:
        raise CheckpointError(
            f"{path} has {channels} latent channels and takes {first.shape[1]}; the VAE of Wan 2.1 has "
            f"{_PUBLISHED_CHANNELS} and takes the 3 of RGB (that of Wan 2.2 is another network)."
        )
    vae = _empty_vae({"base_dim": first.shape[0], "decoder_base_dim": last.shape[1], "z_dim": channels})
    fill_exactly(vae, tensors, dtype=dtype, where=str(path))
    return vae


def require_wan21(config: Mapping[str, Any], *, where: str) -> None:
    """Raise ``ConfigError`` unless these are sizes of a VAE of the Wan 2.1 kind, any width and depth.

    What is refused here would fail later, less clearly: parts that its streaming does not know (the network of Wan 2.2,
    attention outside the middle), lists whose lengths do not fit, numbers out of all bounds.
    """
    sizes = {**{name: parameter.default for name, parameter in _PARAMETERS.items()}, **config}
    channels, multipliers, halvings = sizes["z_dim"], sizes["dim_mult"], sizes["temperal_downsample"]
    demands = {
        "base_dim": _is_size(sizes["base_dim"], 4096),
        "decoder_base_dim": sizes["decoder_base_dim"] is None or _is_size(sizes["decoder_base_dim"], 4096),
        "z_dim": _is_size(channels, 4096),
        "num_res_blocks": _is_size(sizes["num_res_blocks"], 16),
        "dim_mult": _is_list(multipliers, range(2, 9)) and all(_is_size(factor, 64) for factor in multipliers),
        "temperal_downsample": _is_list(halvings, range(1, 8))
        and all(isinstance(halving, bool) for halving in halvings),
        "latents_mean": _is_list(sizes["latents_mean"], [channels]) and all(map(_is_number, sizes["latents_mean"])),
        "latents_std": _is_list(sizes["latents_std"], [channels])
        and all(_is_number(deviation) and deviation > 0 for deviation in sizes["latents_std"]),
        "attn_scales": _is_list(sizes["attn_scales"], [0]),
        "is_residual": sizes["is_residual"] is False,
        "patch_size": sizes["patch_size"] in (None, 1),
        "in_channels": sizes["in_channels"] == 3,
        "out_channels": sizes["out_channels"] == 3,
        "dropout": sizes["dropout"] == 0,
    }
    unfit = [key for key, met in demands.items() if not met]
    if not unfit and len(halvings) != len(multipliers) - 1:
        unfit = ["temperal_downsample"]
    if unfit:
        raise ConfigError(
            f"{where} has {unfit[0]} = {sizes[unfit[0]]!r:.80}, which no Wan 2.1 VAE has; give a VAE of Wan 2.1 (that "
            "of Wan 2.2 is another network)."
        )


def _weights(path: Path) -> dict[str, Tensor]:
    tensors, scales = without_scales(read_tensors(path), str(path))
    require_weights(tensors, str(path))
    return all_widened(tensors, scales)


def _is_size(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_list(value: object, lengths: Container[object]) -> bool:
    return isinstance(value, list | tuple) and len(value) in lengths


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if config.get("_class_name") != _CLASS_NAME:
        raise CheckpointError(f"{path} is not the config of an {_CLASS_NAME}; give the folder of a Wan 2.1 VAE.")
    return config


def _empty_vae(sizes: dict[str, Any]) -> AutoencoderKLWan:
    with torch.device("meta"):
        return AutoencoderKLWan(**sizes)


def _in_diffusers_names(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Renamed by diffusers' own translation, which lets names that it does not know through, in whatever layout."""
    # Imports half of diffusers, so only here.
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    try:
        renamed = convert_wan_vae_to_diffusers(tensors)
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{path} has names that no Wan 2.1 VAE has; give Wan2.1_VAE.pth.") from error
    if len(renamed) != len(tensors):
        raise CheckpointError(f"{path} holds several tensors for one place; give Wan2.1_VAE.pth as published.")
    return renamed


def _tensor(tensors: dict[str, Tensor], name: str, dims: int, path: Path) -> Tensor:
    if name not in tensors or tensors[name].dim() != dims:
        raise CheckpointError(f"{path} has no {name} of {dims} dimensions, as every Wan 2.1 VAE; give Wan2.1_VAE.pth.")
    return tensors[name]
