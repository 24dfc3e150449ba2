"""Checks of out-of-distribution scores on latents: outliers stand out, references do not."""

from __future__ import annotations

from pytest_diffusion.checks import plots
from pytest_diffusion.checks.registry import check
from pytest_diffusion.data.references import Reference
from pytest_diffusion.maths.statistics import auroc, auroc_interval, wilson_interval
from pytest_diffusion.models.latents import LatentCodec
from pytest_diffusion.samples.outliers import Outliers
from pytest_diffusion.verdicts.verdict import Measurement

JUDGED = "noise"
"""The kind that is an outlier whatever the references show."""
LEVEL = 0.05


@check(
    "latent",
    "outliers score as outliers",
    figure="AUROC of the outlier score for noise; shuffled patches, inversion, flat colours, blur and handwritten digits beside it",
    sees="latents that do not tell real images from unreal ones",
    blind_to="outliers that are close to the references, such as inverted or flat pictures: those are reported only",
    plot=plots.outlier_scores,
)
def ood_auroc(latents: LatentCodec, reference: Reference, outliers: Outliers | None = None) -> Measurement:
    """AUROC of the outlier score against held-out references, for images of noise.

    The other kinds of outliers are shown beside it: how far they lie from the references depends on what the references
    show. The negative of a photograph, for instance, has the colours of photographs. `outliers` are those of `latents`
    and `reference`, made here where they are not given.
    """
    found = outliers if outliers is not None else Outliers.of(latents, reference)
    scores = found.scores()
    inliers, values, intervals = next(iter(scores.values())), {}, {}
    for name, of_kind in list(scores.items())[1:]:
        values[name] = auroc(inliers, of_kind)
        intervals[name] = auroc_interval(values[name], len(inliers), len(of_kind))
    listed = ", ".join(f"{name} {value:.3f} [{intervals[name][0]:.3f}, {intervals[name][1]:.3f}]" for name, value in values.items())
    return Measurement(
        values[JUDGED],
        f"AUROC for {JUDGED}",
        interval=intervals[JUDGED],
        num_samples=len(inliers),
        num_reference=found.num_fitted,
        series={"scores": {name: [float(score) for score in value] for name, value in scores.items()}, "auroc": values},
        hint=f"By kind: {listed}.",
    )


@check(
    "latent",
    "references do not score as outliers",
    figure="share of held-out references whose conformal p-value is at most 5 %",
    sees="references that differ among themselves",
    blind_to="a whole reference that is wrong",
)
def ood_false_alarms(latents: LatentCodec, reference: Reference, outliers: Outliers | None = None) -> Measurement:
    """Share of held-out references whose conformal p-value is at most 0.05, which is its nominal rate."""
    found = outliers if outliers is not None else Outliers.of(latents, reference)
    count = len(found.held_out)
    alarms = int((found.p_values() <= LEVEL).sum())
    return Measurement(
        alarms / count,
        "share of references flagged as outliers",
        interval=wilson_interval(alarms, count),
        num_samples=count,
        num_reference=found.num_fitted,
    )
