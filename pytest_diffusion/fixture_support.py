"""What fixtures share: readable errors, facts for the report, and whether a user has overridden one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from pytest_diffusion.stash import RUN

if TYPE_CHECKING:
    from pytest_diffusion.settings import Settings


@contextmanager
def readable_errors() -> Iterator[None]:
    """Reasons become skips, and known errors one line instead of a traceback through the plugin."""
    from pytest_diffusion.errors import ModelError, NotApplicable, SettingsError

    try:
        yield
    except NotApplicable as reason:
        pytest.skip(str(reason))
    except (ModelError, SettingsError, ImportError) as error:
        pytest.fail(str(error), pytrace=False)


def note(request: pytest.FixtureRequest, settings: Settings, **facts: Any) -> None:
    """Facts of this run for the report; they travel with the next test report.

    A test with a marker of its own runs under other settings, which are not those of the run.
    """
    if "marker" not in settings.sources.values():
        request.config.stash.setdefault(RUN, {}).update(facts)


def describe(pipeline: Any) -> dict[str, Any]:
    """What runs, and where."""
    from pytest_diffusion.adapters import pipelines

    return {
        "pipeline": type(pipeline).__name__,
        "scheduler": type(pipeline.scheduler).__name__,
        "weights": pipelines.fingerprint(pipeline),
        "device": str(pipelines.device_of(pipeline)),
        "dtype": pipelines.dtype_of(pipeline),
    }


def is_overridden(request: pytest.FixtureRequest, name: str) -> bool:
    """Whether a conftest or module redefines a fixture of ours for this test.

    pytest has no public question for it; getfixturedefs has kept its name since pytest 3.
    """
    # The test that asked first: in a session-scoped fixture request.node is the session, which sees no conftest.py.
    manager, item = request.session._fixturemanager, request._pyfuncitem
    return len(manager.getfixturedefs(name, item) or ()) > 1
