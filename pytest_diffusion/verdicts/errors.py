"""Exception types, and the one builder of messages: what was seen, what was allowed, what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

from pytest_diffusion.verdicts.text import shown

if TYPE_CHECKING:
    from pytest_diffusion.verdicts.verdict import Verdict


class _Shown(Exception):  # noqa: N818 - a part of errors
    """An error whose text may hold names and texts of files: it is shown without control characters and credentials."""

    def __str__(self) -> str:
        return shown(super().__str__())


class SettingsError(_Shown, ValueError):
    """A wrong option, ini value, marker argument or thresholds file; the plugin turns it into a usage error."""


class ModelError(_Shown, RuntimeError):
    """A model, reference or sample set that cannot be used as it is."""


class SetupError(ModelError):
    """The measuring itself is broken: extractor, reference or pairs. It says nothing about the model."""


class NotApplicable(_Shown):
    """Raised by a check that cannot see what it needs; becomes the verdict `skipped` with this reason."""


class TooFewSamples(NotApplicable):
    """Raised by a check that needs more samples to say anything; where a limit holds, the verdict is `undersampled`."""


class QualityFailure(AssertionError):  # noqa: N818 - named as pytest names its own
    """A measured figure lies outside its limits. Fields: `verdict`."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.message)
        self.verdict = verdict


class InconclusiveFailure(QualityFailure):
    """A figure that cannot be told from its limit, that rests on too few samples, or that could not be measured."""


class ConformanceFailure(AssertionError):  # noqa: N818 - named as pytest names its own
    """A scheduler fails scheduler checks. Fields: `verdicts`, one for each."""

    def __init__(self, name: str, verdicts: Sequence[Verdict]) -> None:
        names = ", ".join(verdict.check for verdict in verdicts)
        texts = "\n\n".join(verdict.message for verdict in verdicts)
        super().__init__(f"{name} fails {len(verdicts)} of the scheduler checks: {names}.\n\n{texts}")
        self.verdicts = list(verdicts)


def unknown_name(what: str, seen: str, choices: Iterable[str]) -> str:
    """One line: an unknown name, the nearest choice if there is one, and all choices."""
    choices = sorted(choices)
    return f"{what} is {seen!r}; expected one of: {', '.join(choices)}.{nearest(seen, choices)}"


def nearest(seen: str, choices: Iterable[str]) -> str:
    """A question that names the nearest choice; empty where none is near."""
    close = get_close_matches(seen, sorted(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def missing_package(package: str, purpose: str, install: str) -> ImportError:
    """The error for an optional package that is not there, naming the command that installs it."""
    return ImportError(f"{purpose} needs {package}, which cannot be imported. Install it with: pip install {install}")
