"""Sessions of nox, which run the targets of the Makefile: `nox -l` lists them, `nox -s lint` runs one."""

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "tests"]


def _session(name: str, target: str, told: str) -> None:
    def run(session: nox.Session) -> None:
        session.run("make", target, *session.posargs, external=True)

    run.__doc__ = told
    nox.session(name=name, python=False)(run)


_session("lint", "lint", "ruff, mypy and the import contract.")
_session("tests", "test", "All tests of a landing.")
_session("nightly", "nightly", "Every test, those too that a landing leaves out.")
_session("lowest", "lowest", "The lowest versions that pyproject.toml allows.")
_session("newest", "newest", "The newest versions, on another Python: NEWEST=python3.13.")
_session("docs", "site", "The documentation, strictly.")
_session("mutation", "mutants", "What changes in the code the tests notice; hours, and goes on where it stopped.")
