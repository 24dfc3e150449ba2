"""Samples, features and scores of a run, made by any number of processes and judged by none.

torchrun --nproc-per-node=8 -m pytest_diffusion.generate --diffusion-model=... takes the options and the ini file of pytest, and so
does `accelerate launch -m`. The gate that runs with the same options afterwards finds all in the store.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Make this process's share and wait for the others'; returns the exit status."""
    import pytest

    from pytest_diffusion.plugin.generation import Generation

    given = sys.argv[1:] if arguments is None else arguments
    # This module is part of a plugin whose asserts pytest would rewrite, and it is loaded before pytest.
    unheard = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return int(pytest.main([*given, *unheard, "-p", "no:cacheprovider"], plugins=[Generation()]))


if __name__ == "__main__":
    sys.exit(main())
