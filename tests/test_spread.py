"""Tests of a file share a worker, and those of some folders go wherever a worker is free."""

import re


def test_files_stay_together_and_some_folders_are_spread(pytester):
    pytester.makeconftest("from tests.spread import pytest_collection_modifyitems, pytest_xdist_make_scheduler")
    tests = "".join(f"def test_{number}(): pass\n" for number in range(8))
    pytester.makepyfile(test_a=tests, test_b=tests)
    pytester.mkdir("conformance").joinpath("test_c.py").write_text(tests)
    output = pytester.runpytest_subprocess("-n", "2", "--dist", "loadfile", "-v").stdout.str()
    workers = {}
    for worker, file in re.findall(r"\[(gw\d)\].* PASSED (\S+)::", output):
        workers.setdefault(file, []).append(worker)
    assert {file: (len(of), len(set(of))) for file, of in workers.items()} == {
        "test_a.py": (8, 1),
        "test_b.py": (8, 1),
        "conformance/test_c.py": (8, 2),
    }
    # What can fill gaps was given out last.
    assert min(output.rindex(f"PASSED {file}") for file in ("test_a.py", "test_b.py")) < output.index("PASSED conformance")
