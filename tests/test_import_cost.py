"""The plugin costs nothing while nobody asks for it; and this test can fail."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "diffusers", "transformers", "numpy", "matplotlib", "jinja2", "hypothesis", "PIL", "safetensors")
PROBE = """
import sys, time
begin = time.process_time()
import pytest
start = time.process_time()
import pytest_diffusion, pytest_diffusion.plugin
for name in pytest_diffusion.plugin.pytest_plugins:
    __import__(name)
spent = time.process_time() - start
{extra}
print("HEAVY", sorted(set({heavy!r}) & set(sys.modules)))
print("SECONDS", spent)
print("SHARE", spent / (start - begin))
"""


def probe(extra=""):
    code = PROBE.format(heavy=HEAVY, extra=extra)
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    return lines[0].removeprefix("HEAVY "), float(lines[1].removeprefix("SECONDS ")), float(lines[2].removeprefix("SHARE "))


def test_loading_imports_nothing_heavy_and_takes_at_most_50_ms():
    runs = [probe() for _ in range(3)]
    assert {heavy for heavy, _, _ in runs} == {"[]"}
    # On a machine that is slow today, pytest's own import says how slow: 50 ms are six tenths of it.
    assert any(seconds <= 0.05 or share <= 0.6 for _, seconds, share in runs), runs


def test_the_probe_sees_each_of_them():
    heavy, _, _ = probe(f"import {', '.join(HEAVY)}")
    assert heavy == str(sorted(HEAVY))


def test_a_run_without_our_options_imports_nothing_heavy(pytester):
    pytester.makepyfile("import sys\ndef test_plain():\n    assert not {'torch', 'diffusers', 'matplotlib', 'jinja2'} & set(sys.modules)\n")
    result = pytester.runpytest_subprocess("-p", "no:hypothesispytest")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*diffusion:*")
    result.stdout.no_fnmatch_line("*diffusion quality*")


def test_every_public_name_exists():
    import pytest_diffusion

    for name in pytest_diffusion.__all__:
        assert getattr(pytest_diffusion, name) is not None
    with pytest.raises(AttributeError, match="attribute nothing"):
        pytest_diffusion.nothing  # noqa: B018
