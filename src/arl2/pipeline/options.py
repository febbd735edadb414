"""What to sample and from which model: two objects that a command line, a server and Python fill in alike.

Plain values; importing this loads no torch. An option is one field here: commands take it from here, and the pipeline
hands it on whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from arl2.pipeline.registry import default_model

Window = int | Literal["settings"] | None
Dtype = Literal["float32", "bfloat16", "float16"]
WeightsBranch = Literal["auto", "ema", "plain"]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How to sample. None means: as the model's own settings say.

    Attributes:
        num_frames: Video frames to generate, conditioning frames included.
        height: Height of the video in pixels.
        width: Width of the video in pixels.
        seed: Random seed of the first prompt; the next prompts get seed + 1, seed + 2 and so on. Or one seed for each.
        steps: Denoising steps of a block: a number, spread evenly, or a list of timesteps such as 1000,750,500,250.
        first_block_candidates: First blocks to sample side by side; the reward model keeps the best (best-of-N).
        window: Latent frames that softmax layers attend to; None for the whole past, "settings" for the model's own.
        sink: First latent frames that the window never evicts.
        sink_positions: Whether sinks keep their own positions ("absolute") or move with the window ("relative").
        negative_prompt: What guidance steers away from (multi-step models only).
        guidance_scale: Strength of classifier-free guidance (multi-step models only); 1 switches it off.
    """

    num_frames: int | None = None
    height: int | None = None
    width: int | None = None
    seed: int | Sequence[int] | None = None
    steps: int | Sequence[int] | None = None
    first_block_candidates: int | None = None
    window: Window = "settings"
    sink: int | None = None
    sink_positions: Literal["absolute", "relative"] | None = None
    negative_prompt: str | None = None
    guidance_scale: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Which model, and where and in which precision it runs.

    Attributes:
        model: A name that ``arl2 models`` lists, a pipeline folder, or a checkpoint file.
        weights: AR checkpoint (.pt, .safetensors) over the base.
        base: Folder with text encoder and VAE, such as a copy of Wan 2.1.
        config: Published YAML config: denoising steps, block size, window.
        decoder: Tiny decoder (taew2_1) instead of the VAE; "tiny" looks for it by its name.
        hybrid_layers: Make these softmax layers hybrid, untrained.
        weights_branch: Which weights of a file that holds both EMA and plain ones.
        dtype: Precision to compute in.
        device: Where to run: cpu, cuda, cuda:1.
    """

    model: str | None = None
    weights: Path | None = None
    base: Path | None = None
    config: Path | None = None
    decoder: str | None = None
    hybrid_layers: tuple[int, ...] = ()
    weights_branch: WeightsBranch | None = None
    dtype: Dtype | None = None
    device: str | None = None

    @property
    def name(self) -> str:
        """What the person called the model, as a file's metadata has it."""
        return str(self.model or self.weights or self.base or default_model())
