"""The package's addresses, and the report's links to the documentation of its version."""

from importlib.metadata import metadata

import pytest

from hatch_build import project_urls
from pytest_diffusion.config import versions
from pytest_diffusion.report.html import render
from tests.report.test_report import report


def test_a_fork_names_itself():
    urls = project_urls({"GITHUB_REPOSITORY": "Someone/fork", "GITHUB_SERVER_URL": "https://git.example"})
    assert urls["Source"] == "https://git.example/Someone/fork"
    assert urls["Issues"] == "https://git.example/Someone/fork/issues"
    assert urls["Documentation"] == "https://someone.github.io/fork"


def test_gitlab_and_an_address_of_ones_own():
    urls = project_urls({"CI_PROJECT_URL": "https://gitlab.example/a/b", "DOCS_URL": "https://docs.example"})
    assert (urls["Source"], urls["Documentation"]) == ("https://gitlab.example/a/b", "https://docs.example")


def test_a_clone_names_none():
    assert project_urls({}) == {}


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
    assert 'href="https://docs.example/0.1/examples.html#fid"' in render(report())


def test_this_build_says_nothing_untrue():
    assert all("OWNER" not in url for url in metadata("pytest-diffusion").get_all("Project-URL") or [])
