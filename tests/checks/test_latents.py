"""Latent checks: the demo's own parts pass, broken ones are named."""

import copy
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

import pytest_diffusion as pd
from pytest_diffusion.checks.directions import semantic_direction, semantic_strength
from pytest_diffusion.checks.latents import latent_channels, latent_scale, latent_shift
from pytest_diffusion.checks.paths import slerp_smooth
from pytest_diffusion.checks.vae import latent_std
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.data.prompts import DirectionPair
from pytest_diffusion.data.references import Reference, load_reference
from pytest_diffusion.demo import reference_captions, reference_images
from pytest_diffusion.features.clip import load_clip
from pytest_diffusion.models.latents import LatentCodec
from pytest_diffusion.models.levels import NoiseLevel
from pytest_diffusion.samples import direction as direction_module
from pytest_diffusion.samples.direction import Direction, run_direction
from pytest_diffusion.samples.generate import generate_images
from pytest_diffusion.samples.latent_fit import LatentFit, fit_latents
from pytest_diffusion.samples.paths import LatentPaths, latent_paths
from pytest_diffusion.samples.round_trip import RoundTrip
from pytest_diffusion.samples.trials import Trials
from pytest_diffusion.verdicts.errors import NotApplicable


@pytest.fixture(scope="module")
def codec(demo_pipeline):
    return LatentCodec.of(demo_pipeline)


@pytest.fixture(scope="module")
def reference():
    return Reference("demo", reference_images(1000), sizes={"32x32": 1000}, prompts=reference_captions(1000))


@pytest.fixture(scope="module")
def paths(codec, reference):
    return latent_paths(codec, reference)


@pytest.fixture(scope="module")
def fit(demo_pipeline, codec, reference):
    return fit_latents(demo_pipeline, codec, reference, Settings(guidance_scale=4.0))


def test_effort_raises_the_numbers_that_are_fixed(demo_pipeline, codec):
    settings = Settings(guidance_scale=4.0, steps=2, effort=1.1)
    reference = load_reference("demo", height=32, width=32, limit=80)
    assert [Settings().times_effort(32), settings.times_effort(32), settings.times_effort(20)] == [32, 36, 22]
    assert len(fit_latents(demo_pipeline, codec, reference, settings).own_errors) == 36
    drawn = run_direction(demo_pipeline, DirectionPair("a red circle", "a blue circle"), settings)
    assert [len(drawn.source_images), len(drawn.target_images)] == [36, 36]
    assert {len(images) for images in drawn.sweep.values()} == {18}
    assert len(RoundTrip.of(codec, reference, count=7).images) == 7


def test_the_demos_latent_space_passes(codec, reference):
    for assertion in (
        pd.assert_vae_psnr_above,
        pd.assert_vae_ssim_above,
        pd.assert_latent_std,
        pd.assert_ood_auroc_above,
        pd.assert_ood_false_alarms_below,
    ):
        assert assertion(codec, reference, thresholds="demo").outcome == "pass", assertion


@pytest.mark.parametrize(
    ("factor", "message"),
    [(1.0, "scaling factor is missing"), (0.18215**2, "scaling factor was applied twice"), (0.6, "scaling factor is wrong")],
)
def test_a_wrong_scaling_factor_is_named(codec, reference, factor, message):
    with pytest.raises(pd.QualityFailure, match=message):
        pd.assert_latent_std(replace(codec, scaling_factor=factor), reference)


MISSING, TWICE, WRONG = (
    f" {text}."
    for text in (
        "It looks as if the VAE's scaling factor is missing",
        "It looks as if the VAE's scaling factor was applied twice",
        "The VAE's scaling factor is wrong",
    )
)
DECODES = " Latents of unit spread decode to a contrast of 0.50; the references have 0.25."


