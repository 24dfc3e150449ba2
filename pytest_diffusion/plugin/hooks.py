"""The pytest plugin: options, ini twins, the marker, collection of the checklist, and the way of verdicts to the report.

Nothing heavy is imported here, and nothing of ours runs unless an option, a marker or a fixture asks for it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from pytest_diffusion.config.settings import OPTIONS
from pytest_diffusion.plugin.stash import NOTES, NUMBERS, RUN, SETTINGS, VERDICTS, active_settings


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("diffusion", "diffusion model quality (pytest-diffusion)")
    for option in OPTIONS:
        text = option.help.replace("%", "%%")
        group.addoption(
            option.flag, dest=option.ini, metavar=option.metavar, action="append" if option.many else "store", default=None, help=text
        )
        if option.many:
            parser.addini(option.ini, f"the same as {option.flag}", type="args", default=[])
        else:
            parser.addini(option.ini, f"the same as {option.flag}", default="")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "diffusion(model=..., num_samples=..., ...): override --diffusion-* options for one test")
    if _is_active(config):
        from pytest_diffusion.verdicts.errors import SettingsError

        try:
            active_settings(config)
        except SettingsError as error:
            raise pytest.UsageError(str(error)) from None
    if not hasattr(config, "workerinput"):
        from pytest_diffusion.plugin.reporter import Reporter

        config.pluginmanager.register(Reporter(config), "diffusion-reporter")


def pytest_report_header(config: pytest.Config) -> list[str] | None:
    if SETTINGS not in config.stash:
        return None
    from pytest_diffusion.plugin.header import header_lines

    return header_lines(config.stash[SETTINGS][0])


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if isinstance(collector, pytest.Session) and report.passed:
        if _is_given(collector.config, "model"):
            from pytest_diffusion.plugin.checklist import checklist_of

            settings, _ = active_settings(collector.config)
            report.result = [*report.result, checklist_of(collector, report.result, settings)]
        elif _is_given(collector.config, "scheduler"):
            from pytest_diffusion.plugin.scheduler_items import scheduler_checks_of

            settings, _ = active_settings(collector.config)
            report.result = [*report.result, scheduler_checks_of(collector, settings)]
    return report


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test's marker becomes a parameter of the session's settings, so that fixtures are built anew for it."""
    marker = metafunc.definition.get_closest_marker("diffusion")
    if marker is None or not marker.kwargs or "diffusion_settings" not in metafunc.fixturenames:
        return
    from pytest_diffusion.config.settings import override
    from pytest_diffusion.verdicts.errors import SettingsError

    changes = tuple(sorted(marker.kwargs.items()))
    try:
        override(active_settings(metafunc.config)[0], dict(changes))
    except SettingsError as error:
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: {error}") from None
    label = ",".join(f"{name}={value}" for name, value in changes)
    metafunc.parametrize("diffusion_settings", [changes], indirect=True, scope="session", ids=[label])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    from pytest_diffusion.verdicts.recording import recording_to

    verdicts = item.stash.setdefault(VERDICTS, [])
    with recording_to(lambda verdict: verdicts.append(verdict.to_json())):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Verdicts travel on pytest's own report as plain values, so that xdist carries them."""
    report = yield
    verdicts = item.stash.get(VERDICTS, [])
    notes = {"numbers": item.stash.get(NUMBERS, []), "figures": item.stash.get(NOTES, [])}
    if not verdicts and not any(notes.values()):
        return report
    # On the item, because JUnit reads the properties of the last report.
    for verdict in verdicts:
        measurement: dict[str, Any] | None = verdict["measurement"]
        if measurement is not None:
            item.user_properties.append((f"diffusion.{verdict['check']}", measurement["value"]))
        item.user_properties.append((f"diffusion.{verdict['check']}.outcome", verdict["outcome"]))
    # An attribute of its own travels with the report, xdist included.
    report.diffusion = {"verdicts": list(verdicts), "notes": notes, "run": item.config.stash.get(RUN, None) or {}}  # type: ignore[attr-defined]
    item.stash[VERDICTS].clear()
    for key in (NUMBERS, NOTES):
        item.stash[key] = []
    return report


def _is_given(config: pytest.Config, name: str) -> bool:
    return bool(config.getoption(f"diffusion_{name}") or config.getini(f"diffusion_{name}"))


def _is_active(config: pytest.Config) -> bool:
    return any(config.getoption(option.ini) or config.getini(option.ini) for option in OPTIONS)
