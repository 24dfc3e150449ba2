"""Nearest-neighbour manifolds of samples and reference: estimated once for each k, for all figures that use them."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_diffusion.maths.manifold import manifold_estimates
from pytest_diffusion.maths.statistics import Estimate
from pytest_diffusion.maths.tensors import ArrayLike


@dataclass(frozen=True)
class Manifold:
    """Precision, recall, density and coverage of features (N, D) against reference features (M, D).

    With `given_reference`, the errors are those of the samples alone.
    """

    features: ArrayLike
    reference: ArrayLike
    given_reference: bool = False
    _known: dict[int, dict[str, Estimate]] = field(default_factory=dict, repr=False, compare=False)

    def estimate(self, name: str, k: int) -> Estimate:
        """One of the four figures at k neighbours, with its standard error."""
        if k not in self._known:
            self._known[k] = manifold_estimates(self.features, self.reference, k=k, given_reference=self.given_reference)
        return self._known[k][name]
