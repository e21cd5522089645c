"""Checkpoints that transformers made, against mlx_lm: the folders of tests/model/fixtures (make_fixtures.py says how they came to be).

Each folder is read in two spellings of config.json, with the same weights:

- as it lies there, in the words of transformers 5;
- as transformers 4 wrote it, which most files of the hub have: rotary positions as flat fields, and what FLAT says.

`lquant logits` must give mlx_lm's numbers. mlx_lm reads the very same folder where it can. Where it cannot, a folder is written for it that says
the same in the words and names that it reads (MLX_LM, and the functions in WEIGHTS). Where mlx_lm reads a folder and passes over a part of it, as
most of its models do with "rope_parameters", lquant passes over it too: its output is run there.

A family that lquant supports stands in RUNS, as transformers 4 spells it, and in RUNS_AS_SAVED where the other spelling is read as well. Families
that are not there are skipped with lquant's own sentence; one that runs and is not listed fails, so that none can stop running unseen.
"""

import json
import shutil
import subprocess
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from mlx_lm import utils
from mlx_lm.models.cache import make_prompt_cache
from tiny_models import ENVIRONMENT, LQUANT, assert_close, token_ids

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = sorted(f.name for f in FIXTURES.iterdir())

RUNS = {
    "afmoe",
    "apertus",
    "cohere",
    "cohere2",
    "deepseek_v2",
    "deepseek_v3",
    "dots1",
    "ernie4_5",
    "ernie4_5_moe",
    "exaone4",
    "exaone_moe",
    "falcon_h1",
    "falcon_mamba",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gemma3n",
    "gemma4",
    "gemma4_text",
    "glm",
    "glm4",
    "glm4_moe",
    "glm_moe_dsa",
    "gpt2",
    "gpt_bigcode",
    "gpt_neox",
    "gpt_oss",
    "gptj",
    "granite",
    "granitemoe",
    "granitemoehybrid",
    "helium",
    "hunyuan_v1_dense",
    "internlm3",
    "iquestcoder",
    "jamba",
    "laguna",
    "lfm2",
    "lfm2_moe",
    "lfm2_vl",
    "llama",
    "llama4",
    "llava",
    "longcat_flash",
    "mamba",
    "mamba2",
    "minicpm3",
    "minimax_m2",
    "ministral3",
    "mistral",
    "mistral3",
    "mistral4",
    "mixtral",
    "muse_glimmer",
    "nanochat",
    "nemotron",
    "nemotron_h",
    "olmo2",
    "olmo3",
    "olmo_hybrid",
    "olmoe",
    "phi",
    "phi3",
    "phimoe",
    "pixtral",
    "qwen2",
    "qwen2_5_vl",
    "qwen2_moe",
    "qwen2_vl",
    "qwen3",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_next",
    "qwen3_vl",
    "recurrent_gemma",
    "seed_oss",
    "smollm3",
    "solar_open",
    "stablelm",
    "starcoder2",
}
RUNS_AS_SAVED = RUNS

