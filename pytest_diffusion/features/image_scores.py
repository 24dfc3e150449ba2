"""Scores of images, one number each, with or without their prompts: what a candidate and its baseline are compared by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F

from pytest_diffusion.config.sources import load_source
from pytest_diffusion.data.batches import batch_size_of
from pytest_diffusion.data.hub import why
from pytest_diffusion.data.objects import load_object
from pytest_diffusion.data.prompts import foreign_prompts
from pytest_diffusion.features.clip import Clip, Scorer, load_clip
from pytest_diffusion.features.extractors import load_dinov2
from pytest_diffusion.features.identity import tensors_hash
from pytest_diffusion.maths.scores import clip_scores
from pytest_diffusion.verdicts.errors import SetupError

Scores = dict[str, torch.Tensor]
"""Values (N,), float64, by the name of the score."""
TONES = ("brightness", "contrast", "saturation", "sharpness")
_LUMINANCE = torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None]


@dataclass(frozen=True)
class ImageScorer:
    """A function of uint8 images (N, 3, H, W) and their prompts that gives one value for each image, by the name of the score.

    `version` and `weights` (a hash) say which scorer it was: values of two that differ are not compared.
    """

    names: tuple[str, ...]
    run: Callable[[torch.Tensor, Sequence[str] | None], Scores]
    version: str = ""
    weights: str = ""
    batch_size: int = 64

    @property
    def identity(self) -> str:
        """Names, version and weights in one text."""
        return " ".join(filter(None, (",".join(self.names), self.version, self.weights)))

    def __call__(self, images: torch.Tensor, prompts: Sequence[str] | None) -> Scores:
        """All scores of the images, in batches. Raises SetupError for values that are not one finite number for each image."""
        if not len(images):
            return {name: torch.zeros(0, dtype=torch.float64) for name in self.names}

        def part(rows: slice) -> Scores:
            return self.run(images[rows], prompts[rows] if prompts is not None else None)

        with torch.no_grad():
            parts = batch_size_of(self.run, self.batch_size).parts(len(images), part)
        found = {name: torch.cat([torch.as_tensor(one[name]).detach().cpu().double().flatten() for one in parts]) for name in self.names}
        for name, values in found.items():
            if len(values) != len(images) or not bool(values.isfinite().all()):
                what = f"{len(values)} values" if len(values) != len(images) else "values that are not finite"
                raise SetupError(f"--diffusion-scorer: {name} gave {what} for {len(images)} images; expected one finite number for each.")
        return found


def tone_scorer() -> ImageScorer:
    """Brightness, contrast, saturation and sharpness: means over an image that change when guidance, steps or colours are lost."""
    return ImageScorer(TONES, _tones, version="1")


def _tones(images: torch.Tensor, prompts: Sequence[str] | None) -> Scores:
    pixels = images.float() / 255
    light = (pixels * _LUMINANCE).sum(1)
    across, down = light.diff(dim=2).square().flatten(1).mean(1), light.diff(dim=1).square().flatten(1).mean(1)
    values = (
        light.flatten(1).mean(1),
        light.flatten(1).std(1),
        (pixels.amax(1) - pixels.amin(1)).flatten(1).mean(1),
        (across + down).sqrt(),
    )
    return dict(zip(TONES, values, strict=True))


def clip_scorer(clip: Scorer, prompts: Sequence[str], *, name: str = "clip_score", alignment: str = "alignment") -> ImageScorer:
    """100 times the cosine between image and prompt, and its lead over the cosine with a foreign prompt (arXiv:2104.08718).

    `prompts` are those of the whole run, of which each has its foreign one, whatever the batch.
    """
    foreign = dict(zip(prompts, foreign_prompts(prompts), strict=True))

    def run(images: torch.Tensor, prompts: Sequence[str] | None) -> Scores:
        assert prompts is not None
        embeds, own = clip.image_embeds(images), clip.text_embeds(prompts)
        scores = clip_scores(embeds, own)
        return {name: scores, alignment: scores - clip_scores(embeds, clip.text_embeds([foreign[prompt] for prompt in prompts]))}

    weights = clip.identity if isinstance(clip, Clip) else ""
    return ImageScorer((name, alignment), run, version="1", weights=weights)


def load_scorer(
    value: str, *, device: str, prompts: Sequence[str], clip: Callable[[], Scorer], subject: Callable[[], torch.Tensor]
) -> ImageScorer:
    """The scorer that `--diffusion-scorer` names. `clip` and `subject` give the run's CLIP and the subject's pictures.

    Raises SetupError, with the reason, where it cannot be loaded.
    """
    scorer: ImageScorer = load_source("score", value, device=device, prompts=prompts, clip=clip, subject=subject)
    names = names_of(value)
    if len(scorer.names) != len(names):
        raise SetupError(f"--diffusion-scorer: {value} gives the scores {', '.join(scorer.names)}; expected {len(names)}.")
    return scorer if scorer.names == names else _renamed(scorer, names)


def names_of(value: str) -> tuple[str, ...]:
    """The names of the scores that a value of `--diffusion-scorer` gives, known before anything is loaded."""
    kind, _, rest = value.partition(":")
    if kind == "clip":
        return (f"clip_{_short(rest)}", f"alignment_{_short(rest)}") if rest else ("clip_score", "alignment")
    if kind in ("dinov2", "vlm") and rest:
        return (f"{'subject' if kind == 'dinov2' else kind}_{_short(rest)}",)
    return (_short(rest.rpartition(".")[2] if kind == "torchmetrics" else rest or value),)


def _renamed(scorer: ImageScorer, names: tuple[str, ...]) -> ImageScorer:
    def run(images: torch.Tensor, prompts: Sequence[str] | None) -> Scores:
        found = scorer.run(images, prompts)
        return {new: found[old] for old, new in zip(scorer.names, names, strict=True)}

    return replace(scorer, names=names, run=run)


def load_own_clip(value: str, *, clip: Callable[[], Scorer], prompts: Sequence[str], **rest: Any) -> ImageScorer:
    """The CLIP of `--diffusion-clip-model`."""
    return clip_scorer(clip(), prompts)


def load_clip_shaped(value: str, *, device: str, prompts: Sequence[str], **rest: Any) -> ImageScorer:
    """Another model with CLIP's shape, such as a preference model: `clip:PATH_OR_ID`."""
    score, alignment = names_of(value)
    return clip_scorer(load_clip(value.partition(":")[2], device=device), prompts, name=score, alignment=alignment)


