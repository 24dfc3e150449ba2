"""One pipeline of every family that people ship: released configurations (tests/data/zoo) or documented defaults, at reduced width.

Weights are random. What attention and latent checks must get right does not depend on them: which layers are
recorded, which rows and tokens, which grid, which factor. The text is read by the demo's CLIP vocabulary and by
a small SentencePiece one.
"""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import torch
import transformers

from pytest_diffusion.demo import weights_folder

ZOO = Path(__file__).parents[1] / "data" / "zoo"
CONTEXT = 77
WIDTH = 32
_PIECES = ["a", "photo", "of", "an", "red", "blue", "green", "yellow", "circle", "square", "car", "cat", "dog", "house"]


def config(name: str) -> dict:
    """A configuration of the zoo, without its bookkeeping."""
    values = json.loads((ZOO / f"{name}.json").read_text())
    return {key: value for key, value in values.items() if not key.startswith("_")}


def clip(source: str, *, projects: bool = False, width: int = WIDTH):
    """A CLIP text encoder and its tokenizer, with a context of 77."""
    tokenizer = transformers.CLIPTokenizer.from_pretrained(weights_folder() / "tokenizer", model_max_length=CONTEXT)
    small = {
        **config(source),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "projection_dim": width,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "torch_dtype": "float32",
    }
    kind = transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel
    return kind(transformers.CLIPTextConfig(**small)).eval(), tokenizer


def t5(width: int = WIDTH):
    """A T5 encoder and a SentencePiece tokenizer that knows some words and spells the others by letters."""
    letters = [chr(ord("a") + index) for index in range(26)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [(f"▁{word}", -2.0) for word in _PIECES] + [("cycle", -2.5)] + [(letter, -6.0) for letter in letters]
    tokenizer = transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
    shape = {"d_model": width, "d_ff": 2 * WIDTH, "d_kv": 8, "num_heads": 4, "num_layers": 2}
    encoder = transformers.T5EncoderModel(transformers.T5Config(vocab_size=len(tokenizer), **shape))
    return encoder.eval(), tokenizer


def vae(source: str | None = None, **changes):
    """An f = 8 autoencoder."""
    base = config(source) if source else config("stable-diffusion-xl-base-1.0/vae")
    narrow = {"block_out_channels": [8] * 4, "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 64}
    return diffusers.AutoencoderKL(**{**base, **narrow, **changes}).eval()


def scheduler(kind: str, source: str, **changes):
    """A scheduler with a released configuration."""
    return getattr(diffusers, kind).from_config(json.loads((ZOO / source / "scheduler_config.json").read_text()), **changes)


def sd15():
    text_encoder, tokenizer = clip("stable-diffusion-v1-5/text_encoder")
    return diffusers.StableDiffusionPipeline(
        unet=_unet15(),
        vae=vae("stable-diffusion-v1-5/vae"),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler("PNDMScheduler", "stable-diffusion-v1-5"),
        **_UNCHECKED,
    )


def sd21():
    """Stable Diffusion 2.1: velocities, linear projections, heads of one width."""
    pipeline = sd15()
    heads = {"attention_head_dim": [2, 4, 8, 8], "use_linear_projection": True}
    pipeline.register_modules(
        unet=_unet15(**heads), scheduler=scheduler("DDIMScheduler", "stable-diffusion-v1-5", prediction_type="v_prediction")
    )
    return pipeline


def lcm():
    """A latent consistency model: guidance is an input of the UNet, and the batch has no halves."""
    pipeline = sd15()
    parts = {name: getattr(pipeline, name) for name in ("vae", "text_encoder", "tokenizer")}
    own = scheduler("LCMScheduler", "stable-diffusion-v1-5")
    return diffusers.LatentConsistencyModelPipeline(unet=_unet15(time_cond_proj_dim=32), scheduler=own, **parts, **_UNCHECKED)


def sdxl():
    # The second encoder is the wider one, as released: loaders tell them apart by their width.
    first = clip("stable-diffusion-xl-base-1.0/text_encoder")
    second = clip("stable-diffusion-xl-base-1.0/text_encoder_2", projects=True, width=2 * WIDTH)
    second[1].pad_token = "z</w>"  # as released: the second encoder pads with another token of the vocabulary
    unet = diffusers.UNet2DConditionModel(
        **{
            **config("stable-diffusion-xl-base-1.0/unet"),
            "block_out_channels": [32, 32, 64],
            "norm_num_groups": 8,
            "attention_head_dim": [2, 4, 8],
            "transformer_layers_per_block": [1, 1, 2],
            "cross_attention_dim": 3 * WIDTH,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 2 * WIDTH + 6 * 8,
            "sample_size": 8,
        }
    )
    return diffusers.StableDiffusionXLPipeline(
        unet=unet.eval(),
        vae=vae("stable-diffusion-xl-base-1.0/vae"),
        text_encoder=first[0],
        tokenizer=first[1],
        text_encoder_2=second[0],
        tokenizer_2=second[1],
        scheduler=scheduler("EulerDiscreteScheduler", "stable-diffusion-xl-base-1.0"),
        add_watermarker=False,
    )


def turbo():
    """SDXL Turbo: the parts of SDXL, sampled in one to four steps without guidance."""
    pipeline = sdxl()
    changes = {"timestep_spacing": "trailing"}
    pipeline.scheduler = scheduler("EulerAncestralDiscreteScheduler", "stable-diffusion-xl-base-1.0", **changes)
    return pipeline


def pixart():
    text_encoder, tokenizer = t5()
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=3,
        sample_size=32,  # the pipeline knows bins of aspect ratios for 256 pixels and more
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )
    return diffusers.PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae("stable-diffusion-v1-5/vae"),
        transformer=transformer.eval(),
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule="linear"),
    )


