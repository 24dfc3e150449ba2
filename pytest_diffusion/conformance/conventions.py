"""What a scheduler takes as the model's output, where nothing declares it: the one convention under which a point mass is kept."""

from __future__ import annotations

import math

from pytest_diffusion.conformance.arrivals import arrivals
from pytest_diffusion.conformance.calls import Crash
from pytest_diffusion.conformance.subject import TOWARDS_DATA, Subject
from pytest_diffusion.models.levels import PREDICTION_TYPES
from pytest_diffusion.verdicts.errors import NotApplicable

NAMES = {
    "epsilon": "the noise",
    "sample": "the image",
    "v_prediction": "the velocity α·noise − σ·image",
    "flow_prediction": "the velocity noise − image",
    TOWARDS_DATA: "the velocity image − noise",
}


def settle_prediction_type(subject: Subject) -> None:
    """Find out by trial what the model is to predict, for a scheduler that does not say so, and is not of a known kind of diffusers.

    The default of its kind is kept where it keeps a point mass; else the nearest convention is taken.
    """
    try:
        if subject.told_prediction_type is not None or subject.is_prediction_declared or subject.is_inverse:
            return
        subject.require_kind()
        if subject.is_of_diffusers and not subject.has_readings:
            return  # its classes have one convention
        default = subject.prediction_type
        kept = {}
        for name in (default, *(one for one in (*PREDICTION_TYPES, TOWARDS_DATA) if one != default)):
            subject.told_prediction_type = name
            kept[name] = _worst_miss(subject)
            if kept[name] <= 1:
                break
        nearest = min(kept, key=kept.__getitem__)
        # Some solvers of known kinds keep a point mass in the limit only, so that no convention does.
        is_told = kept[nearest] <= 1 or (subject.has_readings and math.isfinite(kept[nearest]))
        subject.told_prediction_type = nearest if is_told and nearest != default else None
    except (Crash, NotApplicable):
        subject.told_prediction_type = None


def _worst_miss(subject: Subject) -> float:
    """The largest distance of a step's end from its level, in units of its tolerance; infinite where the loop dies."""
    try:
        found = arrivals(subject, subject.some_count)
        found = found[:-1] or found  # a plan of one step has its end only
    except Exception:
        return math.inf  # a trial: the laws report what is wrong
    misses = [
        max(abs(one.clean - float(one.target.alpha)), abs(one.total - float(one.target.sigma))) / one.tolerance
        for one in found
        if one.step.goes_on
    ]
    worst = max(misses, default=0.0)
    return worst if math.isfinite(worst) else math.inf
