"""The reproductions of `docs/findings.md` run, and every entry has one."""

import re
from pathlib import Path

import pytest

from tests.conformance import known_defects

PAGE = (Path(__file__).parents[2] / "docs" / "findings.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("title", "body"), SECTIONS, ids=[title for title, _ in SECTIONS])
@pytest.mark.filterwarnings("ignore")
def test_the_lines_show_the_defect(title, body):
    blocks = re.findall(r"```python\n(.*?)```", body, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, title, "exec"), {})


def test_every_known_defect_is_in_the_table_and_has_a_section():
    numbered = {int(number) for number in re.findall(r"^\| (\d+) \|", PAGE, flags=re.MULTILINE)}
    assert numbered == set(range(1, max(numbered) + 1))
    shown = set()
    for title, _ in SECTIONS:
        ends = [int(number) for number in re.findall(r"(\d+)\.", title.split(" ", 4)[0] + " " + title)]
        shown |= set(range(min(ends), max(ends) + 1))
    assert shown == numbered
    reasons = {reason for expected in known_defects.KNOWN.values() for reason in expected.values()}
    for reason in reasons - known_defects.NO_DEFECTS:
        number = re.search(r"findings, (\d+)\)", reason)
        assert int(number[1]) in numbered if number else re.search(r"#\d+", reason)[0] in PAGE