def load_subject_similarity(value: str, *, device: str, subject: Callable[[], torch.Tensor], **rest: Any) -> ImageScorer:
    """100 times the mean cosine between an image and the pictures of a subject, by a DINOv2 (arXiv:2208.12242): `dinov2:PATH_OR_ID`."""
    extractor = load_dinov2(value, device=device)
    pictures = F.normalize(extractor(subject()).values, dim=1)

    def run(images: torch.Tensor, prompts: Sequence[str] | None) -> Scores:
        return {name: 100 * (F.normalize(extractor(images).values, dim=1) @ pictures.T).mean(1)}

    (name,) = names_of(value)
    return ImageScorer((name,), run, version="1", weights=f"{extractor.name} {tensors_hash({'pictures': pictures})}")


def load_own_scorer(value: str, **rest: Any) -> ImageScorer:
    """A user's function of `package.module:callable`: images uint8 (N, 3, H, W) and prompts to values (N,).

    It may have the attributes `version` and `weights`. Raises SetupError for another shape.
    """
    function = load_object(value, "--diffusion-scorer")
    (name,) = names_of(value)

    def run(images: torch.Tensor, prompts: Sequence[str] | None) -> Scores:
        values = torch.as_tensor(function(images, prompts))
        if values.shape != (len(images),):
            raise SetupError(
                f"--diffusion-scorer: {value} returned shape {tuple(values.shape)} for {len(images)} images; expected ({len(images)},)."
            )
        return {name: values}

    return ImageScorer((name,), run, version=str(getattr(function, "version", "")), weights=str(getattr(function, "weights", "")))


def load_yes_logit(value: str, *, device: str, **rest: Any) -> ImageScorer:
    """How much more a vision-language model favours "yes" over "no" when asked whether an image shows its prompt: `vlm:PATH_OR_ID`.

    The difference of the two words' logits (arXiv:2404.01291, without its softmax, so that sure answers still differ).
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    name = value.partition(":")[2]
    try:
        model = AutoModelForImageTextToText.from_pretrained(name, use_safetensors=True).to(device).eval()
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise SetupError(f"--diffusion-scorer: {value} cannot be loaded: {why(error)}") from error
    tokenizer = processor.tokenizer
    yes, no = (tokenizer.encode(word, add_special_tokens=False)[-1] for word in (" yes", " no"))

    def run(images: torch.Tensor, prompts: Sequence[str] | None) -> Scores:
        from PIL import Image

        assert prompts is not None
        pictures = [[Image.fromarray(image.permute(1, 2, 0).numpy())] for image in images]
        texts = [_question(processor, prompt) for prompt in prompts]
        tokenizer.padding_side = "left"
        inputs = processor(images=pictures, text=texts, return_tensors="pt", padding=True).to(device)
        logits = model(**inputs).logits[:, -1].float()
        return {score: logits[:, yes] - logits[:, no]}

    (score,) = names_of(value)
    return ImageScorer((score,), run, version="1", weights=tensors_hash(model.state_dict()), batch_size=8)


def _question(processor: Any, prompt: str) -> str:
    """The question in the form that the model was trained on, where it says so."""
    text = f"Does this image show {prompt}? Answer yes or no."
    if getattr(processor, "chat_template", None):
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        return str(processor.apply_chat_template([turn], add_generation_prompt=True))
    return f"{getattr(processor, 'image_token', '<image>')} {text}"


def _short(name: str) -> str:
    """The last part of a path or an id, as a name for figures."""
    last = name.rstrip("/").rpartition("/")[2]
    return "".join(letter if letter.isalnum() else "_" for letter in last) or "model"
