"""How the two streaming passes run: layer after layer, as written here, or compiled, or replayed."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from arl2.attention.cross import CrossAttentionCache
from arl2.attention.kind import Access
from arl2.attention.layer_memory import LayerMemory
from arl2.attention.memory import Memory
from arl2.kernels.rope import Rotation
from arl2.model.layer import TransformerLayer
from arl2.model.offload import LayerStack


@runtime_checkable
class LayeredModel(Protocol):
    """What a runner needs of the transformer."""

    @property
    def layers(self) -> LayerStack:
        """Its layers, which a pass takes in turn."""

    def weights_address(self) -> int:
        """Another number when one of its weights has moved."""

    def embed(self, latents: Tensor) -> Tensor:
        """Latents ``[B, C, F, h, w]`` to tokens ``[B, T, d]``."""

    def flow_of(self, x: Tensor, time: Tensor, rows: int, columns: int) -> Tensor:
        """What the last layer gave, and the timesteps' ``[B, F, d]``, to the flow ``[B, C, F, h, w]``."""


class StreamedBlock(NamedTuple):
    """One block as a streaming pass takes it: all that is no tensor has been checked and counted.

    Attributes:
        latents: ``[B, C, F, h, w]``.
        time: what its timesteps became for the head ``[B, F, d]``.
        modulations: and for each layer ``[L, B, F, 6, d]``.
        words: the prompt's cross-attention keys and values, one a layer.
        rotation: of its positions.
        rows, columns: token grid.
    """

    latents: Tensor
    time: Tensor
    modulations: Tensor
    words: Sequence[CrossAttentionCache]
    rotation: Rotation
    rows: int
    columns: int

    @property
    def frames(self) -> int:
        """Latent frames."""
        return self.latents.shape[2]


class PassRunner:
    """Runs the layers one after the other, as they are."""

    def predict(self, model: LayeredModel, block: StreamedBlock, memory: Memory) -> Tensor:
        """The flow of a block ``[B, C, F, h, w]``; memory is read."""
        x = model.embed(block.latents)
        with model.layers.in_turn() as layers:
            for layer, by, words, own in zip(layers, block.modulations, block.words, memory.layers, strict=True):
                x = self.stream(layer, x, by, words, block.rotation, own, Access.READ)
        return model.flow_of(x, block.time, block.rows, block.columns)

    def commit(self, model: LayeredModel, block: StreamedBlock, memory: Memory) -> None:
        """Write every layer's memory, and count the block."""
        self.write_all(model, block, memory)
        memory.advance(block.frames)

    def write_all(self, model: LayeredModel, block: StreamedBlock, memory: Memory) -> None:
        """What a cache-update pass does with tensors. Past the last layer's memory there is nothing to compute."""
        memory.is_whole = False
        x = model.embed(block.latents)
        with model.layers.in_turn() as layers:
            for layer, by, words, own in zip(layers, block.modulations, block.words, memory.layers, strict=True):
                if own is memory.layers[-1]:
                    self.write(layer, x, by, block.rotation, own)
                else:
                    x = self.stream(layer, x, by, words, block.rotation, own, Access.COMMIT)

    def stream(
        self,
        layer: TransformerLayer,
        x: Tensor,
        modulations: Tensor,
        words: CrossAttentionCache,
        rotation: Rotation,
        memory: LayerMemory,
        access: Access,
    ) -> Tensor:
        """One layer over a block; see :meth:`TransformerLayer.stream`."""
        return layer.stream(x, modulations, words, rotation, memory, access)

    def write(
        self, layer: TransformerLayer, x: Tensor, modulations: Tensor, rotation: Rotation, memory: LayerMemory
    ) -> None:
        """A layer's memory alone; see :meth:`TransformerLayer.commit`."""
        layer.commit(x, modulations, rotation, memory)
