"""What stays the same for all blocks of a rollout, and the settings of a model that most of it comes from."""

from dataclasses import dataclass

from arl2.model.settings import CHANGE_MODES as CHANGE_MODES
from arl2.model.settings import ChangeMode as ChangeMode
from arl2.model.settings import GenerationSettings as GenerationSettings
from arl2.model.settings import context_timestep
from arl2.model.settings import settings_from_mapping as settings_from_mapping
from arl2.rollout.best_of import BestOf
from arl2.rollout.samplers import OnStep, Sampler


@dataclass(frozen=True)
class RolloutSettings:
    """Of all blocks of a rollout.

    Attributes:
        sampler: :class:`FewStep` or :class:`MultiStep`.
        height, width: latent size.
        first_block_frames: size of the first block, if it differs.
        context_noise: timestep of the cache-update pass of generated blocks; conditioning frames are committed at 0.
        best_of: how the first block of a stream is chosen from several candidates; None: it is a single sample. After
            conditioning frames it always is.
        on_step: called after every denoising pass.
    """

    sampler: Sampler
    height: int
    width: int
    first_block_frames: int | None = None
    context_noise: float = 0.0
    best_of: BestOf | None = None
    on_step: OnStep | None = None

    def __post_init__(self) -> None:
        context_timestep(self.context_noise)
