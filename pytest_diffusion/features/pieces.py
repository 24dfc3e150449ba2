"""Rows that are computed from images piece by piece, by the processes that share the work, and kept as one sealed file.

A piece has a file of its own until all are there: a process that is killed loses at most the piece that it was computing. What
cannot be written is computed by each process for itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from pytest_diffusion.config.claims import CLAIMS, share
from pytest_diffusion.config.progress import stage
from pytest_diffusion.config.published import present, unpublish
from pytest_diffusion.features.sealed import read_sealed, write_sealed
from pytest_diffusion.verdicts.errors import SetupError

PIECE = 512
"""Images in a piece."""
Rows = dict[str, torch.Tensor]
"""Tensors by name, each with one row for each image."""


class Pieces:
    """Rows of images, how a range of them is computed, and by what they are known again.

    `about` says of which images (and of what else) a range of rows is; rows in a file that says something else are not believed.
    """

    def __init__(self, path: Path, make: Callable[[range], Rows], about: Callable[[range], dict[str, Any]], name: str, size: int) -> None:
        self.path, self._make, self._about, self._name, self._size = path, make, about, name, size
        self._folder = path.with_suffix("")
        self._ours: dict[range, Rows] = {}
        self._seen: tuple[tuple[int, int, int], tuple[Rows, int]] | None = None

    def keep(self, piece: range) -> None:
        """Compute and write one piece, of images that this process has just made; what cannot be written is computed later."""
        with suppress(OSError):
            (self._folder / CLAIMS).mkdir(parents=True, exist_ok=True)
            self._compute(piece)

    def rows(self, count: int, *, say: Callable[[str], object]) -> Rows:
        """The rows of images 0 to `count`, or of more: those that are missing are computed and kept."""
        known, have = self._merged(count)
        if have >= count:
            self._discard_pieces()
            return known
        grid = range(have - have % self._size, count, self._size)
        pieces = [range(max(first, have), min(first + self._size, count)) for first in grid]
        with stage(self._name, count - have) as advance:

            def make(piece: range) -> None:
                self._compute(piece)
                advance(len(piece))

            def unfinished(some: Sequence[range]) -> list[range]:
                return self._unfinished(some, count)

            try:
                share(pieces, self._folder / CLAIMS, unfinished=unfinished, make=make, say=say)
            except (OSError, SetupError) as error:  # a cache that is full or may not be written does not stop the run
                if isinstance(error, SetupError) and not isinstance(error.__cause__, OSError):
                    raise
                for piece in unfinished(pieces):
                    make(piece)
        found = self._joined(known, have, pieces, count)
        if not self._is_whole(count):
            write_sealed(self.path, found, self._about(range(count)))
        if self._is_whole(count):
            self._discard_pieces()
        return found

    def _discard_pieces(self) -> None:
        if self._folder.is_dir():
            shutil.rmtree(self._folder, ignore_errors=True)
            unpublish(self._folder)

    def _compute(self, piece: range) -> None:
        self._ours[piece] = self._make(piece)
        write_sealed(self._file(piece), self._ours[piece], self._about(piece))

    def _joined(self, known: Rows, have: int, pieces: Sequence[range], count: int) -> Rows:
        parts = [known] if have else []
        for piece in pieces:
            rows = self._ours.get(piece) or self._of_others(piece, count)
            if rows is None:
                self._compute(piece)
                rows = self._ours[piece]
            parts.append(rows)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _unfinished(self, pieces: Sequence[range], count: int) -> list[range]:
        if self._is_whole(count):
            return []  # another process has joined the pieces and removed them
        there = present(self._file(piece) for piece in pieces if piece not in self._ours)
        return [piece for piece in pieces if piece not in self._ours and self._file(piece) not in there]

    def _of_others(self, piece: range, count: int) -> Rows | None:
        """A piece that another process made: in its own file, or in the whole one, after which its own is removed."""
        kept = read_sealed(self._file(piece), self._name)
        if kept is not None and kept.about == json.loads(json.dumps(self._about(piece))):
            return kept.tensors
        known, have = self._merged(count)
        return {name: rows[piece.start : piece.stop] for name, rows in known.items()} if have >= piece.stop else None

    def _is_whole(self, count: int) -> bool:
        return bool(present([self.path])) and self._merged(count)[1] >= count

    def _merged(self, count: int) -> tuple[Rows, int]:
        """What the whole file holds of the first `count` images or more, and how many rows; looked at again when the file changes."""
        try:
            status = self.path.stat()
            state = (status.st_mtime_ns, status.st_size, count)
        except OSError:
            state = None
        if state is None or self._seen is None or self._seen[0] != state:
            found = self._read(count)
            if state is None:
                return found
            self._seen = state, found
        return self._seen[1]

    def _read(self, count: int) -> tuple[Rows, int]:
        kept = read_sealed(self.path, self._name)
        if kept is None or not kept.tensors:
            return {}, 0
        held = len(next(iter(kept.tensors.values())))
        shared = range(min(held, count))
        return (kept.tensors, held) if _is_beginning(self._about(shared), kept.about, len(shared)) else ({}, 0)

    def _file(self, piece: range) -> Path:
        return self._folder / f"{piece.start:07d}-{piece.stop:07d}.safetensors"


def _is_beginning(wanted: dict[str, Any], kept: dict[str, Any], count: int) -> bool:
    """Whether what a file says begins with what is wanted; lists have one entry for each image."""
    cut = {name: value[:count] if isinstance(value, list) else value for name, value in kept.items()}
    return bool(json.loads(json.dumps(wanted)) == cut)
