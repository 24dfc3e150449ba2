"""Checkpoints with the original keys of Stable Diffusion and Flux, made from pipelines of diffusers: the inverse of its own conversion."""

from __future__ import annotations

import re

import torch

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_keys(unet):
    """The tensors of a UNet by their original keys."""
    layers = unet.config.layers_per_block
    return {_unet_key(key, layers, unet): tensor for key, tensor in unet.state_dict().items()}


def _unet_key(key, layers, unet):
    for ours, original in _ENDS.items():
        if key.startswith(f"{ours}."):
            return original + key.removeprefix(ours)
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", key):
        place = {"resnets": 2 * int(found[2]), "attentions": 1}[found[1]]
        return f"middle_block.{place}.{_inner(found[1], found[3])}"
    found = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", key)
    side, block, kind, index, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{(layers + 1) * (block + 1)}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{(layers + 1) * block + index + 1}.{int(kind == 'attentions')}.{_inner(kind, rest)}"
    if kind == "upsamplers":
        has_attention = hasattr(unet.up_blocks[block], "attentions")
        return f"output_blocks.{(layers + 1) * block + layers}.{1 + has_attention}.{rest}"
    return f"output_blocks.{(layers + 1) * block + index}.{int(kind == 'attentions')}.{_inner(kind, rest)}"


def _inner(kind, rest):
    if kind != "resnets":
        return rest
    name, _, end = rest.partition(".")
    return f"{_RESNET[name]}.{end}"


def vae_keys(vae):
    """The tensors of an autoencoder by their original keys."""
    count = len(vae.config.block_out_channels)
    found = {}
    for key, tensor in vae.state_dict().items():
        name = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
        if "mid_block.attentions.0." in name:
            head, _, end = name.partition("mid_block.attentions.0.")
            part = next(ours for ours in _VAE_ATTENTION if end.startswith(ours))
            name = f"{head}mid.attn_1.{_VAE_ATTENTION[part]}{end.removeprefix(part)}"
            if tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
        name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda match: f"up.{count - 1 - int(match[1])}.block.{match[2]}", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.", lambda match: f"up.{count - 1 - int(match[1])}.upsample.", name)
        found[name] = tensor
    return found


def clip_keys(text_encoder):
    """The tensors of a CLIP text encoder by the keys of transformers, as the first encoder of every checkpoint has them."""
    return {f"transformer.{_with_prefix(key)}": tensor for key, tensor in text_encoder.state_dict().items() if "text_projection" not in key}


def open_clip_keys(text_encoder):
    """The tensors of a CLIP text encoder by the keys of OpenCLIP, as the second encoder of SDXL has them."""
    state = {_with_prefix(key): tensor for key, tensor in text_encoder.state_dict().items()}
    found = {
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "text_projection": state["text_projection.weight"].T.contiguous(),
        "logit_scale": torch.tensor(4.6),
    }
    for end in ("weight", "bias"):
        found[f"ln_final.{end}"] = state[f"text_model.final_layer_norm.{end}"]
    names = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    for layer in range(text_encoder.config.num_hidden_layers):
        head, block = f"text_model.encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for end in ("weight", "bias"):
            for ours, original in names.items():
                found[f"{block}.{original}.{end}"] = state[f"{head}.{ours}.{end}"]
            found[f"{block}.attn.in_proj_{end}"] = torch.cat([state[f"{head}.self_attn.{part}_proj.{end}"] for part in "qkv"])
    return found


_FLUX = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "proj_out": "final_layer.linear",
}
_FLUX_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_FLUX_NORMS = {
    "norm_q": "img_attn.norm.query_norm",
    "norm_k": "img_attn.norm.key_norm",
    "norm_added_q": "txt_attn.norm.query_norm",
    "norm_added_k": "txt_attn.norm.key_norm",
}


def flux_keys(transformer):
    """The tensors of a Flux transformer by their original keys."""
    state = transformer.state_dict()
    ends = ("weight", "bias")
    found = {f"{original}.{end}": state[f"{ours}.{end}"] for ours, original in _FLUX.items() for end in ends if f"{ours}.{end}" in state}
    for end in ends:  # diffusers has scale before shift
        found[f"final_layer.adaLN_modulation.1.{end}"] = torch.cat(state[f"norm_out.linear.{end}"].chunk(2)[::-1])
    for block in range(transformer.config.num_layers):
        ours, original = f"transformer_blocks.{block}", f"double_blocks.{block}"
        for end in ends:
            found |= {f"{original}.{theirs}.{end}": state[f"{ours}.{name}.{end}"] for name, theirs in _FLUX_DOUBLE.items()}
            found[f"{original}.img_attn.qkv.{end}"] = torch.cat([state[f"{ours}.attn.to_{part}.{end}"] for part in "qkv"])
            found[f"{original}.txt_attn.qkv.{end}"] = torch.cat([state[f"{ours}.attn.add_{part}_proj.{end}"] for part in "qkv"])
        found |= {f"{original}.{theirs}.scale": state[f"{ours}.attn.{name}.weight"] for name, theirs in _FLUX_NORMS.items()}
    for block in range(transformer.config.num_single_layers):
        ours, original = f"single_transformer_blocks.{block}", f"single_blocks.{block}"
        for end in ends:
            found[f"{original}.modulation.lin.{end}"] = state[f"{ours}.norm.linear.{end}"]
            found[f"{original}.linear1.{end}"] = torch.cat(
                [state[f"{ours}.{part}.{end}"] for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
            )
            found[f"{original}.linear2.{end}"] = state[f"{ours}.proj_out.{end}"]
        for name, theirs in (("norm_q", "query_norm"), ("norm_k", "key_norm")):
            found[f"{original}.norm.{theirs}.scale"] = state[f"{ours}.attn.{name}.weight"]
    return {key: tensor.detach().clone().contiguous() for key, tensor in found.items()}


def _with_prefix(key):
    return key if key.startswith(("text_model.", "text_projection")) else f"text_model.{key}"


def checkpoint(pipeline, *, with_vae=True, with_text=True):
    """The tensors of a pipeline in one file, with or without VAE and text encoders."""
    found = {f"model.diffusion_model.{key}": tensor for key, tensor in unet_keys(pipeline.unet).items()}
    if with_vae:
        found |= {f"first_stage_model.{key}": tensor for key, tensor in vae_keys(pipeline.vae).items()}
    if with_text and getattr(pipeline, "text_encoder_2", None) is None:
        found |= {f"cond_stage_model.{key}": tensor for key, tensor in clip_keys(pipeline.text_encoder).items()}
    elif with_text:
        found |= {f"conditioner.embedders.0.{key}": tensor for key, tensor in clip_keys(pipeline.text_encoder).items()}
        found |= {f"conditioner.embedders.1.model.{key}": tensor for key, tensor in open_clip_keys(pipeline.text_encoder_2).items()}
    return {key: tensor.detach().clone().contiguous() for key, tensor in found.items()}
