"""Schedulers with one realistic mistake each, and the checks that it breaks. None is known to the suite by name or by class."""

from typing import NamedTuple


class Broken(NamedTuple):
    """A class, its configuration, the checks that it breaks, and the mistake in words."""

    scheduler_class: type
    config: dict
    checks: set
    because: str

    def make(self):
        return self.scheduler_class(**self.config)


BROKEN = []


def breaks(*checks, because, **config):
    """Register a class, made with a configuration, with all checks that it breaks, and the mistake in words."""

    def register(scheduler_class):
        BROKEN.append(Broken(scheduler_class, config, set(checks), because))
        return scheduler_class

    return register
