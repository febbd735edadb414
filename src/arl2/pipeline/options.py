"""What to sample and from which model: two objects that a command line, a server and Python fill in alike.

Plain values; importing this loads no torch.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from arl2.errors import ConfigError
from arl2.model.execution import Compile, Execution, Graphs
from arl2.model.settings import finite, whole
from arl2.pipeline.registry import default_model
from arl2.streams.options import SamplingOptions as SamplingOptions
from arl2.streams.options import Window as Window

Dtype = Literal["float32", "bfloat16", "float16"]
WeightsBranch = Literal["auto", "ema", "plain"]
Offload = Literal["none", "layers", "auto"]
AttentionBackend = Literal["auto", "sdpa", "float32", "flash", "cudnn", "efficient"]


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Which model, and where and in which precision it runs.

    A value of another type, or one that is not accepted, raises ``ConfigError``; whether files and devices are there is
    checked when they are used.

    Attributes:
        model: A name that ``arl2 models`` lists, a pipeline folder, or a checkpoint file.
        weights: AR checkpoint (.pt, .safetensors) that replaces the transformer of the model or base.
        base: Folder with text encoder and VAE, such as a copy of Wan 2.1.
        vae: VAE to use instead of the model's or the base's: Wan2.1_VAE.pth, ComfyUI's file, or a folder.
        text_encoder: UMT5 text encoder to use instead of the model's or the base's: the original file, ComfyUI's, or a
            folder.
        config: Published YAML config: denoising steps, block size, window.
        decoder: Tiny decoder (taew2_1) instead of the VAE; "tiny" looks for it by its name.
        hybrid_layers: Make these softmax layers hybrid, untrained.
        weights_branch: Which weights of a file that holds both EMA and plain ones.
        lora_alpha: LoRA alpha of a published hybrid checkpoint, which no file says (default: 32).
        dtype: Precision to compute in (default: bfloat16 for large models on a GPU that has it, else float32).
        device: Where to run: auto, cpu, cuda, cuda:1, xpu, mps (default: auto, a GPU if there is one).
        offload: What waits in the machine's memory on a small GPU: none, layers (two are on the GPU at a time), auto
            (default: auto, which offloads what would not fit otherwise).
        compile: Whether layers are compiled with torch.compile: inductor, eager (records graphs and computes them as
            they stand, to find faults), or off; auto is off.
        cuda_graphs: Whether passes are recorded as CUDA graphs and replayed; auto does so on CUDA, if there is room
            and nothing is offloaded.
        attention_backend: Kernel of softmax attention: auto measures which is the fastest, sdpa leaves it to torch;
            flash, cudnn and efficient are for CUDA.
    """

    model: str | None = None
    weights: Path | None = None
    base: Path | None = None
    vae: Path | None = None
    text_encoder: Path | None = None
    config: Path | None = None
    decoder: str | None = None
    hybrid_layers: tuple[int, ...] = ()
    weights_branch: WeightsBranch | None = None
    lora_alpha: float | None = None
    dtype: Dtype | None = None
    device: str | None = "auto"
    offload: Offload = "auto"
    compile: Compile = "auto"
    cuda_graphs: Graphs = "auto"
    attention_backend: AttentionBackend = "auto"

    def __post_init__(self) -> None:
        for name in ("weights", "base", "vae", "text_encoder", "config"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, Path(value))
            elif value is not None and not isinstance(value, Path):
                raise ConfigError(f"Got {name} {value!r:.80}; give a path.")
        for name in ("model", "decoder", "device"):
            value = getattr(self, name)
            if isinstance(value, Path):
                object.__setattr__(self, name, str(value.absolute()))  # a path is never a model's name
            elif value is not None and (not isinstance(value, str) or not value.strip()):
                raise ConfigError(f"Got {name} {value!r:.80}; give text.")
        _ = self.execution
        words = {
            "dtype": Dtype,
            "weights_branch": WeightsBranch,
            "offload": Offload,
            "attention_backend": AttentionBackend,
        }
        for name, accepted in ((name, get_args(kind)) for name, kind in words.items()):
            value = getattr(self, name)
            if not (value is None and name in ("dtype", "weights_branch")) and value not in accepted:
                raise ConfigError(f"Got {name} {value!r:.80}; give one of {', '.join(accepted)}.")
        if self.lora_alpha is not None and finite("lora_alpha", self.lora_alpha) <= 0:
            raise ConfigError(f"Got lora_alpha {self.lora_alpha!r:.80}; give a number above 0.")
        if not isinstance(self.hybrid_layers, Iterable) or isinstance(self.hybrid_layers, str):
            raise ConfigError(f"Got hybrid_layers {self.hybrid_layers!r:.80}; give layer numbers, such as [0, 1].")
        layers = tuple(whole("hybrid_layers", layer, least=0) for layer in self.hybrid_layers)
        object.__setattr__(self, "hybrid_layers", layers)

    @property
    def execution(self) -> Execution:
        """How its passes run."""
        return Execution(compile=self.compile, cuda_graphs=self.cuda_graphs)

    @property
    def name(self) -> str:
        """The model as the user named it, for file metadata."""
        return str(self.model or self.weights or self.base or default_model())
