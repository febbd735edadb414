"""The command line of the published code, in the words of ``arl2 generate``.

What people typed there works here: ``--config-path X.yaml --checkpoint-path Y.pt --data-path prompts.txt
--output-folder out --num-output-frames 21 --use-ema``, with dashes or with underscores. What differs is said once.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from arl2.errors import ConfigError
from arl2.geometry import video_frames_of
from arl2.pipeline.options import ModelSource, SamplingOptions

# Where the published code looks for text encoder and VAE.
BASE = Path("wan_models/Wan2.1-T2V-1.3B")
# Without that folder: the named model whose text encoder and VAE are the same.
CARD = "causal-forcing"
# Its default length, in latent frames, and how many video frames one stands for.
_LATENT_FRAMES, _TEMPORAL_FACTOR = 21, 4
_WITHOUT_EFFECT = {
    "save_with_index": "every name begins with the index",
    "report_timing": "time to the first block and speed are always said",
    "fname_len": "names are made of index, words of the prompt and a hash",
    "lora_rank": "the rank is read off the weights",
    "ffn_lora_all_layers": "which layers have an adapter is read off the weights",
}
_REFUSED = {
    "metrics_dir": "--json-progress prints speed and memory of every block; leave it out",
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """Options of the published code.

    Attributes:
        config_path: As --config.
        checkpoint_path: As --weights.
        data_path: As --prompts-file; with --i2v a folder of images with prompts.
        extended_prompt_path: Prompts used instead of those of --data-path.
        output_folder: As --output.
        num_output_frames: As --frames, in latent frames.
        num_samples: Videos for each prompt, with seeds of their own.
        use_ema: As --weights-branch ema.
        i2v: Start from the images of --data-path.
        save_with_index: No effect; every name begins with the index.
        report_timing: No effect; time and speed are always said.
        fname_len: No effect; names are made of index, words of the prompt and a hash.
        lora_rank: No effect; the rank is read off the weights.
        ffn_lora_all_layers: No effect; which layers have an adapter is read off the weights.
        metrics_dir: Refused; see --json-progress.
    """

    config_path: Path | None = None
    checkpoint_path: Path | None = None
    data_path: Path | None = None
    extended_prompt_path: Path | None = None
    output_folder: Path | None = None
    num_output_frames: int | None = None
    num_samples: int | None = None
    use_ema: bool = False
    i2v: bool = False
    save_with_index: bool = False
    report_timing: bool = False
    fname_len: int | None = None
    lora_rank: int | None = None
    ffn_lora_all_layers: bool = False
    metrics_dir: Path | None = None

    @property
    def given(self) -> bool:
        """Whether any of them was."""
        return self != Published()


@dataclass(frozen=True)
class Translated:
    """The same in our words, with sentences that a person should know."""

    source: ModelSource
    sampling: SamplingOptions
    prompts_file: Path | None
    output: Path | None
    notes: tuple[str, ...]


def translated(
    published: Published, source: ModelSource, sampling: SamplingOptions, prompts_file: Path | None, output: Path | None
) -> Translated:
    """The published options in our words.

    Raises:
        ConfigError: An option that needs another, the same thing said in both ways, or one that cannot be.
    """
    given = [name for name, value in vars(published).items() if value not in (None, False)]
    for name in given:
        if name in _REFUSED:
            raise ConfigError(f"{_option(name)} is not supported: {_REFUSED[name]}.")
    notes = [f"{_option(name)} has no effect: {_WITHOUT_EFFECT[name]}." for name in given if name in _WITHOUT_EFFECT]
    prompts_file = _one("data_path", published.data_path, "prompts_file", prompts_file)
    _check_data(published, prompts_file)
    if published.extended_prompt_path is not None:
        prompts_file = published.extended_prompt_path
        notes.append("--extended-prompt-path: these prompts are used, and the videos are named after them.")
    source = replace(
        source,
        config=_one("config_path", published.config_path, "config", source.config),
        weights=_one("checkpoint_path", published.checkpoint_path, "weights", source.weights),
    )
    if published.use_ema:
        if source.weights_branch not in (None, "ema"):
            raise ConfigError(f"Got both --use-ema and --weights-branch {source.weights_branch}; give one of them.")
        source = replace(source, weights_branch="ema")
    frames = sampling.num_frames
    if published.num_output_frames is not None:
        if frames is not None:
            raise ConfigError("Got both --num-output-frames and --frames; give one of them.")
        frames = video_frames_of(0, published.num_output_frames, _TEMPORAL_FACTOR)
        notes.append(f"{published.num_output_frames} latent frames are {frames} video frames.")
    if source.weights is not None or source.config is not None:
        source, said = _as_published(source)
        notes += said
        frames = frames or video_frames_of(0, _LATENT_FRAMES, _TEMPORAL_FACTOR)
    output = _one("output_folder", published.output_folder, "output", output)
    return Translated(source, replace(sampling, num_frames=frames), prompts_file, output, tuple(notes))


def _check_data(published: Published, prompts_file: Path | None) -> None:
    data = published.data_path
    if data is None and (published.i2v or published.extended_prompt_path is not None):
        raise ConfigError("--i2v and --extended-prompt-path need --data-path.")
    if data is not None and published.i2v and not data.is_dir():
        raise ConfigError(f"With --i2v the data path is a folder of images with prompts; got '{data}'.")
    if data is not None and data.is_dir() and not published.i2v:
        raise ConfigError(f"'{data}' is a folder; add --i2v, or give a .txt with a prompt a line.")
    if published.extended_prompt_path is not None and published.i2v:
        raise ConfigError("--extended-prompt-path goes with prompts alone, not with --i2v.")
    if published.num_samples is not None and prompts_file is None:
        raise ConfigError("--num-samples goes with --data-path.")


def _as_published(source: ModelSource) -> tuple[ModelSource, list[str]]:
    """With a published model the published code's defaults hold: weights, base, GPU and bfloat16."""
    notes = ["Noise is keyed by seed and block here, so a seed gives another video than the published code's."]
    if source.weights is not None and source.weights_branch is None:
        source = replace(source, weights_branch="plain")
    if source.base is None and source.model is None and None in (source.vae, source.text_encoder):
        source = replace(source, base=BASE) if BASE.is_dir() else replace(source, model=CARD)
    from arl2.pipeline.devices import AUTO, best_device

    if source.device == AUTO:
        source = replace(source, device=best_device())
    if source.dtype is None:
        source = replace(source, dtype="bfloat16")
        notes.append(f"Computing in bfloat16 on {source.device}, as the published code does; see --dtype and --device.")
    return source, notes


def _one(theirs: str, given: Path | None, ours: str, value: Path | None) -> Path | None:
    if given is not None and value is not None:
        raise ConfigError(f"Got both {_option(theirs)} and {_option(ours)}; give one of them.")
    return given if given is not None else value


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
