"""One trial of the self-test: the gate on a damaged, or soundly changed, parent, whose own losses and samples were measured once."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from pytest_diffusion.config.margins import Margins
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.data.references import Reference
from pytest_diffusion.gate.attribution import TEXT_PARTS
from pytest_diffusion.gate.comparison import Comparison
from pytest_diffusion.gate.damage import Damage, Target
from pytest_diffusion.gate.looks import Decided
from pytest_diffusion.gate.loss_stages import compare_losses, is_same_for
from pytest_diffusion.gate.parts import compare_hashes
from pytest_diffusion.gate.save import measure_baseline
from pytest_diffusion.gate.side import LiveSide
from pytest_diffusion.gate.stages import Material, draw_pairs
from pytest_diffusion.verdicts.errors import NotApplicable, SettingsError, SetupError

LOSSES = ("denoising_loss", "retention_loss", "text_encoder_loss", "reconstruction_loss")
"""In the order in which they are compared."""
ABSOLUTELY_CAUGHT = ("fail", "broken")
"""Outcomes of absolute checks that say that something is wrong with the model."""
IDLE = "changes nothing"
"""The note of a trial in which nothing differed."""
Say = Callable[[str], object]


@dataclass(frozen=True)
class Figure:
    """What a trial showed of one figure."""

    name: str
    word: str
    change: float
    error: float
    """Standard error of the change."""
    pairs: int
    margin: float | None
    direction: int

    @property
    def loss(self) -> float:
        """The change for the worse."""
        return abs(self.change) if self.direction == 0 else -self.direction * self.change


@dataclass(frozen=True)
class Trial:
    """One kind of damage at one strength and seed, held against the gate."""

    damage: str
    strength: float
    seed: int
    sound: bool = False
    """Whether the gate must let it pass."""
    caught_by: list[str] = field(default_factory=list)
    """Figures that are worse."""
    undecided: list[str] = field(default_factory=list)
    """Figures that could not be told at the largest number of pairs."""
    at: str = ""
    """After how many images or pairs it was decided."""
    figures: list[Figure] = field(default_factory=list)
    note: str = ""
    """Why the gate could not judge it, or that nothing changed."""
    seconds: float = 0.0
    absolute: list[dict[str, Any]] | None = None
    """Verdicts of the absolute checks, where they were asked."""

    @property
    def word(self) -> str:
        """What the comparison says: worse, cannot tell, same; and not judged where it had nothing to compare."""
        if self.caught_by:
            return "worse"
        return "cannot tell" if self.undecided else "same" if self.figures else "not judged"

    @property
    def is_caught(self) -> bool:
        """Whether the comparison with the parent calls it worse."""
        return bool(self.caught_by)

    @property
    def absolute_by(self) -> list[str]:
        """Absolute checks that close the gate by this damage."""
        return [one["check"] for one in self.absolute or () if one["outcome"] in ABSOLUTELY_CAUGHT]


@dataclass
class PairedGate:
    """The comparison as it is configured, with the model itself as the parent.

    `side` draws the parent's samples; they, their scores, the losses and the noise floors are measured when it is made. `references` are
    the images of each loss. The pipeline is changed in each trial, and is as before at its end.
    """

    side: LiveSide
    margins: Margins
    family: int
    references: Mapping[str, Reference]
    material: Material
    say: Say

    def __post_init__(self) -> None:
        """Measure the parent."""
        own = {name: self.references.get(name) for name in LOSSES}
        self.saved = measure_baseline(self.side, self.margins, own["denoising_loss"], own["retention_loss"], say=self.say)
        pipeline = self.side.pipeline
        reference = own["text_encoder_loss"]
        wanted = TEXT_PARTS if reference is not None and reference.prompts is not None and self.side.prompts is not None else ()
        texts = {name: copy.deepcopy(getattr(pipeline, name)) for name in wanted if getattr(pipeline, name, None) is not None}
        self._texts = SimpleNamespace(**texts, scheduler=copy.deepcopy(pipeline.scheduler), vae=getattr(pipeline, "vae", None))

    def target(self) -> Target:
        """What is damaged."""
        return Target(self.side.pipeline, self.side.settings, self.side.prompts)

    def judge(self, damage: Damage, strength: float, seed: int) -> Trial:
        """The gate's word on one damage. Raises NotApplicable where it does not fit the pipeline."""
        begin = time.perf_counter()
        empty = Trial(damage.name, strength, seed, damage.is_sound_under(is_copy=self.is_copy))
        with applied(damage, self.target(), strength, seed) as settings:
            try:
                found = self._judged(empty, damage, settings)
            except NotApplicable as reason:
                found = replace(empty, note=str(reason))
            except Exception as error:
                if _is_own_fault(error):
                    raise  # it says nothing about the damage
                # A model that cannot run closes the gate.
                text = next(iter(str(error).splitlines()), "")
                found = replace(empty, caught_by=["error"], note=f"{type(error).__name__}: {text}")
        return replace(found, seconds=round(time.perf_counter() - begin, 2))

    @property
    def is_copy(self) -> bool:
        """Whether the margins are those of a copy, where any change of the loss counts."""
        margin = self.margins.of("denoising_loss")
        return margin is not None and margin.kind == "equivalence"

    def _judged(self, empty: Trial, damage: Damage, settings: Any) -> Trial:
        pipeline, figures, unmeasured = self.side.pipeline, list[Figure](), list[str]()
        parts = compare_hashes(pipeline, self.saved.about["parts"])
        comparison = Comparison(self.side.name, self.margins, parts, damage.in_code, family=self.family)
        if comparison.is_identical:
            return replace(empty, note=IDLE)
        for name in LOSSES:
            reference, of_text = self.references.get(name), name == "text_encoder_loss"
            is_known = vars(self._texts).keys() & {*TEXT_PARTS} if of_text else name in self.saved.about["losses"]
            if reference is None or is_same_for(name, comparison) or not is_known:
                continue
            try:
                run = compare_losses(
                    name,
                    pipeline,
                    self._texts if of_text else None,
                    None if of_text else self.saved,
                    reference,
                    self.side.settings,
                    comparison,
                    attributes=False,
                    say=_quiet,
                )
            except NotApplicable as reason:
                unmeasured.append(f"{name}: {reason}")
                continue
            figures.append(_figure(name, run.decided, comparison))
            if run.decided.word == "worse":
                return _told(empty, figures, f"{len(run.baseline)} images")
        prompts = list(self.side.prompts) if self.side.prompts is not None else []
        with tempfile.TemporaryDirectory() as folder:
            pairs = draw_pairs(
                pipeline,
                None,
                self.saved,
                prompts,
                replace(settings, cache_dir=folder),
                self.side.settings,
                comparison,
                self.material,
                say=_quiet,
            )
        figures += [_figure(name, one, comparison) for name, one in pairs.decided.items()]
        broken = [f"{ours} {what}" for what, (ours, theirs) in pairs.broken.items() if ours > theirs]
        return _told(replace(empty, caught_by=broken, note="; ".join(unmeasured)), figures, f"{pairs.pairs} pairs")