@pytest.mark.parametrize(
    ("factor", "spread", "cause"),
    [
        (1.0, 1.0, ""),
        (1.0, 0.75, ""),
        (1.0, 1.35, ""),
        (1.0, 0.65, MISSING + DECODES),
        (1.0, 1.45, MISSING + DECODES),
        (0.5, 1.0, ""),
        (0.5, 1.35, ""),
        (0.25, 0.5, TWICE + DECODES),
        (4.0, 2.0, TWICE + DECODES),
        (0.5, 0.55, WRONG + DECODES),
        (0.5, 3.0, WRONG + DECODES),
    ],
)
def test_what_a_spread_says_about_the_factor(factor, spread, cause):
    """Half of each latent is one spread above zero and half as much below; half of each image is half a level brighter."""
    signs = torch.tensor([1.0, -1.0]).repeat(20, 3, 8, 4)
    latents = spread * signs * math.sqrt(1 - 1 / signs.numel())
    images = (127.5 + 63.75 * signs).round().to(torch.uint8)
    codec = SimpleNamespace(scaling_factor=factor, decode=lambda latents: latents / 2)
    found = latent_std(codec, Reference("r", images), SimpleNamespace(images=images, latents=latents))
    assert found.value == pytest.approx(spread)
    assert found.interval == pytest.approx((spread, spread), rel=0.01), "all images have the same"
    assert found.hint == f"A scaling factor of {factor / spread:.4g} would bring it to 1; the configuration says {factor:.4g}.{cause}"


def test_a_vae_that_loses_the_image_is_seen(codec, reference):
    broken = replace(codec, vae=copy.deepcopy(codec.vae))
    with torch.no_grad():
        broken.vae.decoder.conv_out.weight *= 0.3
    with pytest.raises(pd.QualityFailure, match="round-trip PSNR is"):
        pd.assert_vae_psnr_above(broken, reference)


def test_the_demos_paths_pass(paths):
    for assertion in (pd.assert_slerp_smooth, pd.assert_slerp_drift, pd.assert_slerp_no_detour, pd.assert_slerp_no_zigzag):
        assert assertion(paths, thresholds="demo").outcome == "pass", assertion


def redrawn(paths, change):
    """The same paths with the frames of each changed."""
    return replace(paths, frames=[change(frames.clone()) for frames in paths.frames])


@pytest.mark.parametrize("place", [1, 8, 16])
def test_a_jump_in_the_path_is_found_at_any_frame(paths, place):
    def jump(frames):
        frames[place:] = 1 - frames[place:]
        return frames

    with pytest.raises(pd.QualityFailure, match=f"The jump lies between frames {place - 1} and {place}"):
        pd.assert_slerp_smooth(redrawn(paths, jump), thresholds="demo")


def test_the_plot_of_a_path_shows_its_steps_and_the_length_of_its_latents_on_an_arc_and_on_a_line():
    latents = torch.tensor([[3.0, 0.0], [2.5, 2.5], [0.0, 4.0]]).view(3, 2, 1, 1)
    frames = torch.tensor([0.0, 0.5, 0.75]).view(3, 1, 1, 1).repeat(1, 3, 2, 2)
    still = torch.linspace(0, 1, 3).view(3, 1, 1, 1).expand_as(frames)
    measured = slerp_smooth(LatentPaths([still, frames], [latents.flip(0), latents]))
    assert measured.value == pytest.approx(4 / 3), "the worst of two"
    assert measured.series["steps"] == pytest.approx([0.5 * math.sqrt(12), 0.25 * math.sqrt(12)])
    assert measured.series["slerp_norms"] == pytest.approx([3, 2.5 * math.sqrt(2), 4])
    assert measured.series["lerp_norms"] == pytest.approx([3, 2.5, 4])
    assert measured.hint == "The jump lies between frames 0 and 1 of pair 1."


def test_a_path_that_runs_back_is_found(paths):
    folded = redrawn(paths, lambda frames: torch.cat([frames[::2], frames[::2].flip(0)[1:]]))
    with pytest.raises(pd.QualityFailure, match=r"share of steps that drift away is 0\.5"):
        pd.assert_slerp_drift(folded)
    with pytest.raises(pd.QualityFailure, match="path over chord is inf"):
        pd.assert_slerp_no_detour(folded)


