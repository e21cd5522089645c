"""Random tiny checkpoints of every family of models, made by mlx_lm's own model code, and the logits of both programs."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import mlx.core as mx
import numpy as np
from families import BASE, FAMILIES
from mlx.utils import tree_flatten, tree_map
from mlx_lm import utils
from mlx_lm.models.cache import make_prompt_cache

LQUANT = os.environ.get("LQUANT", "lquant")
# Threads that wait by spinning make tiny models crawl where the machine is shared, as test machines are.
ENVIRONMENT = dict(os.environ, OMP_WAIT_POLICY="passive")
TINY = Path(__file__).parents[1] / "models" / "tiny"


def is_embedding(path):
    return "embed" in path or "wte" in path or "wpe" in path


def build(name, seed, **changes):
    """A random model: products keep the size of their input, norms and biases are far from 1 and 0."""
    config = dict(dict(BASE, **FAMILIES[name]), **changes)
    unstacked, untied = config.pop("unstacked", False), config.pop("untied", False)
    if "vocab_size" in changes and "vocab_size_per_layer_input" in config:
        config["vocab_size_per_layer_input"] = changes["vocab_size"]
    wrapper = config.pop("wrapper", None)
    config = {k: v for k, v in config.items() if v is not None}
    if config["model_type"] == "qwen2":
        config.pop("head_dim")
    if wrapper:  # a model that sees has its text model's fields inside; what stands at the top too is what tests ask for
        config = dict(model_type=wrapper, text_config=config, vocab_size=config["vocab_size"])
    model_class, args_class = utils._get_classes(config)
    model = model_class(args_class.from_dict(config))
    rng = np.random.default_rng(seed)
    offset = config["model_type"].startswith(("gemma", "muse")) or config["model_type"] == "nemotron"  # norms whose weight in use is 1 + w

    def draw(path, old):
        noise = rng.standard_normal(old.shape).astype(np.float32)
        if ".quant_" in path:  # steps to which keys and values are rounded: in wide ones hardly any two sums fall apart
            return mx.array(0.5 * (1 + 0.2 * noise))
        if old.ndim == 0:  # numbers of an activation: a trained one is not far from its first; a limit stays
            return old if path.endswith("eps") else old + 0.2 * mx.array(noise)
        if path.endswith("router.scale"):  # in use it is divided by √H
            return mx.array(np.sqrt(old.size) * (1 + 0.3 * noise))
        if path.endswith("per_expert_scale"):
            return mx.array(1 + 0.3 * noise)
        norm = ("norm" in path or "ln_" in path) and path.endswith("weight")
        if old.ndim == 1 or norm:
            return mx.array((1.0 if norm and not offset else 0.0) + 0.3 * noise)
        return mx.array(noise * (1.0 if is_embedding(path) else 1.2 / np.sqrt(old.shape[-1])))

    weights = [(path, draw(path, old)) for path, old in tree_flatten(model.parameters())]
    model.load_weights(weights)
    return model, config, unstacked, untied


# What single experts and routers are called in the checkpoints that mlx_lm's converts: (its name, theirs).
ORIGINAL_NAMES = {
    "bailing_moe": [(".mlp.gate.gate_proj.", ".mlp.gate.")],
    "bailing_moe_linear": [(".mlp.gate.gate_proj.", ".mlp.gate.")],
    "exaone_moe": [(".mlp.gate.e_score_correction_bias", ".mlp.e_score_correction_bias")],
    "laguna": [
        (".mlp.gate.proj.", ".mlp.gate."),
        (".mlp.gate.e_score_correction_bias", ".mlp.experts.e_score_correction_bias"),
        ("model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    ],
    "step3p5": [
        (".mlp.switch_mlp.", ".moe."),
        (".mlp.gate.gate.", ".moe.gate."),
        (".mlp.gate.router_bias", ".moe.router_bias"),
        (".mlp.share_expert.", ".share_expert."),
    ],
}


def hunyuan_fused(weights):
    """q, k and v in one group by group, up above gate; of a model with two query heads a group."""
    fused = dict(weights)
    for name in [n for n in weights if n.endswith("mlp.gate_proj.weight")]:
        layer = name.removesuffix("mlp.gate_proj.weight")
        gate, up = (fused.pop(f"{layer}mlp.{kind}_proj.weight") for kind in ("gate", "up"))
        fused[layer + "mlp.gate_and_up_proj.weight"] = mx.concatenate([up, gate])
        if layer + "self_attn.k_proj.weight" not in weights:
            continue
        q, k, v = (fused.pop(f"{layer}self_attn.{kind}_proj.weight") for kind in "qkv")
        groups = [w.reshape(2, -1, 32, w.shape[-1]) for w in (q, k, v)]
        fused[layer + "self_attn.qkv_proj.weight"] = mx.concatenate(groups, axis=1).reshape(-1, q.shape[-1])
    return fused


def unstack(weights, model_type):
    """Experts one by one or, where the type's checkpoints have them so, fused; names as there."""
    if model_type == "step3p5":  # its norms are 1 + w in such files
        weights = {k: v - 1 if "norm" in k else v for k, v in weights.items()}
    elif model_type in ("qwen3_vl_moe", "llama4"):  # gate and up in one, everything [experts, in, out]
        stacks, experts = ("mlp.switch_mlp.", "mlp.experts.") if model_type == "qwen3_vl_moe" else ("feed_forward.experts.",) * 2
        for name in [n for n in weights if n.endswith(stacks + "gate_proj.weight")]:
            prefix = name.removesuffix(stacks + "gate_proj.weight")
            gate, up, down = (weights.pop(f"{prefix}{stacks}{kind}_proj.weight").swapaxes(1, 2) for kind in ("gate", "up", "down"))
            weights[prefix + experts + "gate_up_proj"] = mx.concatenate([gate, up], axis=2)
            weights[prefix + experts + "down_proj"] = mx.contiguous(down)
    else:
        if model_type == "hunyuan" and "model.layers.0.mlp.gate_proj.weight" in weights:  # both dense and fused
            weights = hunyuan_fused(weights)
        for name in [n for n in weights if re.search(r"\.mlp\.(switch_mlp|experts)\.\w+_proj\.weight$", n)]:
            for e, w in enumerate(weights.pop(name)):
                weights[re.sub(r"switch_mlp|experts", f"experts.{e}", name)] = mx.contiguous(w)
        for name in [n for n in weights if n.endswith("switch_glu.gate_proj.weight")]:
            stacks = name.removesuffix("switch_glu.gate_proj.weight")
            gate, up, down = (weights.pop(f"{stacks}switch_glu.{kind}_proj.weight") for kind in ("gate", "up", "down"))
            weights[stacks + "gate_up_proj"], weights[stacks + "down_proj"] = mx.concatenate([gate, up], axis=1), down
    for ours, theirs in ORIGINAL_NAMES.get(model_type, []):
        weights = {k.replace(ours, theirs, 1): v for k, v in weights.items()}
    return weights


