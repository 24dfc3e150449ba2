"""Pictures as data URIs: matplotlib figures and image tensors that a user's test attaches."""

from __future__ import annotations

import base64
import io
from typing import Any


def picture_uri(figure: Any) -> str:
    """A PNG data URI of a matplotlib figure, or of a uint8 tensor (3, H, W).

    Raises TypeError for anything else.
    """
    if hasattr(figure, "savefig"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    if hasattr(figure, "permute") and getattr(figure, "ndim", 0) == 3:
        from pytest_diffusion.checks.thumbnails import data_uri

        return data_uri(figure)
    raise TypeError(f"A figure for the report is a matplotlib Figure or a uint8 tensor (3, H, W); got {type(figure).__name__}.")