def test_a_decoder_that_adds_noise_zigzags(paths):
    generator = torch.Generator().manual_seed(0)
    noisy = redrawn(paths, lambda frames: frames + 0.2 * torch.rand(frames.shape, generator=generator))
    with pytest.raises(pd.QualityFailure, match="mean angle between steps is 1"):
        pd.assert_slerp_no_zigzag(noisy)


class Forgetful(StableDiffusionPipeline):
    """A pipeline of a user's own that decodes its latents itself, by a rule that may be wrong."""

    def __call__(self, prompt, guidance_scale=7.5, generator=None, output_type="np", num_inference_steps=50):
        shared = {"guidance_scale": guidance_scale, "generator": generator, "num_inference_steps": num_inference_steps}
        latents = super().__call__(prompt, output_type="latent", **shared).images
        if output_type == "latent":
            return SimpleNamespace(images=latents)
        images = self.vae.decode(self.rule(latents)).sample.detach() / 2 + 0.5
        return SimpleNamespace(images=images.clamp(0, 1).permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda raw, f, s: raw / f + s, None),
        (lambda raw, f, s: raw + s, "as if the scaling factor were missing"),
        (lambda raw, f, s: raw / f**2 + s, "as if the scaling factor were applied twice"),
        (lambda raw, f, s: raw / f, "as if the shift were ignored"),
        (lambda raw, f, s: raw / f + 2 * s, "as if the shift were applied twice"),
        (lambda raw, f, s: raw[:, [0, 2, 1, 3]] / f + s, "as if channels 1 and 2 were swapped"),
        (lambda raw, f, s: raw.flip(2) / f + s, "No factor, shift or order of channels explains it"),
    ],
)
def test_how_a_pipeline_misreads_its_latents_is_named(demo_copy, rule, message):
    factor, shift = demo_copy.vae.config.scaling_factor, 1.5
    # The same VAE, whose raw latents are moved by a shift that its configuration names.
    with torch.no_grad():
        demo_copy.vae.post_quant_conv.bias -= demo_copy.vae.post_quant_conv.weight.sum((1, 2, 3)) * shift
        demo_copy.vae.quant_conv.bias[:4] += shift
    demo_copy.vae.register_to_config(shift_factor=shift)
    demo_copy.__class__ = Forgetful
    demo_copy.rule = lambda raw: rule(raw, factor, shift)
    trials = Trials(demo_copy, ["a red circle", "a blue square"], Settings(steps=4, guidance_scale=4.0))
    codec = LatentCodec.of(demo_copy)
    if message is None:
        assert pd.assert_pipeline_decodes(trials, codec).measurement.value < 0.01
    else:
        with pytest.raises(pd.QualityFailure, match=message):
            pd.assert_pipeline_decodes(trials, codec)


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 0), ("bfloat16", 0), ("float16", 0)])
def test_the_demo_decodes_as_its_configuration_says(demo_copy, dtype, rounding):
    """To the last bit; in float16 too, though the VAE asks for float32: Stable Diffusion's pipeline does not listen, SDXL's does."""
    demo_copy.to(getattr(torch, dtype))
    trials = Trials(demo_copy, ["a red circle", "a blue square"], Settings(steps=4, guidance_scale=4.0))
    assert pd.assert_pipeline_decodes(trials, LatentCodec.of(demo_copy)).measurement.value <= rounding


def test_the_demos_denoiser_knows_its_latents(fit):
    for assertion in (pd.assert_latent_scale, pd.assert_latent_shift, pd.assert_latent_channels):
        assert assertion(fit, thresholds="demo").outcome == "pass", assertion


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (
            1.0,
            r"expects latents with a scaling factor of 0\.1[789]\d*; the configuration says 1\. .* scaling factor is missing",
        ),
        (0.18215**2, r"says 0\.03318\. It looks as if the VAE's scaling factor was applied twice"),
    ],
)
def test_the_denoiser_names_a_wrong_scaling_factor(demo_pipeline, codec, reference, factor, message):
    wrong = fit_latents(demo_pipeline, replace(codec, scaling_factor=factor), reference, Settings(guidance_scale=4.0))
    with pytest.raises(pd.QualityFailure, match=message):
        pd.assert_latent_scale(wrong)


