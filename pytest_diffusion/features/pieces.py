"""Rows that are computed from images piece by piece, by the processes that share the work, and kept as one sealed file.

A piece has a file of its own until all are there: a process that is killed loses at most the piece that it was computing. What
cannot be written is computed by each process for itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pytest_diffusion.config.cache import CLAIMS
from pytest_diffusion.config.claims import share
from pytest_diffusion.config.progress import stage
from pytest_diffusion.features.sealed import Sealed, read_sealed, write_sealed

PIECE = 512
"""Images in a piece."""
Rows = dict[str, torch.Tensor]
"""Tensors by name, each with one row for each image."""


class Pieces:
    """Rows of images 0 to `count`: the file that holds them, how a part of them is computed, and by what they are known again.

    `about` says of which images (and of what else) a range of rows is; rows in a file that says something else are not believed.
    """

    def __init__(self, path: Path, count: int, make: Callable[[range], Rows], about: Callable[[range], dict[str, Any]], name: str) -> None:
        self.path, self.count, self._make, self._about, self._name = path, count, make, about, name
        self._folder = path.with_suffix("")
        self._ours: dict[range, Rows] = {}

    def rows(self, *, say: Callable[[str], object]) -> Rows:
        """All rows, those that are missing computed and kept."""
        known, have = self._merged()
        if have >= self.count:
            return known
        pieces = [range(max(first, have), min(first + PIECE, self.count)) for first in range(have - have % PIECE, self.count, PIECE)]
        with stage(self._name, self.count - have) as advance:

            def make(piece: range) -> None:
                self._compute(piece, is_only=len(pieces) == 1)
                advance(len(piece))

            try:
                share(pieces, self._folder / CLAIMS, unfinished=self._unfinished, make=make, say=say)
            except OSError:  # a cache that is full or may not be written does not stop the run
                for piece in self._unfinished(pieces):
                    self._compute(piece, is_only=True)
        found = self._joined(known, have, pieces)
        if not self._is_whole():
            write_sealed(self.path, found, self._about(range(self.count)))
        if self._is_whole():
            shutil.rmtree(self._folder, ignore_errors=True)
        return found

    def _compute(self, piece: range, *, is_only: bool) -> None:
        self._ours[piece] = self._make(piece)
        if not is_only:
            write_sealed(self._file(piece), self._ours[piece], self._about(piece))

    def _joined(self, known: Rows, have: int, pieces: Sequence[range]) -> Rows:
        parts = [known] if have else []
        for piece in pieces:
            rows = self._ours.get(piece) or self._of_others(piece)
            if rows is None:
                self._compute(piece, is_only=True)
                rows = self._ours[piece]
            parts.append(rows)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _unfinished(self, pieces: Sequence[range]) -> list[range]:
        if not (self._folder / CLAIMS).is_dir() and self._is_whole():
            return []  # another process has joined the pieces and removed them
        return [piece for piece in pieces if piece not in self._ours and not self._file(piece).is_file()]

    def _is_whole(self) -> bool:
        return self.path.is_file() and self._merged()[1] >= self.count

    def _of_others(self, piece: range) -> Rows | None:
        """A piece that another process made: in its own file, or in the whole one, after which its own is removed."""
        if (kept := read_sealed(self._file(piece), self._name)) is not None and self._fits(kept, piece):
            return kept.tensors
        known, have = self._merged()
        return {name: rows[piece.start : piece.stop] for name, rows in known.items()} if have >= piece.stop else None

    def _merged(self) -> tuple[Rows, int]:
        """What the whole file holds of these images, and how many rows."""
        kept = read_sealed(self.path, self._name)
        if kept is None or not kept.tensors:
            return {}, 0
        held = len(next(iter(kept.tensors.values())))
        shared = range(min(held, self.count))
        if not _is_beginning(self._about(shared), kept.about, len(shared)):
            return {}, 0
        return kept.tensors, held

    def _fits(self, kept: Sealed, piece: range) -> bool:
        return bool(kept.about == json.loads(json.dumps(self._about(piece))))

    def _file(self, piece: range) -> Path:
        return self._folder / f"{piece.start:07d}-{piece.stop:07d}.safetensors"


def _is_beginning(wanted: dict[str, Any], kept: dict[str, Any], count: int) -> bool:
    """Whether what a file says begins with what is wanted; lists have one entry for each image."""
    cut = {name: value[:count] if isinstance(value, list) else value for name, value in kept.items()}
    return bool(json.loads(json.dumps(wanted)) == cut)
