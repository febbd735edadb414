"""Stage 1: every converted layer learns, on its own, the output of the softmax layer in its place."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from arl2.attention.layout import ClipLayout
from arl2.attention.plan import converted_layers
from arl2.errors import GeometryError
from arl2.kernels.backends import keeping_backends
from arl2.model.layer import TransformerLayer
from arl2.model.passes import TeacherForcing
from arl2.training.conversion.batches import ClipBatch, TrainingClips
from arl2.training.conversion.students import StudentSpec
from arl2.training.conversion.task import ConversionConfig, ConversionTask
from arl2.training.conversion.trainable import Stage
from arl2.training.conversion.watching import AttentionCall, watched_attention
from arl2.training.engine.noising import NoisyClips
from arl2.training.engine.task import Batch, Loss


@dataclass(frozen=True, kw_only=True)
class AlignConfig(ConversionConfig):
    """Settings of stage 1: those of every conversion.

    ``plan`` says which layers to align. ``frames`` are two blocks or more: in the first block a hybrid layer equals the
    softmax layer. ``teacher_window`` holds while the softmax layers are imitated; what is exported has the teacher's
    own window.
    """

    stage: ClassVar[Stage] = 1

    def student(self) -> StudentSpec:
        return StudentSpec(self.plan, state_form=self.state_form, state_horizon=self.state_horizon, seed=self.loop.seed)


class AlignTask(ConversionTask[AlignConfig]):
    """Trains what is new in the self-attention of converted layers, beside a frozen teacher.

    Raises:
        ConfigError, CheckpointError, GeometryError: a teacher, clips or lengths that do not fit.
    """

    attention_alone = True  # that is how it is compared

    def __init__(
        self, config: AlignConfig, *, device: torch.device | str = "cpu", clips: TrainingClips | None = None
    ) -> None:
        super().__init__(config, device=device, clips=clips)
        self.layers = converted_layers(self.student.config.layer_plan)
        for frames in config.frames:
            if len(self._blocks(frames)) < 2:
                raise GeometryError(
                    f"A clip of {frames} latent frames is one block, and in a first block nothing is to be learnt; "
                    "give frames of two blocks or more."
                )

    def loss(self, batch: Batch) -> Loss:
        """The mean of all layers' ratios; no gradient of one layer reaches another."""
        self._shrink_windows(batch)
        clips = self._sample_clips(batch.generator)
        ratios = self.ratios(clips, self._noised(clips, batch.generator))
        value = torch.stack(list(ratios.values())).mean()
        return Loss(value, len(clips.latents), {f"ratio_{i}": ratio.detach() for i, ratio in ratios.items()})

    def ratios(self, clips: ClipBatch, noisy: NoisyClips) -> dict[int, Float[Tensor, ""]]:
        """Each layer's :func:`alignment_ratio`, by index: one pass of the teacher feeds them all."""
        calls: dict[int, AttentionCall] = {}
        run = TeacherForcing(noisy.clean, first_block_frames=self.teacher.settings.first_block_frames)
        with torch.no_grad(), watched_attention(self.teacher.model, self.layers, calls.__setitem__):
            self.teacher.model(noisy.noisy, noisy.timestep, clips.text, run=run)
        if not (self.config.activation_checkpointing and torch.is_grad_enabled()):
            return {i: self._ratio(i, calls[i]) for i in self.layers}
        return {i: checkpoint(keeping_backends(self._ratio), i, calls[i], use_reentrant=False) for i in self.layers}

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Each layer's ratio on the clips held out, always at the same noise, and the median over layers.

        Where windows shrink in training, also the ratios with all of them shrunk, named ``own_block_...``.
        """
        self.windows.restore()
        scores = self._evaluated("")
        if self.config.shrinks_windows:
            self.windows.shrink_all()
            scores |= self._evaluated("own_block_")
            self.windows.restore()
        return scores

    def _evaluated(self, prefix: str) -> dict[str, float]:
        count = len(self.clips.held_out_numbers)
        sums = dict.fromkeys(self.layers, 0.0)
        for clips, noisy in self._held_out():
            for i, ratio in self.ratios(clips, noisy).items():
                sums[i] += ratio.item() * len(clips.latents) / count
        by_layer = {f"{prefix}held_out_ratio_{i}": value for i, value in sums.items()}
        return {**by_layer, f"{prefix}held_out_ratio_median": statistics.median(sums.values())}

    def _ratio(self, i: int, call: AttentionCall) -> Float[Tensor, ""]:
        layer = self.student.layers[i]
        assert isinstance(layer, TransformerLayer)
        hybrid = layer.self_attention(call.input, call.rotation, call.layout)
        return alignment_ratio(hybrid, call.output, call.layout)


def alignment_ratio(
    hybrid: Float[Tensor, "batch tokens width"], softmax: Float[Tensor, "batch tokens width"], layout: ClipLayout
) -> Float[Tensor, ""]:
    """``mean((hybrid - softmax)^2) / mean(softmax^2)`` over all copies of all blocks but the first."""
    begin, _ = layout.span(layout.blocks[1])
    _, end = layout.span(layout.blocks[-1])
    later = [slice(offset + begin, offset + end) for offset in layout.copies()]
    difference = sum((hybrid[:, part].float() - softmax[:, part].float()).square().sum() for part in later)
    size = sum(softmax[:, part].float().square().sum() for part in later)
    return torch.as_tensor(difference / size)
