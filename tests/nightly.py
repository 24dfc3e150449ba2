"""What is too long for each landing and runs with NIGHTLY=1; a part of it runs always."""

import os

import pytest

IS_NIGHT = bool(os.environ.get("NIGHTLY"))


def nightly(reason):
    """A mark for a test that runs at night only."""
    return pytest.mark.skipif(not IS_NIGHT, reason=f"{reason}; NIGHTLY=1 runs it")


def mostly_nightly(cases, reason, *, every):
    """Cases, each a tuple of arguments, of which one in `every` runs always, and the others at night."""
    return [pytest.param(*case, marks=() if place % every == 0 else nightly(reason)) for place, case in enumerate(cases)]