@pytest.mark.parametrize("shift", [0.0609, -0.0609])
def test_the_denoiser_sees_a_shift_of_the_size_of_sd3s(demo_pipeline, codec, reference, shift):
    """SD3's shift is 0.0609 before a factor of 1.5305: as much is planted here, in units of scaled latents."""
    planted = torch.full((1, 1, 1, 1), -shift * 1.5305 / codec.scaling_factor)
    wrong = fit_latents(demo_pipeline, replace(codec, shift=planted), reference, Settings(guidance_scale=4.0))
    with pytest.raises(pd.QualityFailure, match="is the shift factor ignored, or applied twice") as failure:
        pd.assert_latent_shift(wrong, thresholds="demo")
    assert failure.value.verdict.measurement.value == pytest.approx(-shift * 1.5305, abs=0.02)


@pytest.mark.parametrize("order", [[1, 0, 2, 3], [1, 2, 0, 3]])
def test_the_denoiser_sees_permuted_channels(demo_pipeline, codec, reference, order):
    """Encoder and decoder agree with one another, and no longer with the denoiser: only it can tell."""

    class Permuted(OwnCodec):
        scaling_factor = codec.scaling_factor

        def encode(self, images):
            return self.inner.encode(images)[:, order]

        def decode(self, latents):
            return self.inner.decode(latents[:, torch.tensor(order).argsort()])

    permuted = Permuted(codec)
    assert pd.assert_vae_psnr_above(permuted, reference, thresholds="demo").outcome == "pass"
    with pytest.raises(pd.QualityFailure, match="latent channels look permuted"):
        pd.assert_latent_channels(fit_latents(demo_pipeline, permuted, reference, Settings(guidance_scale=4.0)))


def test_channels_permuted_in_the_decoder_are_named(codec, reference):
    class Permuted(OwnCodec):
        def decode(self, latents):
            return self.inner.decode(latents[:, [0, 3, 2, 1]])

    with pytest.raises(pd.QualityFailure, match=r"With channels 1 and 3 swapped it is .* dB better: latent channels look permuted"):
        pd.assert_vae_psnr_above(Permuted(codec), reference)


def test_an_untrained_denoiser_knows_no_latents(demo_copy, codec, reference):
    torch.manual_seed(0)
    untrained = type(demo_copy.unet).from_config(demo_copy.unet.config).eval()
    demo_copy.register_modules(unet=untrained)
    fit = fit_latents(demo_copy, codec, reference, Settings(guidance_scale=4.0))
    for assertion in (pd.assert_latent_scale, pd.assert_latent_shift, pd.assert_latent_channels):
        with pytest.raises((pd.QualityFailure, pd.InconclusiveFailure)):
            assertion(fit, thresholds="demo")


class Wiener:
    """The exact denoiser of Gaussian latents, as a call in the middle of a run: mean and variance by channel are given."""

    level = NoiseLevel(torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64))
    pipeline = SimpleNamespace(scheduler=DDIMScheduler(prediction_type="sample"))

    def __init__(self, mean, variance):
        self.mean, self.variance = mean, variance

    def noised(self, latents, noise):
        return 0.8 * latents + 0.6 * noise

    def output(self, noised):
        weight = 0.8 * self.variance / (0.64 * self.variance + 0.36)
        return self.mean + weight * (noised - 0.8 * self.mean)


