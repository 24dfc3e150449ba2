import json
import math
from dataclasses import replace

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


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (Limits(), "no limit"),
        (Limits(at_least=0.0), "at least 0"),
        (Limits(at_most=0.0), "at most 0"),
        (Limits(at_least=6.0, at_most=9.5), "between 6 and 9.5"),
        (Limits(at_least=0.0, at_most=0.0), "exactly 0"),
    ],
)
def test_limits_in_words(limits, text):
    assert limits.text == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.0, "3"),
        (-999_999.0, "-999999"),
        (1e6, "1000000.0"),
        (-2e6, "-2000000.0"),
        (0.12345, "0.123"),
        (99.96, "100"),
        (-99.94, "-99.9"),
        (100.04, "100.0"),
        (123.456, "123.5"),
        (math.inf, "inf"),
    ],
)
def test_numbers_have_three_figures_or_one_decimal(value, text):
    assert judge("x", Measurement(value), None).message.startswith(f"x is {text}; ")


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (50.0, (0.0, 100.0), "50 ± 50"),
        (52.0, (0.0, 100.0), "52 ± 50"),
        (52.1, (0.0, 100.0), "52.1 [0, 100]"),
        (0.05, (0.0, 0.125), "0.05 [0, 0.125]"),
    ],
)
def test_an_interval_that_is_not_in_the_middle_is_shown_by_its_ends(value, interval, text):
    """Two hundredths of its width are in the middle still."""
    assert judge("x", Measurement(value, unit="dB", interval=interval), None).message.startswith(f"x is {text} dB; ")


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


def test_a_hint_belongs_to_what_did_not_pass():
    measurement = Measurement(3.0, num_samples=9, hint="Resize both.")
    assert judge("fid", measurement, Limits(at_most=3.0)).message == "fid is 3 (N=9); allowed at most 3 (given by the caller)."
    assert judge("fid", measurement, Limits(at_most=2.0)).message.endswith("(given by the caller). Resize both.")
    assert judge("fid", Measurement(3.0), Limits(at_most=2.0)).message == "fid is 3; allowed at most 2 (given by the caller)."


def test_a_verdict_gates_unless_it_says_otherwise():
    assert Verdict("x", "fail", "broken").gates
    assert not skipped("x", "no VAE").gates
    assert not judge("x", Measurement(1.0), Limits(at_most=2.0)).gates


def test_inconclusive_says_how_many_samples_would_decide():
    # Half-width 2 at N = 100, distance to the limit 1: four times as many.
    message = judge("x", Measurement(29.0, interval=(27.0, 31.0), num_samples=100), AT_MOST_30).message
    assert "About 400 samples would decide." in message
    # Half-width 3, distance 1: nine times as many. Distance 4, to the nearer of two limits: the next number.
    message = judge("x", Measurement(29.0, interval=(26.0, 32.0), num_samples=100), AT_MOST_30).message
    assert message.endswith(" About 900 samples would decide.")
    between = Limits(at_least=10.0, at_most=30.0)
    message = judge("x", Measurement(14.0, interval=(9.0, 17.0), num_samples=101), between).message
    assert message.endswith(" About 102 samples would decide.")
    message = judge("x", Measurement(30 - 1 / 999.5, interval=(29.0, 31.0), num_samples=100), AT_MOST_30).message
    assert "samples would decide." in message


@pytest.mark.parametrize("value", [30.0, 30.0 - 1 / 1000.5])
def test_no_number_of_samples_decides_a_figure_on_its_limit(value):
    verdict = judge("x", Measurement(value, interval=(29.0, 31.0), num_samples=100), AT_MOST_30)
    assert verdict.outcome == "inconclusive"
    assert verdict.message.endswith(" The figure lies on its limit: more samples would hardly decide.")


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
        judge("x", Measurement(1.0, interval=(-math.inf, 2.0), series={"a": [math.inf, {"b": [-math.inf]}]}), Limits(at_most=1e300)),
        skipped("vae_psnr", "no VAE"),
    ],
)
def test_json_round_trip(verdict):
    text = json.dumps(verdict.to_json(), allow_nan=False)
    assert Verdict.from_json(json.loads(text)) == verdict


def test_a_verdict_holds_plain_values_only():
    with pytest.raises(TypeError, match="plain values only; got object"):
        judge("x", Measurement(1.0, series={"a": object()}), AT_MOST_30).to_json()


def test_the_number_that_would_decide_counts_the_reference_too():
    """Its share of the uncertainty does not shrink with more samples."""
    measured = Measurement(29.0, interval=(27.0, 31.0), num_samples=100, num_reference=50)
    message = judge("fid", measured, AT_MOST_30).message
    assert message.endswith(" About 400 samples and 200 reference images would decide, if the figure stays where it is.")
    message = judge("x", replace(measured, given_reference=True), AT_MOST_30).message
    assert message.endswith(" About 400 samples would decide, if the figure stays where it is."), "the reference is the same then"


def test_no_number_is_promised_where_the_user_cannot_choose_it():
    measured = Measurement(29.0, interval=(27.0, 31.0), num_samples=4)
    assert "would decide" in judge("x", measured, AT_MOST_30).message
    assert judge("x", measured, AT_MOST_30, raised_by="").message.endswith("allowed at most 30 (thresholds/test.toml [fid]).")


def test_where_effort_raises_the_number_its_factor_is_said():
    measured = Measurement(29.0, interval=(27.0, 31.0), num_samples=64)
    message = judge("x", measured, AT_MOST_30, raised_by="effort").message
    assert message.endswith(
        " About 4 times as many would decide: raise --diffusion-effort by this factor, with as many samples and references."
    )
    measured = Measurement(29.0, interval=(27.99, 30.01), num_samples=64)
    assert "About 1.1 times as many" in judge("x", measured, AT_MOST_30, raised_by="effort").message
