"""Tiny stand-ins for the published weights, on disk in exactly the published layouts."""

from pathlib import Path

import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from safetensors.torch import save_file

from arl2.checkpoints.conversion import convert
from arl2.checkpoints.layouts import to_original
from arl2.model.transformer import CausalWanTransformer3DModel
from support import tiny_model
from text.tiny_umt5 import WIDTH, write_diffusers, write_original
from video.tiny_wan import narrow_vae, original_tensors

# Two layers of two heads of 128: a softmax file does not tell its heads, and 128 wide ones are assumed.
HEADS, LAYERS, FREQ = 2, 2, 16
CHANNELS = 16


OWN = {
    "num_attention_heads": HEADS,
    "attention_head_dim": 128,
    "ffn_dim": 48,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "freq_dim": FREQ,
    "text_dim": WIDTH,
    "text_len": 512,
    "block_frames": 3,
}


def student(seed: int = 0) -> CausalWanTransformer3DModel:
    """An AR student without hybrid layers."""
    return tiny_model("S" * LAYERS, seed, **OWN)


def diffusers_base(folder: Path) -> Path:
    """As ``Wan-AI/Wan2.1-T2V-1.3B-Diffusers``, its own transformer included."""
    write_diffusers(folder)
    narrow_vae().save_pretrained(folder / "vae")
    UniPCMultistepScheduler(flow_shift=3.0).save_pretrained(folder / "scheduler")
    torch.manual_seed(0)
    WanTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=128,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=WIDTH,
        freq_dim=FREQ,
        ffn_dim=48,
        num_layers=LAYERS,
    ).save_pretrained(folder / "transformer")
    return folder


def original_base(folder: Path) -> Path:
    """As ``Wan-AI/Wan2.1-T2V-1.3B``: single files and one folder."""
    write_original(folder)
    torch.save(original_tensors(narrow_vae()), folder / "Wan2.1_VAE.pth")
    save_file(to_original(student().state_dict(), LAYERS), folder / "diffusion_pytorch_model.safetensors")
    return folder


def student_file(path: Path, *, ema: bool = False, wrapped: bool = False) -> Path:
    """A CausVid-style ``.pt``; with EMA weights that differ from the plain ones, or names as FSDP leaves them."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def branch(seed: int) -> dict[str, torch.Tensor]:
        named = to_original(student(seed).state_dict(), LAYERS)
        prefix = "model._fsdp_wrapped_module." if wrapped else "model."
        return {prefix + name: tensor.clone() for name, tensor in named.items()}

    torch.save({"generator": branch(1), "generator_ema": branch(0)} if ema else {"generator": branch(0)}, path)
    return path


def hybrid_file(path: Path, *, trained: bool = True) -> Path:
    """An ARL2 ``.pt``: the first layer hybrid, as if trained or as converted."""
    hybrid = convert(student(), "H" + "S" * (LAYERS - 1), state_rank=2, ffn_rank=2).model
    if trained:  # training moves the adapters, whose B starts at zero
        for name, parameter in hybrid.named_parameters():
            if name.endswith(".B"):
                parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    named = to_original(hybrid.state_dict(), LAYERS)
    torch.save({"generator": {f"model.{name}": tensor.clone() for name, tensor in named.items()}}, path)
    return path
