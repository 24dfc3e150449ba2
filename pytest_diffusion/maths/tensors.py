"""Conversion and checks of inputs: float64, right rank, finite values. Errors give the name and the index."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

ArrayLike: TypeAlias = torch.Tensor | NDArray[np.generic]


def as_matrix(values: ArrayLike, name: str, *, min_rows: int = 1) -> torch.Tensor:
    """Values as a float64 tensor (N, D).

    Raises ValueError for another rank, too few rows, or a non-finite entry (named by row).
    """
    matrix = torch.as_tensor(values).detach().to("cpu", torch.float64)
    if matrix.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(matrix.shape)}; expected (N, D).")
    if len(matrix) < min_rows:
        raise ValueError(f"{name} has {len(matrix)} rows; at least {min_rows} are needed.")
    require_finite(matrix, name)
    return matrix


def as_rows(values: ArrayLike, name: str, *, min_rows: int = 1) -> torch.Tensor:
    """Like `as_matrix`, but float32 stays float32, so that 10,000 rows of 2,048 do not need twice the memory."""
    tensor = torch.as_tensor(values).detach().cpu()
    if tensor.dtype != torch.float32 or tensor.ndim != 2 or len(tensor) < min_rows:
        return as_matrix(values, name, min_rows=min_rows)
    require_finite(tensor, name)
    return tensor


def mean_of_rows(rows: torch.Tensor) -> torch.Tensor:
    """Mean (D,), float64, of rows (N, D), without a float64 copy of all rows."""
    totals = torch.stack([chunk.double().sum(0) for chunk in rows.split(1024)])
    return totals.sum(0) / len(rows)


def shifted(rows: torch.Tensor, origin: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rows (N, D) minus an origin (D,), subtracted in float64 and then rounded to `dtype`, chunk by chunk."""
    result = torch.empty(rows.shape, dtype=dtype)
    for start in range(0, len(rows), 1024):
        result[start : start + 1024] = rows[start : start + 1024].double() - origin
    return result


def same_width(features: torch.Tensor, reference: torch.Tensor) -> None:
    """Raise ValueError unless both matrices have the same number of columns."""
    if features.shape[1] != reference.shape[1]:
        raise ValueError(
            f"features have {features.shape[1]} columns and reference has {reference.shape[1]}; both must come from the same extractor."
        )


def require_finite(values: torch.Tensor, name: str) -> None:
    """Raise ValueError with the number of non-finite entries of `values` and the index of the first one."""
    if bool(torch.isfinite(values.sum())):  # one pass without a mask; if the sum overflows, all entries are checked
        return
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        first = tuple((~finite).nonzero()[0].tolist())
        raise ValueError(f"{name} has {int((~finite).sum())} non-finite entries, the first at index {first}.")
