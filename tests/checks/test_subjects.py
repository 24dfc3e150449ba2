"""Every check has a sound subject, which passes, and a broken one, which fails with a message that names the fault.

Subjects are as small as the check allows. Whole pipelines are damaged in tests/meta/test_sabotage.py and beside it.
"""

import copy
import math
import re
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType, SimpleNamespace

import diffusers
import pytest
import torch

from pytest_diffusion.analytic.compare import Denoisers
from pytest_diffusion.analytic.registry import create_model
from pytest_diffusion.attention.localisation import Localisation
from pytest_diffusion.attention.record import AttentionRecord, LayerRecord
from pytest_diffusion.attention.run import AttentionRun
from pytest_diffusion.attention.tokens import TextTokens
from pytest_diffusion.checks import all_checks
from pytest_diffusion.checks.run import run_check
from pytest_diffusion.config.thresholds import Thresholds, load_thresholds
from pytest_diffusion.data.prompts import DirectionPair, Phrase
from pytest_diffusion.data.references import Reference
from pytest_diffusion.demo import reference_captions, reference_images
from pytest_diffusion.maths.interpolation import slerp
from pytest_diffusion.models.parts import LoadReport
from pytest_diffusion.samples.direction import Direction
from pytest_diffusion.samples.paths import LatentPaths
from pytest_diffusion.samples.store import Samples
from pytest_diffusion.verdicts.verdict import Limits
from tests.checks.test_latents import exact_fit


@dataclass(frozen=True)
class Subjects:
    """Arguments of a check for a sound and for a broken subject, limits, and what the message on the broken one says."""

    sound: dict
    broken: dict
    message: str
    limits: Limits


def subjects(sound, broken, message, **limits):
    return Subjects(sound, broken, message, Limits(**limits, source="this test", where="test_subjects.py"))


@cache
def scenes():
    images = reference_images(400)
    return images, reference_captions(400)


def samples(images=None, prompts=None, finite=None):
    images = scenes()[0][:200] if images is None else images
    prompts = scenes()[1][:200] if prompts is None else prompts
    return Samples(images, prompts, list(range(len(images))), torch.ones(len(images), dtype=torch.bool) if finite is None else finite)


def reference(images=None, **rest):
    images = scenes()[0][200:] if images is None else images
    return Reference("scenes", images, sizes=rest.pop("sizes", {"32x32": len(images)}), **rest)


def normal(count, size=6, seed=0, scale=1.0, shift=0.0):
    return scale * torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


class Colours:
    """A scorer of three numbers: an image's mean colour, and the colour that a prompt names."""

    name = "colours"
    named = MappingProxyType({"red": (1.0, 0, 0), "green": (0, 1.0, 0), "blue": (0, 0, 1.0)})

    def image_embeds(self, images):
        return torch.nn.functional.normalize(images.float().mean((2, 3)) + 1e-3, dim=1)

    def text_embeds(self, prompts):
        return torch.tensor([next(self.named[word] for word in prompt.split() if word in self.named) for prompt in prompts])


def coloured(names):
    """Noisy images in the colour of each name."""
    tint = torch.tensor([Colours.named[name] for name in names])[:, :, None, None]
    noise = torch.rand(len(names), 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return ((0.7 * tint + 0.3 * noise) * 255).to(torch.uint8)


NAMES = ["red", "green", "blue"] * 20
TWO = ["red", "red", "green"]


class Flipped(diffusers.EulerDiscreteScheduler):
    """Plans its sigmas from clean to noisy."""

    def set_timesteps(self, *args, **kwargs):
        super().set_timesteps(*args, **kwargs)
        self.sigmas = self.sigmas.flip(0)


class Ascending(diffusers.DDIMScheduler):
    def set_timesteps(self, *args, **kwargs):
        super().set_timesteps(*args, **kwargs)
        self.timesteps = self.timesteps.flip(0)


class Unrooted(diffusers.DDIMScheduler):
    """Adds noise without the square roots."""

    def add_noise(self, original_samples, noise, timesteps):
        alpha = self.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
        return alpha * original_samples + (1 - alpha) * noise


def ddim(**changes):
    return diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, **changes)


