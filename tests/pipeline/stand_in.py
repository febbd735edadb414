"""A tiny random pipeline with the geometry of the embedded model: 64 x 64 pictures, blocks of 3 latent frames."""

from pathlib import Path

import torch

from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.rollout.settings import GenerationSettings
from arl2.shapes.codec import GroupCodec
from arl2.shapes.prompts.text import ShapesText
from support import generator, tiny_model

SETTINGS = GenerationSettings(steps=(1000, 500), shift=3.0, window=9, height=64, width=64, num_frames=21)


def stand_in_pipeline(plan: str = "SH", settings: GenerationSettings = SETTINGS) -> ARL2Pipeline:
    """Random weights, moderate latents: what it shows is noise, but noise that depends on prompt, seed and past."""
    text = ShapesText.build(width=10)
    codec = GroupCodec(latent_channels=3, width=8, deep_width=8)
    codec.init_weights(generator(3))
    transformer = tiny_model(plan, block_frames=3, text_len=text.length)
    with torch.no_grad():
        transformer.head.proj.weight.mul_(0.3)
    pipe = ARL2Pipeline(transformer, codec.eval(), text, settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stand_in_folder(folder: Path) -> Path:
    """The same, saved."""
    stand_in_pipeline().save_pretrained(folder)
    return folder
