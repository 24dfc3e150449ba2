"""Guards on colours: a wrong value range, channel order or lost colour, which only a comparison of two sets can show."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from pytest_diffusion.checks.guards import FLAT, images_of
from pytest_diffusion.checks.registry import check
from pytest_diffusion.config.cache import checksum
from pytest_diffusion.data.references import Reference
from pytest_diffusion.maths.frechet import frechet_distance
from pytest_diffusion.maths.statistics import jackknife, wilson_interval
from pytest_diffusion.maths.tensors import ArrayLike
from pytest_diffusion.samples.store import Samples
from pytest_diffusion.verdicts.errors import NotApplicable, TooFewSamples
from pytest_diffusion.verdicts.protocol import difference_interval
from pytest_diffusion.verdicts.verdict import Measurement

_GROUPS = 20
_VISIBLE = 16.0
"""Levels of 255 by which a wrong mapping must move the reference to be judged by."""
_LEVELS = torch.arange(256)
_WRONG_RANGES = {
    "[-1, 1] was mapped to [0, 1] twice": (_LEVELS + 255) // 2,
    "[-1, 1] was never mapped to [0, 1]": (2 * _LEVELS - 255).clamp(min=0),
    "[0, 1] was taken for levels of 255": (_LEVELS + 127) // 255,
}


@check(
    "metrics",
    "samples use the value range of the reference",
    figure="gain of a wrong mapping of [−1, 1], [0, 1] and 0 to 255; −1 is right, +1 is wrong",
    sees="images mapped twice or never, by name; skipped where the reference would look alike",
    blind_to="contrast and brightness",
)
def value_range(samples: Samples | ArrayLike, reference: Reference) -> Measurement:
    """How much closer the samples' pixel levels are to the reference's after a wrong mapping of the reference.

    The wrong mappings are: [−1, 1] to [0, 1] twice, [−1, 1] to [0, 1] never, and [0, 1] taken for levels of 255. The
    figure is a difference of two distances between histograms (1-Wasserstein, in levels), divided by the distance that
    the mapping makes in the reference itself: −1 where the range is right, +1 where it is wrong.
    """
    ours, theirs = (_histograms(images) for images in _both(samples, reference))
    moved = {name: _mapped(theirs, levels) for name, levels in _WRONG_RANGES.items()}
    chance = _distance(theirs[::2], theirs[1::2])
    # A mapping that hardly changes the reference could not be seen in the samples.
    moved = {name: wrong for name, wrong in moved.items() if _distance(wrong, theirs) > max(_VISIBLE, 10 * chance)}
    if len(moved) < len(_WRONG_RANGES):
        unseen = [name for name in _WRONG_RANGES if name not in moved]
        raise NotApplicable(f"the reference would look the same if {' or if '.join(unseen)}.")
    best = min(moved, key=lambda name: _distance(ours, moved[name]))

    def gain(left: torch.Tensor, right: torch.Tensor) -> float:
        wrong = _mapped(right, _WRONG_RANGES[best])
        return (_distance(left, right) - _distance(left, wrong)) / _distance(wrong, right)

    estimate = jackknife(gain, ours, theirs, groups=_GROUPS)
    means = [float(side.mean(0) @ torch.arange(256).double()) for side in (ours, theirs)]
    hint = f"Their mean level is {means[0]:.0f} of 255, the reference's {means[1]:.0f}"
    hint += f": they look as if {best}." if estimate.value > 0 else "."
    return Measurement.with_error(
        *estimate, name="gain by another value range", num_samples=len(ours), num_reference=len(theirs), hint=hint
    )


@check(
    "metrics",
    "samples have the channel order of the reference",
    figure="gain of another order of the channels; −1 is right, +1 is wrong",
    sees="BGR for RGB; skipped where the data look alike in every order",
    blind_to="a small change of hue",
)
def channel_order(samples: Samples | ArrayLike, reference: Reference) -> Measurement:
    """How much closer the samples' colours are to the reference's with channels in another order.

    The figure is a difference of two Fréchet distances of mean colours (N, 3), divided by the distance that the same
    swap makes in the reference itself: −1 where the order is right, +1 where it is wrong. Skipped where the
    reference's colours look the same in every order.
    """
    ours, theirs = (_colours(images) for images in _both(samples, reference))
    orders = [list(order) for order in itertools.permutations(range(3)) if order != (0, 1, 2)]
    chance = frechet_distance(theirs[::2], theirs[1::2])
    seen = {tuple(order): frechet_distance(theirs[:, order], theirs) for order in orders}
    telling = [order for order in orders if seen[tuple(order)] > 10 * chance]
    if not telling:
        raise NotApplicable("the reference's colours look alike in every channel order.")
    best = min(telling, key=lambda order: frechet_distance(ours[:, order], theirs))

    def gain(left: torch.Tensor, right: torch.Tensor) -> float:
        return (frechet_distance(left, right) - frechet_distance(left[:, best], right)) / seen[tuple(best)]

    estimate = jackknife(gain, ours, theirs, groups=_GROUPS)
    name = "".join("RGB"[channel] for channel in best)
    hint = f"As {name} the samples fit the reference {'better' if estimate.value > 0 else 'worse'}."
    return Measurement.with_error(
        *estimate, name="gain by another channel order", num_samples=len(ours), num_reference=len(theirs), hint=hint
    )


@check(
    "metrics",
    "samples are as colourful as the reference",
    figure="share of grey samples beyond the reference's",
    sees="lost chroma, a grey reference",
    blind_to="pale colours",
)
def grey_images(samples: Samples | ArrayLike, reference: Reference) -> Measurement:
    """Share of samples without any colour, minus the same share of the reference."""
    ours, theirs = _both(samples, reference)
    grey = [_grey(images) for images in (ours, theirs)]
    shares = [float(flags.double().mean()) for flags in grey]
    intervals = [wilson_interval(int(flags.sum()), len(flags)) for flags in grey]
    hint = ""
    if bool(grey[0].any()):
        first = int(grey[0].nonzero()[0])
        hint = f"{int(grey[0].sum())} samples are grey, the first is sample {first}; of the reference {int(grey[1].sum())}."
    return Measurement(
        shares[0] - shares[1],
        "share of grey samples beyond the reference's",
        interval=difference_interval(shares[0], intervals[0], shares[1], intervals[1]),
        num_samples=len(ours),
        num_reference=len(theirs),
        hint=hint,
    )


@check(
    "metrics",
    "reference images are fit to compare with",
    figure="share of reference images that are constant, repeated, transparent, CMYK, or grey where the samples are in colour",
    sees="a broken data set, with counts and the first of each",
    blind_to="what the images show",
)
def reference_images(reference: Reference, samples: Samples | ArrayLike | None = None) -> Measurement:
    """Share of reference images that are constant, repeat another image, have an alpha channel or are stored in CMYK.

    Where the samples have less than a fourth of the reference's share of grey images, the reference's count too; grey images of
    16 bits are among them.
    """
    if reference.images is None:
        raise NotApplicable("the reference is a file of statistics, whose images cannot be seen.")
    flat = reference.images.flatten(1)
    constant = (flat.max(1).values.int() - flat.min(1).values.int()) < FLAT
    first_of: dict[str, int] = {}
    repeats = [
        first_of.setdefault(checksum(image.contiguous().numpy().data), index) != index for index, image in enumerate(reference.images)
    ]
    found = {
        "constant": constant,
        "repeated": torch.tensor(repeats),
        "with an alpha channel": _flags(reference.alpha, len(flat)),
        "in CMYK": _flags(reference.cmyk, len(flat)),
    }
    grey = _grey(reference.images)
    # A data set may hold some photographs in black and white; its model then draws some too.
    if samples is not None and float(_grey(images_of(samples)[0]).double().mean()) < float(grey.double().mean()) / 4:
        found["grey, though the samples are in colour"] = grey
    wrong = torch.stack(list(found.values())).any(0)
    hint = " ".join(
        f"{int(flags.sum())} {'is' if int(flags.sum()) == 1 else 'are'} {what}, the first {reference.label(int(flags.nonzero()[0]))}."
        for what, flags in found.items()
        if bool(flags.any())
    )
    share = float(wrong.double().mean())
    return Measurement(share, "share of unfit reference images", num_reference=len(flat), hint=hint)


def _both(samples: Samples | ArrayLike, reference: Reference) -> tuple[torch.Tensor, torch.Tensor]:
    if reference.images is None:
        raise NotApplicable("the reference is a file of statistics, whose colours cannot be seen.")
    ours = images_of(samples)[0]
    if min(len(ours), len(reference.images)) < 2 * _GROUPS:
        raise TooFewSamples(f"at least {2 * _GROUPS} images are needed on both sides.")
    return ours, reference.images


def _histograms(images: torch.Tensor) -> torch.Tensor:
    """Share of each level among the pixels of each image: (N, 256), float64."""
    counts = [torch.bincount(image.flatten(), minlength=256) for image in images]
    return torch.stack(counts).double() / images[0].numel()


def _mapped(histograms: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(histograms).index_add_(1, levels, histograms)


def _distance(left: torch.Tensor, right: torch.Tensor) -> float:
    """1-Wasserstein distance in levels between pooled histograms: the area between their cumulative sums."""
    return float((left.mean(0) - right.mean(0)).cumsum(0).abs().sum())


def _colours(images: torch.Tensor) -> torch.Tensor:
    """Mean of each channel of each image: (N, 3), float64."""
    return torch.cat([part.float().mean((2, 3)) for part in images.split(256)]).double()


def _grey(images: torch.Tensor) -> torch.Tensor:
    """Which images have no colour, (N,) bool."""
    parts = [part.int() for part in images.split(256)]
    return torch.cat([(levels.amax(1) - levels.amin(1)).flatten(1).amax(1) <= 2 for levels in parts])


def _flags(indices: Sequence[int], count: int) -> torch.Tensor:
    flags = torch.zeros(count, dtype=torch.bool)
    flags[list(indices)] = True
    return flags
