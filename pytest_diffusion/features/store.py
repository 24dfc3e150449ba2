"""Features of samples and of references, stored in the cache so that a second run does not extract them again."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from pytest_diffusion.config.cache import REFERENCES, checksum, checksum_of, mark_used
from pytest_diffusion.features.clip import Clip, Scorer
from pytest_diffusion.features.extractors import Extractor
from pytest_diffusion.features.identity import Features
from pytest_diffusion.features.sealed import read_sealed, seal_of, write_sealed
from pytest_diffusion.maths.feature_statistics import FeatureStatistics

Extract = Callable[[torch.Tensor], Features]


class StoredImages(Protocol):
    """Images, uint8 (N, 3, H, W), and the folder in which their features are stored, if any."""

    @property
    def images(self) -> torch.Tensor:
        """The images."""

    @property
    def folder(self) -> Path | None:
        """The folder of their features, or None."""


def stored_features(samples: StoredImages, extractor: Extract) -> Features:
    """Features of the samples, read from the store or extracted and written there; more samples extend the file."""
    return _kept_features(samples.folder, samples.images, extractor)


def stored_reference_features(images: torch.Tensor, extractor: Extract, root: Path) -> Features:
    """Features of reference images, uint8 (M, 3, H, W), stored under `root` by a hash of the images."""
    pixels = (image.contiguous().numpy().data for image in images)
    content = checksum_of(itertools.chain([json.dumps(list(images.shape))], pixels), size=10)
    return _kept_features(root / REFERENCES / content, images, extractor)


def stored_sample_embeds(samples: StoredImages, clip: Scorer) -> torch.Tensor:
    """Unit embeddings (N, D) of the samples, stored beside them; those of a scorer other than `Clip` are computed each time."""
    return stored_features(samples, _as_extractor(clip)).values if isinstance(clip, Clip) else clip.image_embeds(samples.images)


def stored_embeds(images: torch.Tensor, clip: Scorer, root: Path) -> torch.Tensor:
    """Unit embeddings (M, D) of reference images, stored under `root` by a hash of the images."""
    return stored_reference_features(images, _as_extractor(clip), root).values if isinstance(clip, Clip) else clip.image_embeds(images)


def _as_extractor(clip: Clip) -> Extractor:
    return Extractor(f"clip-score:{clip.identity}", lambda batch: (clip.image_embeds(batch), None), resize=clip.resize)


def _kept_features(folder: Path | None, images: torch.Tensor, extractor: Extract) -> Features:
    if folder is None or not isinstance(extractor, Extractor) or extractor.is_own_code:
        return extractor(images)
    path = folder / f"features-{checksum(extractor.name, size=6)}.safetensors"
    tensors = _read(path, extractor, images)
    have = len(tensors["values"]) if tensors else 0
    if have < len(images):
        fresh = extractor(images[have:])
        new = {"values": fresh.values} | ({"probabilities": fresh.probabilities} if fresh.probabilities is not None else {})
        tensors = {name: torch.cat([tensors[name], rows]) if have else rows for name, rows in new.items()}
        write_sealed(path, tensors, {"extractor": extractor.name, "images": _checksums(images)})
    else:
        mark_used(path)
    values = tensors["values"][: len(images)]
    probabilities = tensors["probabilities"][: len(images)] if "probabilities" in tensors else None
    features = Features(values, probabilities, extractor.name, extractor.protocol)
    # The covariance is computed only for more samples than features.
    return replace(features, statistics=_kept_statistics(path, features)) if len(values) > values.shape[1] else features


def _kept_statistics(path: Path, features: Features) -> FeatureStatistics:
    """Mean and covariance of the first N features, from the file beside them or computed and written there.

    The file says of which features it is; another one in its place is not believed.
    """
    about = {"features": seal_of({"values": features.values}, {}), "count": len(features.values), "protocol": features.protocol}
    file = path.with_name(f"statistics-{path.stem.removeprefix('features-')}-{str(about['features'])[:8]}.safetensors")
    kept = read_sealed(file, "statistics")
    if kept is not None and kept.about == json.loads(json.dumps(about)):
        return FeatureStatistics(kept.tensors["mean"], kept.tensors["covariance"], count=len(features.values), protocol=features.protocol)
    statistics = FeatureStatistics.from_features(features.values, protocol=features.protocol)
    write_sealed(file, {"mean": statistics.mean, "covariance": statistics.covariance}, about)
    return statistics


def _read(path: Path, extractor: Extractor, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The stored tensors; empty where the file is missing, damaged, of another extractor or of other images."""
    kept = read_sealed(path, "features")
    if kept is None or kept.about.get("extractor") != extractor.name:
        return {}
    # The images are compared, not the folder's name: they may have been changed in place.
    shared = min(len(images), len(kept.tensors["values"]))
    return kept.tensors if _checksums(images[:shared]) == kept.about["images"][:shared] else {}


def _checksums(images: torch.Tensor) -> list[str]:
    """One checksum for each image, to detect that a longer set begins with a shorter one."""
    return [checksum(image.contiguous().numpy().data, size=8) for image in images]
