"""Any `torchmetrics` metric of images, or of images and prompts, as a score of each image: `torchmetrics:package.Class`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import Any

import torch

from pytest_diffusion.features.image_scores import ImageScorer, Scores, names_of
from pytest_diffusion.verdicts.errors import SetupError

_FLAG = "--diffusion-scorer"


def load_metric(value: str, *, device: str, **rest: Any) -> ImageScorer:
    """The metric, made without arguments, and asked for one image at a time.

    A metric whose `update` takes one argument gets images as float32 (1, 3, H, W) in [0, 1]; one that takes two gets them as uint8,
    and a list with the prompt. Of a metric that is better when it is lower, the score is the negative. Raises SetupError for what is no
    metric, what needs arguments, what compares two sets of images, and what does not say which direction is better.
    """
    from torchmetrics import Metric

    module, _, name = value.partition(":")[2].rpartition(".")
    try:
        metric = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError, TypeError, ValueError, OSError, RuntimeError) as error:
        raise SetupError(f"{_FLAG}: {value} cannot be made: {_first(error)}") from error
    if not isinstance(metric, Metric):
        raise SetupError(f"{_FLAG}: {value} is {type(metric).__name__}, and no torchmetrics.Metric.")
    if metric.higher_is_better is None:
        raise SetupError(f"{_FLAG}: {value} does not say whether more of it is better (higher_is_better), so no change can be judged.")
    sign = 1.0 if metric.higher_is_better else -1.0
    count = _arguments(metric)
    if count not in (1, 2):
        raise SetupError(f"{_FLAG}: update of {value} takes {count} arguments; expected images, or images and prompts.")
    metric = metric.to(device).eval()
    (score,) = names_of(value)

    def run(images: torch.Tensor, prompts: Sequence[str] | None) -> Scores:
        if count == 2 and prompts is None:
            raise SetupError(f"{_FLAG}: {value} needs prompts, and the model takes none.")
        found = []
        for index in range(len(images)):
            image = images[index : index + 1].to(device)
            given = (image.float() / 255,) if count == 1 or prompts is None else (image, [prompts[index]])
            metric.reset()
            try:
                metric.update(*given)
                figure = metric.compute()
            except (TypeError, ValueError, RuntimeError, AttributeError) as error:
                raise SetupError(f"{_FLAG}: {value} cannot score an image: {_first(error)}") from error
            if not isinstance(figure, torch.Tensor) or figure.numel() != 1:
                raise SetupError(f"{_FLAG}: {value} gave {_told(figure)} for an image; expected one number.")
            found.append(sign * float(figure))
        metric.reset()
        return {score: torch.tensor(found, dtype=torch.float64)}

    version = str(getattr(importlib.import_module(module.partition(".")[0]), "__version__", ""))
    return ImageScorer((score,), run, version=version)


def _arguments(metric: Any) -> int:
    """How many arguments `update` needs."""
    parameters = inspect.signature(metric.update).parameters.values()
    return sum(one.default is one.empty and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters)


def _first(error: Exception) -> str:
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


def _told(figure: Any) -> str:
    return f"shape {tuple(figure.shape)}" if isinstance(figure, torch.Tensor) else type(figure).__name__
