import pytest

from pytest_diffusion import Measurement, ProtocolMismatchError, difference


def fid(value, half_width=1.0, **changes):
    protocol = {"extractor": "inception-1", "resize": "none", "versions": "torch 2.13.0", **changes.pop("protocol", {})}
    return Measurement(value, "FID", interval=(value - half_width, value + half_width), num_samples=1000, protocol=protocol, **changes)


def test_difference_of_two_figures():
    found = difference(fid(20.0, 3.0), fid(18.0, 4.0))
    assert found.value == pytest.approx(2.0)
    assert found.interval == pytest.approx((-3.0, 7.0))
    assert found.name == "difference in FID"


def test_each_end_of_a_difference_comes_from_the_opposite_ends():
    found = difference(Measurement(20.0, "FID", interval=(17.0, 25.0)), Measurement(18.0, "FID", interval=(14.0, 30.0)))
    assert found.interval == pytest.approx((2 - (3**2 + 12**2) ** 0.5, 2 + (5**2 + 4**2) ** 0.5))


def test_an_exact_figure_has_an_exact_difference():
    assert difference(Measurement(3.0, "number"), Measurement(1.0, "number")).interval is None
    measured = Measurement(2.0, "number", interval=(1.0, 3.0))
    for pair in ((measured, Measurement(1.0, "number")), (Measurement(1.0, "number"), measured)):
        assert difference(*pair).interval is None, "of one interval nothing is known about the other"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (fid(18.0, protocol={"resize": "bicubic"}), "resize is 'none' on one side and 'bicubic' on the other"),
        (fid(18.0, protocol={"versions": "torch 2.12.0"}), "versions is 'torch 2.13.0' on one side and 'torch 2.12.0'"),
        (fid(18.0, num_reference=50), "num_reference is None on one side and 50"),
        (Measurement(18.0, "KID", num_samples=1000), "name is 'FID' on one side and 'KID' on the other"),
    ],
)
def test_other_protocols_are_refused(other, message):
    with pytest.raises(ProtocolMismatchError, match=message):
        difference(fid(20.0), other)


def test_what_the_caller_has_looked_at_may_differ():
    assert difference(fid(20.0), fid(18.0, protocol={"versions": "torch 2.12.0"}), ignore=["versions"]).value == pytest.approx(2.0)
