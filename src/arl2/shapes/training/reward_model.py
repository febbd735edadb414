"""Trains the reward model: true first blocks match the captions of their scenes, sampled blocks match none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from rich.console import Console
from torch import Tensor

from arl2.checkpoints.load import transformer_config
from arl2.errors import ConfigError
from arl2.files.atomic import atomic_folder
from arl2.model.reward_model import RewardModel
from arl2.model.settings import seed_number
from arl2.pipeline.folder import load_codec, load_text, pipeline_folder
from arl2.shapes.codec import GroupCodec
from arl2.shapes.prompts.captions import captions_of
from arl2.shapes.prompts.parser import canonical
from arl2.shapes.training.latents import encoded_clips
from arl2.shapes.training.scene_clips import EncodedScenes
from arl2.shapes.world.scene import sample_scenes
from arl2.training.clips.dataset import ClipSet
from arl2.training.engine.config import check_share
from arl2.training.engine.loop import LoopConfig
from arl2.training.engine.task import Batch, Loss, ParameterGroup

# Openings of evaluation come from a seed that no training run uses.
_HELD_OUT_SEED = 2**40 + 4


@dataclass(frozen=True, kw_only=True)
class RewardModelSizes:
    """Sizes of the reward model, as of ``RewardModel``.

    Attributes:
        features: channels of the convolutions, a multiple of 8.
        depth: residual pairs of them.
        space: dimensions of the space that blocks and prompts share.
    """

    features: int = 64
    depth: int = 2
    space: int = 64


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig:
    """Settings of a reward-model run.

    Attributes:
        teacher: embedded model, or folder of a pipeline, whose codec and text part the reward model reads.
        model: sizes of the reward model.
        latents: folder in which encoded first blocks are cached, shared by runs.
        openings: true first blocks to learn from.
        data_seed: of their scenes.
        shows: share of its object that a true block must show in its first or last video frame to match its caption;
            the others match none.
        drawn: folder of first blocks that the teacher sampled for captions of the world (``arl2 rollouts``), which
            match none either: what tells a sampled block from a true one counts against it. null: true blocks alone.
        batch: true blocks in a batch that match their captions.
        hidden_batch: true blocks beside them that do not show their object.
        drawn_batch: sampled blocks beside them.
        weight_decay: of all matrices.
        evaluation_openings: true blocks held out.
    """

    loop: LoopConfig
    teacher: str = "shapes-teacher"
    model: RewardModelSizes = field(default_factory=RewardModelSizes)
    latents: str = "runs/latents"
    openings: int = 32768
    data_seed: int = 2
    shows: float = 0.5
    drawn: str | None = None
    batch: int = 192
    hidden_batch: int = 24
    drawn_batch: int = 64
    weight_decay: float = 0.02
    evaluation_openings: int = 1024

    def __post_init__(self) -> None:
        seed_number(self.data_seed, name="data_seed")
        check_share("shows", self.shows)
        least = {"openings": 1, "batch": 1, "evaluation_openings": 1, "hidden_batch": 0, "drawn_batch": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a whole number from {smallest}.")
        if self.drawn is not None and self.drawn_batch > self.batch:
            raise ConfigError(
                f"drawn_batch is {self.drawn_batch}, but each sampled block comes with a true one of its caption, and "
                f"batch is {self.batch}; give at most as many."
            )


class RewardModelTask:
    """Trains a ``RewardModel``; implements ``arl2.training.engine.task.Task``.

    The loss is CLIP's (arXiv 2103.00020) with two differences: a caption may have several blocks in a batch, and some
    blocks have no caption.

    Args:
        config: the settings.
        device: of the training.

    Raises:
        ConfigError: a teacher without the codec of the shapes world, or sampled blocks that do not fit it.
        CheckpointError: codec, text part, latents or sampled blocks that cannot be read.
    """

    def __init__(self, config: RewardModelConfig, *, device: torch.device | str = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        folder = pipeline_folder(config.teacher)
        codec = load_codec(folder, dtype=torch.float32)
        if not isinstance(codec, GroupCodec):
            raise ConfigError(f"'{config.teacher}' has a {type(codec).__name__}; openings are of the shapes world's.")
        frames = int(transformer_config(folder.transformer)["block_frames"])
        openings, fits = _openings(config, codec, frames, config.openings, config.data_seed)
        captions = captions_of(openings.scenes)
        self.captions = tuple(sorted(set(captions)))
        number = {caption: i for i, caption in enumerate(self.captions)}
        with torch.no_grad():
            self.text = load_text(folder).encode(list(self.captions)).float().to(self.device)

        asked = torch.tensor([number[caption] for caption in captions])
        self.true, self.true_of = openings.latents[fits], asked[fits]
        self.hidden = openings.latents[~fits]
        apart, fits = _openings(config, codec, frames, config.evaluation_openings, _HELD_OUT_SEED)
        asked = torch.tensor([number.get(caption, -1) for caption in captions_of(apart.scenes)])
        known = fits & (asked >= 0)
        self.held_out, self.held_out_of = apart.latents[known], asked[known]
        self.drawn, self.drawn_of = _drawn(config, self.true, number)
        # Blocks in the order of their captions: those of one lie together.
        self._by_caption = torch.argsort(self.true_of, stable=True)
        self._count = torch.bincount(self.true_of, minlength=len(self.captions))
        if len(self.drawn) and not bool(self._count[self.drawn_of].all()):
            raise ConfigError("Some sampled blocks have captions that no true block has; give more openings.")
        self._first = self._count.cumsum(0) - self._count

        _, channels, _, height, width = openings.latents.shape
        self.model = RewardModel(
            channels,
            frames,
            height,
            width,
            self.text.shape[1],
            self.text.shape[2],
            **vars(config.model),
            seed=config.loop.seed,
        ).to(self.device)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """All parameters; matrices decay, the rest does not."""
        named = dict(self.model.named_parameters())
        matrices = {name: p for name, p in named.items() if p.dim() > 1}
        rest = {name: p for name, p in named.items() if p.dim() < 2}
        return [ParameterGroup(matrices, weight_decay=self.config.weight_decay), ParameterGroup(rest)]

    def loss(self, batch: Batch) -> Loss:
        """Which caption a block has, among all; and which blocks a caption has, among those of the batch."""
        config, draw = self.config, batch.generator
        drawn = _some(self.drawn, config.drawn_batch if len(self.drawn) else 0, draw)
        hidden = _some(self.hidden, config.hidden_batch if len(self.hidden) else 0, draw)
        # Each sampled block is paired with a true one of its caption, to be told apart from it.
        paired = self._true_with(self.drawn_of[drawn], draw)
        chosen = torch.cat((paired, _some(self.true, config.batch - len(paired), draw)))
        blocks = torch.cat((self.true[chosen], self.hidden[hidden], self.drawn[drawn])).float().to(self.device)
        asked = self.true_of[chosen].to(self.device)

        scores = self.model.scale.exp() * self.model.embed_blocks(blocks) @ self.model.embed_prompts(self.text).T
        of_block = F.cross_entropy(scores[: len(asked)], asked)
        # Rows are the captions asked for, columns all blocks.
        right = F.pad(asked[:, None] == asked[None], (0, len(blocks) - len(asked)))
        of_caption = -_share_of(scores[:, asked].T, right).log().mean()
        logs = {"of_block": of_block.detach(), "of_caption": of_caption.detach()}
        return Loss(of_block + of_caption, len(blocks), logs)

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Share of held-out blocks whose own caption scores best, and of sampled blocks that a true one beats."""
        self.model.eval()
        prompts = self.model.embed_prompts(self.text)
        found = {}
        if len(self.held_out):
            scores = self._embedded(self.held_out) @ prompts.T
            found["caption"] = (scores.argmax(1) == self.held_out_of.to(self.device)).float().mean().item()
        if len(self.drawn):
            generator = torch.Generator().manual_seed(_HELD_OUT_SEED)
            own = prompts[self.drawn_of.to(self.device)]
            true = self.true[self._true_with(self.drawn_of, generator)]
            fit, drawn_fit = ((self._embedded(blocks) * own).sum(-1) for blocks in (true, self.drawn))
            found["true_first"] = (fit > drawn_fit).float().mean().item()
        self.model.train()
        return found

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """In half precision, as the ``verifier`` folder of a pipeline."""
        half = RewardModel.from_config(self.model.config)
        half.load_state_dict(self.model.state_dict())
        with atomic_folder(folder, replace=True, keep=True) as partial:
            half.half().save_pretrained(partial)

    def _true_with(self, captions: Int64[Tensor, " blocks"], draw: torch.Generator) -> Int64[Tensor, " blocks"]:
        """For each caption one of its true blocks."""
        within = (torch.rand(len(captions), generator=draw) * self._count[captions]).long()
        return self._by_caption[self._first[captions] + within]

    def _embedded(self, blocks: Tensor) -> Float[Tensor, "blocks space"]:
        return torch.cat([self.model.embed_blocks(some.float().to(self.device)) for some in blocks.split(256)])


