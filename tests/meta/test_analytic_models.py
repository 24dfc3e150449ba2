"""`--diffusion-model=analytic:NAME` through the real plugin: what memorises is flagged, what does not is not."""

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")


def run(pytester, cache, name, *extra):
    return pytester.runpytest(f"--diffusion-model=analytic:{name}", f"--diffusion-cache-dir={cache}", *extra)


def test_the_wiener_model_passes_on_digits(pytester, shared_cache):
    result = run(pytester, shared_cache, "wiener")
    outcomes = result.parseoutcomes()
    assert result.ret == 0, "\n".join(result.outlines[-60:])
    assert outcomes["passed"] >= 19
    for check in ("memorisation", "denoising_loss", "forward_marginals", "fid"):
        result.stdout.fnmatch_lines([f"pass *{check} *"])


def test_the_optimal_denoiser_is_caught_memorising(pytester, shared_cache):
    result = run(pytester, shared_cache, "optimal", "-k", "memorisation or fid or duplicate")
    result.stdout.fnmatch_lines(["fail *memorisation *share of samples that copy the reference is *"])
    result.stdout.fnmatch_lines(["pass *fid *"])
    assert result.ret == 1


@pytest.mark.parametrize("name", ["gaussian_mixture", "nearest_dataset", "scfdm", "pca_locality"])
def test_every_model_runs(pytester, shared_cache, name):
    result = run(
        pytester, shared_cache, name, "-k", "kid or same_seed or finite or forward", "--diffusion-num-samples=64", "--diffusion-steps=8"
    )
    for check in ("finite_images", "same_seed", "forward_marginals"):
        result.stdout.fnmatch_lines([f"pass *{check} *"])
    assert "errors" not in result.parseoutcomes()


def test_on_a_folder_of_images(pytester, tmp_path, shared_cache):
    from PIL import Image

    from pytest_diffusion.demo import reference_images

    for index, image in enumerate(reference_images(120)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{index}.png")
    extra = [f"--diffusion-reference={tmp_path}", "--diffusion-num-samples=16", "--diffusion-height=16", "--diffusion-width=16"]
    result = run(pytester, shared_cache, "wiener", *extra, "-k", "same_seed or finite or denoising", "--diffusion-steps=5")
    result.assert_outcomes(passed=2, skipped=1, deselected=result.parseoutcomes()["deselected"])
    result.stdout.fnmatch_lines(["skipped *denoising_loss *a linear filter of 768 dimensions needs at least 768 images*"])


def test_a_wrong_name_lists_those_that_exist(pytester, shared_cache):
    result = run(pytester, shared_cache, "wienr", "-k", "same_seed")
    result.stdout.fnmatch_lines(["*the analytic model is 'wienr'; expected one of: baseline_unet, gaussian_mixture*Did you mean 'wiener'*"])
    result = run(pytester, shared_cache, "")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*expected analytic:NAME, as in analytic:wiener*"])