def sd3():
    """Stable Diffusion 3.5: joint attention over CLIP and T5 tokens, normalised queries, and a self-attention named attn2."""
    first, second = (clip("stable-diffusion-3.5-large/text_encoder", projects=True) for _ in range(2))
    third = t5(2 * WIDTH)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=16,
        out_channels=16,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=scheduler("FlowMatchEulerDiscreteScheduler", "stable-diffusion-3.5-large"),
        vae=vae(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, force_upcast=True),
        text_encoder=first[0],
        tokenizer=first[1],
        text_encoder_2=second[0],
        tokenizer_2=second[1],
        text_encoder_3=third[0],
        tokenizer_3=third[1],
    )


def flux():
    """Flux: packed latents, rotary positions, double and single blocks of joint attention over T5 tokens."""
    first, second = clip("stable-diffusion-v1-5/text_encoder"), t5()
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=True,
    )
    return diffusers.FluxPipeline(
        scheduler=scheduler("FlowMatchEulerDiscreteScheduler", "flux1-schnell"),
        vae=vae(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=first[0],
        tokenizer=first[1],
        text_encoder_2=second[0],
        tokenizer_2=second[1],
        transformer=transformer.eval(),
    )


def dit():
    """A class-conditional diffusion transformer, without text."""
    transformer = diffusers.DiTTransformer2DModel(num_attention_heads=4, attention_head_dim=8, num_layers=3, sample_size=8, out_channels=8)
    return diffusers.DiTPipeline(transformer.eval(), vae("stable-diffusion-v1-5/vae"), diffusers.DDIMScheduler())


def ddpm():
    """An unconditional pixel model."""
    narrow = {"block_out_channels": [32] * 6, "sample_size": 64}
    unet = diffusers.UNet2DModel(**{**config("ddpm-butterflies-128/unet"), **narrow})
    return diffusers.DDPMPipeline(unet.eval(), scheduler("DDPMScheduler", "ddpm-butterflies-128"))


def _unet15(**changes):
    narrow = {"block_out_channels": [32, 32, 64, 64], "cross_attention_dim": WIDTH, "sample_size": 8, "layers_per_block": 1}
    narrow["norm_num_groups"] = 8  # 32 groups of two numbers each would blow rounding up
    return diffusers.UNet2DConditionModel(**{**config("stable-diffusion-v1-5/unet"), **narrow, **changes}).eval()


_UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
FAMILIES = {family.__name__: family for family in (sd15, sd21, lcm, sdxl, turbo, pixart, sd3, flux, dit, ddpm)}


def build(name: str):
    """The pipeline of a family, always with the same random weights."""
    torch.manual_seed(0)
    pipeline = FAMILIES[name]()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