# mlx_lm does not load these with the config.json of transformers 5: a required field is missing there, or a default does not fit.
REFUSED_AS_SAVED = {
    "apertus",  # rope_theta, mlp_bias, post_norm, qk_norm
    "cohere2",  # sliding_window_pattern: its default, 4, is more than the layers here
    "deepseek_v2",  # rope_scaling
    "dots1",  # rope_theta
    "ernie4_5",  # rope_theta
    "ernie4_5_moe",  # rope_theta
    "exaone4",  # rope_theta, rope_scaling
    "exaone_moe",  # is_moe_layer
    "gemma3",  # vocab_size at the top, sliding_window_pattern
    "gemma3_text",  # sliding_window_pattern
    "gemma3n",  # rope_theta, rope_local_base_freq; keys and values of the layers that use others'
    "gemma4",  # vocab_size at the top, global_head_dim, num_global_key_value_heads
    "gemma4_text",  # global_head_dim
    "glm4",  # rope_theta, partial_rotary_factor
    "glm4_moe",  # rope_theta, rope_scaling, partial_rotary_factor
    "gpt2",  # n_ctx
    "gpt_bigcode",  # n_inner is null
    "glm_moe_dsa",  # moe_layer_freq, topk_method, scoring_func
    "gpt_neox",  # rotary_emb_base, rotary_pct
    "gpt_oss",  # experts that are not in mxfp4 blocks; it passes over the scaling of positions
    "granite",  # rope_theta
    "granitemoe",  # rope_theta
    "granitemoehybrid",  # layer_types calls its kinds otherwise
    "helium",  # rope_theta
    "lfm2",  # block_dim
    "lfm2_vl",  # the model type, the names of all tensors, the taps' axes, block_dim
    "llama4",  # rope_theta, rope_scaling
    "longcat_flash",  # rope_theta, attention_method, zero_expert_type, mla_scale_q_lora, mla_scale_kv_lora, weights of experts that have none
    "mamba2",  # intermediate_size
    "minicpm3",  # rope_scaling
    "minimax_m2",  # rope_theta, rotary_dim, shared_intermediate_size
    "muse_glimmer",  # the names of its tower's tensors
    "nanochat",  # the names of all tensors
    "olmo3",  # rope_theta
    "olmo_hybrid",  # the names of the norms in layers with a delta net
    "phimoe",  # it passes over the scaling of positions
    "qwen2_5_vl",  # tie_word_embeddings inside text_config
    "qwen3_5",  # full_attention_interval, tie_word_embeddings inside text_config
    "qwen3_5_moe",  # full_attention_interval, experts one by one
    "qwen3_next",  # rope_theta, partial_rotary_factor, full_attention_interval
    "recurrent_gemma",  # rope_theta
    "solar_open",  # rope_theta, partial_rotary_factor
    "stablelm",  # rope_theta, partial_rotary_factor
}

# What files of the hub say beside flat rotary positions, or in other words than transformers 5.
FLAT = {
    "apertus": dict(mlp_bias=False, post_norm=False, qk_norm=True),
    "cohere2": dict(sliding_window_pattern=2),
    "exaone_moe": dict(is_moe_layer=[False, True]),
    "gemma3": dict(sliding_window_pattern=2),
    "gemma3_text": dict(sliding_window_pattern=3),
    "gemma4": dict(global_head_dim=16, num_global_key_value_heads=1),
    "gemma4_text": dict(global_head_dim=16),
    "glm_moe_dsa": dict(moe_layer_freq=1, topk_method="noaux_tc", scoring_func="sigmoid"),
    "gpt2": dict(n_ctx=32),
    "gptj": dict(n_inner=None),
    "granitemoehybrid": dict(layer_types=["mamba", "attention"]),
    "lfm2": dict(block_dim=32, block_ff_dim=64),
    "lfm2_vl": dict(block_dim=32, block_ff_dim=32),
    "qwen3_5": dict(full_attention_interval=2),
    "qwen3_5_moe": dict(full_attention_interval=2),
    "qwen3_next": dict(full_attention_interval=2),
    "longcat_flash": dict(attention_method="MLA", zero_expert_type="identity", mla_scale_q_lora=True, mla_scale_kv_lora=True),
    "mamba2": dict(intermediate_size=64),
    "minimax_m2": dict(rotary_dim=4, shared_intermediate_size=0),
}
# What only mlx_lm asks for, at the top of config.json and in its text_config.
MLX_LM = {
    "gemma3": (dict(vocab_size=96), {}),
    "gemma4": (dict(vocab_size=96), {}),
    "gpt_bigcode": (dict(n_inner=128), {}),
    "lfm2_vl": (dict(model_type="lfm2-vl"), {}),
}


# These had "rope_parameters" from the beginning.
BORN_NESTED = {"gemma4", "gemma4_text", "glm_moe_dsa", "laguna", "ministral3", "mistral4", "muse_glimmer", "olmo_hybrid", "qwen3_5", "qwen3_5_moe"}


