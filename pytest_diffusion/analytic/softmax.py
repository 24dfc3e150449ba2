"""A softmax-weighted mean, computed block by block: the blocks and their order change it only by rounding."""

from __future__ import annotations

import torch


class StreamingSoftmax:
    """Σ softmax(logits)·values, updated block by block with a running log-sum-exp. Source: Milakov & Gimelshein, arXiv:1805.02867."""

    def __init__(self) -> None:
        self._largest: torch.Tensor | None = None
        self._total = self._weighted = torch.zeros(())

    def add(self, logits: torch.Tensor, values: torch.Tensor) -> None:
        """Add one block: logits (N, m) and values (m, D). Logits (N, m, D) give each dimension its own weights."""
        own = logits.ndim == 3
        largest = logits.amax(1)
        if self._largest is not None:
            largest = torch.maximum(largest, self._largest)
        weights = (logits - largest[:, None]).exp_()
        total = weights.sum(1)
        weighted = torch.einsum("nmd,md->nd", weights, values) if own else weights @ values
        if self._largest is not None:
            kept = (self._largest - largest).exp()
            total = total + self._total * kept
            weighted = weighted + self._weighted * (kept if own else kept[:, None])
        self._largest, self._total, self._weighted = largest, total, weighted

    def mean(self) -> torch.Tensor:
        """The mean (N, D) over all blocks. Raises ValueError if no block was added."""
        if self._largest is None:
            raise ValueError("no block was added.")
        return self._weighted / (self._total if self._total.ndim == self._weighted.ndim else self._total[:, None])
