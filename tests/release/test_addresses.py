"""The package's addresses, and the report's links to the documentation of its version."""

import pytest

from hatch_build import project_urls
from pytest_diffusion.config import versions
from pytest_diffusion.report.html import render
from tests.report.test_kinds import entry
from tests.report.test_report import report, verdicts


def test_the_publishing_workflow_names_the_addresses():
    urls = project_urls({"PYTEST_DIFFUSION_HOME": "https://git.example/a/b", "PYTEST_DIFFUSION_DOCS": "https://docs.example/"})
    assert urls == {
        "Source": "https://git.example/a/b",
        "Issues": "https://git.example/a/b/issues",
        "Changelog": "https://git.example/a/b/blob/main/CHANGELOG.md",
        "Documentation": "https://docs.example",
    }


@pytest.mark.parametrize(
    "environment", [{}, {"PYTEST_DIFFUSION_HOME": ""}, {"GITHUB_REPOSITORY": "user/model", "CI_PROJECT_URL": "https://x"}]
)
def test_a_clone_and_a_job_of_another_project_name_none(environment):
    assert project_urls(environment) == {}


@pytest.mark.parametrize(("address", "expected"), [("https://docs.example/", "https://docs.example/0.1/"), (None, "")])
def test_the_documentation_is_that_of_the_version(monkeypatch, address, expected):
    class Known:
        def get_all(self, name):
            assert name == "Project-URL"
            return [f"Documentation, {address}", "Source, https://git.example"] if address else None

    monkeypatch.setattr(versions, "metadata", lambda name: Known())
    monkeypatch.setattr(versions, "version", lambda name: "0.1.3")
    assert versions.documentation() == expected


def test_rows_lead_to_their_place_in_the_documentation(monkeypatch):
    assert "in the documentation" not in render(report())  # this clone has no address
    monkeypatch.setattr("pytest_diffusion.report.html.documentation", lambda: "https://docs.example/0.1/")
    page = render(report([*verdicts(), entry("paired_fid", lens="paired")]))
    assert 'href="https://docs.example/0.1/examples.html#fid"' in page
    assert "examples.html#paired_fid" not in page  # the examples have one picture for all of them