def flat_positions(text):
    """The fields of transformers 4 in place of "rope_parameters"."""
    rope = text.pop("rope_parameters", None)
    if rope is None:
        return
    if "full_attention" in rope:
        text["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    rope = dict(rope)
    kind = text["model_type"]
    theta, part = rope.pop("rope_theta"), rope.pop("partial_rotary_factor", None)
    if kind == "gpt_neox":
        text.update(rotary_emb_base=theta, rotary_pct=part)
        return
    if kind in ("phi3", "hunyuan_v1_dense"):
        rope["type"] = rope.pop("rope_type")
    if kind.startswith("qwen2") and "mrope_section" in rope:
        rope = dict(type="mrope", mrope_section=rope["mrope_section"])
    if kind == "phi3":
        text["original_max_position_embeddings"] = rope.pop("original_max_position_embeddings")
    text["rope_theta"] = theta
    text["rope_scaling"] = None if rope == dict(rope_type="default") else rope
    if part is not None:
        text["partial_rotary_factor"] = part


def saved_config(name):
    return json.loads((FIXTURES / name / "config.json").read_text())


def flat_config(name):
    config = saved_config(name)
    text = config.get("text_config", config)
    if name not in BORN_NESTED:
        flat_positions(text)
    text.update(FLAT.get(name, {}))
    if name in ("qwen2_vl", "qwen2_5_vl"):  # all fields of the text stood at the top
        del config["text_config"]
        config = dict(text, **config)
    return config


def renamed(weights, *words):
    for old, new in words:
        weights = {name.replace(old, new): w for name, w in weights.items()}
    return weights


def nanochat_weights(weights):
    return renamed(
        weights,
        ("model.layers.", "transformer.h."),
        ("model.embed_tokens", "transformer.wte"),
        ("self_attn.o_proj", "attn.c_proj"),
        ("self_attn.q_proj", "attn.c_q"),
        ("self_attn.k_proj", "attn.c_k"),
        ("self_attn.v_proj", "attn.c_v"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
    )


def lfm2_vl_weights(weights):
    text = {name: w for name, w in weights.items() if "language_model." in name}
    text = renamed(text, ("model.language_model.", "language_model.model."))
    return {name: mx.contiguous(w.transpose(0, 2, 1)) if name.endswith("conv.conv.weight") else w for name, w in text.items()}


def gemma3n_weights(weights):
    """The layers that use the keys and values of others have projections in mlx_lm, which nothing reads."""
    for layer in (2, 3):
        for part in ("k_proj", "v_proj", "k_norm"):
            own = f"model.language_model.layers.{{}}.self_attn.{part}.weight"
            weights[own.format(layer)] = mx.zeros_like(weights[own.format(0)])
    return weights


def olmo_hybrid_weights(weights):
    return renamed(weights, ("attention_layer_norm", "input_layernorm"), ("feedforward_layer_norm", "post_attention_layernorm"))


def qwen3_5_moe_weights(weights):
    """mlx_lm reads experts in two tensors a layer, as the published files have them."""
    for layer in (0, 1):
        experts = f"model.language_model.layers.{layer}.mlp.experts."
        stack = lambda kind: mx.stack([weights.pop(f"{experts}{e}.{kind}_proj.weight") for e in range(4)])
        weights[experts + "gate_up_proj"] = mx.concatenate([stack("gate"), stack("up")], axis=1)
        weights[experts + "down_proj"] = stack("down")
    return weights


def longcat_flash_weights(weights):
    """Experts 3 and 4 give a token back; transformers saves numbers for them that nothing reads."""
    return {name: w for name, w in weights.items() if ".experts.3." not in name and ".experts.4." not in name}


def gpt_oss_weights(weights):
    """Gate and up stand in one matrix [in, 2 · out], column by column in turn; down is transposed as well."""
    for path in [name.removesuffix("gate_up_proj") for name in weights if name.endswith("experts.gate_up_proj")]:
        for first, kind in enumerate(("gate", "up")):
            weights[f"{path}{kind}_proj.weight"] = mx.contiguous(weights[path + "gate_up_proj"][..., first::2].swapaxes(1, 2))
            weights[f"{path}{kind}_proj.bias"] = mx.contiguous(weights[path + "gate_up_proj_bias"][..., first::2])
        weights[path + "down_proj.weight"] = mx.contiguous(weights.pop(path + "down_proj").swapaxes(1, 2))
        weights[path + "down_proj.bias"] = weights.pop(path + "down_proj_bias")
        del weights[path + "gate_up_proj"], weights[path + "gate_up_proj_bias"]
    return weights


def muse_glimmer_weights(weights):
    return {name: w for name, w in weights.items() if not name.startswith("model.vision_")}


WEIGHTS = {
    "gemma3n": gemma3n_weights,
    "gpt_oss": gpt_oss_weights,
    "lfm2_vl": lfm2_vl_weights,
    "longcat_flash": longcat_flash_weights,
    "muse_glimmer": muse_glimmer_weights,
    "nanochat": nanochat_weights,
    "olmo_hybrid": olmo_hybrid_weights,
    "qwen3_5_moe": qwen3_5_moe_weights,
}


def copied(name, config, folder):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(FIXTURES / name / "model.safetensors", folder)
    return folder


def for_mlx_lm(name, folder):
    """What mlx_lm can load, from the spelling of transformers 4."""
    top, text = MLX_LM.get(name, ({}, {}))
    config = dict(flat_config(name), **top)
    if text:
        config["text_config"].update(text)
    copied(name, config, folder)
    if name in WEIGHTS:
        file = str(folder / "model.safetensors")
        weights = WEIGHTS[name](mx.load(file))
        mx.eval(weights)
        mx.save_safetensors(file, weights, metadata={"format": "mlx"})
    return folder


def theirs(folder, ids):
    """mlx_lm's logits in f32, with caches, as it generates: without them Gemma 3n's layers do not share keys and values there."""
    model, _ = utils.load_model(folder)
    model.update(tree_map(lambda p: p.astype(mx.float32) if mx.issubdtype(p.dtype, mx.floating) else p, model.parameters()))
    cache = make_prompt_cache(model)
    return np.array(model(mx.array(ids), cache=cache).astype(mx.float32))


def ours(folder, ids, scratch):
    """lquant's logits in f32, or the sentence in which it refuses the folder."""
    (scratch / "ids.json").write_text(json.dumps(ids))
    output = scratch / "logits.safetensors"
    command = [LQUANT, "logits", "--model", folder, "--ids", scratch / "ids.json", "--output", output, "--dtype", "float32"]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode == 0:
        return np.array(mx.load(str(output))["logits"]), ""
    assert done.returncode == 1 and done.stderr.startswith("lquant: ") and done.stderr.count("\n") == 1, done.stderr
    return None, done.stderr.strip()


def compare(name, folder, reference, listed, where, scratch):
    ids = token_ids(96)
    logits, refusal = ours(folder, ids, scratch)
    if name in listed:
        assert not refusal, refusal
    elif refusal:
        pytest.skip(refusal)
    error = assert_close(logits, theirs(reference, ids))
    assert name in listed, f"{name} runs now: add it to {where}"
    return error


@pytest.mark.parametrize("name", NAMES)
def test_as_saved(name, tmp_path):
    reference = for_mlx_lm(name, tmp_path / "mlx_lm") if name in REFUSED_AS_SAVED else FIXTURES / name
    compare(name, FIXTURES / name, reference, RUNS_AS_SAVED, "RUNS_AS_SAVED", tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_flat(name, tmp_path, ran):
    folder = copied(name, flat_config(name), tmp_path / "flat")
    reference = for_mlx_lm(name, tmp_path / "mlx_lm") if name in MLX_LM or name in WEIGHTS else folder
    ran("transformers", name, compare(name, folder, reference, RUNS, "RUNS", tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_mlx_lm_runs_the_fixture(name, tmp_path):
    """The reference holds for the families that lquant does not run yet as well: finite logits that tell tokens apart."""
    if name not in REFUSED_AS_SAVED:
        assert np.all(np.isfinite(theirs(FIXTURES / name, token_ids(96))))
    logits = theirs(for_mlx_lm(name, tmp_path / "mlx_lm"), token_ids(96))
    assert np.all(np.isfinite(logits)) and logits.std() > 0.1


def test_lists_name_fixtures():
    listed = RUNS | RUNS_AS_SAVED | REFUSED_AS_SAVED | set(FLAT) | set(MLX_LM) | set(WEIGHTS) | BORN_NESTED
    assert listed <= set(NAMES)
