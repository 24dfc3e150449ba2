"""The self-test as a check: what is required is caught; without a requirement, what is caught is reported."""

from __future__ import annotations

from typing import Any

from pytest_diffusion.checks.promises import SELFTEST
from pytest_diffusion.checks.registry import Check
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.gate.kinds import required_damages
from pytest_diffusion.gate.selftest import SelfTest
from pytest_diffusion.verdicts.limits import Limits
from pytest_diffusion.verdicts.plain_json import plain
from pytest_diffusion.verdicts.verdict import Measurement


def known_damage(selftest: SelfTest, settings: Settings) -> Measurement:
    """Damages that this gate does not catch on this model."""
    required = required_damages(settings.selftest_require)
    rows: list[dict[str, Any]] = selftest.to_json()["rows"]
    damaged = [row for row in rows if not row["sound"]]
    missed = [row["title"] for row in damaged if not row["caught"] and not row["absolute"]]
    alarms = [row["title"] for row in rows if row["sound"] and row["caught"]]
    told = f"{len(damaged) - len(missed)} of {len(damaged)} kinds of damage are caught"
    told += f"; missed: {', '.join(missed)}" if missed else ""
    told += f". Sound changes that are called worse: {', '.join(alarms)}" if alarms else ""
    if not required:
        return Measurement(float(len(missed)), "number of kinds of damage that this gate misses", num_samples=len(damaged), hint=f"{told}.")
    lacking = selftest.missing(required)
    reasons = "; ".join(f"{name}: {why}" for name, why in lacking.items())
    return Measurement(
        float(len(lacking)),
        "number of required kinds of damage that this gate misses",
        num_samples=len(required),
        own_limits=Limits(at_most=0, source="--diffusion-selftest-require", where="gate/selftest_check.py"),
        hint=f"{reasons}. {told}." if reasons else f"{told}.",
        series={"required": plain([one.text for one in required]), "missing": plain(lacking)},
    )


def selftest_checks(settings: Settings) -> list[Check]:
    """The check, for a run that asks for a self-test. Raises SettingsError for damage that is required and not known."""
    required_damages(settings.selftest_require)
    return [
        Check(
            SELFTEST,
            "selftest",
            "known damage of this model is caught",
            known_damage,
            "kinds of damage that are missed",
            "a gate that is too weak for this model",
            "damage of other kinds than those that are tried",
        )
    ]
