"""What a user's typed test file looks like; CI checks its types against the installed wheel with mypy and pyright."""

import torch

from pytest_diffusion import (
    FeatureStatistics,
    Limits,
    Measurement,
    Verdict,
    assert_fid_below,
    check,
    check_scheduler,
    frechet_distance,
    judge,
    log_snr,
    slerp,
)


def distance_of(features: torch.Tensor, reference: torch.Tensor) -> float:
    return frechet_distance(FeatureStatistics.from_features(features), reference)


def verdict_on(value: float) -> Verdict:
    return judge("sharpness", Measurement(value, "sharpness"), Limits(at_least=0.5, source="our last release"))


def half_way(start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    return slerp(start, end, 0.5)


@check("metrics", "samples are sharp")
def sharpness(features: torch.Tensor) -> Measurement:
    return Measurement(float(features.std()), "sharpness")


def test_types(scheduler: object) -> None:
    verdicts: list[Verdict] = check_scheduler(scheduler, raise_on_failure=False)
    assert verdicts[0].outcome in ("pass", "fail", "inconclusive", "skipped")
    curve: torch.Tensor = log_snr(scheduler)
    assert_fid_below(curve[:, None], curve[:, None], at_most=1.0, min_samples=2)
