"""The gate bites: each planted fault fails the check that should see it, with a message that names it.

Every subject is the demo with one thing broken, run through the real plugin by a conftest.py that overrides a
fixture, at 256 samples with limits calibrated for that many (tests/data/demo-256.toml).
"""

import textwrap
from pathlib import Path

import pytest

from tests.nightly import nightly

pytestmark = pytest.mark.filterwarnings("ignore")
NIGHTLY = nightly("a minute each; `make demo` judges the same demo")
DRAWN = nightly("a minute each; shuffled captions are drawn anew too")
THRESHOLDS = Path(__file__).parents[1] / "data" / "demo-256.toml"
HEAD = """
    import pytest, torch
    @pytest.fixture(scope="session")
    def diffusion_pipeline(diffusion_settings):
        from pytest_diffusion.models.load import load_pipeline
        pipeline = load_pipeline(diffusion_settings)
"""
FAULTS = {
    "scaling factor 1": "pipeline.vae.register_to_config(scaling_factor=1.0)",
    "shuffled captions": """
        own = pipeline.encode_prompt
        def shuffled(prompt, *args, **kwargs):
            order = torch.randperm(len(prompt), generator=torch.Generator().manual_seed(0)).tolist()
            return own([prompt[index] for index in order], *args, **kwargs)
        pipeline.encode_prompt = shuffled
    """,
    "40 % noise in the UNet": """
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in pipeline.unet.parameters():
                parameter += 0.4 * parameter.square().mean().sqrt() * torch.randn(parameter.shape, generator=generator)
    """,
    "eight images repeated": """
        own = pipeline.prepare_latents
        def repeated(batch, channels, height, width, dtype, device, generator, latents=None):
            generators = [torch.Generator().manual_seed(one.initial_seed() % 8) for one in generator]
            return own(batch, channels, height, width, dtype, device, generators, latents)
        pipeline.prepare_latents = repeated
        encode = pipeline.encode_prompt
        pipeline.encode_prompt = lambda prompt, *args, **kwargs: encode(["a red circle"] * len(prompt), *args, **kwargs)
    """,
    "black images": """
        own = pipeline.vae.decode
        def black(latents, *args, **kwargs):
            output = own(latents, *args, **kwargs)
            return (torch.full_like(output[0], -1.0),)
        pipeline.vae.decode = black
    """,
    "channels swapped": """
        own = pipeline.vae.decode
        pipeline.vae.decode = lambda latents, *args, **kwargs: (own(latents, *args, **kwargs)[0].flip(1),)
    """,
    "range mapped twice": """
        own = pipeline.vae.decode
        pipeline.vae.decode = lambda latents, *args, **kwargs: (own(latents, *args, **kwargs)[0] / 2 + 0.5,)
    """,
    "grey": """
        own = pipeline.vae.decode
        def grey(latents, *args, **kwargs):
            return (own(latents, *args, **kwargs)[0].mean(1, keepdim=True).repeat(1, 3, 1, 1),)
        pipeline.vae.decode = grey
    """,
    "copies of the reference": """
        from pytest_diffusion.demo import reference_images
        own, known, place = pipeline.vae.decode, reference_images(1000).float() / 127.5 - 1, [0]
        def copying(latents, *args, **kwargs):
            images = own(latents, *args, **kwargs)[0]
            for index in range(0, len(images), 2):
                images[index] = known[place[0] % 1000] .to(images) + 0.01 * images[index]
                place[0] += 7
            return (images,)
        pipeline.vae.decode = copying
    """,
    "nan from the UNet": """
        pipeline.unet.register_forward_hook(lambda module, args, output: (output[0] * float("nan"),))
    """,
}


def gate(pytester, cache, *, body="", extra=(), select):
    """Run the named checks on the demo, with `body` added to its loading."""
    if body:
        text = textwrap.dedent(HEAD) + textwrap.indent(textwrap.dedent(body).strip(), "    ") + "\n    return pipeline\n"
        (pytester.path / "conftest.py").write_text(text)
    return pytester.runpytest(
        "--diffusion-model=demo",
        "--diffusion-num-samples=256",
        "--diffusion-thresholds=demo",
        f"--diffusion-thresholds={THRESHOLDS}",
        f"--diffusion-cache-dir={cache}",
        "-k",
        select,
        *extra,
    )


@pytest.mark.parametrize(
    ("fault", "check", "message"),
    [
        ("scaling factor 1", "latent_std", "*It looks as if the VAE's scaling factor is missing.*"),
        pytest.param("scaling factor 1", "fid", "*Fréchet distance is * allowed at most *", marks=DRAWN),
        ("shuffled captions", "clip_score", "*prompts and images are not aligned*"),
        pytest.param("40 % noise in the UNet", "fid", "*Fréchet distance is * allowed at most *", marks=DRAWN),
        pytest.param("eight images repeated", "duplicate_images", "*Only 8 of 256 samples are different*", marks=DRAWN),
        pytest.param("black images", "constant_images", "*number of constant samples is 256 *sample 0, which is black.*", marks=DRAWN),
        ("channels swapped", "channel_order", "*As BGR the samples fit the reference better.*"),
        ("range mapped twice", "value_range", "*they look as if [[]-1, 1] was mapped to [[]0, 1] twice.*"),
        ("grey", "grey_images", "*100 samples are grey, the first is sample 0; of the reference 0.*"),
        pytest.param(
            "copies of the reference",
            "memorisation",
            "*share of samples that copy the reference is 0.* is the nearest to an image of*",
            marks=DRAWN,
        ),
        ("nan from the UNet", "finite_images", "*with nan or infinity is 100 *The first is sample 0*"),
    ],
)
def test_a_broken_pipeline_fails_the_right_check(pytester, shared_cache, fault, check, message):
    # The Fréchet distance needs good samples; these faults replace the samples, their colours or their prompts, however good.
    extra = [] if check == "fid" else ["--diffusion-steps=8"]
    extra += ["--diffusion-num-samples=100"] if check in ("channel_order", "value_range", "grey_images", "finite_images") else []
    result = gate(pytester, shared_cache, body=FAULTS[fault], extra=extra, select=check)
    result.stdout.fnmatch_lines([f"fail *{check} {message}"])
    assert result.ret == 1


