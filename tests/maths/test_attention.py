import numpy as np
import pytest
import torch

from pytest_diffusion.maths.attention import area_matched_iou, half_mass_share, map_correlation, token_entropy


def test_entropy_of_known_laws():
    content = torch.tensor([[True] * 3 + [False] * 4, [False] + [True] * 6])
    assert torch.allclose(token_entropy(torch.full((2, 5, 7), 1 / 7), content), torch.ones(2))
    sure = torch.zeros(2, 5, 7)
    sure[..., 2] = 1
    assert torch.allclose(token_entropy(sure, content), torch.zeros(2), atol=1e-6)
    # Two of three tokens share all: ln 2 / ln 3.
    two = torch.tensor([0.1, 0.1, 0, 0.2, 0.2, 0.2, 0.2]).expand(1, 2, 4, 7)
    assert float(token_entropy(two, content[:1])) == pytest.approx(0.6309, abs=1e-4)


def test_it_is_the_entropy_of_the_softmax_over_content_tokens():
    scores = 5 * torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    content = torch.tensor([[True] * 4 + [False] * 3, [False] * 2 + [True] * 5])
    entropy = token_entropy(scores.softmax(-1), content)
    for row in range(2):
        law = torch.distributions.Categorical(logits=scores[row][..., content[row]].double())
        assert float(entropy[row]) == pytest.approx(float(law.entropy().mean() / content[row].sum().log()), rel=1e-5)


def test_a_start_token_that_takes_nearly_all_leaves_the_entropy_of_the_rest():
    scores = torch.zeros(1, 2, 4)
    scores[..., 0] = 60.0
    assert float(token_entropy(scores.softmax(-1), torch.tensor([[False, True, True, True]]))) == pytest.approx(1, rel=1e-5)


def test_one_token_has_no_entropy():
    entropy = token_entropy(torch.full((2, 3, 4), 0.25), torch.tensor([[True, False, False, False], [True, True, False, False]]))
    assert entropy.isnan().tolist() == [True, False]


def test_half_mass_share():
    assert float(half_mass_share(torch.ones(8, 8))) == pytest.approx(0.5)
    spot = torch.zeros(8, 8)
    spot[2, 3] = 1
    assert float(half_mass_share(spot)) == pytest.approx(0.5 / 64)
    half = torch.zeros(8, 8)
    half[:4] = 1
    assert float(half_mass_share(half)) == pytest.approx(0.25)


def test_half_mass_share_of_several_maps_lies_within_a_position():
    """Masses 4, 3, 2, 1 of 10: the half, 5, is reached one third into the second position; 7, 1, 1, 1 in the first."""
    maps = torch.tensor([[[1.0, 4.0], [2.0, 3.0]], [[1.0, 1.0], [7.0, 1.0]]])
    assert half_mass_share(maps).tolist() == pytest.approx([(1 + 1 / 3) / 4, 5 / 7 / 4])
    assert half_mass_share(maps.flip(0)).tolist() == pytest.approx([5 / 7 / 4, (1 + 1 / 3) / 4])
    assert half_mass_share(1e-9 * maps).tolist() == pytest.approx(half_mass_share(maps).tolist())


def test_a_map_without_mass_needs_no_position():
    maps = torch.stack([torch.zeros(2, 3), torch.ones(2, 3)])
    assert half_mass_share(maps).tolist() == pytest.approx([0, 0.5])
    assert half_mass_share(torch.ones(1, 1)).item() == 0.5


def test_correlation():
    ramp = torch.arange(16.0).reshape(4, 4)
    assert float(map_correlation(ramp, 3 * ramp + 1)) == pytest.approx(1)
    assert float(map_correlation(1e-6 * ramp, 1e-6 * ramp)) == pytest.approx(1)
    assert float(map_correlation(ramp, -ramp)) == pytest.approx(-1)
    assert float(map_correlation(ramp, torch.ones(4, 4))) == 0


def test_correlation_of_several_maps_is_that_of_each_pair():
    left, right = torch.rand(2, 3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = [
        [np.corrcoef(one.flatten(), other.flatten())[0, 1] for one, other in zip(*rows, strict=True)]
        for rows in zip(left, right, strict=True)
    ]
    assert map_correlation(left, right).tolist() == [pytest.approx(row, abs=1e-6) for row in expected]


def test_iou_needs_no_threshold():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 2:6, 2:6] = True
    assert area_matched_iou(mask.float() * 0.01, mask).item() == 1
    assert area_matched_iou(1 - mask.float(), mask).item() == 0
    assert area_matched_iou(mask.float(), torch.zeros_like(mask)).item() == 0
    shifted = mask.roll(2, 1)
    assert area_matched_iou(shifted.float(), mask).item() == pytest.approx(8 / 24)


def test_maps_are_resized_by_the_areas_of_their_pixels():
    """Four pixels 0, 4, 1, 0 become eight of half the width: 0, 1, 3, 3.25, 1.75, 0.75, 0.25, 0."""
    maps = torch.tensor([0.0, 4.0, 1.0, 0.0]).view(1, 1, 4).repeat(3, 1, 1)
    masks = torch.tensor([[0, 0, 0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 0, 0]]).bool().view(3, 1, 8)
    assert area_matched_iou(maps, masks).tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match="argument 2 is longer"):
        area_matched_iou(maps[:2], masks)
    wider = torch.tensor([0, 0, 0, 1, 1, 1, 0, 0]).bool().view(1, 1, 8)
    assert area_matched_iou(maps[:1], wider).item() == pytest.approx(2 / 4)
