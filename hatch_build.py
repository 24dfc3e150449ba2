"""The package's addresses, as the workflow that publishes it names them: a clone, a fork and a build in another project's job have none."""

import os
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


def project_urls(environment: dict[str, str]) -> dict[str, str]:
    """Addresses by name: of the repository from PYTEST_DIFFUSION_HOME, of the documentation from PYTEST_DIFFUSION_DOCS."""
    home, documentation = (environment.get(f"PYTEST_DIFFUSION_{name}", "").rstrip("/") for name in ("HOME", "DOCS"))
    urls = {"Source": home, "Issues": f"{home}/issues", "Changelog": f"{home}/blob/main/CHANGELOG.md"} if home else {}
    return {**urls, **({"Documentation": documentation} if documentation else {})}


class ProjectUrls(MetadataHookInterface):
    """Fills `[project.urls]` when the package is built."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the addresses to the metadata of pyproject.toml."""
        metadata["urls"] = project_urls(dict(os.environ))
