"""Where the data folders lie: inside the package in a wheel, beside it in an editable install."""

from __future__ import annotations

from pathlib import Path


def data_folder(name: str) -> Path:
    """Folder `name` ("templates", "thresholds") of an installed or an editable package.

    Raises FileNotFoundError when the installation lacks it.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_data" / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"pytest-diffusion's folder {name!r} is missing beside {package}; install the package again.")