@contextmanager
def applied(damage: Damage, target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """A pipeline with a damage, while the context lasts. Raises NotApplicable where it cannot be done, for whatever reason."""
    with ExitStack() as stack:
        try:
            settings = stack.enter_context(damage.apply(target, strength, seed))
        except Exception as error:
            if isinstance(error, NotApplicable) or _is_own_fault(error):
                raise
            raise NotApplicable(f"it cannot be done: {type(error).__name__}: {error}") from error
        yield settings


def _is_own_fault(error: Exception) -> bool:
    """Whether an error is that of the machine, the settings or the self-test, and not of a damaged model."""
    return isinstance(error, SettingsError | SetupError | OSError | MemoryError) or "out of memory" in str(error).lower()


def _figure(name: str, decided: Decided, comparison: Comparison) -> Figure:
    value, error, _ = decided.look.difference
    direction = comparison.figure(name).direction
    margin = comparison.margins.of(name)
    is_two_sided = margin is not None and margin.is_two_sided(direction)
    return Figure(name, decided.word, value, error, decided.look.pairs, decided.margin, 0 if is_two_sided else direction)


def _told(empty: Trial, figures: list[Figure], at: str) -> Trial:
    worse = [one.name for one in figures if one.word == "worse"]
    caught = [*empty.caught_by, *worse]
    undecided = [] if caught else [one.name for one in figures if one.word == "cannot tell"]
    return replace(empty, caught_by=caught, undecided=undecided, at=at, figures=figures)


def _quiet(text: str) -> None:
    """Say nothing: the self-test has its own words."""
