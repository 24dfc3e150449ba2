"""The comparison with a baseline as checks: parts, denoising, and one check for each figure of the pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pytest_diffusion.checks.registry import Check, check
from pytest_diffusion.features.image_scores import names_of
from pytest_diffusion.gate.attribution import GUARDS
from pytest_diffusion.gate.comparison import Comparison
from pytest_diffusion.gate.denoising import LossRun
from pytest_diffusion.gate.drift import drift_of
from pytest_diffusion.gate.figures import FIGURES, OF_REFERENCE, Figure, figure_named
from pytest_diffusion.gate.measured import measured
from pytest_diffusion.gate.pairs import PairedRun
from pytest_diffusion.gate.plots import change_by_look, loss_by_band
from pytest_diffusion.verdicts.errors import NotApplicable
from pytest_diffusion.verdicts.limits import Limits
from pytest_diffusion.verdicts.verdict import Measurement

_EXACT = "definition: a sound candidate has none where the baseline has none"
OF_PAIRS = [figure for figure in FIGURES if not figure.name.endswith("_loss")]


@check(
    "paired",
    "no part of the candidate is broken where the baseline's is sound",
    figure="tensors of the candidate that are not finite, or constant, where the baseline's are not",
    sees="a broken export; says which parts differ, tokenizers and scheduler among them, and by how much",
    blind_to="whether a change of weights is good",
    fixtures={"comparison": "diffusion_comparison"},
)
def paired_parts(comparison: Comparison) -> Measurement:
    """Number of broken tensors beyond the baseline's; the message says which parts differ, and by how much."""
    parts = comparison.parts
    if parts is None:
        raise NotApplicable(f"{comparison.name} holds scores and no weights, so parts cannot be compared.")
    text = parts.text
    if comparison.is_own_code and not parts.differing:
        text += "; what your own code does with them cannot be seen"
    faults = parts.faults
    hint = f"The first is in {faults[0]}." if faults else ""
    return Measurement(
        float(len(faults)),
        f"{text}; number of broken tensors",
        relation="worse" if faults else "same",
        own_limits=Limits(at_most=0, source=_EXACT, where="gate/checks.py"),
        hint=hint,
        series={"parts": [part.to_json() for part in parts.parts]},
    )


@check(
    "paired",
    "the adapter changes the model",
    figure="norm of the adapter's change, in per cent of the weights that it changes",
    sees="an adapter of zeros",
    blind_to="whether the change is good",
    fixtures={"comparison": "diffusion_comparison"},
)
def paired_lora(comparison: Comparison) -> Measurement:
    """Change of the adapted weights, in per cent of their norm."""
    change = comparison.lora
    if change is None:
        raise NotApplicable("no adapter is given: use --diffusion-lora.")
    return Measurement(
        100 * change.relative,
        f"change of {change.layers} adapted layers by {change.name}",
        "%",
        hint="" if change.relative else "The adapter does nothing: all its weights are zero, or its scale is.",
        relation="same" if change.relative > 0 else "worse",
        own_limits=Limits(
            at_least=1e-6, source="definition: an adapter that changes nothing was not trained, or not saved", where="gate/checks.py"
        ),
    )


@check(
    "paired",
    "no sample of the candidate is broken beyond the baseline's",
    figure="samples with nan or infinity, of one colour, or repeated, beyond the baseline's",
    sees="black frames, overflow in half precision, a collapse to equal images",
    blind_to="everything that is not exact",
    fixtures={"pairs": "diffusion_pairs"},
)
def paired_guards(pairs: PairedRun) -> Measurement:
    """Exact counts on the same prompts and seeds."""
    counts = pairs.broken
    found = pairs.blame.get(GUARDS)
    beyond = {what: max(0, ours - theirs) for what, (ours, theirs) in counts.items()}
    told = ", ".join(f"{ours} {what} (baseline {theirs})" for what, (ours, theirs) in counts.items() if ours > theirs)
    return Measurement(
        float(sum(beyond.values())),
        "number of samples broken beyond the baseline's",
        num_samples=pairs.pairs,
        relation="worse" if told else "same",
        own_limits=Limits(at_most=0, source=_EXACT, where="gate/checks.py"),
        hint=f"Of {pairs.pairs} samples of the candidate, {told}. {found.text if found else ''}".strip() if told else "",
        series={"counts": counts, **({"blame": found.to_json()} if found else {})},
    )


@check(
    "paired",
    "distance to the baseline's images (reported)",
    figure="root mean square distance to the baseline's image of the same seed, as a share of that between two of its seeds",
    sees="nothing that is good or bad by itself: 0 is the same image, 1 another one",
    blind_to="quality; one rounding can move sound images far apart",
    fixtures={"pairs": "diffusion_pairs"},
)
def paired_drift(pairs: PairedRun) -> Measurement:
    """Reported, never judged: images may differ much between sound builds."""
    return drift_of(pairs)


def scorer_checks(values: Sequence[str]) -> list[Check]:
    """A check for each score of the scorers that the user names, made when a run is collected."""
    known = {figure.name for figure in FIGURES}
    names = dict.fromkeys(name for value in values for name in names_of(value) if name not in known)
    return [scorer_check(name) for name in names]


def scorer_check(name: str) -> Check:
    """The check of one score that a user's scorer gives."""
    figure = figure_named(name)
    compare = _comparing(figure)
    return Check(
        compare.__name__,
        "paired",
        _title(figure),
        compare,
        f"change of the {figure.title}",
        plot=change_by_look,
        own_fixtures={"pairs": "diffusion_pairs", "comparison": "diffusion_comparison"},
    )


