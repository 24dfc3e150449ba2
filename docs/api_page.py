"""The page docs/api.md, made of the public names; run `python -m docs.api_page` to write it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest_diffusion

PAGE = Path(__file__).parent / "api.md"
STUB = Path(pytest_diffusion.__file__).with_suffix(".pyi")
LEAD = """# Public names

Everything in `pytest_diffusion.__all__`, by subject. What is not listed here may change in any release. A public name that is to go is
kept for two minor releases with a `DeprecationWarning` that says what takes its place. Outcomes, exit codes, names of options, and the
keys of thresholds files and of `report.json` are held to the same rule."""
HELPERS = """Each judges like the check in its row: by `at_least` and `at_most` where given, else by `thresholds` (a preset or file), with
`min_samples` as in a thresholds file. It returns the verdict, and raises `QualityFailure` where the figure lies beyond its limit and
`InconclusiveFailure` where the samples do not decide. [The four lenses](checks.md) say what each sees and is blind to."""
_JUDGED = ("at_least", "at_most", "min_samples", "thresholds")
_SUBJECTS: tuple[tuple[str, Callable[[str, str], bool]], ...] = (
    ("A candidate and its baseline", lambda module, name: module == "gate.assertions"),
    ("Schedulers", lambda module, name: module == "conformance" or name == "log_snr"),
    ("Figures", lambda module, name: module.startswith("maths")),
    ("Attention", lambda module, name: module.startswith("attention")),
    ("Closed-form models", lambda module, name: module.startswith("analytic")),
    ("Limits and verdicts", lambda module, name: module.startswith("verdicts") or name in ("Thresholds", "load_thresholds")),
    ("Extending", lambda module, name: True),
)


def page() -> str:
    """The whole page."""
    places = {
        alias.name: node.module
        for node in ast.parse(STUB.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    helpers = sorted(name for name, module in places.items() if module == "checks.assertions")
    parts = [LEAD, "## Assertion helpers", HELPERS, _table(helpers)]
    left = {name: module for name, module in places.items() if name not in helpers}
    for title, holds in _SUBJECTS:
        chosen = sorted((name for name, module in left.items() if holds(module, name)), key=str.casefold)
        parts += [f"## {title}", *(f"::: pytest_diffusion.{left.pop(name)}.{name}" for name in chosen)]
    return "\n\n".join(parts) + "\n"


def _table(names: list[str]) -> str:
    rows = ["| helper | takes | asserts that |", "|---|---|---|"]
    for name in names:
        helper = getattr(pytest_diffusion, name)
        taken = [own for own in inspect.signature(helper).parameters if own not in _JUDGED]
        said = (inspect.getdoc(helper) or "").splitlines()[0].removeprefix("Assert: ").removeprefix("Assert that ").rstrip(".")
        rows.append(f"| `{name}` | {', '.join(f'`{one}`' for one in taken)} | {said} |")
    return "\n".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