def _share_of(scores: Float[Tensor, "rows columns"], right: Bool[Tensor, "rows columns"]) -> Float[Tensor, " rows"]:
    """Probability that a softmax over each row gives to its right columns."""
    return scores.softmax(1).mul(right).sum(1).clamp_min(1e-12)


def _some(blocks: Tensor, count: int, draw: torch.Generator) -> Int64[Tensor, " drawn"]:
    return torch.randint(max(1, len(blocks)), (count,), generator=draw)


def _openings(
    config: RewardModelConfig, codec: GroupCodec, frames: int, count: int, seed: int
) -> tuple[EncodedScenes, Bool[Tensor, " openings"]]:
    """True first blocks of a seed, and which of them show enough to match their captions."""
    console = Console(stderr=True)
    latents = encoded_clips(
        codec,
        Path(config.latents),
        clips=count,
        frames=frames,
        seed=seed,
        say=lambda line: console.print(line, highlight=False),
    )
    openings = EncodedScenes(latents, sample_scenes(count, seed=seed))
    return openings, openings.shown((0, codec.frames_of(0, frames) - 1)) >= config.shows


def _drawn(
    config: RewardModelConfig, like: Tensor, number: Mapping[str, int]
) -> tuple[Tensor, Int64[Tensor, " blocks"]]:
    """Sampled blocks and the numbers of their captions."""
    if config.drawn is None:
        return like[:0], torch.zeros(0, dtype=torch.long)
    clips = ClipSet.open(config.drawn)
    latents, _, said = clips.batch(range(len(clips)))
    captions = [canonical(caption) for caption in said]
    if latents.shape[1:] != like.shape[1:]:
        raise ConfigError(
            f"The blocks in '{config.drawn}' are {list(latents.shape[1:])} (channels, frames, height, width), and true "
            f"ones {list(like.shape[1:])}; sample them with 'arl2 rollouts --latent-frames {like.shape[2]}'."
        )
    unknown = next((caption for caption in captions if caption not in number), None)
    if unknown is not None:
        raise ConfigError(
            f"'{config.drawn}' has the caption '{unknown}', which no true block has; sample blocks for captions of the "
            "world ('arl2 rollouts --shapes-prompts N'), or give more openings."
        )
    return latents.to(like.dtype), torch.tensor([number[caption] for caption in captions])
