"""How a transformer computes where no gradients are recorded: what runs its passes, kernels, fused projections."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from arl2.attention.kind import SelfAttention
from arl2.attention.projections import Projections
from arl2.attention.sequence_parallel import ALONE, SequenceParallel
from arl2.errors import ConfigError
from arl2.kernels.attention.variants import refused_on
from arl2.kernels.backends import ATTENTION, check_backend
from arl2.model.execution import Execution
from arl2.model.offload import LayerStack
from arl2.model.parallelism import chosen_ranks, require_splits
from arl2.model.runner import PassRunner


class InferenceSettings(nn.Module):
    """Settings of a model for all of its layers; methods have diffusers' names. Nothing of them is saved.

    Attributes:
        layers: of the model.
        parallel: this rank of those that share a stream.
    """

    config: Any  # this and the next two are of diffusers' base classes
    device: torch.device
    enable_gradient_checkpointing: Callable[..., None]
    layers: LayerStack
    parallel: SequenceParallel = ALONE
    _execution: Execution = Execution()
    _runner: PassRunner | None = None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """As in torch (``to``, ``half``, ``cuda``): weights may move, and what was recorded over them goes."""
        self.layers.require_stays(fn)  # before anything has moved
        self._runner = None
        return super()._apply(fn, recurse)

    @property
    def execution(self) -> Execution:
        """How streaming passes run; training is not concerned. Set it to change that from the next pass on."""
        return self._execution

    @execution.setter
    def execution(self, execution: Execution) -> None:
        self._execution, self._runner = execution, None

    @property
    def runner(self) -> PassRunner:
        """What runs the streaming passes, made for the device at the first of them; another one may be set."""
        if self._runner is None:
            self._runner = self._runner_of(self.parallel)
        return self._runner

    @runner.setter
    def runner(self, runner: PassRunner) -> None:
        self._runner = runner

    def enable_parallelism(self, *, config: object = None, ulysses_degree: int | None = None) -> None:
        """Split streams that begin from now on over several ranks: :meth:`ARL2Pipeline.enable_parallelism`."""
        attentions = [part for part in self.modules() if isinstance(part, SelfAttention)]
        parallel = chosen_ranks(config, ulysses_degree, next(self.parameters()).device)
        if parallel.ranks > 1 and self.layers.is_offloaded:
            raise ConfigError("Layers that are offloaded cannot be shared by ranks; load the model without offloading.")
        require_splits(attentions, attentions[0].shared.heads, parallel.ranks)
        self._runner, self.parallel = self._runner_of(parallel), parallel
        for attention in attentions:
            attention.parallel = parallel

    def fuse_qkv_projections(self) -> None:
        """Compute q, k and v of self-attention as one product, without a second copy of the weights.

        It pays on a GPU. Names of parameters, saving, adapters and training are as before.
        """
        for name, part in self.named_modules():
            # In cross-attention q is of the tokens and k, v of the prompt, which is read once.
            if isinstance(part, Projections) and "cross_attention" not in name.split("."):
                part.fuse_projections()
        self._runner = None  # what was recorded holds the old weights

    def unfuse_qkv_projections(self) -> None:
        """Compute q, k and v as three products again."""
        for one in self._projections():
            one.unfuse_projections()
        self._runner = None

    def set_attention_backend(self, backend: str) -> None:
        """Compute softmax attention of streams by one backend.

        Args:
            backend: ``"auto"``, the fastest as measured; ``"sdpa"``, which leaves the choice to torch; ``"float32"``;
                on CUDA ``"flash"``, ``"cudnn"`` or ``"efficient"``.

        Raises:
            ConfigError: an unknown backend, or one that does not run on the model's device.
        """
        check_backend(ATTENTION, backend)
        if refusal := refused_on(backend, next(self.parameters()).device):
            raise ConfigError(refusal)
        for one in self._projections():
            one.attention_backend = backend
        self.layers.forget_twins()
        self._runner = None

    def reset_attention_backend(self) -> None:
        """Take the fastest backend again."""
        self.set_attention_backend("auto")

    def _runner_of(self, parallel: SequenceParallel) -> PassRunner:
        device = next(self.parameters()).device
        return self._execution.runner(device, parallel.ranks, offloaded=self.layers.is_offloaded)

    def _projections(self) -> list[Projections]:
        return [part for part in self.modules() if isinstance(part, Projections)]