def _comparing(figure: Figure) -> Callable[[PairedRun, Comparison], Measurement]:
    """The measuring function of one figure of the pairs."""

    def compare(pairs: PairedRun, comparison: Comparison) -> Measurement:
        if reason := pairs.missing.get(figure.name):
            raise reason
        if figure.name not in pairs.decided:
            raise NotApplicable(f"candidate and baseline have no {figure.title} in common.")
        return of_pairs(pairs, figure.name, comparison)

    compare.__name__ = compare.__qualname__ = f"paired_{figure.name}"
    compare.__doc__ = f"Change of the {figure.title}, paired by prompt, seed and initial noise."
    return compare


def _declare(figure: Figure) -> None:
    """A check for one figure of the pairs."""
    check(
        "paired",
        _title(figure),
        figure=f"change of the {figure.title}",
        sees=_SEES[figure.name][0],
        blind_to=_SEES[figure.name][1],
        plot=change_by_look,
        fixtures={"pairs": "diffusion_pairs", "comparison": "diffusion_comparison"},
        uses_reference=figure.name in OF_REFERENCE,
    )(_comparing(figure))


def of_pairs(pairs: PairedRun, name: str, comparison: Comparison) -> Measurement:
    """The measurement of one figure of the pairs."""
    scores = {
        side: rows.scores[name].tolist()
        for side, rows in (("candidate", pairs.candidate), ("baseline", pairs.baseline))
        if name in rows.scores
    }
    return measured(
        pairs.decided[name],
        comparison.figure(name),
        comparison,
        stopped=pairs.is_closed,
        series=scores,
        planned=pairs.planned,
        blame=pairs.blame.get(name),
    )


def _of_losses(run: LossRun, comparison: Comparison) -> Measurement:
    """The measurement of a loss of both models."""
    bands = [list(band) for band in run.bands]
    return measured(
        run.decided,
        comparison.figure(run.figure),
        comparison,
        series={"bands": bands, "evaluations": run.evaluations},
        planned=run.planned,
        what="images",
        remedy=": give more reference images, and raise references in the table [paired] of the thresholds file",
        blame=run.blame,
    )


def _title(figure: Figure) -> str:
    return f"{figure.title} {'unchanged' if figure.direction == 0 else 'no worse than the baseline'}"


_TONE = ("lost guidance, too few steps, a shifted decoder, wrong colours", "what an image shows; a fine-tune that means to change the look")
_SET = ("a change of the whole set that single scores do not show", "rare prompts; few samples")
_SEES = {
    "clip_score": ("a text encoder that lost its effect, a forgotten concept", "fine detail; needs a CLIP that knows the prompts"),
    "alignment": ("shuffled prompts", "what all prompts share"),
    **dict.fromkeys(("brightness", "contrast", "saturation", "sharpness"), _TONE),
    **dict.fromkeys(("fid", "kid", "precision", "coverage", "vendi_score"), _SET),
}


class _Loss(NamedTuple):
    """What the check of a loss says, and the fixture with its run."""

    fixture: str
    title: str
    figure: str
    sees: str
    blind_to: str
    uses_reference: bool = True


_LOSSES = {
    "denoising_loss": _Loss(
        "diffusion_denoising",
        "denoising loss no worse than the baseline's",
        "change of the loss on noised reference images, in per cent of the baseline's, averaged over five noise levels",
        "damage to denoiser, text encoder or declared prediction type, before any image is drawn",
        "sampler, steps, guidance and decoder",
    ),
    "retention_loss": _Loss(
        "diffusion_retention",
        "denoising loss on the retention set no worse than the baseline's",
        "as `paired_denoising_loss`, on the images of --diffusion-retention",
        "what a fine-tune forgot",
        "what the retention set does not show",
        uses_reference=False,
    ),
    "text_encoder_loss": _Loss(
        "diffusion_text_swap",
        "the candidate's text encoders serve it no worse than the baseline's",
        "change of the denoising loss by the candidate's text encoders, in per cent of its loss with those of the baseline",
        "a damaged text encoder or tokenizer, which a fine-tuned denoiser's own change of loss would hide",
        "everything but the text encoders; not measured against a saved baseline",
    ),
    "reconstruction_loss": _Loss(
        "diffusion_reconstruction",
        "error of the VAE's round trip no worse than the baseline's",
        "change of the mean squared error of decoded, encoded reference images, in per cent of the baseline's",
        "a damaged or swapped decoder, swapped channels, before any image is drawn",
        "the denoiser and the sampler",
    ),
}


def _declare_loss(name: str, loss: _Loss) -> None:
    """A check for one of the losses."""

    def compare(run: LossRun, comparison: Comparison) -> Measurement:
        return _of_losses(run, comparison)

    compare.__name__ = compare.__qualname__ = f"paired_{name}"
    compare.__doc__ = f"Change of the {figure_named(name).title}, paired over images, with the same noise for both sides."
    check(
        "paired",
        loss.title,
        figure=loss.figure,
        sees=loss.sees,
        blind_to=loss.blind_to,
        plot=loss_by_band,
        fixtures={"run": loss.fixture, "comparison": "diffusion_comparison"},
        uses_reference=loss.uses_reference,
    )(compare)


for _name, _loss in _LOSSES.items():
    _declare_loss(_name, _loss)
for _figure in OF_PAIRS:
    _declare(_figure)