def exact_fit(factor=1.0, *, count=64, **changes):
    generator = torch.Generator().manual_seed(0)
    mean, variance = torch.tensor([0.5, -0.5, 0.2, 0.0]).view(1, 4, 1, 1), torch.tensor([1.5, 0.9, 0.5, 0.3]).view(1, 4, 1, 1)
    latents = mean + variance.sqrt() * torch.randn(count, 4, 16, 16, generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    fit = LatentFit([Wiener(mean, variance)], [factor * latents], [noise], 0.2, **changes)
    return replace(fit, first_few=replace(fit, latents=[factor * latents[:8]], noise=[noise[:8]]))


@pytest.mark.parametrize("factor", [0.2, 0.7, 1.0, 1.6, 5.0])
def test_the_scale_of_an_exact_denoiser_is_found(factor):
    """Its error is smallest at a factor of almost nothing, as faint pictures are easily told: that would say nothing."""
    fit = exact_fit(factor)
    assert fit.errors(factor=0.1 / factor).mean() < fit.errors(factor=1 / factor).mean()
    measured = latent_scale(fit)
    assert measured.interval[0] - 0.02 / factor < 1 / factor < measured.interval[1] + 0.02 / factor
    assert measured.value == pytest.approx(1 / factor, rel=0.03)
    assert pd.assert_latent_channels(exact_fit()).outcome == "pass"


def fit_of(agreement, *, scaling_factor=0.5, count=30, square=1.0):
    """A stand-in of a fit whose images all have the same ratio of prediction and latents at a factor."""
    of_all = SimpleNamespace(agreement=lambda factor: torch.tensor([[agreement(factor), square]]).double().repeat(count, 1))
    return SimpleNamespace(scout=of_all, **vars(of_all), own_errors=torch.zeros(count), is_distilled=False, scaling_factor=scaling_factor)


@pytest.mark.parametrize(("expected", "scaling_factor"), [(1.0, 0.5), (1.1, 0.2), (2.0, 0.1), (0.25, 0.3), (0.1, 1.0), (10.0, 1.0)])
def test_the_scale_is_where_prediction_and_latents_agree(expected, scaling_factor):
    """The logarithm of their ratio is a line here, on which no place between two factors is missed."""
    measured = latent_scale(fit_of(lambda factor: (factor / expected) ** 1.5, scaling_factor=scaling_factor))
    assert measured.value == pytest.approx(expected)
    assert measured.interval == pytest.approx((expected, expected))
    assert measured.num_samples == 30
    told = f"a scaling factor of {scaling_factor * expected:.4g}; the configuration says {scaling_factor:.4g}."
    cause = " It looks as if the VAE's scaling factor is missing." if scaling_factor == 1 else ""
    assert measured.hint == f"The denoiser expects latents with {told}{cause}"


def test_a_factor_that_was_applied_twice_is_the_square_of_the_right_one():
    """0.04 is configured, the denoiser wants 0.2, which is five times as much."""
    assert latent_scale(fit_of(lambda factor: factor / 5, scaling_factor=0.04)).hint.endswith("scaling factor was applied twice.")
    assert not latent_scale(fit_of(lambda factor: factor / 2.5, scaling_factor=0.04)).hint.endswith("twice.")


@pytest.mark.parametrize(("product", "square", "edge"), [(0.5, 1.0, 16), (2.0, 1.0, 1 / 16), (0.0, 1.0, 16), (0.0, 0.0, 16)])
def test_a_denoiser_that_fits_at_no_scale_says_on_which_side(product, square, edge):
    """A prediction of nothing fits as little as one that has nothing in common with the latents."""
    measured = latent_scale(fit_of(lambda factor: product, square=square))
    assert (measured.value, measured.interval) == (edge, None)
    assert "fit the encoder's latents at no scale" in measured.hint
    assert latent_scale(fit_of(lambda factor: 2 / factor)).value == 16, "from too large to too small is no crossing"


def test_a_scale_that_only_the_first_few_images_show_is_no_number():
    fit = fit_of(lambda factor: 0.5)
    fit.scout = fit_of(lambda factor: factor).scout
    assert math.isnan(latent_scale(fit).value)


def test_the_shift_is_the_vertex_of_the_errors():
    errors = {"best": 0.03, "count": 24}

    def of_offset(offset):
        return torch.full((errors["count"],), 0.7 + 2 * (offset - errors["best"]) ** 2, dtype=torch.float64)

    measured = latent_shift(SimpleNamespace(errors=lambda offset: of_offset(offset), scaling_factor=0.2))
    assert measured.value == pytest.approx(0.03)
    assert measured.interval == pytest.approx((0.03, 0.03))
    assert measured.hint.startswith("The encoder's raw latents are offset by -0.15 from what the denoiser expects")
    with pytest.raises(NotApplicable, match="hardly depends on an offset"):
        latent_shift(SimpleNamespace(errors=lambda offset: torch.ones(24) - offset**2, scaling_factor=0.2))


def test_the_channels_whose_swap_costs_least_are_measured():
    """Errors of 2 grow by 1 when channels are swapped, and by half of that for channels 1 and 2."""
    own = torch.tensor([1.5, 2.5]).repeat(10).double()
    spread = torch.tensor([0.1, 0.1, -0.1, -0.1]).repeat(5).double()
    fit = SimpleNamespace(channels=3, own_errors=own, errors=lambda order: own + spread + (0.5 if order == [0, 2, 1] else 1.0))
    fit.scout = fit
    measured = latent_channels(fit)
    assert measured.value == pytest.approx(0.25)
    half = 2.093 * 0.05 * math.sqrt(20 / 19) / math.sqrt(20)
    assert measured.interval == pytest.approx((0.25 - half, 0.25 + half), rel=1e-4), "Student's t with 19 degrees of freedom"
    assert "no worse with channels 1 and 2 swapped" in measured.hint
    assert measured.unjudged == ""
    # The same, with changes of 0.01 whose interval reaches almost to -0.1, and one that reaches farther.
    for error, is_alike in ((0.045, True), (0.06, False), (0.004, False)):
        spread = error * math.sqrt(19) * torch.tensor([2.0, -2.0]).repeat(10).double()
        fit.errors = lambda order, spread=spread: own + 0.02 + spread
        assert bool(latent_channels(fit).unjudged) == is_alike
    with pytest.raises(NotApplicable, match="one channel have no order"):
        latent_channels(SimpleNamespace(channels=1))


def test_a_distilled_denoiser_is_not_judged_by_its_scale():
    """It predicts a sharp picture, where others predict the mean of many."""
    with pytest.raises(pd.QualityFailure, match="reported and not judged: a model without guidance may be distilled"):
        pd.assert_latent_scale(exact_fit(0.2, is_distilled=True))


def test_channels_that_are_alike_are_not_judged():
    fit = exact_fit()
    alike = Wiener(torch.zeros(1, 4, 1, 1), torch.ones(1, 4, 1, 1))
    fit = replace(fit, calls=[alike], first_few=replace(fit.scout, calls=[alike]), latents=fit.noise[::-1], noise=fit.latents)
    fit = replace(fit, latents=[torch.randn(64, 4, 16, 16, generator=torch.Generator().manual_seed(5))])
    with pytest.raises(pd.QualityFailure, match=r"reported and not judged: the denoiser treats channels \d and \d alike"):
        pd.assert_latent_channels(fit)


def test_a_pipeline_that_resizes_its_images_is_not_judged_by_its_latents(demo_copy):
    """PixArt draws at the nearest of the sizes that it was trained on, and shrinks the images to what was asked."""

    class Resizing(Trials):
        def latents(self):
            return torch.nn.functional.interpolate(super().latents(), scale_factor=2)

    trials = Resizing(demo_copy, ["a red circle"], Settings(steps=2, guidance_scale=4.0))
    with pytest.raises(pd.QualityFailure, match="its latents decode to 64x64, and the pipeline resized the images to 32x32"):
        pd.assert_pipeline_decodes(trials, LatentCodec.of(demo_copy))


def test_negatives_of_references_that_are_their_own_negatives_are_no_outliers(reference):
    """Of pictures that are dark on bright half of the time, an inverted one is another, and a flat one lies between them."""

    class Pixels:
        def encode(self, images):
            return torch.nn.functional.avg_pool2d(images.float() / 127.5 - 1, 4)

    both = torch.where((torch.arange(1000) % 2 == 0).view(-1, 1, 1, 1), reference.images, 255 - reference.images)
    both = both[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    verdict = pd.assert_ood_auroc_above(Pixels(), replace(reference, images=both))
    assert verdict.measurement.series["auroc"]["inverted"] < 0.6
    assert verdict.measurement.series["auroc"]["flat"] < 0.9
    assert verdict.measurement.value > 0.99


def test_structure_that_is_lost_is_seen(codec, reference):
    class Smeared(OwnCodec):
        def decode(self, latents):
            return torch.nn.functional.avg_pool2d(self.inner.decode(latents), 9, stride=1, padding=4)

    with pytest.raises(pd.QualityFailure, match="round-trip SSIM is"):
        pd.assert_vae_ssim_above(Smeared(codec), reference, thresholds="demo")


@dataclass
class OwnCodec:
    """A codec of a user's own around another."""

    inner: LatentCodec

    def encode(self, images):
        return self.inner.encode(images)

    def decode(self, latents):
        return self.inner.decode(latents)


def test_an_encoder_that_sees_nothing_has_no_auroc(codec, reference):
    class Blind(OwnCodec):
        def encode(self, images):
            return torch.randn(len(images), 4, 8, 8, generator=torch.Generator().manual_seed(len(images)))

    with pytest.raises(pd.QualityFailure, match="AUROC for"):
        pd.assert_ood_auroc_above(Blind(codec), reference)


def test_references_that_change_half_way_score_as_outliers(codec, reference):
    drifting = reference.images.clone()
    drifting[500:][1::2] = 255 - drifting[500:][1::2]
    with pytest.raises(pd.QualityFailure, match="share of references flagged as outliers"):
        pd.assert_ood_false_alarms_below(codec, replace(reference, images=drifting))


def test_twenty_references_are_not_enough(codec, reference):
    with pytest.raises(pd.InconclusiveFailure, match="not enough samples: 10 reference images, at least 100 are needed"):
        pd.assert_ood_auroc_above(codec, replace(reference, images=reference.images[:20]))


def test_semantic_direction():
    from pytest_diffusion.demo.scenes import render, scene_of, to_uint8

    clip = load_clip("demo")
    source = to_uint8(render([scene_of(0)] * 32, seed=1)[0])
    target = to_uint8(render([scene_of(16)] * 32, seed=1)[0])
    pair = DirectionPair("a red circle", "a blue circle")
    assert pd.assert_semantic_direction(Direction(pair, source, target), clip).measurement.value > 0.8
    scattered = to_uint8(render([scene_of(index % 24) for index in range(32)], seed=2)[0])
    random = to_uint8(render([scene_of((index * 7 + 5) % 24) for index in range(32)], seed=3)[0])
    with pytest.raises(pd.QualityFailure, match="moves different samples in different directions"):
        pd.assert_semantic_direction(Direction(pair, scattered, random), clip, at_least=0.5)
    assert pd.assert_semantic_direction_chance(Direction(pair, source, target), clip).measurement.value == 0.001
    shuffled = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(pd.QualityFailure, match="could be exchanged"):
        pd.assert_semantic_direction_chance(Direction(pair, source, source[shuffled]), clip)


class Levels:
    """A scorer that sees the first two channels of the first pixel, in levels."""

    name = "levels"

    def image_embeds(self, images):
        return images[:, :2, 0, 0].float()


def pixels(*levels):
    return torch.tensor([[*pair, 0] for pair in levels], dtype=torch.uint8).view(-1, 3, 1, 1).repeat(1, 1, 4, 4)


def test_the_change_of_each_sample_is_held_against_that_of_the_others():
    """Changes are (3, 4), (6, 8) and (4, -3): the last is at a right angle to both others."""
    pair = DirectionPair("a red circle", "a blue circle")
    source, target = pixels((10, 10), (20, 20), (30, 30)), pixels((13, 14), (26, 28), (34, 27))
    found = semantic_direction(Direction(pair, source, target), Levels())
    cosines = [(3 * 10 + 4 * 5) / (5 * math.hypot(10, 5)), (6 * 7 + 8 * 1) / (10 * math.hypot(7, 1)), 0.0]
    assert found.value == pytest.approx(sum(cosines) / 3)
    assert found.protocol == {"extractor": "CLIP levels"}
    assert found.series["prompts"] == ["a red circle", "a blue circle"]


def test_strength_is_measured_along_the_change_of_the_other_samples():
    """All change by (30, 40), so that of a change of (8, -7) only 0.6 * 8 - 0.8 * 7 counts."""
    source, target = pixels(*[(100, 100)] * 3), pixels(*[(130, 140)] * 3)
    sweep = {
        0.0: source[:2],
        0.25: pixels((103, 104), (108, 93)),
        0.5: pixels((106, 108), (106, 108)),
        0.75: pixels((115, 120), (103, 104)),
        1.0: target[:2],
    }
    found = semantic_strength(Direction(DirectionPair("a", "b"), source, target, sweep), Levels())
    assert found.series["strengths"] == [0, 0.25, 0.5, 0.75, 1]
    assert found.series["change"] == pytest.approx([0, 2.1, 10, 15, 50])
    # Ranks of the second: 2, 1, 4, 3, 5.
    assert found.value == pytest.approx((1 + 0.8) / 2)
    assert found.num_samples == 2
    assert [len(row) for row in found.series["strip"]] == [5, 5]


@pytest.fixture(scope="module")
def direction(demo_pipeline):
    return run_direction(demo_pipeline, DirectionPair("a red circle", "a blue circle"), Settings(steps=10, guidance_scale=4.0))


def test_strength_changes_more_the_further_it_goes(direction):
    clip = load_clip("demo")
    assert list(direction.sweep) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert pd.assert_semantic_strength(direction, clip, thresholds="demo").outcome == "pass"
    order = torch.randperm(5, generator=torch.Generator().manual_seed(1)).tolist()
    images = list(direction.sweep.values())
    shuffled = replace(direction, sweep={strength: images[place] for strength, place in zip(direction.sweep, order, strict=True)})
    with pytest.raises(pd.QualityFailure, match="does not grow with the strength"):
        pd.assert_semantic_strength(shuffled, clip, at_least=0.7)
    backwards = replace(direction, sweep=dict(zip(direction.sweep, images[::-1], strict=True)))
    with pytest.raises(pd.QualityFailure, match="rank correlation of strength and change is -0"):
        pd.assert_semantic_strength(backwards, clip)


def test_the_ends_of_the_sweep_are_the_prompts_own_images(demo_pipeline):
    """Leaning all the way to the target gives what the target's prompt gives."""
    pair = DirectionPair("a red circle", "a blue square")
    settings = Settings(steps=4, guidance_scale=4.0)
    with direction_module._hearing(demo_pipeline) as heard:
        generate_images(demo_pipeline, [pair.target], [0], settings)
    with direction_module._leaning(demo_pipeline, heard, 1.0):
        leaning = generate_images(demo_pipeline, [pair.source] * 2, [0, 1], settings)
    assert abs(leaning - generate_images(demo_pipeline, [pair.target] * 2, [0, 1], settings)).max() < 1e-4


def test_large_latents_are_pooled_before_their_covariance_is_formed():
    from pytest_diffusion.samples.outliers import _flat

    assert _flat(torch.zeros(2, 16, 128, 128)).shape == (2, 1024)
    assert _flat(torch.zeros(2, 4, 8, 8)).shape == (2, 256)
