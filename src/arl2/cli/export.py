"""``arl2 export MODEL -o FOLDER | FILE``: a model as a folder for ``from_pretrained``, or in a published layout."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from arl2.cli.checks import check_source
from arl2.cli.options import WEIGHTS_AND_PARTS, Command
from arl2.cli.stored import check_model_place, stored_model, write_folder
from arl2.errors import ConfigError
from arl2.files.places import check_place
from arl2.pipeline.options import ModelSource

if TYPE_CHECKING:
    from arl2.model.transformer import CausalWanTransformer3DModel

_FILES = (".pt", ".safetensors")
# What no tensor of a published file tells; it is said when the file is loaded, or a base or a config says it.
_UNTOLD = ("block_frames", "window", "sink", "text_len", "eps")


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Write a model as a folder for from_pretrained, or as one file in a published key layout.

    Every tensor keeps its dtype.

    Attributes:
        output: A .pt (with 'generator'), a .safetensors, or a new folder.
        overwrite: Replace an output that exists.
        merge_lora: Merge the LoRA adapters of the feed-forwards into their weights. Those of state branches stay:
            their weights serve the attention inside a block, too.
        layout: Key layout: arl2 (the default of a file), or for softmax models wan (a file), or diffusers (a new folder
            whose transformer is for WanTransformer3DModel.from_pretrained).
        heads: Number of attention heads, if the file does not say.
    """

    positional: ClassVar = ("model",)
    examples: ClassVar = (
        "arl2 export runs/distill/export -o hybrid.pt",
        "arl2 export causal_forcing.pt --layout diffusers -o for-diffusers",
        "arl2 export causal_forcing.pt --base Wan2.1-T2V-1.3B-Diffusers --weights-branch ema -o causal-forcing",
    )
    source: Annotated[ModelSource, WEIGHTS_AND_PARTS] = field(default_factory=ModelSource)
    output: Path
    overwrite: bool = False
    merge_lora: bool = False
    layout: Literal["arl2", "wan", "diffusers"] | None = None
    heads: int | None = None

    def run(self) -> int:
        """Write, and say what was merged and what a file does not tell."""
        check_source(self.source)
        to_file = self.output.suffix in _FILES
        if self.layout in ("arl2", "wan") and not to_file:
            raise ConfigError(
                f"--layout {self.layout} goes with a file ({' or '.join(_FILES)}); got '{self.output}'. Leave it out."
            )
        if self.layout == "diffusers" and to_file:
            raise ConfigError(f"--layout diffusers goes with a folder; got '{self.output}'. Name it without extension.")
        if to_file:
            check_place(self.output, self.output.suffix, overwrite=self.overwrite)
        else:
            check_model_place(self.output, overwrite=self.overwrite)

        from arl2.checkpoints.export import export_checkpoint
        from arl2.checkpoints.merging import merge_lora

        published = to_file or self.layout == "diffusers"
        source = stored_model(self.source, "export", heads=self.heads, alone=published)
        model = source.weights.exact_transformer()
        said = []
        if self.merge_lora:
            result = merge_lora(model)
            if not result.merged:
                raise ConfigError(
                    f"The feed-forwards of '{self.source.name}' have no LoRA adapters; leave --merge-lora out."
                )
            model = result.model
            said.append(
                f"merged {result.merged} LoRA adapters of feed-forwards ({result.parameters_saved:,} parameters less); "
                f"{result.kept} of state branches stay"
            )
        if published:
            export_checkpoint(model, self.output, layout=self.layout or "arl2", replace=self.overwrite)
            said.append(_untold(model))
        else:
            write_folder(source, model, self.output, overwrite=self.overwrite)
        print(f"wrote {self.output} ({_bytes_of(self.output) / 1e6:,.1f} MB)")
        for sentence in said:
            print(sentence)
        return 0


def _untold(model: "CausalWanTransformer3DModel") -> str:
    settings = ", ".join(f"{name} {model.config[name]}" for name in _UNTOLD)
    return f"the file does not tell its {settings}: a base, a model's name or a config does when it is loaded"


def _bytes_of(path: Path) -> int:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files)
