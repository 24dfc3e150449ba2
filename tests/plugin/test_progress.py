import io
import re
import time

import pytest

from pytest_diffusion.config.progress import shown_by, stage
from pytest_diffusion.plugin.progress import Bars, Lines


def lines(action, *, every=0.05):
    stream = io.StringIO()
    with shown_by(Lines(stream, every=every)):
        action()
    return [line for line in stream.getvalue().split("\n") if line]


def test_a_log_has_a_line_for_the_stage_that_runs():
    def action():
        with stage("generate", 100) as advance:
            advance(25)
            time.sleep(0.13)

    said = lines(action)
    assert len(said) == 2
    assert re.fullmatch(r"diffusion: generate: 25 of 100 images in 0\.\d s, about 0\.\d s left", said[0])


def test_a_stage_that_hangs_is_told_and_one_within_it_speaks_for_itself():
    def action():
        with stage("pairs"):
            time.sleep(0.08)
            with stage("generate", 10):
                time.sleep(0.3)

    said = lines(action)
    assert re.fullmatch(r"diffusion: pairs: 0\.\d s so far", said[0])
    assert any(re.fullmatch(r"diffusion: generate: 0 of 10 images in 0\.\d s", line) for line in said)
    spoke = [line.split(":")[1].strip() for line in said]
    assert "pairs" not in spoke[spoke.index("generate") : len(spoke) - spoke[::-1].index("generate")]


def test_a_stage_that_fails_is_over():
    def action():
        with pytest.raises(KeyError), stage("load"):
            raise KeyError
        time.sleep(0.1)

    assert lines(action) == []


def test_without_anybody_who_shows_it_a_stage_is_silent(capfd):
    with stage("generate", 3) as advance:
        advance(1)
    assert capfd.readouterr() == ("", "")


def test_a_bar_shows_stage_and_share():
    stream = io.StringIO()
    with shown_by(Bars(stream)), stage("features", 40) as advance:
        advance(10)
        time.sleep(0.15)
        advance(10)
    assert "features" in stream.getvalue()
    assert "20/40" in stream.getvalue()


@pytest.mark.parametrize(("how", "shown"), [("log", True), ("off", False)])
def test_the_option_decides(pytester, how, shown):
    pytester.makeconftest("from pytest_diffusion.plugin import progress\nprogress._EVERY = 0.2\n")
    pytester.makepyfile(
        """
        import time
        from pytest_diffusion.config.progress import stage
        def test_long(diffusion_settings):
            with stage("load"):
                time.sleep(0.5)
        """
    )
    options = ["--diffusion-model=demo", "--diffusion-lenses=schedule", f"--diffusion-progress={how}"]
    found = pytester.runpytest_subprocess(*options, "-k", "long")
    assert ("diffusion: load: 0." in found.stderr.str()) == shown, found.stderr.str()


def test_another_word_is_refused(pytester):
    found = pytester.runpytest_subprocess("--diffusion-model=demo", "--diffusion-progress=loud")
    assert found.ret == 4
    found.stderr.fnmatch_lines(["*loud*"])
