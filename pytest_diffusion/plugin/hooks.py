"""The hooks: options, ini names, the marker, collection of the checklist, and the way of verdicts to the reporter.

Nothing heavy is imported here, and nothing of ours runs unless an option, a marker or a fixture asks for it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from pytest_diffusion.config.options import OPTIONS
from pytest_diffusion.config.threads import wait_passively
from pytest_diffusion.plugin.stash import FIGURES, NUMBERS, RUN, SETTINGS, VERDICTS, active_settings, is_given


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the hooks that a conftest.py may implement."""
    from pytest_diffusion.plugin import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add every option and its name in the ini file."""
    group = parser.getgroup("diffusion", "diffusion model quality (pytest-diffusion)")
    # Not in the ini file: a run that judges nothing and exits with 0 must be asked for each time.
    group.addoption("--diffusion-plan", action="store_true", help="say what this run would cost, and judge nothing")
    for option in OPTIONS:
        text = option.help.replace("%", "%%")
        if option.is_switch:
            group.addoption(*option.flags, dest=option.ini, action="store_const", const="true", default=None, help=text)
        elif option.bare:
            group.addoption(*option.flags, dest=option.ini, metavar=option.metavar, nargs="?", const=option.bare, default=None, help=text)
        else:
            action = "append" if option.many else "store"
            group.addoption(*option.flags, dest=option.ini, metavar=option.metavar, action=action, default=None, help=text)
        for name in option.ini_names:
            if option.many:
                parser.addini(name, f"the same as {option.flag}", type="args", default=[])
            else:
                parser.addini(name, f"the same as {option.flag}", default="")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, object, object]:
    """Before anything can go wrong, an earlier report gives way to one that says that this run has not ended."""
    from pytest_diffusion.plugin.course import begin

    begin(early_config)
    try:
        return (yield)
    except SystemExit as error:
        raise pytest.UsageError(f"a conftest.py ended Python while it was loaded: SystemExit({error.code!r}).") from error


def pytest_configure(config: pytest.Config) -> None:
    """Resolve the settings, if there are any, and register the reporter where reports are written."""
    config.addinivalue_line("markers", "diffusion(model=..., num_samples=..., ...): override --diffusion-* options for one test")
    from pytest_diffusion.plugin.history import check_history
    from pytest_diffusion.plugin.progress import show_progress
    from pytest_diffusion.plugin.selection import take_check_ids
    from pytest_diffusion.plugin.usage import check_command_line, check_comparison
    from pytest_diffusion.verdicts.errors import SettingsError

    take_check_ids(config)
    try:
        check_command_line(config)
        if is_given(config):
            wait_passively()
            settings = active_settings(config)[0]
            check_comparison(settings)
            if not hasattr(config, "workerinput"):  # only the controller reads and writes it
                check_history(settings)
            show_progress(config, settings)
    except SettingsError as error:
        raise pytest.UsageError(str(error)) from None
    if not hasattr(config, "workerinput"):
        from pytest_diffusion.plugin.course import watch
        from pytest_diffusion.plugin.reporter import Reporter

        watch(config)
        config.pluginmanager.register(Reporter(config), "diffusion-reporter")


def pytest_unconfigure(config: pytest.Config) -> None:
    """A run that was cut off leaves a report that says so."""
    from pytest_diffusion.plugin.course import end

    end(config)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, object, object]:
    """The last word on the exit code: whatever else happened, 0 needs a gate that was decided."""
    code = yield
    from pytest_diffusion.plugin.course import exit_code

    return exit_code(config, code)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """With `--diffusion-plan`, say what the tests would cost in place of running them."""
    from pytest_diffusion.plugin.plan import is_plan, show_plan

    if not is_plan(session.config):
        return None
    show_plan(session)
    return True


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse options of ours that nothing would use."""
    from pytest_diffusion.plugin.usage import unused_options

    if reason := unused_options(config, items):
        if not hasattr(config, "workerinput"):
            raise pytest.UsageError(reason)
        config.workeroutput["diffusion_unused"] = reason  # type: ignore[attr-defined]


