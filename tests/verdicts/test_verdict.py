import json
import math

import pytest

from pytest_diffusion.verdicts.verdict import Limits, Measurement, Verdict, judge, skipped

AT_MOST_30 = Limits(at_most=30.0, source="test", where="thresholds/test.toml [fid]")


@pytest.mark.parametrize(
    ("interval", "outcome"),
    [
        ((20, 29), "pass"),
        ((20, 30), "pass"),
        ((29, 31), "inconclusive"),
        ((30.1, 32), "fail"),
        (None, "pass"),
        ((math.nan, math.nan), "inconclusive"),
        ((31, math.nan), "inconclusive"),
        ((math.nan, 29), "inconclusive"),
    ],
)
def test_interval_against_limit(interval, outcome):
    assert judge("fid", Measurement(25.0, interval=interval, num_samples=100), AT_MOST_30).outcome == outcome


@pytest.mark.parametrize(
    ("value", "outcome"), [(4.9, "fail"), (5.0, "pass"), (7.0, "pass"), (7.1, "fail"), (math.nan, "fail"), (math.inf, "fail")]
)
def test_exact_value_against_two_limits(value, outcome):
    assert judge("x", Measurement(value), Limits(at_least=5.0, at_most=7.0)).outcome == outcome


def test_too_few_samples_never_pass():
    limits = Limits(at_most=30.0, min_samples=10_000, min_reference=10_000)
    verdict = judge("fid", Measurement(1.0, num_samples=500, num_reference=20_000), limits)
    assert verdict.outcome == "undersampled"
    assert "500 samples, at least 10000 are needed" in verdict.message
    verdict = judge("fid", Measurement(1.0, num_samples=10_000), limits)
    assert verdict.outcome == "undersampled"
    assert "an unknown number of reference images" in verdict.message


def test_no_limit_is_not_a_pass():
    assert judge("kid", Measurement(0.0), None).outcome == "reported"
    assert judge("kid", Measurement(0.0), Limits(source="none")).outcome == "reported"


def test_a_limit_of_the_users_own_is_held_where_a_presets_is_not():
    doubtful = Measurement(40.0, unjudged="the model may be distilled.")
    assert judge("x", doubtful, Limits(at_most=30.0, where="thresholds/default.toml [x]")).outcome == "reported"
    assert judge("x", doubtful, Limits(at_most=30.0, where="own.toml [x]", origin="file")).outcome == "fail"
    assert judge("x", doubtful, Limits(at_most=30.0, origin="call")).outcome == "fail"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"at_least": 2.0, "at_most": 1.0}, "at_least is 2 and at_most is 1: no figure can meet both"),
        ({"at_most": math.nan}, "at_most is nan; expected a finite number"),
        ({"at_least": -math.inf}, "at_least is -inf; expected a finite number"),
        ({"at_most": 1.0, "min_samples": -1}, "min_samples is -1; expected a whole number of at least 0"),
        ({"at_most": 1.0, "min_reference": -5}, "min_reference is -5; expected"),
    ],
)
def test_limits_that_nothing_or_everything_meets_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        Limits(**limits)


def test_message_names_figure_interval_basis_limit_and_hint():
    measurement = Measurement.with_error(
        41.2, 0.663, name="FID", num_samples=10_000, protocol={"extractor": "inception"}, hint="Resize both."
    )
    message = judge("fid", measurement, AT_MOST_30).message
    assert message == "FID is 41.2 ± 1.3 (N=10000, inception); allowed at most 30 (thresholds/test.toml [fid]). Resize both."


def test_inconclusive_says_how_many_samples_would_decide():
    # Half-width 2 at N = 100, distance to the limit 1: four times as many.
    message = judge("x", Measurement(29.0, interval=(27.0, 31.0), num_samples=100), AT_MOST_30).message
    assert "About 400 samples would decide." in message


def test_inconclusive_gates_only_when_strict():
    measurement = Measurement(29.0, interval=(27.0, 31.0))
    assert judge("x", measurement, AT_MOST_30).gates
    assert not judge("x", measurement, AT_MOST_30, strict=False).gates
    assert judge("x", Measurement(31.0), AT_MOST_30, strict=False).gates


@pytest.mark.parametrize(
    ("value", "interval", "origin", "gates"),
    [
        (29.0, (27.0, 31.0), "preset", False),
        (10.0, (8.0, 12.0), "preset", False),
        (10.0, (8.0, 12.0), "file", True),
        (10.0, (8.0, 12.0), "call", True),
        (40.0, (38.0, 42.0), "preset", True),
        (29.0, (math.nan, 31.0), "preset", True),
    ],
)
def test_letting_close_calls_through_is_not_blind(value, interval, origin, gates):
    """Too few samples close the gate where the limit is the user's own, or the figure is not close at all."""
    limits = Limits(at_most=30.0, min_samples=100, source="s", origin=origin)
    verdict = judge("x", Measurement(value, interval=interval, num_samples=99), limits, strict=False)
    assert (verdict.outcome, verdict.gates) == ("undersampled", gates)
    assert ("All of its interval lies outside the limit." in verdict.message) == (value == 40.0)


def test_an_unknown_uncertainty_is_no_close_call():
    limits = Limits(at_most=30.0, source="s")
    assert judge("x", Measurement(29.0, interval=(math.nan, 31.0)), limits, strict=False).gates


@pytest.mark.parametrize(
    "verdict",
    [
        judge("fid", Measurement(41.2, interval=(40.0, 42.0), series={"a": [1.0, 2.0]}, protocol={"k": 3}), AT_MOST_30, lens="metrics"),
        judge("log_snr_last", Measurement(-math.inf), Limits(at_most=-4.0)),
        skipped("vae_psnr", "no VAE"),
    ],
)
def test_json_round_trip(verdict):
    text = json.dumps(verdict.to_json(), allow_nan=False)
    assert Verdict.from_json(json.loads(text)) == verdict


def test_a_verdict_holds_plain_values_only():
    with pytest.raises(TypeError, match="plain values only; got object"):
        judge("x", Measurement(1.0, series={"a": object()}), AT_MOST_30).to_json()
