"""No false alarm: what fails in the installed diffusers is known, one by one, and nothing else fails."""

import diffusers
import pytest

from pytest_diffusion import check_scheduler
from tests.conformance.configurations import CONFIGURATIONS, ZOO, of_checkpoint
from tests.conformance.known_defects import KNOWN, NOT_MADE_BARE, with_always
from tests.nightly import mostly_nightly, nightly

METHODS = {name: set(dir(getattr(diffusers, name))) for name in dir(diffusers) if name.endswith("Scheduler")}
CLASSES = sorted(name for name, methods in METHODS.items() if "set_timesteps" in methods and {"step", "add_noise"} & methods)

SLOW = {"DPMSolverSDEScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "CosineDPMSolverMultistepScheduler"}
AT_NIGHT = nightly("up to a minute, four to eight times as long as others")


def failures(scheduler, expected):
    """What fails; raises where a known defect is gone, so that the table stays true."""
    verdicts = check_scheduler(scheduler, expected_failures=expected, strict=True, raise_on_failure=False)
    unexpected = [verdict.message for verdict in verdicts if verdict.gates]
    assert not unexpected, "\n\n".join(unexpected)
    return {verdict.check for verdict in verdicts if verdict.outcome not in ("pass", "skipped")}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=AT_NIGHT if name in SLOW else []) for name in CLASSES if name not in NOT_MADE_BARE]
)
def test_every_class_in_its_defaults(name):
    expected = KNOWN.get(name, {})
    assert failures(getattr(diffusers, name)(), expected) == set(expected)


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    mostly_nightly(CONFIGURATIONS, "one of six documented configurations runs always", every=6),
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_documented_configurations(name, config, expected):
    expected = with_always(name, expected)
    assert failures(getattr(diffusers, name)(**config), expected) == set(expected)


@pytest.mark.parametrize("checkpoint", sorted(ZOO))
def test_configurations_of_released_checkpoints(checkpoint):
    scheduler = of_checkpoint(checkpoint)
    expected = with_always(type(scheduler).__name__, ZOO[checkpoint])
    assert failures(scheduler, expected) == set(expected)


def test_the_table_names_classes_that_exist():
    assert set(CLASSES) >= set(KNOWN)
    assert set(CLASSES) >= NOT_MADE_BARE
    for name in NOT_MADE_BARE:
        with pytest.raises(TypeError, match="required positional argument"):
            getattr(diffusers, name)()
