"""Which tests stay together on a worker of pytest-xdist. Its own `--dist loadgroup` does nothing here, see docs/traps.md."""

import pytest

SPREAD = ("conformance", "families", "meta")
"""Folders whose tests share no costly fixtures: each test goes to whichever worker is free."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What can fill gaps comes last: the tests that are given out one by one, and of these the short ones of the scheduler checks."""
    items.sort(key=lambda item: (bool(set(SPREAD) & set(item.path.parts)), "conformance" in item.path.parts))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `--dist loadfile` the tests of a file stay on one worker, where they share fixtures, except in the folders of `SPREAD`."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return nodeid if set(SPREAD) & set(file.split("/")) else file

    return Scheduling(config, log)