def cliff():
    scheduler = ddim()
    scheduler.alphas_cumprod[500:] *= 0.01
    return scheduler


def constant_products():
    scheduler = ddim()
    scheduler.alphas_cumprod = torch.full((1000,), 0.5)
    return scheduler


TOKENS = ["<|startoftext|>", "a</w>", "red</w>", "circle</w>", "here</w>", "<|endoftext|>"]
MARKS = ["special", "content", "content", "content", "content", "special"]
WORDS = ("red", "circle")


def word_maps(count=16, side=16, *, blob=True, same=False, places=((4, 4), (4, 4), (10, 10))):
    """Maps (B, tokens, h, w) that sum to one over tokens: modifier and noun on one blob, another word on another."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    weights = torch.full((count, len(TOKENS), side, side), 0.02)
    weights[:, 0] = 1.0
    weights += 0.01 * torch.rand(weights.shape, generator=torch.Generator().manual_seed(1))
    for token, (top, left) in zip((2, 3, 4), places, strict=True):
        if blob:
            weights[:, token] += 10 * torch.exp(-((rows - top) ** 2 + (columns - left) ** 2) / 6)
    if same:
        weights[:] = weights[:, :1]
    return weights / weights.sum(1, keepdim=True)


def attention(*, maps=None, entropy=(0.8, 0.7, 0.6, 0.5), row_error=1e-7, is_cross=True, unguided=None):
    maps = word_maps() if maps is None else maps
    spread = 0.02 * torch.rand(len(entropy), len(maps), generator=torch.Generator().manual_seed(2))
    layer = LayerRecord(is_cross, entropy=[value + noise for value, noise in zip(entropy, spread, strict=True)], late=maps, early=maps)
    layer.row_error, layer.steps = row_error, {0: maps, 3: maps}
    text = TextTokens([TOKENS] * len(maps), [MARKS] * len(maps), [""] * len(TOKENS))
    record = AttentionRecord({"up.attn2": layer}, [900.0, 600.0, 300.0, 0.0][: len(entropy)], text)
    other = None
    if unguided is not None:
        other = replace(record, layers={"up.attn2": replace(layer, steps={0: unguided})})
    images = torch.zeros(len(maps), 3, 32, 32, dtype=torch.uint8)
    return AttentionRun([Phrase("a red circle here", *WORDS)] * len(maps), [record], images, ["up.attn2"], other)


def localisation(*, transpose=False):
    maps = word_maps(places=((3, 9), (3, 9), (12, 12)))
    masks = torch.zeros(len(maps), 32, 32, dtype=torch.bool)
    masks[:, 2:12, 14:24] = True
    maps = maps.transpose(-1, -2) if transpose else maps
    return Localisation(maps, masks, [[[2], [3]]] * len(maps), ["up.attn2"], torch.zeros(len(maps), 3, 32, 32).byte(), [WORDS] * len(maps))


class Codec:
    """Averages over squares of two by two, and back; latents are the raw ones times a factor."""

    def __init__(self, factor=4.0, *, loses=0.0, spread=True):
        self.scaling_factor, self.loses, self.spread = factor, loses, spread

    def encode(self, images):
        raw = torch.nn.functional.avg_pool2d(images.float() / 255 - 0.5, 2)
        return raw * self.scaling_factor if self.spread else torch.zeros_like(raw)

    def decode(self, latents):
        image = torch.nn.functional.interpolate(latents / self.scaling_factor, scale_factor=2) + 0.5
        return (image * (1 - self.loses) + 0.5 * self.loses).clamp(0, 1)


def smooth_reference(scale=0.25):
    """Images of squares of two by two, which the codec keeps; latents of a factor of 4 have unit spread."""
    values = torch.randn(200, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * scale + 0.5
    return reference((torch.nn.functional.interpolate(values, scale_factor=2).clamp(0, 1) * 255).round().to(torch.uint8))


def trials(**changes):
    base = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(4)).to(torch.uint8)
    steps = {scale: base.double() + scale * base.flip(0).double() / 10 for scale in (1.0, 2.0, 4.0, 5.0, 6.0)}
    values = {
        "plain": base,
        "again": base,
        "one_by_one": base,
        "of_one_prompt": ([1000, 1001, 1002, 1003], base),
        "of_two_prompts": {"a red circle": base, "a blue square": base.flip(0)},
        "coarse_rounding": "",
        "denoiser_dtype": torch.float32,
        "settings": SimpleNamespace(steps=4),
        "first_step": lambda scale: steps[scale],
    }
    return SimpleNamespace(**{**values, **changes})


def decoding(wrong):
    codec = Codec()
    latents = codec.encode(smooth_reference().images[:4])
    shown = (codec.decode(latents * 1.5 if wrong else latents) * 255).round().to(torch.uint8)
    return {"trials": trials(latents=lambda: latents, plain=shown), "latents": replaceable(codec)}


@dataclass(frozen=True)
class Replaceable:
    """A codec whose parts can be replaced one by one, as the check does to name a cause."""

    scaling_factor: float
    shift: torch.Tensor
    spread: torch.Tensor

    def decode(self, latents):
        return Codec(self.scaling_factor).decode(latents * self.spread + self.shift)


def replaceable(codec):
    return Replaceable(codec.scaling_factor, torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))


def paths(change=lambda frames: frames):
    ends = torch.randn(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    latents = slerp(ends[0], ends[1], torch.linspace(0, 1, 17), batch_dims=1).unbind(1)[0]
    return LatentPaths([change((latents / 8 + 0.5).clamp(0, 1)) for _ in range(2)], [latents] * 2)


def zigzag(frames):
    return frames + 0.5 * torch.rand(frames.shape, generator=torch.Generator().manual_seed(6))


def jump(frames):
    return torch.cat([frames[:8], 1 - frames[8:]])


def there_and_back(frames):
    return torch.cat([frames[::2], frames[::2].flip(0)[1:]])


def wander(frames):
    moved = frames.clone()
    moved[1:-1] += torch.sin(torch.linspace(0, math.pi, len(frames)))[1:-1, None, None, None]
    return moved


def direction(*, moves=True):
    source = coloured(["red"] * 16)
    target = coloured(["blue"] * 16) if moves else source.flip(0)
    strengths = (0.0, 0.25, 0.5, 0.75, 1.0)
    mixed = {one: ((1 - one) * source.float() + one * target.float()).to(torch.uint8) for one in strengths}
    backward = {one: mixed[1 - one] for one in strengths}
    return Direction(DirectionPair("a red thing", "a blue thing"), source, target, mixed if moves else backward)


def backwards():
    sound = direction()
    return replace(sound, sweep={one: sound.sweep[1 - one] for one in sound.sweep})


def denoisers(*, wrong):
    images = normal(3000, 9, seed=0, scale=0.3).float().view(-1, 1, 3, 3).clamp(-1, 1)
    closed = create_model("wiener", images[:1500])
    model = create_model("wiener", images[1500:])
    if wrong:
        own = model.predict
        model.predict = lambda sample, timestep, kind=None: own(sample, min(timestep + 200, 999), kind)
    return Denoisers(model, closed, images[:300])


def forgetful(*, wrong):
    sound = denoisers(wrong=False)
    return replace(sound, model=create_model("optimal", sound.images[:20])) if wrong else sound


class Noisy(Codec):
    """Encodes noise as it encodes everything else."""

    def encode(self, images):
        latents = super().encode(scenes()[0][: len(images)])
        return latents + 0.1 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(len(images)))


def two_kinds():
    """A reference whose second half is of another kind."""
    return reference(torch.cat([scenes()[0][:200], NOISE]))


def shifted_fit():
    fit = exact_fit()
    return replace(fit, latents=[one + 0.5 for one in fit.latents])


def swapped_fit():
    fit = exact_fit()
    swapped = replace(fit, latents=[one[:, [1, 0, 2, 3]] for one in fit.latents])
    return replace(swapped, first_few=replace(swapped, latents=[swapped.latents[0][:8]], noise=[fit.noise[0][:8]]))


GREY = scenes()[0][:200].float().mean(1, keepdim=True).expand(-1, 3, -1, -1).to(torch.uint8)
BLACKENED = torch.cat([scenes()[0][:199], torch.zeros(1, 3, 32, 32, dtype=torch.uint8)])
REPEATED = torch.cat([scenes()[0][:199], scenes()[0][:1]])
FINITE = torch.ones(200, dtype=torch.bool).index_fill(0, torch.tensor([7]), False)
REAL = {"features": normal(400, seed=1), "reference_features": normal(300, seed=2)}
COLLAPSED = {"features": normal(400, seed=1, scale=0.05), "reference_features": normal(300, seed=2)}
FAR = {"features": normal(400, seed=1, shift=3.0), "reference_features": normal(300, seed=2)}
COPIES = {"features": REAL["reference_features"][:100].repeat(4, 1), "reference_features": REAL["reference_features"]}
CERTAIN = torch.eye(10, dtype=torch.float64)[torch.arange(400) % 10] * 0.98 + 0.002
SCORED = {"samples": samples(coloured(NAMES), [f"a {name} thing" for name in NAMES]), "clip": Colours()}
SHUFFLED = {"samples": samples(coloured(NAMES), [f"a {name} thing" for name in NAMES[1:] + NAMES[:1]]), "clip": Colours()}
NOISE = torch.randint(0, 256, (200, 3, 32, 32), generator=torch.Generator().manual_seed(7)).to(torch.uint8)


SUBJECTS = {
    "alphas_cumprod_monotonic": lambda: subjects(
        {"scheduler": ddim()}, {"scheduler": constant_products()}, "no noise is ever added", at_most=0
    ),
    "betas_in_range": lambda: subjects(
        {"scheduler": ddim()}, {"scheduler": ddim(trained_betas=[0.02 - 1e-5 * i for i in range(1000)])}, "look reversed", at_most=0
    ),
    "sigmas_monotonic": lambda: subjects(
        {"scheduler": diffusers.EulerDiscreteScheduler()}, {"scheduler": Flipped()}, "The first is step 0", at_most=0
    ),
    "log_snr_first": lambda: subjects(
        {"scheduler": ddim()}, {"scheduler": diffusers.DDIMScheduler(beta_start=0.3, beta_end=0.31)}, "first timestep is", at_least=6
    ),
    "log_snr_last": lambda: subjects(
        {"scheduler": ddim()}, {"scheduler": diffusers.DDIMScheduler(beta_end=2e-4)}, "of the image's signal remains", at_most=-5
    ),
    "log_snr_midway": lambda: subjects({"scheduler": ddim()}, {"scheduler": cliff()}, "mid-way fall of log-SNR is", at_most=20),
    "timesteps_well_formed": lambda: subjects(
        {"scheduler": ddim()}, {"scheduler": Ascending()}, r"set_timesteps\(2\): timestep 0 is followed by 500", at_most=0
    ),
    "forward_marginals": lambda: subjects({"scheduler": ddim()}, {"scheduler": Unrooted()}, "It is largest at timestep", at_most=0.001),
    "finite_images": lambda: subjects({"samples": samples()}, {"samples": samples(finite=FINITE)}, "The first is sample 7", at_most=0),
    "constant_images": lambda: subjects(
        {"samples": samples()}, {"samples": samples(BLACKENED)}, "The first is sample 199, which is black", at_most=0
    ),
    "duplicate_images": lambda: subjects({"samples": samples()}, {"samples": samples(REPEATED)}, "sample 199 repeats sample 0", at_most=0),
    "same_resolution": lambda: subjects(
        {"samples": samples(), "reference": reference()},
        {"samples": samples(), "reference": reference(sizes={"16x16": 3, "64x64": 197})},
        "3 are 16x16, the samples 32x32",
        at_most=0,
    ),
    "value_range": lambda: subjects(
        {"samples": samples(), "reference": reference()},
        {"samples": samples(((scenes()[0][:200].int() + 255) // 2).to(torch.uint8)), "reference": reference()},
        r"as if \[-1, 1\] was mapped to \[0, 1\] twice",
        at_most=0.5,
    ),
    "channel_order": lambda: subjects(
        {"samples": samples(coloured(TWO * 20)), "reference": reference(coloured(TWO * 27))},
        {"samples": samples(coloured(TWO * 20).flip(1)), "reference": reference(coloured(TWO * 27))},
        "the samples fit the reference better",
        at_most=0.5,
    ),
    "grey_images": lambda: subjects(
        {"samples": samples(), "reference": reference()},
        {"samples": samples(GREY), "reference": reference()},
        "200 samples are grey, the first is sample 0",
        at_most=0.1,
    ),
    "reference_images": lambda: subjects(
        {"reference": reference()},
        {"reference": reference(torch.cat([BLACKENED[150:]] * 4))},
        "4 are constant, the first image 49. 150 are repeated",
        at_most=0.05,
    ),
    "fid": lambda: subjects(REAL, FAR, "of it is a shift of the mean", at_most=2),
    "fid_infinity": lambda: subjects(REAL, FAR, "extrapolated Fréchet distance is", at_most=2),
    "kid": lambda: subjects(REAL, FAR, "KID is", at_most=0.5),
    "cmmd": lambda: subjects(
        {**SCORED, "reference": reference(coloured(NAMES * 2))},
        {**SCORED, "reference": reference(coloured(["red"] * 60))},
        "CMMD is",
        at_most=1,
    ),
    "precision": lambda: subjects(REAL, FAR, "precision is", at_least=0.6),
    "recall": lambda: subjects(REAL, COLLAPSED, "recall is", at_least=0.6),
    "density": lambda: subjects(REAL, FAR, "density is", at_least=0.6),
    "coverage": lambda: subjects(REAL, COLLAPSED, "coverage is", at_least=0.6),
    "vendi_score": lambda: subjects(
        {"features": normal(400, 20)},
        {"features": normal(1, 20).repeat(400, 1) + normal(400, 20, scale=1e-3)},
        "Vendi score is 1",
        at_least=5,
    ),
    "memorisation": lambda: subjects(REAL, COPIES, "is the nearest to an image of the reference, number", at_most=0.2),
    "inception_score": lambda: subjects(
        {"features": CERTAIN}, {"features": torch.full((400, 10), 0.1, dtype=torch.float64)}, "cover 10.0 classes", at_least=5
    ),
    "clip_score": lambda: subjects(SCORED, SHUFFLED, "no better than another's: prompts and images are not aligned", at_least=60),
    "denoising_loss": lambda: subjects(
        {"denoisers": denoisers(wrong=False)}, {"denoisers": denoisers(wrong=True)}, "It is largest at timestep", at_most=0.02
    ),
    "trajectory_agreement": lambda: subjects(
        {"denoisers": forgetful(wrong=False)}, {"denoisers": forgetful(wrong=True)}, "They differ most at a log-SNR of", at_least=0.95
    ),
    "attention_is_cross": lambda: subjects(
        {"attention": attention()}, {"attention": attention(is_cross=False)}, r"attn1\): record attn2 instead", at_most=0
    ),
    "attention_is_conditional": lambda: subjects(
        {"attention": attention(unguided=word_maps())},
        {"attention": attention(unguided=word_maps(blob=False))},
        "the guidance halves of the batch are mixed up",
        at_most=0.02,
    ),
    "attention_rows_sum": lambda: subjects(
        {"attention": attention()}, {"attention": attention(row_error=0.5)}, "largest .row sum - 1. is 0.5", at_most=0.001
    ),
    "attention_not_uniform": lambda: subjects(
        {"attention": attention()}, {"attention": attention(entropy=(0.98,) * 4)}, "hardly depend on the token", at_most=0.9
    ),
    "attention_compact": lambda: subjects(
        {"attention": attention()}, {"attention": attention(maps=word_maps(blob=False))}, "half of a noun's attention is 0.4", at_most=0.2
    ),
    "attention_noun_specific": lambda: subjects(
        {"attention": attention()}, {"attention": attention(maps=word_maps(same=True))}, "that of a random token on", at_most=0.01
    ),
    "attention_localises": lambda: subjects(
        {"localisation": localisation()}, {"localisation": localisation(transpose=True)}, "maps look transposed", at_least=0.5
    ),
    "modifier_noun_overlap": lambda: subjects(
        {"attention": attention()},
        {"attention": attention(maps=word_maps(places=((12, 3), (3, 12), (8, 8))))},
        "correlation of modifier and noun is",
        at_least=0.5,
    ),
    "attention_tokens_differ": lambda: subjects(
        {"attention": attention()},
        {"attention": attention(maps=word_maps(same=True))},
        "correlation between tokens' maps is 1",
        at_most=0.5,
    ),
    "attention_sharpens": lambda: subjects(
        {"attention": attention()}, {"attention": attention(entropy=(0.5, 0.6, 0.7, 0.8))}, "Mean entropy goes from 0.5", at_least=0.7
    ),
    "vae_psnr": lambda: subjects(
        {"latents": Codec(), "reference": smooth_reference()},
        {"latents": Codec(loses=0.8), "reference": smooth_reference()},
        "The worst is image",
        at_least=25,
    ),
    "vae_ssim": lambda: subjects(
        {"latents": Codec(), "reference": smooth_reference()},
        {"latents": Codec(loses=0.8), "reference": smooth_reference()},
        "round-trip SSIM is",
        at_least=0.9,
    ),
    "latent_std": lambda: subjects(
        {"latents": Codec(), "reference": smooth_reference()},
        {"latents": Codec(factor=1.0), "reference": smooth_reference()},
        "scaling factor is missing",
        at_least=0.8,
        at_most=1.2,
    ),
    "pipeline_decodes": lambda: subjects(decoding(False), decoding(True), "No factor, shift or order of channels explains it", at_most=0.1),
    "latent_scale": lambda: subjects(
        {"latent_fit": exact_fit()}, {"latent_fit": exact_fit(0.3)}, "The denoiser expects latents with a scaling factor of", at_most=2
    ),
    "latent_shift": lambda: subjects(
        {"latent_fit": exact_fit()}, {"latent_fit": shifted_fit()}, "is the shift factor ignored", at_least=-0.1, at_most=0.1
    ),
    "latent_channels": lambda: subjects(
        {"latent_fit": exact_fit()}, {"latent_fit": swapped_fit()}, "with channels 0 and 1 swapped", at_least=0
    ),
    "slerp_smooth": lambda: subjects({"paths": paths()}, {"paths": paths(jump)}, "The jump lies between frames 7 and 8", at_most=3),
    "slerp_drift": lambda: subjects({"paths": paths()}, {"paths": paths(there_and_back)}, "drift away is 0.5", at_least=0.8),
    "slerp_detour": lambda: subjects({"paths": paths()}, {"paths": paths(wander)}, r"Pair \d wanders most", at_most=1.6),
    "slerp_curvature": lambda: subjects({"paths": paths()}, {"paths": paths(zigzag)}, r"Pair \d turns most", at_most=60),
    "semantic_direction": lambda: subjects(
        {"direction": direction(), "clip": Colours()},
        {"direction": direction(moves=False), "clip": Colours()},
        "moves different samples in different directions",
        at_least=0.8,
    ),
    "semantic_direction_chance": lambda: subjects(
        {"direction": direction(), "clip": Colours()},
        {"direction": direction(moves=False), "clip": Colours()},
        "the prompts make no difference that CLIP sees",
        at_most=0.01,
    ),
    "semantic_strength": lambda: subjects(
        {"direction": direction(), "clip": Colours()},
        {"direction": backwards(), "clip": Colours()},
        "do not follow the text embedding smoothly",
        at_least=0.8,
    ),
    "ood_auroc": lambda: subjects(
        {"latents": Codec(), "reference": reference(scenes()[0])},
        {"latents": Noisy(), "reference": reference(scenes()[0])},
        "By kind: noise 0.",
        at_least=0.95,
    ),
    "ood_false_alarms": lambda: subjects(
        {"latents": Codec(), "reference": reference(scenes()[0])},
        {"latents": Codec(), "reference": two_kinds()},
        "share of references flagged as outliers is 1",
        at_most=0.2,
    ),
    "unused_tensors": lambda: subjects(
        {"pipeline": SimpleNamespace(load_report=LoadReport(("unet",)))},
        {"pipeline": SimpleNamespace(load_report=LoadReport(("unet",), {"unet": ["lora.down", "lora.up"]}))},
        r"unet: 2 unused \(lora.down, lora.up\)\.",
        at_most=0,
    ),
    "same_seed": lambda: subjects(
        {"trials": trials()}, {"trials": trials(again=trials().plain.flip(1))}, "4 of 4 images changed", at_most=0
    ),
    "batch_invariance": lambda: subjects(
        {"trials": trials()}, {"trials": trials(one_by_one=trials().plain.flip(1))}, "mixes the samples of a batch", at_most=0.5
    ),
    "seeds_differ": lambda: subjects(
        {"trials": trials()},
        {"trials": trials(of_one_prompt=([5, 6, 7, 8], trials().plain[:1].repeat(4, 1, 1, 1)))},
        "Seeds 5 and 6 give almost the same image",
        at_least=1,
    ),
    "prompt_sensitivity": lambda: subjects(
        {"trials": trials()},
        {"trials": trials(of_two_prompts={"a red circle": trials().plain, "a blue square": trials().plain})},
        "'a red circle' and 'a blue square' give almost the same image: the prompt has no effect",
        at_least=1,
    ),
    "guidance_effect": lambda: subjects(
        {"trials": trials()},
        {"trials": trials(first_step=lambda scale: torch.ones(4, 3, 8, 8))},
        "the prompt has no effect",
        at_least=0.001,
    ),
    "guidance_linearity": lambda: subjects(
        {"trials": trials()},
        {"trials": trials(first_step=lambda scale: torch.full((4, 3, 8, 8), float(scale**2)))},
        "rescaled or clipped after guidance",
        at_most=0.02,
    ),
}


def test_every_check_has_a_sound_and_a_broken_subject():
    # Those of the comparison have theirs in tests/gate/test_checks.py.
    ours = [check.name for check in all_checks() if check.function.__module__.startswith("pytest_diffusion.checks.")]
    assert sorted(SUBJECTS) == sorted(ours)


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_sound_subject_passes_and_the_broken_one_fails_by_name(name):
    check = next(one for one in all_checks() if one.name == name)
    made = SUBJECTS[name]()
    table = Thresholds({name: made.limits})
    sound = run_check(check, copy.copy(made.sound), table)
    assert sound.outcome == "pass", sound.message
    broken = run_check(check, copy.copy(made.broken), table)
    assert broken.outcome == "fail", broken.message
    assert re.search(made.message, broken.message), broken.message


def test_the_limits_of_these_tests_are_no_laxer_than_none():
    """The presets have a table for every check, so that a misspelt one is found."""
    assert set(load_thresholds([]).limits) == set(SUBJECTS)
