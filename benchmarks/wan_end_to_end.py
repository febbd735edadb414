"""From text embeddings to pixels at the real sizes: one block of a Wan2.1-T2V-1.3B-sized model, random weights.

    python benchmarks/wan_end_to_end.py --threads 2

Transformer, step plan, clean pass, the full-size VAE and the mp4 writer are those of the pipeline; weights and text
embeddings are random, so the picture is noise. Prints time and memory of every part, then one line of JSON.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan

from arl2.model.cost import pass_flops
from arl2.model.precision import cast_model
from arl2.model.presets import preset_config
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.rollout.settings import GenerationSettings
from arl2.text.interface import TextPart
from arl2.video.wan_codec import WanCodec
from arl2.video.writers import open_video


class RandomText:
    """Stands for the text encoder: random embeddings, as many rows as a prompt may have."""

    def __init__(self, length: int, width: int) -> None:
        self.length, self.width = length, width

    def encode(self, prompts: list[str]) -> torch.Tensor:
        """``[prompts, length, width]``."""
        return torch.randn(len(prompts), self.length, self.width, generator=torch.Generator().manual_seed(0))

    def encode_empty(self) -> torch.Tensor:
        """Zeros."""
        return torch.zeros(1, self.length, self.width)


def peak_bytes() -> int:
    """The most memory this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hybrid", type=int, default=22, help="hybrid layers of 30 (default: 22, the published 75 %%)")
    parser.add_argument("--height", type=int, default=480, help="pixels")
    parser.add_argument("--width", type=int, default=832, help="pixels")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--steps", type=int, default=4, help="denoising passes of the block")
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    dtype = getattr(torch, given.dtype)

    started = time.perf_counter()
    config = preset_config("wan2.1-t2v-1.3b", state_rank=16, ffn_rank=16)
    layers = len(config["layer_plan"])
    config["layer_plan"] = "H" * given.hybrid + "S" * (layers - given.hybrid)
    transformer = cast_model(CausalWanTransformer3DModel(**config), dtype).eval()
    vae = AutoencoderKLWan().to(dtype).eval()
    text: TextPart = RandomText(transformer.config.text_len, transformer.config.text_dim)
    settings = GenerationSettings(height=given.height, width=given.width)
    pipe = ARL2Pipeline(transformer, WanCodec(vae), text, settings)
    pipe.to(given.device)
    built = time.perf_counter() - started
    print(f"built in {built:.0f} s, peak {peak_bytes() / 1e9:.2f} GB", flush=True)

    latent_frames = given.blocks * transformer.config.block_frames
    video_frames = pipe.codec.frames_of(0, latent_frames)

    def report(_: Any, step: int, timestep: float, values: dict[str, Any]) -> None:
        seconds = time.perf_counter() - begun
        print(f"block {values['block']}, pass {step} (timestep {timestep:.0f}): {seconds:.0f} s in", flush=True)

    parts = {"denoise": 0.0, "commit": 0.0, "decode": 0.0}
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, open_video(Path(folder) / "block.mp4", fps=settings.fps) as writer:
        blocks = pipe.stream(
            "noise", num_frames=video_frames, num_inference_steps=given.steps, callback_on_step_end=report
        )
        for block in blocks:
            if not bool(torch.isfinite(block.video).all()):
                raise SystemExit("The video is not finite.")
            writer.write(block.pixels())
            parts["denoise"] += block.denoise_seconds
            parts["commit"] += block.commit_seconds
            parts["decode"] += block.decode_seconds
            print(f"peak {peak_bytes() / 1e9:.2f} GB after block {block.index}", flush=True)
    total = time.perf_counter() - begun
    geometry = transformer.allocate_memory(batch=1, height=given.height // 8, width=given.width // 8).geometry
    flops = sum(
        given.steps * pass_flops(transformer.config, geometry, past_frames=past, commit=False).total
        + pass_flops(transformer.config, geometry, past_frames=past, commit=True).total
        for past in range(0, latent_frames, transformer.config.block_frames)
    )
    print(", ".join(f"{name} {seconds:.0f} s" for name, seconds in parts.items()), f"in all {total:.0f} s")
    facts = {"benchmark": "wan_end_to_end", **vars(given), "torch": torch.__version__, "tflop": flops / 1e12}
    facts |= {"seconds": total, **parts, "peak_bytes": peak_bytes(), "video_frames": video_frames}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
