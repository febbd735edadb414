"""The UMT5 text part inside a pipeline: saved and loaded by name, moved and cast with it."""

from pathlib import Path

import torch

from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.shapes.codec import GroupCodec
from arl2.text.embedding_cache import EmbeddingCache
from arl2.text.umt5 import UMT5Text
from pipeline.stand_in import SETTINGS
from support import generator, tiny_model
from text.tiny_umt5 import LENGTH, WIDTH, tiny_text

PROMPT = "a cat runs"


def umt5_pipeline() -> ARL2Pipeline:
    codec = GroupCodec(latent_channels=3, width=8, deep_width=8)
    codec.init_weights(generator(3))
    transformer = tiny_model("SH", block_frames=3, text_len=LENGTH, text_dim=WIDTH)
    pipe = ARL2Pipeline(transformer, codec.eval(), tiny_text(), SETTINGS)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_pipeline_saves_it_loads_it_and_generates_the_same(tmp_path: Path) -> None:
    pipe = umt5_pipeline()
    expected = pipe(PROMPT, num_frames=9, output_type="latent").frames
    assert not torch.equal(pipe("dog jumps", num_frames=9, output_type="latent").frames, expected)
    pipe.save_pretrained(tmp_path / "model")
    loaded = ARL2Pipeline.from_pretrained(tmp_path / "model")
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.text, UMT5Text)
    loaded.text.cache = EmbeddingCache(tmp_path / "cache")
    for _ in range(2):
        assert torch.equal(loaded(PROMPT, num_frames=9, output_type="latent").frames, expected)


def test_the_pipeline_moves_and_casts_it() -> None:
    pipe = umt5_pipeline()
    pipe.to(torch.bfloat16)
    assert pipe.text.dtype == torch.bfloat16
    assert pipe.text.encode([PROMPT]).dtype == torch.bfloat16
    pipe.to("meta")
    assert pipe.text.device.type == "meta"
