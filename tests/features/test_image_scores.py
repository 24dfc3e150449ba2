"""Scorers: each by a closed case or on a small model, and the errors of a user's own."""

import json
import sys

import pytest
import torch
import transformers
from torch.nn import functional as F

from pytest_diffusion.data.prompts import foreign_prompts
from pytest_diffusion.demo import reference_captions, reference_images, weights_folder
from pytest_diffusion.features.clip import load_clip
from pytest_diffusion.features.image_scores import TONES, ImageScorer, clip_scorer, load_scorer, tone_scorer
from pytest_diffusion.verdicts.errors import SetupError

pytestmark = pytest.mark.filterwarnings("ignore")
PROMPTS = ["a red circle", "a blue square", "a green circle"]


def load(name, *, prompts=PROMPTS, clip=None, subject=None):
    return load_scorer(name, device="cpu", prompts=prompts, clip=clip, subject=subject)


def test_tones_of_known_images():
    half = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    half[..., 4:] = 255
    red = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    red[:, 0] = 255
    found = tone_scorer()(torch.cat([half, red]), None)
    assert set(found) == set(TONES)
    assert found["brightness"].tolist() == pytest.approx([0.5, 0.2126])
    assert found["contrast"][0] == pytest.approx(0.5, abs=0.01)
    assert found["contrast"][1] == 0
    assert found["saturation"].tolist() == [0.0, 1.0]
    # One edge of height 1 among seven differences along each row.
    assert found["sharpness"].tolist() == pytest.approx([(1 / 7) ** 0.5, 0.0])


def test_clip_scores_each_image_with_its_prompt_and_a_foreign_one():
    clip, images, prompts = load_clip("demo"), reference_images(6), reference_captions(6)
    found = clip_scorer(clip, prompts)(images, prompts)
    embeds, own = clip.image_embeds(images), clip.text_embeds(prompts)
    other = clip.text_embeds(foreign_prompts(prompts))
    assert torch.allclose(found["clip_score"], (100 * (embeds * own).sum(1)).double(), atol=1e-4)
    assert torch.allclose(
        found["alignment"], (100 * (embeds * own).sum(1) - (100 * (embeds * other).sum(1)).clamp(min=0)).double(), atol=1e-4
    )
    # Whatever part of the run is scored at a time.
    later = clip_scorer(clip, prompts)(images[4:], prompts[4:])
    assert torch.allclose(later["alignment"], found["alignment"][4:], atol=1e-5)


def test_another_clip_has_names_of_its_own():
    scorer = load(f"clip:{weights_folder() / 'clip'}")
    assert scorer.names == ("clip_clip", "alignment_clip")
    assert load("clip", clip=lambda: load_clip("demo")).names == ("clip_score", "alignment")


def test_similarity_to_a_subject(tmp_path):
    config = transformers.Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=56)
    torch.manual_seed(0)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "small")
    pictures, images = reference_images(3), reference_images(5)
    scorer = load(f"dinov2:{tmp_path / 'small'}", subject=lambda: pictures)
    values = scorer(images, None)["subject_small"]
    from pytest_diffusion.features.extractors import load_extractor

    extract = load_extractor(f"dinov2:{tmp_path / 'small'}")
    expected = 100 * (F.normalize(extract(images).values, dim=1) @ F.normalize(extract(pictures).values, dim=1).T).mean(1)
    assert torch.allclose(values, expected.double(), atol=1e-4)
    # Other pictures are another scorer.
    assert scorer.identity != load(f"dinov2:{tmp_path / 'small'}", subject=lambda: reference_images(4)).identity


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "my_scores.py").write_text(
        "def darkness(images, prompts):\n    return 255 - images.float().mean((1, 2, 3))\n"
        "darkness.version = '3'\n"
        "def wrong(images, prompts):\n    return images.float().mean()\n"
        "def broken(images, prompts):\n    return images.float().mean((1, 2, 3)) / 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_scores", None)


def test_a_users_own_function(own_module):
    scorer = load("my_scores:darkness")
    assert scorer(torch.full((2, 3, 4, 4), 55, dtype=torch.uint8), None)["darkness"].tolist() == [200.0, 200.0]
    assert scorer.identity == "darkness 3"


@pytest.mark.parametrize(
    ("name", "message"), [("wrong", r"returned shape \(\) for 2 images"), ("broken", "gave values that are not finite")]
)
def test_a_function_that_gives_no_score_is_a_broken_set_up(own_module, name, message):
    with pytest.raises(SetupError, match=message):
        load(f"my_scores:{name}")(torch.ones(2, 3, 4, 4, dtype=torch.uint8), None)


def test_no_images_have_no_scores():
    assert ImageScorer(("one",), lambda images, prompts: {})(torch.zeros(0, 3, 4, 4), None)["one"].shape == (0,)


def small_vlm(folder):
    """A vision-language model of LLaVA's shape: a small CLIP, a small Llama, and a tokenizer that knows the words of the question."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<unk>", "<image>", *"Does this image show a red blue green circle square Answer yes or no ? .".split()]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(dict.fromkeys(words))}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", additional_special_tokens=["<image>"]
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = transformers.LlamaConfig(vocab_size=len(fast), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=fast.convert_tokens_to_ids("<image>"), vision_feature_layer=-1
    )
    torch.manual_seed(0)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    image_processor = transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = transformers.LlavaProcessor(
        image_processor, fast, patch_size=14, vision_feature_select_strategy="default", image_token="<image>", num_additional_image_tokens=1
    )
    processor.save_pretrained(folder)
    return folder


def test_a_vision_language_model_is_asked_whether_an_image_shows_its_prompt(tmp_path):
    folder = small_vlm(tmp_path / "tiny")
    scorer = load(f"vlm:{folder}")
    images = reference_images(3)
    values = scorer(images, PROMPTS)["vlm_tiny"]
    assert values.shape == (3,)
    assert values.isfinite().all()
    # One by one, without padding, it says the same; and another prompt is another question.
    alone = torch.cat([scorer(images[index : index + 1], [PROMPTS[index]])["vlm_tiny"] for index in range(3)])
    assert torch.allclose(values, alone, atol=1e-4)
    assert not torch.allclose(values, scorer(images, PROMPTS[::-1])["vlm_tiny"])
    # The difference of the two words' logits at the place of the answer.
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    from PIL import Image

    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    inputs = processor(images=[picture], text=["<image> Does this image show a red circle? Answer yes or no."], return_tensors="pt")
    logits = model(**inputs).logits[0, -1]
    tokens = processor.tokenizer.get_vocab()
    assert float(values[0]) == pytest.approx(float((logits[tokens["yes"]] - logits[tokens["no"]]).detach()), abs=1e-4)


def test_models_that_cannot_be_loaded_are_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text(json.dumps({}))
    with pytest.raises(SetupError, match=r"--diffusion-scorer: vlm:.* cannot be loaded"):
        load(f"vlm:{tmp_path / 'empty'}")
