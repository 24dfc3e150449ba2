"""The package's addresses, taken from the repository that builds it: a clone, a fork and a mirror each name their own, or none."""

import os
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


def project_urls(environment: dict[str, str]) -> dict[str, str]:
    """Addresses by name; empty outside GitHub's and GitLab's jobs. DOCS_URL names documentation that is not on its Pages."""
    if "GITHUB_REPOSITORY" in environment:
        home = f"{environment.get('GITHUB_SERVER_URL', 'https://github.com')}/{environment['GITHUB_REPOSITORY']}"
        owner, name = environment["GITHUB_REPOSITORY"].split("/", 1)
        pages = f"https://{owner.lower()}.github.io/{name}"
    elif "CI_PROJECT_URL" in environment:
        home, pages = environment["CI_PROJECT_URL"], environment.get("CI_PAGES_URL", "")
    else:
        home, pages = "", ""
    documentation = environment.get("DOCS_URL") or pages
    urls = {"Source": home, "Issues": f"{home}/issues", "Changelog": f"{home}/blob/main/CHANGELOG.md"} if home else {}
    return {**urls, **({"Documentation": documentation} if documentation else {})}


class ProjectUrls(MetadataHookInterface):
    """Fills `[project.urls]` when the package is built."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the addresses to the metadata of pyproject.toml."""
        metadata["urls"] = project_urls(dict(os.environ))
