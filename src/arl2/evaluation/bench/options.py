"""What each part of ``arl2 bench`` is asked for; plain values, importing this loads no torch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from arl2.errors import ConfigError
from arl2.files.numbers import whole
from arl2.model.execution import Compile, Execution, Graphs
from arl2.pipeline.options import Dtype

Preset = Literal["tiny", "small", "wan-1.3b", "wan-14b"]
_OUTPUTS = ("output", "plot", "overwrite", "as_json")
_FROM_ZERO = ("sink",)
_MOST_LAYERS = 1000
_BLOCK = 3  # latent frames, of every preset


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Of every part.

    Attributes:
        device: Where to run: auto, cpu, cuda, cuda:1, xpu, mps (default: auto, a GPU if there is one).
        dtype: Precision to compute in (default: bfloat16 on a GPU that has it, else float32).
        threads: CPU threads (default: all cores).
        repeats: Timed runs of each measurement; the result is their median.
        output: Result, a .json that arl2 bench compare reads.
        overwrite: Replace outputs that exist.
        as_json: Print the result as one JSON line instead of a table.
    """

    part: ClassVar[str]

    device: str = "auto"
    dtype: Dtype | None = None
    threads: int | None = None
    repeats: int = 3
    output: Path | None = None
    overwrite: bool = False
    as_json: bool = False

    def __post_init__(self) -> None:
        for name, value in self.settings().items():
            if type(value) is int:
                whole(name, value, least=0 if name in _FROM_ZERO else 1)

    def settings(self) -> dict[str, Any]:
        """What was asked for, as the result stores it; where outputs go is not in it."""
        return {name: value for name, value in asdict(self).items() if name not in _OUTPUTS}


@dataclass(frozen=True, kw_only=True)
class ModelOptions(BenchOptions):
    """Of the parts that run a transformer with random weights.

    Attributes:
        preset: Sizes of the transformer: those of Wan 2.1, small (a quarter of wan-1.3b in every size and 4 layers, for
            a CPU), or tiny (a dry run).
        layers: Number of layers (default: the preset's).
        height: Height of the video in pixels (default: the preset's).
        width: Width of the video in pixels (default: the preset's).
    """

    preset: Preset = "small"
    layers: int | None = None
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None:
            whole("layers", self.layers, least=1, most=_MOST_LAYERS)


@dataclass(frozen=True, kw_only=True)
class PassOptions(ModelOptions):
    """Of the parts that time the passes of a stream.

    Attributes:
        compile: Whether layers are compiled with torch.compile, and by what; auto is off.
        cuda_graphs: Whether passes are recorded as CUDA graphs and replayed; auto does so on CUDA.
    """

    compile: Compile = "auto"
    cuda_graphs: Graphs = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.execution  # refuses other words

    @property
    def execution(self) -> Execution:
        """How passes run."""
        return Execution(compile=self.compile, cuda_graphs=self.cuda_graphs)


@dataclass(frozen=True, kw_only=True)
class RolloutOptions(PassOptions):
    """Of time and memory against the length of a video.

    Attributes:
        num_frames: Video frames of the whole video; rounded to whole blocks.
        steps: Denoising passes of a block; a cache-update pass follows.
        window: Latent frames that softmax layers of the windowed baselines attend to.
        sink: First latent frames that the window keeps.
        hybrid_share: Share of hybrid layers in the hybrid baselines.
        plot: Chart of the result, a .png.
    """

    part: ClassVar = "rollout"

    num_frames: int = 921
    steps: int | tuple[int, ...] = 4
    window: int | None = 12
    sink: int = 3
    hybrid_share: float = 0.75
    plot: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.steps) is not int:
            raise ConfigError(
                f"Got the timesteps {self.steps}; give the number of denoising passes, such as --steps 4."
            )
        _check_window(self.window)
        _check_share(self.hybrid_share)


@dataclass(frozen=True, kw_only=True)
class BlockOptions(PassOptions):
    """Of one block, part by part.

    Attributes:
        window: Latent frames that softmax layers attend to; the window is full.
        hybrid_share: Share of hybrid layers.
        vae: Decode the block with the Wan VAE, too.
    """

    part: ClassVar = "block"

    window: int | None = 12
    hybrid_share: float = 0.75
    vae: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_window(self.window)
        _check_share(self.hybrid_share)


@dataclass(frozen=True, kw_only=True)
class KernelOptions(ModelOptions):
    """Of single operations, at the sizes of one layer and one block."""

    part: ClassVar = "kernels"


@dataclass(frozen=True, kw_only=True)
class DecodeOptions(BenchOptions):
    """Of a codec that decodes a stream.

    Attributes:
        codec: Codec: wan (the Wan 2.1 VAE, against that of diffusers) or tiny (the TAEHV decoder).
        base_dim: Width of the Wan VAE; 96 as published.
        blocks: Blocks of 3 latent frames to decode.
        height: Height of the video in pixels.
        width: Width of the video in pixels.
    """

    part: ClassVar = "decode"

    codec: Literal["wan", "tiny"] = "wan"
    base_dim: int = 96
    blocks: int = 4
    height: int = 64
    width: int = 64


@dataclass(frozen=True, kw_only=True)
class StartupOptions(BenchOptions):
    """Of the time from the start of a process to its first block of video.

    Attributes:
        model: A name that arl2 models lists, a pipeline folder, or a checkpoint file (default: the embedded model).
        prompt: Text that the video shows.
    """

    part: ClassVar = "startup"

    model: str | None = None
    prompt: str = "a red circle moves right on navy"


@dataclass(frozen=True, kw_only=True)
class SnapshotOptions(ModelOptions):
    """Of saving, loading and forking a stream.

    Attributes:
        window: Latent frames that softmax layers attend to; the window is full.
        hybrid_share: Share of hybrid layers; the other model has hybrid layers alone.
        vae: Save the decoder's cache of the Wan VAE, too.
        folder: Where snapshots are written while they are measured (default: the system's temporary folder).
    """

    part: ClassVar = "snapshot"

    window: int | None = 12
    hybrid_share: float = 0.75
    vae: bool = False
    folder: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_window(self.window)
        _check_share(self.hybrid_share)

    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in super().settings().items() if name != "folder"}


@dataclass(frozen=True, kw_only=True)
class TrainOptions(ModelOptions):
    """Of one optimisation step of a conversion.

    Attributes:
        stage: Which stage; both by default.
        hybrid_share: Share of layers that become hybrid.
    """

    part: ClassVar = "train"

    stage: Literal["align", "distill", "both"] = "both"
    hybrid_share: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share(self.hybrid_share)


def _check_window(window: int | None) -> None:
    if window is None:
        raise ConfigError("Got the whole past as the window; give a number of latent frames, such as --window 12.")
    whole("window", window, least=_BLOCK)


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ConfigError(f"The share of hybrid layers is above 0 and at most 1; got {share:g}.")
