"""A saved baseline: the scores, features, losses and noise floor of a model in one file, without its images and weights.

The file is of safetensors, with a description in JSON and a seal over both. It travels between machines: what is compared later
are scores that were measured on the baseline's own machine, together with its noise floor.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pytest_diffusion.config.cache import StoreWarning, checksum
from pytest_diffusion.config.remote import is_url
from pytest_diffusion.config.remote_files import read_url, write_url
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.features.extractors import Extractor
from pytest_diffusion.features.image_scores import ImageScorer
from pytest_diffusion.features.sealed import read_sealed, write_sealed
from pytest_diffusion.gate.floor import Losses
from pytest_diffusion.gate.parts import Parts, compare_hashes
from pytest_diffusion.gate.side import Rows
from pytest_diffusion.models.capabilities import image_size, is_text_conditioned
from pytest_diffusion.verdicts.errors import SettingsError
from pytest_diffusion.verdicts.plain_json import plain

FORMAT = 1
_RUN = ("steps", "guidance_scale", "seed", "scheduler", "scheduler_config", "dtype", "compile", "memory_format")
"""Settings that must be those of the run in which it was saved."""
_FLAG = "--diffusion-baseline"


@dataclass(frozen=True)
class SavedBaseline:
    """What the file says (`about`, plain JSON) and its tensors."""

    path: str
    tensors: dict[str, torch.Tensor]
    about: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        """For the report: where it came from, and when."""
        kept = {name: self.about[name] for name in ("model", "created", "weights", "device", "versions")}
        return {"name": self.path, **kept, "samples": len(self.about["digests"])}

    @property
    def floors(self) -> dict[str, float]:
        """The noise floor of each figure on the machine where it was saved."""
        return dict(self.about["floors"])

    @property
    def prediction_type(self) -> str:
        """Units of its losses."""
        return str(self.about["prediction_type"])

    def require_fit(self, candidate: Any, settings: Settings) -> None:
        """Raise SettingsError, in one sentence, where the candidate is run otherwise than the baseline was."""
        if self.about["takes_prompts"] != is_text_conditioned(candidate):
            raise SettingsError(
                f"{_FLAG}: only one of {self.path} and {type(candidate).__name__} is conditioned on text, so they cannot be compared."
            )
        own = [*image_size(candidate, settings)]
        if self.about["size"] != own:
            shown = [f"{width}x{height}" for height, width in (self.about["size"], own)]
            raise SettingsError(f"{_FLAG}: {self.path} was saved with images of {shown[0]}, and this run has {shown[1]}.")
        for name in _RUN:
            if self.about.get(name) != plain(getattr(settings, name)):
                flag, saved = f"--diffusion-{name.replace('_', '-')}", self.about.get(name)
                raise SettingsError(
                    f"{_FLAG}: {self.path} was saved with {name}={saved}, and this run has {getattr(settings, name)}; "
                    f"{f'leave {flag} out' if saved in (None, [], ()) else f'give {flag}={saved}'}, or save it again."
                )

    def parts(self, candidate: Any) -> Parts:
        """Which parts of the candidate differ from those of the saved model, by their hashes."""
        return compare_hashes(candidate, self.about["parts"])

    def rows_for(self, scorers: Sequence[ImageScorer], extractor: Extractor | None, prompts: list[str] | None, seeds: list[int]) -> Rows:
        """The scores that a run compares. Raises SettingsError, in one sentence, where they were measured otherwise."""
        held = min(len(self.about["digests"]), len(seeds))
        if prompts is not None and self.about["prompts"][:held] != checksums_of(prompts[:held]):
            raise SettingsError(f"{_FLAG}: {self.path} was saved with other prompts; name the same --diffusion-prompts, or save it again.")
        known = dict(self.about["scorers"])
        for scorer in scorers:
            for name in scorer.names:
                if name not in known:
                    raise SettingsError(f"{_FLAG}: {self.path} holds no scores of {name}; save it again with the same scorers.")
                if known[name] != scorer.identity:
                    raise SettingsError(
                        f"{_FLAG}: {self.path} holds scores of {name} by another version ({known[name]}, here {scorer.identity}); "
                        "scores of two versions are not compared: save it again."
                    )
        features = self.tensors.get("features")
        if extractor is not None and features is None:
            raise SettingsError(f"{_FLAG}: {self.path} holds no features, and this run compares those of {extractor.name}; save it again.")
        if extractor is not None and features is not None and self.about["extractor"] != extractor.name:
            raise SettingsError(
                f"{_FLAG}: {self.path} holds features of {self.about['extractor']}, this run has those of {extractor.name}; save it again."
            )
        scores = {name: self.tensors[f"score.{name}"] for scorer in scorers for name in scorer.names}
        return Rows(
            scores,
            features if extractor is not None else None,
            self.tensors["finite"].bool(),
            self.tensors["constant"].bool(),
            list(self.about["digests"]),
        )

    def losses(self, figure: str, images: torch.Tensor, log_snr: list[float]) -> Losses:
        """The saved losses on the same images. Raises SettingsError where other images were noised, or none."""
        kept = self.about["losses"].get(figure)
        if kept is None:
            raise SettingsError(f"{_FLAG}: {self.path} holds no {figure}; save it again with the same reference and retention set.")
        if len(kept["images"]) < len(images):
            raise SettingsError(
                f"{_FLAG}: {self.path} holds {figure} of {len(kept['images'])} images, and {len(images)} are asked for; save it again."
            )
        if kept["images"][: len(images)] != image_checksums(images):
            raise SettingsError(f"{_FLAG}: {self.path} was saved with other images for {figure}; name the same ones, or save it again.")
        if len(kept["log_snr"]) != len(log_snr) or any(abs(one - two) > 1e-3 for one, two in zip(kept["log_snr"], log_snr, strict=True)):
            raise SettingsError(f"{_FLAG}: {self.path} was saved at other noise levels for {figure}: the noise schedules differ.")
        values = self.tensors[f"loss.{figure}"]
        return lambda count: values[:count]


def save_baseline(to: str, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    """Write a saved baseline to a path or URL, whole or not at all. Raises SettingsError where it cannot be written."""
    if is_url(to):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "own.diffusion"
            save_baseline(str(path), tensors, about)
            write_url(to, path.read_bytes(), "--to")
        return
    write_sealed(Path(to), tensors, {"format": FORMAT, **about})
    if not Path(to).is_file():
        raise SettingsError(f"{to} cannot be written.")


def load_baseline(value: str) -> SavedBaseline:
    """A saved baseline, at a path or URL.

    Raises SettingsError, in one sentence, for a file that is damaged, of another kind or of another version.
    """
    if is_url(value):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "own.diffusion"
            path.write_bytes(read_url(value, _FLAG))
            return _loaded(path, value)
    return _loaded(Path(value), value)


def _loaded(path: Path, value: str) -> SavedBaseline:
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always", StoreWarning)
        found = read_sealed(path, "scores")
    if found is None or "format" not in found.about:
        raise SettingsError(f"{_FLAG}: {value} is damaged, or no file that `pytest-diffusion baseline save` wrote; save it again.")
    if found.about["format"] != FORMAT:
        raise SettingsError(f"{_FLAG}: {value} has format {found.about['format']}, and this version reads {FORMAT}; save it again.")
    return SavedBaseline(value, found.tensors, found.about)


def image_checksums(images: torch.Tensor) -> list[str]:
    """A hash of each image, uint8 (N, 3, H, W)."""
    return [checksum(image.contiguous().numpy().data, size=8) for image in images]


def checksums_of(texts: Sequence[str]) -> list[str]:
    """A hash of each text."""
    return [checksum(text, size=6) for text in texts]
