"""How a model's streaming passes are executed: as written, compiled, or recorded and replayed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from arl2.errors import ConfigError

if TYPE_CHECKING:  # options are read before torch is
    import torch

    from arl2.model.runner import PassRunner

Compile = Literal["auto", "off", "inductor", "eager"]
Graphs = Literal["auto", "on", "off"]


@dataclass(frozen=True, kw_only=True)
class Execution:
    """What runs the passes of a model.

    Attributes:
        compile: ``inductor`` compiles each kind of layer with torch.compile; ``eager`` records its graphs and computes
            them as they stand, to find faults; ``auto`` compiles nothing: by the count in docs/performance.md there is
            little left to fuse, and compiling takes longer than a short video.
        cuda_graphs: whether passes are recorded once and replayed, which needs CUDA. ``auto``: where there is CUDA and
            no layer is offloaded.
    """

    compile: Compile = "auto"
    cuda_graphs: Graphs = "auto"

    def __post_init__(self) -> None:
        for name, accepted in (("compile", get_args(Compile)), ("cuda_graphs", get_args(Graphs))):
            if getattr(self, name) not in accepted:
                raise ConfigError(f"Got {name} {getattr(self, name)!r:.80}; give one of {', '.join(accepted)}.")

    def check(self, device: "torch.device", *, offloaded: bool = False) -> None:
        """Refuse what ``device`` cannot do, before anything is loaded onto it.

        Args:
            device: where passes run.
            offloaded: layers wait in the machine's memory, and share slots on the device.

        Raises:
            ConfigError: CUDA graphs without CUDA or of offloaded layers, or a compiler that is not there.
        """
        if self.cuda_graphs == "on" and device.type != "cuda":
            raise ConfigError(f"CUDA graphs need a CUDA device, not {device.type}; use cuda_graphs 'auto' or 'off'.")
        if self.cuda_graphs == "on" and offloaded:
            raise ConfigError(
                "CUDA graphs need all weights on the device, but layers are offloaded; use cuda_graphs 'auto' or 'off'."
            )
        if self.compile == "inductor":
            from arl2.model.compiled import check_compiler  # imports torch's compiler: only when used

            check_compiler(self.compile, device)

    def runner(self, device: "torch.device", ranks: int = 1, *, offloaded: bool = False) -> "PassRunner":
        """What runs passes on ``device``; those that several ranks share are neither compiled nor recorded.

        Raises:
            ConfigError: as :meth:`check`, or what ranks do not do was asked for.
        """
        self.check(device, offloaded=offloaded)
        from arl2.model.runner import PassRunner

        layers = PassRunner()
        if ranks > 1:
            if self.compile in ("inductor", "eager") or self.cuda_graphs == "on":
                raise ConfigError(
                    f"Passes that {ranks} ranks share are not compiled or recorded; leave compile and cuda_graphs out."
                )
            return layers
        if self.compile in ("inductor", "eager"):
            from arl2.model.compiled import CompiledRunner

            layers = CompiledRunner(self.compile, device)
        import torch

        if self.cuda_graphs == "off" or offloaded or device.type != "cuda" or not torch.cuda.is_available():
            return layers
        from arl2.model.graphed import CudaGraphs, GraphedRunner

        return GraphedRunner(layers, CudaGraphs(device), is_required=self.cuda_graphs == "on")


AS_WRITTEN = Execution(compile="off", cuda_graphs="off")