def save(folder, model, config, unstacked=False, untied=False):
    weights = dict(tree_flatten(model.parameters()))
    if config["model_type"].startswith("gemma3") and not untied:
        weights = {k: v for k, v in weights.items() if "lm_head" not in k}
    if unstacked:
        weights = unstack(weights, config["model_type"])
    folder.mkdir(exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))


def family_folder(folder, name, seed=1, stored=mx.float32, **changes):
    """The checkpoint as a folder with the embedded model's tokenizer: what a command takes. Texts need its vocabulary (vocab_size=8192)."""
    model, config, unstacked, untied = build(name, seed, **changes)
    model.set_dtype(stored)
    save(folder, model, config, unstacked, untied)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / file, folder)
    return folder


def token_ids(vocab, seed=7, rows=2, length=24):
    return np.random.default_rng(seed).integers(0, vocab, (rows, length)).tolist()


def lquant_logits(folder, ids, dtype):
    (folder / "ids.json").write_text(json.dumps(ids))
    output = folder / "logits.safetensors"
    command = [LQUANT, "logits", "--model", folder, "--ids", folder / "ids.json", "--output", output, "--dtype", dtype]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return np.array(mx.load(str(output))["logits"])


def cache_for(model):
    """What mlx_lm's model must be given to compute what it computes as it generates: without a cache its Gemma 3n gives layers that share keys others."""
    return make_prompt_cache(model) if model.model_type == "gemma3n" else None


def mlx_lm_logits(folder, ids, dtype=None):
    model, _ = utils.load_model(folder)
    if dtype is not None:
        model.update(tree_map(lambda p: p.astype(dtype) if mx.issubdtype(p.dtype, mx.floating) else p, model.parameters()))
    return np.array(model(mx.array(ids), cache=cache_for(model)).astype(mx.float32))


def assert_close(ours, theirs):
    # Both sum the same few hundred f32 products in different orders, three blocks deep: about 1e-6 of the values. 1e-4 of
    # the logits' range leaves room for what the blocks amplify, and is far below what any wrong constant would do.
    assert ours.shape == theirs.shape
    spread = theirs.max() - theirs.min()
    error = np.abs(ours - theirs).max() / spread
    assert error <= 1e-4
    return float(error)
