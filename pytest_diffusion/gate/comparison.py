"""What is compared with what, and by which margins: the frame of all comparisons of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pytest_diffusion.config.margins import Margins
from pytest_diffusion.features.image_scores import names_of
from pytest_diffusion.gate.figures import Figure, figure_named
from pytest_diffusion.gate.looks import Rules
from pytest_diffusion.gate.parts import Parts
from pytest_diffusion.maths.sequential import Plan
from pytest_diffusion.models.lora import LoraChange


def size_of_family(margins: Margins, scorers: Sequence[str]) -> int:
    """How many figures a run judges: those with a margin, and the scores of scorers that the user names."""
    return sum(margins.of(figure) is not None for figure in margins.by_figure) + sum(len(names_of(value)) for value in scorers)


@dataclass(frozen=True)
class Comparison:
    """A candidate and its baseline."""

    name: str
    """The baseline, as it was named."""
    margins: Margins
    parts: Parts | None = None
    is_own_code: bool = False
    """Whether a user's code has a say in either model, so that equal weights do not mean equal samples."""
    lora: LoraChange | None = None
    family: int = 0
    """Figures that are judged."""
    slice_alpha: float = 0.0
    """Chance of a false alarm of the slices of one stage, where slices are judged."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """Figures that are declared here and nowhere else."""

    @property
    def is_identical(self) -> bool:
        """Whether nothing differs, so that all samples would be equal too."""
        return self.parts is not None and not self.parts.differing and not self.is_own_code

    def figure(self, name: str) -> Figure:
        """The declaration of a figure."""
        return self.figures.get(name) or figure_named(name)

    def rules(self, names: list[str], horizon: int) -> Rules:
        """How the differences of some figures are judged, with looks that are planned for `horizon` pairs or images."""
        return Rules(self.margins, {name: self.figure(name).direction for name in names}, Plan(horizon), family=self.family)
