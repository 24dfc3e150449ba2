"""Mean and covariance of features, computed batch by batch in float64, and their files."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pytest_diffusion.config.cache import written_whole
from pytest_diffusion.maths.tensors import ArrayLike, as_rows, require_finite

_BUFFER = 1024
"""Rows collected before the covariance is updated: updating 2,048² entries for each batch of 32 would be six times slower."""
_CHUNK, _PANEL = 512, 256
UNVERIFIED: Mapping[str, str] = {"statistics": "protocol unverified"}
"""The protocol of a file that records neither extractor nor resize nor count."""


UNREADABLE = (OSError, ValueError, EOFError, TypeError, KeyError, zipfile.BadZipFile, zlib.error)
"""Errors that reading a damaged `.npz` may raise."""


class FeatureStatistics:
    """Mean (D,) and unbiased covariance (D, D), float64, of `count` features; `protocol` records how they were computed.

    Start empty and call `update` with batches, or pass `mean` and `covariance`. `count` is None if a file does
    not record it. The split into batches changes the statistics only by rounding.
    """

    def __init__(
        self,
        mean: ArrayLike | None = None,
        covariance: ArrayLike | None = None,
        count: int | None = None,
        protocol: Mapping[str, Any] | None = None,
    ) -> None:
        if (mean is None) != (covariance is None):
            raise ValueError("FeatureStatistics needs both mean and covariance, or neither.")
        self.protocol = dict(protocol or {})
        self._waiting: list[torch.Tensor] = []
        self._known: tuple[torch.Tensor, torch.Tensor] | None = None
        self._factor: torch.Tensor | None = None
        self._shift = self._sum = self._products = torch.empty(0, dtype=torch.float64)
        self._count: int | None = count if mean is not None else 0
        if mean is not None and covariance is not None:
            self._known = _checked(mean, covariance, "mean", "covariance")

    @classmethod
    def from_features(cls, features: ArrayLike, *, protocol: Mapping[str, Any] | None = None) -> FeatureStatistics:
        """Statistics of features (N, D), N ≥ 2. Raises ValueError for non-finite entries."""
        return cls(protocol=protocol).update(as_rows(features, "features", min_rows=2))

    def update(self, features: ArrayLike) -> FeatureStatistics:
        """These statistics with one more batch (N, D). Raises ValueError if they come from a file without a count."""
        matrix = as_rows(features, "features")
        if self._count is None:
            raise ValueError("these statistics have no count, so no features can be added.")
        if self._known is not None and not len(self._shift):
            self._reopen(*self._known)
        width = len(self._shift) or (self._waiting[0].shape[1] if self._waiting else matrix.shape[1])
        if matrix.shape[1] != width:
            raise ValueError(f"features have {matrix.shape[1]} columns; the batches before had {width}.")
        self._known = self._factor = None
        self._count += len(matrix)
        if len(matrix) >= _BUFFER:
            self._add(matrix)
            return self
        # The caller may reuse the same memory.
        self._waiting.append(matrix.clone())
        if sum(map(len, self._waiting)) >= _BUFFER:
            self._flush()
        return self

    @property
    def count(self) -> int | None:
        """Number of features; None if a file does not record it."""
        return self._count

    @property
    def mean(self) -> torch.Tensor:
        """Mean (D,), float64."""
        return self._settled()[0]

    @property
    def covariance(self) -> torch.Tensor:
        """Unbiased covariance (D, D), float64."""
        return self._settled()[1]

    @property
    def factor(self) -> torch.Tensor:
        """F (D, R) with F Fᵀ = covariance; lower triangular if the covariance has full rank; cached."""
        if self._factor is None:
            self._factor = covariance_factor(self.covariance)
        return self._factor

    def save(self, path: str | Path) -> None:
        """Write an `.npz` with `mu`, `sigma`, `count` and `protocol` (JSON text); other tools read `mu` and `sigma`.

        The file appears only once it is complete.
        """
        path = Path(path)
        arrays: dict[str, NDArray[Any]] = {"mu": self.mean.numpy(), "sigma": self.covariance.numpy()}
        arrays["protocol"] = np.array(json.dumps(self.protocol, sort_keys=True))
        if self.count is not None:
            arrays["count"] = np.array(self.count)
        with written_whole(path) as part, part.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path) -> FeatureStatistics:
        """Statistics from an `.npz` with `mu` and `sigma`, from this package, pytorch-fid, clean-fid, ADM or EDM.

        Files of other tools do not record resize, weights and count: their protocol is "unverified". Raises
        ValueError for other files and for pickled arrays, which are refused because they can run code.
        """
        try:
            # np.load does not close a file that it cannot read.
            with Path(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                keys = set(file.files)
                if not {"mu", "sigma"} <= keys:
                    raise ValueError(f"{path} has the keys {sorted(keys)}; expected 'mu' and 'sigma'.")
                mean, covariance = torch.from_numpy(file["mu"]), torch.from_numpy(file["sigma"])
                count = int(file["count"]) if "count" in keys else None
                protocol = json.loads(str(file["protocol"])) if "protocol" in keys else UNVERIFIED
        except UNREADABLE as error:
            if isinstance(error, FileNotFoundError) or str(error).startswith(str(path)):
                raise
            raise ValueError(f"{path} cannot be read as an .npz of plain arrays: {error}") from None
        mean, covariance = _checked(mean, covariance, "mu", "sigma", f"{path}: ")
        _require_covariance(covariance, f"{path}: sigma")
        return cls(mean, covariance, count=count, protocol=protocol)

    def _settled(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._known is None:
            self._flush()
            if self._count is None or self._count < 2:
                raise ValueError(f"{self._count} features were seen; at least 2 are needed for a covariance.")
            offset = self._sum / self._count
            upper = torch.addr(self._products, offset, offset, alpha=-self._count).div_(self._count - 1).triu_()
            self._known = self._shift + offset, upper + upper.triu(1).T
        return self._known

    def _flush(self) -> None:
        if self._waiting:
            rows, self._waiting = torch.cat(self._waiting), []
            self._add(rows)

    def _add(self, rows: torch.Tensor) -> None:
        """Add rows to the sums of rows and of their products, both relative to the mean of the first rows."""
        for chunk in rows.split(_CHUNK):
            block = chunk.to(torch.float64, copy=True)
            if not len(self._shift):
                self._shift = block.mean(0)
                self._sum = torch.zeros_like(self._shift)
                self._products = torch.zeros(len(self._shift), len(self._shift), dtype=torch.float64)
            block -= self._shift
            self._sum += block.sum(0)
            for start in range(0, len(self._shift), _PANEL):
                # Only the upper triangle, because the products are symmetric.
                self._products[start : start + _PANEL, start:].addmm_(block[:, start : start + _PANEL].T, block[:, start:])

    def _reopen(self, mean: torch.Tensor, covariance: torch.Tensor) -> None:
        assert self._count is not None
        self._shift, self._sum = mean.clone(), torch.zeros_like(mean)
        self._products = covariance * max(self._count - 1, 0)


def covariance_factor(covariance: torch.Tensor) -> torch.Tensor:
    """F (D, R) with F Fᵀ = covariance (D, D) of rank R: by Cholesky for full rank, otherwise from eigenvectors."""
    factor, info = torch.linalg.cholesky_ex(covariance)
    pivots = factor.diagonal().square()
    rounding = len(covariance) * torch.finfo(covariance.dtype).eps
    if int(info) == 0 and float(pivots.min()) > rounding * float(covariance.diagonal().max()):
        lower: torch.Tensor = factor
        return lower
    values, vectors = torch.linalg.eigh(covariance)
    keep = values > rounding * values.max().clamp(min=0)
    spectral: torch.Tensor = vectors[:, keep] * values[keep].sqrt()
    return spectral


def _require_covariance(matrix: torch.Tensor, name: str) -> None:
    """Raise ValueError unless a matrix (D, D) is symmetric and has no negative eigenvalue, as far as float32 can tell."""
    largest = float(matrix.diagonal().abs().max())
    rounding = len(matrix) * torch.finfo(torch.float32).eps * largest
    if float((matrix - matrix.T).abs().max()) > rounding:
        raise ValueError(f"{name} is no covariance: it is not symmetric.")
    _, info = torch.linalg.cholesky_ex(matrix + (rounding + 1e-300) * torch.eye(len(matrix), dtype=matrix.dtype))
    if int(info):
        raise ValueError(f"{name} is no covariance: it has a negative eigenvalue.")


def _checked(
    mean: ArrayLike, covariance: ArrayLike, mean_name: str, covariance_name: str, where: str = ""
) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = (torch.as_tensor(values).detach().to("cpu", torch.float64) for values in (mean, covariance))
    size = len(first) if first.ndim == 1 else -1
    if second.shape != (size, size):
        raise ValueError(
            f"{where}{mean_name} has shape {tuple(first.shape)} and {covariance_name} {tuple(second.shape)}; expected (D,) and (D, D)."
        )
    require_finite(first, where + mean_name)
    require_finite(second, where + covariance_name)
    return first, second