def pytest_report_header(config: pytest.Config) -> list[str] | None:
    """Effective settings and versions, while the plugin is active."""
    if SETTINGS not in config.stash:
        return None
    from pytest_diffusion.plugin.header import header_lines

    return header_lines(config.stash[SETTINGS][0])


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Add the checklist, or the scheduler checks, to what the session collects."""
    report = yield
    if is_given(collector.config, "model"):
        from pytest_diffusion.plugin.overrides import remember

        remember(collector)
    if isinstance(collector, pytest.Session) and report.passed:
        if is_given(collector.config, "model"):
            from pytest_diffusion.plugin.checklist import checklist_of

            settings, _ = active_settings(collector.config)
            report.result = [*report.result, checklist_of(collector, report.result, settings)]
        elif is_given(collector.config, "scheduler"):
            from pytest_diffusion.plugin.scheduler_items import scheduler_checks_of

            settings, _ = active_settings(collector.config)
            report.result = [*report.result, scheduler_checks_of(collector, settings)]
    return report


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test's markers become a parameter of the session's settings, so that fixtures are built anew for it.

    Markers of the function, its class and its module count together; where two say different things, the nearest wins.
    """
    given: dict[str, Any] = {}
    for marker in metafunc.definition.iter_markers("diffusion"):
        given = {**marker.kwargs, **given}
    if not given or "diffusion_settings" not in metafunc.fixturenames:
        return
    from pytest_diffusion.config.settings import override
    from pytest_diffusion.verdicts.errors import SettingsError

    changes = tuple(sorted(given.items()))
    try:
        override(active_settings(metafunc.config)[0], dict(changes))
    except SettingsError as error:
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: {error}") from None
    label = ",".join(f"{name}={value}" for name, value in changes)
    metafunc.parametrize("diffusion_settings", [changes], indirect=True, scope="session", ids=[label])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What our fixtures hold was built from the overrides that the test before saw."""
    from pytest_diffusion.plugin.overrides import refresh

    refresh(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Collect the verdicts of the running test."""
    from pytest_diffusion.verdicts.recording import recording_to

    with recording_to(item.stash.setdefault(VERDICTS, []).append):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put what the test left on pytest's own report."""
    report = yield
    verdicts = item.stash.get(VERDICTS, [])
    numbers, figures = item.stash.get(NUMBERS, []), item.stash.get(FIGURES, [])
    if not verdicts and not numbers and not figures:
        return report
    from pytest_diffusion.plugin.junit import properties
    from pytest_diffusion.verdicts.run import Carried

    # On the item, because JUnit reads the properties of the last report.
    item.user_properties += properties(verdicts)
    facts = item.config.stash[RUN] if RUN in item.config.stash else {}
    declared = getattr(getattr(item, "check", None), "uses_reference", False)
    uses_reference = declared or "diffusion_reference" in getattr(item, "fixturenames", ())
    report.diffusion = Carried(list(verdicts), numbers, figures, dict(facts), uses_reference)  # type: ignore[attr-defined]
    item.stash[VERDICTS].clear()
    item.stash[NUMBERS], item.stash[FIGURES] = [], []
    return report


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable(
    report: pytest.CollectReport | pytest.TestReport,
) -> Generator[None, dict[str, Any] | None, dict[str, Any] | None]:
    """Between the processes of xdist verdicts travel as plain values."""
    carried = report.__dict__.pop("diffusion", None)
    data = yield
    if carried is not None and data is not None:
        report.diffusion = carried  # type: ignore[union-attr]
        data["diffusion"] = carried.to_json()
    return data


@pytest.hookimpl(wrapper=True)
def pytest_report_from_serializable(
    data: dict[str, Any],
) -> Generator[None, pytest.CollectReport | pytest.TestReport | None, pytest.CollectReport | pytest.TestReport | None]:
    """Verdicts from plain values, as another process of xdist sent them."""
    carried = data.pop("diffusion", None)
    report = yield
    if carried is not None and report is not None:
        from pytest_diffusion.verdicts.run import Carried

        report.diffusion = Carried.from_json(carried)  # type: ignore[union-attr]
    return report
