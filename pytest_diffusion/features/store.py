"""Features of samples and of references, stored in the cache so that a second run does not extract them again."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from pytest_diffusion.config.cache import REFERENCES, checksum, checksum_of, mark_used
from pytest_diffusion.features.clip import Clip, Scorer
from pytest_diffusion.features.extractors import Extractor
from pytest_diffusion.features.identity import Features
from pytest_diffusion.features.image_scores import ImageScorer
from pytest_diffusion.features.pieces import PIECE, Pieces, Rows
from pytest_diffusion.features.sealed import read_sealed, seal_of, write_sealed
from pytest_diffusion.maths.feature_statistics import FeatureStatistics

Extract = Callable[[torch.Tensor], Features]
Say = Callable[[str], object]
_LOG = logging.getLogger(__name__)
_CLIP = "clip-score:"


class StoredImages(Protocol):
    """Images, uint8 (N, 3, H, W), the folder in which their features are stored, if any, and the size of their shards."""

    @property
    def images(self) -> torch.Tensor:
        """The images."""

    @property
    def folder(self) -> Path | None:
        """The folder of their features, or None."""

    @property
    def shard(self) -> int:
        """Images of a shard, by which their features are computed too."""


def stored_features(samples: StoredImages, extractor: Extract, *, say: Say = _LOG.warning) -> Features:
    """Features of the samples, read from the store or extracted and written there; more samples extend the file."""
    return _kept_features(samples.folder, samples.images, extractor, size=samples.shard, say=say)


def stored_reference_features(images: torch.Tensor, extractor: Extract, root: Path) -> Features:
    """Features of reference images, uint8 (M, 3, H, W), stored under `root` by a hash of the images."""
    pixels = (image.contiguous().numpy().data for image in images)
    content = checksum_of(itertools.chain([json.dumps(list(images.shape))], pixels), size=10)
    return _kept_features(root / REFERENCES / content, images, extractor)


def stored_sample_embeds(samples: StoredImages, clip: Scorer) -> torch.Tensor:
    """Unit embeddings (N, D) of the samples, stored beside them; those of a scorer other than `Clip` are computed each time."""
    return stored_features(samples, clip_extractor(clip)).values if isinstance(clip, Clip) else clip.image_embeds(samples.images)


def stored_embeds(images: torch.Tensor, clip: Scorer, root: Path) -> torch.Tensor:
    """Unit embeddings (M, D) of reference images, stored under `root` by a hash of the images."""
    return stored_reference_features(images, clip_extractor(clip), root).values if isinstance(clip, Clip) else clip.image_embeds(images)


def clip_extractor(clip: Clip) -> Extractor:
    """The image embeddings of a CLIP as features, under a name of their own."""
    return Extractor(f"{_CLIP}{clip.identity}", lambda batch: (clip.image_embeds(batch), None), resize=clip.resize)


def stored_scores(
    samples: StoredImages, scorer: ImageScorer, prompts: Sequence[str] | None, count: int, *, say: Say = _LOG.warning
) -> Rows:
    """The scores of the first `count` samples by name, (count,) float64 each, kept beside them where the scorer says which one it is.

    Those of a scorer without a hash of its weights are computed each time.
    """
    if samples.folder is None or not scorer.weights:
        return scorer(samples.images[:count], prompts[:count] if prompts is not None else None)
    pieces = score_pieces(samples.folder, scorer, samples.images, prompts, size=samples.shard)
    return {name: values[:count] for name, values in pieces.rows(count, say=say).items()}


def score_pieces(
    folder: Path, scorer: ImageScorer, images: torch.Tensor, prompts: Sequence[str] | None, *, first: int = 0, size: int = PIECE
) -> Pieces:
    """Scores of images that begin with sample number `first`, in pieces of `size` samples."""

    def own(rows: range) -> tuple[torch.Tensor, Sequence[str] | None]:
        part = slice(rows.start - first, rows.stop - first)
        return images[part], prompts[part] if prompts is not None else None

    def about(rows: range) -> dict[str, Any]:
        pictures, texts = own(rows)
        told = [checksum(text, size=8) for text in texts] if texts is not None else None
        return {"scorer": scorer.identity, "images": _checksums(pictures), "prompts": told}

    path = folder / f"scores-{checksum(scorer.identity, size=6)}.safetensors"
    return Pieces(path, lambda rows: scorer(*own(rows)), about, f"scores ({', '.join(scorer.names)})", size)


def feature_pieces(folder: Path, extractor: Extractor, images: torch.Tensor, *, first: int = 0, size: int = PIECE) -> Pieces:
    """Features of images that begin with image number `first`, in pieces of `size` images."""

    def own(rows: range) -> torch.Tensor:
        return images[rows.start - first : rows.stop - first]

    def make(rows: range) -> Rows:
        fresh = extractor(own(rows))
        return {"values": fresh.values} | ({"probabilities": fresh.probabilities} if fresh.probabilities is not None else {})

    def about(rows: range) -> dict[str, Any]:
        # The images are compared, not the folder's name: they may have been changed in place.
        return {"extractor": extractor.name, "images": _checksums(own(rows))}

    path = folder / f"features-{checksum(extractor.name, size=6)}.safetensors"
    return Pieces(path, make, about, "CLIP" if extractor.name.startswith(_CLIP) else "features", size)


def _kept_features(
    folder: Path | None, images: torch.Tensor, extractor: Extract, *, size: int = PIECE, say: Say = _LOG.warning
) -> Features:
    if folder is None or not isinstance(extractor, Extractor) or extractor.is_own_code:
        return extractor(images)
    pieces = feature_pieces(folder, extractor, images, size=size)
    tensors = pieces.rows(len(images), say=say)
    mark_used(pieces.path)
    values = tensors["values"][: len(images)]
    probabilities = tensors["probabilities"][: len(images)] if "probabilities" in tensors else None
    features = Features(values, probabilities, extractor.name, extractor.protocol)
    # The covariance is computed only for more samples than features.
    return replace(features, statistics=_kept_statistics(pieces.path, features)) if len(values) > values.shape[1] else features


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


def _checksums(images: torch.Tensor) -> list[str]:
    """One checksum for each image, to detect that a longer set begins with a shorter one."""
    return [checksum(image.contiguous().numpy().data, size=8) for image in images]