def test_a_blind_extractor_is_a_broken_set_up_and_no_verdict_on_the_model(pytester, shared_cache):
    (pytester.path / "blind.py").write_text("def extract(images):\n    return images.float().mean((1, 2, 3))[:, None].repeat(1, 4) * 0\n")
    pytester.syspathinsert()
    result = gate(pytester, shared_cache, extra=["--diffusion-features=blind:extract"], select="fid or precision")
    reason = "The metrics do not separate real images from faulty ones *The model was not judged.*"
    result.stdout.fnmatch_lines([f"broken *3 checks (fid, fid_infinity, precision) *{reason}"])
    # The file has limits for checks that were not chosen: a promise that was not kept, beside the broken set-up.
    assert result.ret == 1


def test_two_steps_are_too_few(pytester, shared_cache):
    result = gate(pytester, shared_cache, extra=["--diffusion-steps=2"], select="fid or clip_score")
    result.stdout.fnmatch_lines(["fail *fid *Fréchet distance is * allowed at most *"])
    assert result.ret == 1


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ("scheduler.betas.flip(0)", "*betas fall from * to *: they look reversed.*"),
        ("torch.full((1000,), 0.01)", "*The betas are constant (0.01)*"),
    ],
)
def test_a_broken_schedule_is_named(pytester, shared_cache, betas, message):
    body = f"""
        scheduler = pipeline.scheduler
        pipeline.scheduler = type(scheduler).from_config(scheduler.config, trained_betas=({betas}).numpy())
    """
    result = gate(pytester, shared_cache, body=body, extra=["--diffusion-lenses=schedule"], select="betas or log_snr")
    result.stdout.fnmatch_lines([f"fail *betas_in_range {message}", f"fail *log_snr_first {message}"])
    assert result.ret == 1


def test_attention_recorded_from_attn1_is_refused(pytester, shared_cache):
    (pytester.path / "conftest.py").write_text(
        textwrap.dedent(
            """
            import pytest
            @pytest.fixture(scope="session")
            def diffusion_attention(diffusion_pipeline, diffusion_settings):
                from pytest_diffusion.attention.run import run_attention
                from pytest_diffusion.data.prompts import phrases
                layers = [name for name, _ in diffusion_pipeline.unet.named_modules() if name.endswith("attn1")]
                return run_attention(diffusion_pipeline, phrases("demo", 4), diffusion_settings, layers=layers)
            """
        )
    )
    result = gate(pytester, shared_cache, select="attention")
    result.stdout.fnmatch_lines(["fail *attention_is_cross *self-attention, attn1): record attn2 instead.*"])
    assert result.ret == 1


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param((), marks=NIGHTLY),
        pytest.param(("--diffusion-seed=100000",), marks=NIGHTLY),
        pytest.param(("--diffusion-dtype=bfloat16",), marks=NIGHTLY),
        pytest.param(("--diffusion-scheduler=DPMSolverMultistepScheduler", "--diffusion-steps=15"), marks=NIGHTLY),
    ],
    ids=["as it is", "another seed", "bfloat16", "DPM-Solver++ in 15 steps"],
)
def test_sound_variants_raise_no_alarm(pytester, shared_cache, variant):
    """The whole checklist, every figure judged: nothing fails and nothing is inconclusive."""
    result = gate(pytester, shared_cache, extra=variant, select="diffusion")
    outcomes = result.parseoutcomes()
    assert outcomes.get("failed", 0) == 0, "\n".join(line for line in result.outlines if line.startswith(("fail", "inconclusive")))
    assert outcomes["passed"] >= 57
    assert result.ret == 0


@nightly("a minute: a processor takes fifteen times as long for it")
def test_float16_raises_no_alarm(pytester, shared_cache):
    """A processor takes fifteen times as long for it as for float32: a few samples, and the checks that reduced precision could upset."""
    result = gate(
        pytester,
        shared_cache,
        extra=["--diffusion-dtype=float16", "--diffusion-num-samples=8", "--diffusion-steps=4"],
        select="finite_images or same_seed or batch_invariance or guidance or pipeline_decodes or latent_std or vae or rows_sum",
    )
    outcomes = result.parseoutcomes()
    assert outcomes.get("failed", 0) == 0, "\n".join(line for line in result.outlines if line.startswith(("fail", "inconclusive")))
    assert outcomes["passed"] >= 9
