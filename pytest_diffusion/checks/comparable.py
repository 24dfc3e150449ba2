"""What the checks of features share: values and protocols of both sides, and the refusal to compare what was made differently."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

from pytest_diffusion.features.clip import Clip, Scorer
from pytest_diffusion.features.identity import Features
from pytest_diffusion.maths.feature_statistics import FeatureStatistics
from pytest_diffusion.maths.statistics import Estimate
from pytest_diffusion.maths.tensors import ArrayLike
from pytest_diffusion.verdicts.errors import NotApplicable
from pytest_diffusion.verdicts.protocol import require_same_protocol
from pytest_diffusion.verdicts.verdict import Measurement

FeatureLike: TypeAlias = Features | ArrayLike
"""Features of the store, or a tensor or array (N, D)."""


ReferenceLike: TypeAlias = FeatureLike | FeatureStatistics
"""Features of the reference, or statistics of them."""


def with_error(estimate: Estimate, features: FeatureLike, reference: ReferenceLike, **rest: Any) -> Measurement:
    value, error, degrees = estimate
    return Measurement.with_error(value, error, degrees, given_reference=is_fixed(reference), **basis(features, reference), **rest)


def is_fixed(reference: ReferenceLike) -> bool:
    """Whether the reference is the same in every run, so that only the samples vary: features of files, and statistics."""
    return isinstance(reference, Features | FeatureStatistics)


def basis(features: FeatureLike, reference: ReferenceLike, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """Sample counts of both sides and the protocol they share."""
    source = reference_of(reference)
    count = source.count if isinstance(source, FeatureStatistics) else len(source)
    protocol = protocol_of(features)
    if isinstance(source, FeatureStatistics) and "extractor" not in source.protocol:
        protocol["reference"] = "statistics file, protocol unverified"
    versions = getattr(reference, "protocol", {}).get("versions")
    if versions is not None and versions != protocol.get("versions"):
        protocol["reference versions"] = versions
    return {"num_samples": len(values_of(features)), "num_reference": count, "protocol": {**protocol, **(extra or {})}}


def require_comparable(features: FeatureLike, reference: ReferenceLike) -> None:
    """Raise ProtocolMismatchError where both sides say how they were made and differ."""
    # A saved reference outlives an upgrade of torch; `_basis` puts both versions into the protocol.
    require_same_protocol(getattr(features, "protocol", {}), getattr(reference, "protocol", {}), ignore=("versions",))


def protocol_of(features: FeatureLike) -> dict[str, Any]:
    name = {"extractor": extractor_of(features)} if extractor_of(features) else {}
    return {**name, **getattr(features, "protocol", {})}


def statistics_of(features: ReferenceLike) -> FeatureStatistics | None:
    return features if isinstance(features, FeatureStatistics) else getattr(features, "statistics", None)


def values_of(features: FeatureLike) -> torch.Tensor:
    return features.values if isinstance(features, Features) else torch.as_tensor(features)


def extractor_of(features: FeatureLike) -> str:
    return features.extractor if isinstance(features, Features) else ""


def reference_of(reference: ReferenceLike) -> torch.Tensor | FeatureStatistics:
    return reference if isinstance(reference, FeatureStatistics) else values_of(reference)


def reference_values_of(reference: ReferenceLike) -> torch.Tensor:
    if isinstance(reference, FeatureStatistics):
        raise NotApplicable("the reference is a file of statistics; this figure needs the features of single images.")
    return values_of(reference)


def protocol_of_clip(clip: Scorer) -> dict[str, Any]:
    return {"extractor": f"CLIP {clip.name}", **(clip.protocol if isinstance(clip, Clip) else {})}
