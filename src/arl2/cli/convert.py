"""``arl2 convert MODEL -o FOLDER``: a softmax model made hybrid, and what that changes in numbers."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from arl2.cli.checks import exclusive
from arl2.cli.options import WEIGHTS_AND_PARTS, Command
from arl2.cli.stored import check_model_place, stored_model, write_folder
from arl2.errors import ConfigError
from arl2.pipeline.options import ModelSource
from arl2.streams.options import Window

if TYPE_CHECKING:
    from arl2.training.conversion.report import ConversionReport


@dataclass(frozen=True, kw_only=True)
class Convert(Command):
    """Write a hybrid model: every pretrained weight kept, the new parameters at their start values.

    Nothing is trained; that is ``arl2 train align`` and ``arl2 train distill``. Without --layers, --fraction or --plan
    all layers become windowed hybrids with log-sum-exp mixing, whose output is at first that of the softmax layers with
    their window. A model that attends to its whole past needs --window for that.

    Attributes:
        output: New folder of the model.
        overwrite: Replace a folder that exists.
        layers: Layers that become hybrid, such as 0-21,25, both ends included.
        fraction: Share of all layers that become hybrid: the first ones, or those that --ranking puts first.
        plan: Letter of every layer, such as HHSH: H hybrid, S softmax, W windowed hybrid.
        ranking: Ranking of ``arl2 sensitivity``, with --fraction.
        keep: Layers that stay softmax, such as 0,29, whichever way the others are chosen.
        state_rank: LoRA rank of the state branches (default: 16).
        ffn_rank: LoRA rank of the feed-forwards (default: 16).
        alpha: LoRA alpha of both (default: twice the rank).
        ffn_layers: Layers whose feed-forward gets a LoRA adapter (default: hybrid).
        mixing: How windowed hybrids mix in what they read from the state (default: additive where layers are chosen).
        window: Latent frames that softmax windows show (default: the model's own).
        state_horizon: Latent frames that states reach back, a multiple of two blocks (default: no limit).
        seed: Random seed of the start values.
        heads: Number of attention heads, if the file does not say.
        as_json: Print the report as JSON.
    """

    positional: ClassVar = ("model",)
    examples: ClassVar = (
        "arl2 convert shapes-teacher -o untrained",
        "arl2 convert shapes-teacher --fraction 0.75 -o untrained",
        "arl2 convert causal-forcing --fraction 0.75 --ranking runs/sensitivity.json --keep 0,29 -o runs/hybrid",
    )
    source: Annotated[ModelSource, WEIGHTS_AND_PARTS] = field(default_factory=ModelSource)
    output: Path
    overwrite: bool = False
    layers: str | None = None
    fraction: float | None = None
    plan: str | None = None
    ranking: Path | None = None
    keep: str | None = None
    state_rank: int | None = None
    ffn_rank: int | None = None
    alpha: float | None = None
    ffn_layers: Literal["hybrid", "all"] | None = None
    mixing: Literal["additive", "interpolated", "log-sum-exp"] | None = None
    window: Window = "settings"
    state_horizon: int | None = None
    seed: int = 0
    heads: int | None = None
    as_json: bool = False

    def __post_init__(self) -> None:
        exclusive({"--layers": self.layers, "--fraction": self.fraction, "--plan": self.plan})

    def run(self) -> int:
        """Convert, write, report."""
        if self.ranking is not None and self.fraction is None:
            raise ConfigError("--ranking goes with --fraction, which says how many layers of it; add that.")
        check_model_place(self.output, overwrite=self.overwrite)

        from arl2.checkpoints.conversion import convert
        from arl2.training.conversion.report import report_conversion
        from arl2.training.conversion.students import with_window

        source = stored_model(self.source, "convert", heads=self.heads)
        model = source.weights.exact_transformer()
        before = str(model.config.layer_plan)
        plan, form = self._plan(before), self._form(before)
        window = source.settings.window if self.window == "settings" else self.window
        self._check_window(window, model.config.block_frames)
        if self.window != "settings":
            source = replace(source, settings=replace(source.settings, window=window))
            model = with_window(model, window)
        made = convert(
            model,
            plan,
            state_rank=self.state_rank,
            ffn_rank=self.ffn_rank,
            low_rank_alpha=self.alpha,
            ffn_rank_layers=self.ffn_layers,
            state_form=form,
            state_horizon=self.state_horizon,
            seed=self.seed,
        )
        report = report_conversion(model.config, made, source.settings)
        write_folder(source, made.model, self.output, overwrite=self.overwrite)
        if self.as_json:
            print(json.dumps({"output": str(self.output), **asdict(report)}))
        else:
            settings = _settings_of(made.model.config, self.window != "settings")
            Console(highlight=False).print(_shown(report, self.output, settings))
        return 0

    @property
    def _is_chosen(self) -> bool:
        """Whether layers were chosen, rather than left to the default."""
        return (self.layers, self.fraction, self.plan) != (None, None, None)

    def _check_window(self, window: int | None, block: int) -> None:
        """Refuse a window that holds no block, and the default plan where its memory would grow without end."""
        if window is None and not self._is_chosen:
            raise ConfigError(
                "The model attends to its whole past, and so would windowed hybrids, the default: memory would grow "
                f"with the video. Give them a window, such as --window {3 * block}, or choose layers (--fraction 0.75)."
            )
        if window is not None and window < block:
            raise ConfigError(f"A window of {window} holds no block of {block} latent frames; give {block} or more.")

    def _plan(self, before: str) -> str:
        """The layer plan to convert to, in which converted layers of the model stay as they are.

        Raises:
            ConfigError: What was asked does not fit the model, or nothing is left to convert.
        """
        from arl2.attention.plan import DEFAULT_PLAN_KIND, converted_layers, kind_of, parse_plan, with_converted
        from arl2.attention.windowed import WindowedSpec
        from arl2.checkpoints.layer_choice import parse_layers, read_ranking, share_of_layers

        count = len(before)
        keep = [] if self.keep is None else parse_layers(self.keep, count)
        if self.plan is not None:
            wanted = parse_plan(self.plan, count)
            both = sorted(set(converted_layers(wanted)) & set(keep))
            if both:
                raise ConfigError(f"The plan {self.plan} converts layer {both[0]} and --keep leaves it; drop one.")
            after = "".join(old if i in converted_layers(before) else wanted[i] for i, old in enumerate(before))
        elif self.fraction is not None:
            ranking = None if self.ranking is None else read_ranking(self.ranking)
            after = with_converted(before, share_of_layers(self.fraction, count, keep=keep, ranking=ranking))
        elif self.layers is not None:
            asked = [layer for layer in parse_layers(self.layers, count) if layer not in keep]
            after = with_converted(before, asked)
        else:
            after = with_converted(before, set(range(count)) - set(keep), kind=DEFAULT_PLAN_KIND)
        if after == before:
            raise ConfigError(f"No layer is left to convert: the plan is {before} already.")
        if self.mixing is not None and not any(issubclass(kind_of(letter), WindowedSpec) for letter in set(after)):
            raise ConfigError(f"--mixing is of windowed hybrids, but the plan {after} has none; leave it out.")
        return after

    def _form(self, before: str) -> dict[str, str] | None:
        """How windowed hybrids read their state; None: as those that the model has, or the default form."""
        from arl2.attention.plan import DEFAULT_PLAN_MIXING, converted_layers

        mixing = self.mixing or (None if self._is_chosen or converted_layers(before) else DEFAULT_PLAN_MIXING)
        return None if mixing is None else {"mixing": mixing}


def _settings_of(config: Mapping[str, Any], has_window: bool) -> tuple[str, str]:
    """The settings of both training stages that make this same student, where they are not the defaults.

    Args:
        config: of the converted model.
        has_window: whether its window was given: no other than the teacher's can be aligned.
    """
    from arl2.training.conversion.distill import DistillConfig

    defaults = {field.name: field.default for field in fields(DistillConfig)}
    form = {f"state_form.{name}": value for name, value in (config["state_form"] or {}).items()}
    both = {"plan": config["layer_plan"], **form, "state_horizon": config["state_horizon"]}
    ranks = {name: config[name] for name in ("state_rank", "ffn_rank", "low_rank_alpha", "ffn_rank_layers")}
    second = {**both, **{name: value for name, value in ranks.items() if value != defaults[name]}}
    if has_window:
        second["student_window"] = "all" if config["window"] is None else config["window"]
    first_words, second_words = (
        " ".join(f"{name}={value}" for name, value in given.items() if value is not None) for given in (both, second)
    )
    return first_words, second_words


def _shown(report: "ConversionReport", folder: Path, settings: tuple[str, str]) -> Group:
    from arl2.attention.plan import plan_summary

    head = Table(title=escape(f"{folder}"), show_header=False, title_justify="left", box=None)
    head.add_column(style="bold")
    head.add_column(overflow="fold")
    head.add_row("plan", f"{report.plan_before} -> {report.plan_after}  {plan_summary(report.plan_after)}")
    head.add_row("pretrained", f"{report.pretrained:,} parameters, all kept")
    head.add_row("new", f"{report.new:,} ({100 * report.share(report.new):.2f} % of the pretrained), untrained")
    for stage, trained, what in ((1, report.stage_1, "align"), (2, report.stage_2, "distill")):
        share = 100 * report.share(trained)
        words = escape(f"arl2 train {what} {settings[stage - 1]}")
        head.add_row(f"stage {stage}", f"{trained:,} train ({share:.2f} % of the pretrained): {words}")

    kinds = Table(box=None, pad_edge=False)
    for name in ("layers", "", "parameters each", "new", "train in stage 1", "in stage 2"):
        kinds.add_column(name, justify="left" if name == "layers" else "right")
    for kind in report.kinds:
        numbers = (kind.parameters, kind.new, kind.stage_1, kind.stage_2)
        kinds.add_row(kind.name, str(kind.layers), *(f"{number:,}" for number in numbers))

    largest = max(cost.flops_before for cost in report.costs)
    unit, one = ("TFLOP", 1e12) if largest >= 1e12 else ("GFLOP", 1e9)
    seen = "the whole past" if report.window is None else f"{report.window} latent frames"
    costs = Table(
        box=None,
        pad_edge=False,
        title=f"The last block at {report.width} x {report.height}, softmax layers seeing {seen}: {report.passes} "
        "denoising passes and the cache-update pass; memory of its stream in half precision",
        title_justify="left",
    )
    for name in ("video frames", f"{unit} before", "after", "", "MB before", "after", ""):
        costs.add_column(name, justify="right")
    for cost in report.costs:
        costs.add_row(
            str(cost.video_frames),
            f"{cost.flops_before / one:,.2f}",
            f"{cost.flops_after / one:,.2f}",
            f"{cost.flops_before / cost.flops_after:.2f}x",
            f"{cost.memory_before / 1e6:,.2f}",
            f"{cost.memory_after / 1e6:,.2f}",
            f"{cost.memory_before / cost.memory_after:.2f}x",
        )
    return Group(head, "", kinds, "", costs)
