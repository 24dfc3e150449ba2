"""A check declares all that belongs to it, and all checks are known whatever was imported before."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import pytest_diffusion as pd
from pytest_diffusion.checks import LENS_TITLES, all_checks
from pytest_diffusion.checks.registry import CHECKS, check
from pytest_diffusion.config.thresholds import load_thresholds
from pytest_diffusion.verdicts.verdict import Limits, Measurement

ORDER = """
import sys
for name in sys.argv[1:]:
    __import__(name)
from pytest_diffusion.checks import all_checks
print(*[check.name for check in all_checks()])
"""


@pytest.mark.parametrize("first", [(), ("pytest_diffusion.checks.paths",), ("pytest_diffusion.checks.assertions",)])
def test_all_checks_are_known_in_one_order_whatever_was_imported_before(first):
    result = subprocess.run([sys.executable, "-c", ORDER, *first], capture_output=True, text=True, check=True)
    names = result.stdout.split()
    assert len(names) == len(set(names)) == 82
    assert names[0] == "paired_parts"
    assert names[19] == "alphas_cumprod_monotonic"
    assert names == [one.name for one in all_checks()][:82]


@pytest.mark.parametrize("one", all_checks(), ids=lambda one: one.name)
def test_a_check_says_what_it_measures_sees_and_does_not_see(one):
    assert one.lens in LENS_TITLES
    for text in (one.title, one.figure, one.sees, one.blind_to):
        assert text
        assert not text.endswith(".")
    assert one.function.__doc__


def test_every_check_has_an_assertion_helper():
    helpers = [name for name in pd.__all__ if name.startswith("assert_")]
    named = {(getattr(pd, name).__doc__ or "").partition("Judged as the check `")[2].partition("`")[0] for name in helpers}
    # Those of the comparison share three helpers, which take the margin of the caller.
    assert {one.name for one in all_checks() if one.lens != "paired"} <= named


def test_a_name_is_taken_once_and_a_lens_must_exist():
    with pytest.raises(ValueError, match="There is already a check named 'fid'"):
        check("metrics", "again")(all_checks()[0].function.__class__(compile("def fid(): pass", "", "exec").co_consts[0], {}))
    with pytest.raises(ValueError, match="The lens is 'metric'; expected one of: paired"):
        check("metric", "a title")


def test_a_check_of_ones_own_has_limits_and_fixtures_of_its_own():
    try:

        @check("metrics", "a title", limits=Limits(at_most=1.0, source="me"), fixtures={"thing": "my_thing"})
        def own_check_of_this_test(thing, samples):
            return Measurement(float(thing))

        one = CHECKS["own_check_of_this_test"]
        assert one.fixtures == {"thing": "my_thing", "samples": "diffusion_samples"}
        assert all_checks()[-1] is one
        assert load_thresholds([]).for_check(one.name) is None
        assert one.limits.at_most == 1.0
    finally:
        CHECKS.remove("own_check_of_this_test")


def test_the_page_of_checks_is_made_of_the_declarations():
    from docs.checks_page import page

    written = (Path(__file__).parents[2] / "docs" / "checks.md").read_text(encoding="utf-8")
    assert written == page(), "run: python -m docs.checks_page"


def test_every_check_has_an_example_of_a_pass_and_of_a_fail():
    from tests.checks.test_subjects import SUBJECTS

    folder = Path(__file__).parents[2] / "docs"
    written = (folder / "examples.md").read_text(encoding="utf-8")
    by_name = {part.partition("\n")[0]: part for part in written.split("\n### ")[1:]}
    assert sorted(by_name) == sorted(SUBJECTS), "run: python -m docs.examples_page"
    for name, part in by_name.items():
        picture = folder / "images" / "checks" / f"{name}.png"
        assert picture.is_file(), "run: python -m docs.examples_page"
        assert f"(images/checks/{name}.png)" in part
        assert "\n- **pass**: " in part
        assert "\n- **fail**: " in part
    assert {path.stem for path in (folder / "images" / "checks").iterdir()} == set(by_name)


def test_an_example_s_two_sides_are_drawn(tmp_path, monkeypatch):
    from docs import examples_page
    from tests.checks.test_subjects import SUBJECTS

    monkeypatch.setattr(examples_page, "PICTURES", tmp_path)
    text = examples_page.example(next(check for check in all_checks() if check.name == "slerp_smooth"), SUBJECTS["slerp_smooth"]())
    assert text.index("- **pass**: ") < text.index("- **fail**: ")
    with Image.open(tmp_path / "slerp_smooth.png") as drawn:
        assert drawn.width == 2 * examples_page.WIDTH
