"""Random tiny checkpoints of every family of models, made by mlx_lm's own model code, and the logits of both programs."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import metal_kernels
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
metal_kernels.replace()


def is_embedding(path):
    return ("embed" in path and "embed_q" not in path and "unembed_out" not in path) or "wte" in path or "wpe" in path


def build(name, seed, **changes):
    """A random model: products keep the size of their input, norms and biases are far from 1 and 0."""
    config = dict(dict(BASE, **FAMILIES[name]), **changes)
    unstacked, untied = config.pop("unstacked", False), config.pop("untied", False)
    if "vocab_size" in changes and "vocab_size_per_layer_input" in config:
        config["vocab_size_per_layer_input"] = changes["vocab_size"]
    if "vocab_size" in changes and "num_vocab" in config:
        config["num_vocab"] = changes["vocab_size"]
    wrapper = config.pop("wrapper", None)
    # A missing rank of queries is a default in mlx_lm, one that is null is none.
    config = {k: v for k, v in config.items() if v is not None or k == "q_lora_rank"}
    if config["model_type"] == "qwen2":
        config.pop("head_dim")
    if wrapper:  # a model that sees has its text model's fields inside; what stands at the top too is what tests ask for
        config = dict(model_type=wrapper, text_config=config, vocab_size=config["vocab_size"])
    model_class, args_class = utils._get_classes(config)
    model = model_class(args_class.from_dict(config))
    rng = np.random.default_rng(seed)
    # Norms whose weight in use is 1 + w.
    offset = config["model_type"].startswith(("gemma", "muse_glimmer", "recurrent_gemma")) or config["model_type"] == "nemotron"
    offset = offset or (wrapper == "minimax_m3_vl" and config["text_config"].get("use_gemma_norm", True))

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
        if path.endswith(("_alpha", "_beta")):  # of a residual and of what is added to it
            return mx.array(0.7 + 0.1 * noise)
        if path.endswith("e_score_correction_bias"):  # below 0 an expert could be worth less than those of lost groups, which all tie at 0
            return mx.array(0.3 * np.abs(noise))
        own = path.replace("norm_attn_norm.", "")  # DBRX has linears below such a name
        norm = ("norm" in own or "ln_" in own or "ln." in own) and path.endswith("weight")
        if old.ndim == 1 or norm:
            return mx.array((1.0 if norm and not offset else 0.0) + 0.3 * noise)
        return mx.array(noise * (1.0 if is_embedding(path) else 1.2 / np.sqrt(old.shape[-1])))

    weights = [(path, draw(path, old)) for path, old in tree_flatten(model.parameters())]
    model.load_weights(weights)
    return model, config, unstacked, untied


def published_hybrid(weights, ones):
    """Models with gated delta nets as on the hub: taps as torch has them, Qwen's norms less 1, Qwen3.5's experts in two tensors, the head outside the text model."""
    found = {}
    for name, weight in weights.items():
        if "switch_mlp" in name and name.startswith("language_model."):
            stacks, kind = name.removesuffix("_proj.weight").split("switch_mlp.")
            if kind == "up":
                continue
            if kind == "gate":
                kind, weight = "gate_up", mx.concatenate([weight, weights[f"{stacks}switch_mlp.up_proj.weight"]], axis=1)
            name = f"{stacks}experts.{kind}_proj"
        elif "conv1d" in name:
            weight = weight.swapaxes(1, 2)
        elif ones and "norm" in name and "linear_attn" not in name:
            weight = weight - 1
        found[name.replace("language_model.model.", "model.language_model.").replace("language_model.lm_head", "lm_head")] = mx.contiguous(weight)
    return found


def fused_and_turned(weights, config):
    """What Hugging Face's checkpoints of models with taps have otherwise, in place: taps in torch's layout, names and fused tensors of the MLPs."""
    for name in [n for n in weights if n.endswith(("conv1d.weight", "conv_1d.weight", ".conv.weight"))]:
        weights[name] = mx.contiguous(weights[name].swapaxes(1, 2))
    gated = dict(gate_proj="w1", up_proj="w3", down_proj="w2")
    others = dict(
        nemotron_h={f"switch_mlp.{ours}": f"switch_mlp.{theirs}" for ours, theirs in dict(fc1="up_proj", fc2="down_proj").items()},
        lfm2_moe={f"{part}.{ours}": f"{part}.{theirs}" for part in ("feed_forward", "switch_mlp") for ours, theirs in gated.items()},
    )
    for ours, theirs in others.get(config["model_type"], {}).items():
        for name in [n for n in weights if n.endswith(f"{ours}.weight")]:
            weights[name.replace(ours, theirs)] = weights.pop(name)
    if config["model_type"] == "granitemoehybrid":
        for name in [n for n in weights if n.endswith("gate_proj.weight")]:
            ours = name.removesuffix("gate_proj.weight")
            theirs = ours.replace(".mlp.", ".shared_mlp.").replace("switch_mlp.", "")
            gate, up, down = (weights.pop(f"{ours}{kind}_proj.weight") for kind in ("gate", "up", "down"))
            weights[theirs + "input_linear.weight"], weights[theirs + "output_linear.weight"] = mx.concatenate([gate, up], axis=-2), down


# What published checkpoints call a stack of experts: (the end of its path in mlx_lm, the format of a single one's, its names where they are others).
SINGLE_EXPERTS = {
    "dots1": ("mlp.experts", "mlp.experts.{}", {}),
    "phixtral": ("moe.switch_mlp", "moe.mlp.{}", {}),
    "deepseek_v41": ("mlp.experts.switch_mlp", "mlp.experts.{}", dict(gate_proj="w1", down_proj="w2", up_proj="w3")),
    **dict.fromkeys(
        ("kimi_k3", "kimi_linear"), ("mlp.switch_mlp", "block_sparse_moe.experts.{}", dict(gate_proj="w1", down_proj="w2", up_proj="w3"))
    ),
    **dict.fromkeys(
        ("mixtral", "minimax", "minimax_m3_vl", "phimoe"),
        ("block_sparse_moe.switch_mlp", "block_sparse_moe.experts.{}", dict(gate_proj="w1", down_proj="w2", up_proj="w3")),
    ),
}


def in_turn(gate, up):
    """Rows of the one and of the other by turns."""
    return mx.stack([gate, up], axis=2).reshape(gate.shape[0], -1, *gate.shape[2:])


def publish_gpt_oss(weights, config):
    """Its experts in mxfp4 blocks, with gate and up in one tensor."""
    config["quantization_config"] = dict(quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn", "lm_head"])
    for path in [n.removesuffix("gate_proj.weight") for n in weights if n.endswith("experts.gate_proj.weight")]:
        parts = {}
        for kind in ("gate", "up", "down"):
            codes, scales = mx.quantize(weights.pop(f"{path}{kind}_proj.weight"), group_size=32, bits=4, mode="mxfp4")
            blocks = codes.view(mx.uint8)
            parts[kind] = blocks.reshape(*blocks.shape[:2], -1, 16), scales, weights.pop(f"{path}{kind}_proj.bias")
        joined = [in_turn(gate, up) for gate, up in zip(parts.pop("gate"), parts.pop("up"))]
        for name, values in (("gate_up_proj", joined), ("down_proj", parts["down"])):
            weights.update({path + name + suffix: mx.contiguous(v) for suffix, v in zip(("_blocks", "_scales", "_bias"), values)})


# What single experts and routers are called in the checkpoints that mlx_lm's converts: (its name, theirs).
ORIGINAL_NAMES = {
    "bailing_hybrid": [(".mlp.gate.gate_proj.", ".mlp.gate.")],
    "bailing_moe": [(".mlp.gate.gate_proj.", ".mlp.gate.")],
    "bailing_moe_linear": [(".mlp.gate.gate_proj.", ".mlp.gate.")],
    "deepseek_v41": [
        (".attn_hc.", ".hc_attn_"),
        (".ffn_hc.", ".hc_ffn_"),
        (".self_attn.", ".attn."),
        (".mlp.", ".ffn."),
        (".input_layernorm.", ".attn_norm."),
        (".post_attention_layernorm.", ".ffn_norm."),
        (".attn.sinks", ".attn.attn_sink"),
        (".q_a_proj.", ".wq_a."),
        (".q_b_proj.", ".wq_b."),
        (".attn.kv_proj.", ".attn.wkv."),
        (".compressor.kv_proj.", ".compressor.wkv."),
        (".compressor.gate_proj.", ".compressor.wgate."),
        (".compressor.kv_norm.", ".compressor.norm."),
        (".indexer.k_proj.", ".indexer.wk."),
        (".q_a_norm.", ".q_norm."),
        (".o_a_proj.", ".wo_a."),
        (".o_b_proj.", ".wo_b."),
        (".e_score_correction_bias", ".bias"),
        (".shared_experts.gate_proj.", ".shared_experts.w1."),
        (".shared_experts.down_proj.", ".shared_experts.w2."),
        (".shared_experts.up_proj.", ".shared_experts.w3."),
        ("model.embed_tokens.", "embed."),
        ("lm_head.", "head."),
        ("model.", ""),
    ],
    "longcat_flash_ngram": [("model.ngram_embeddings.word_embeddings.", "model.embed_tokens.")],
    "exaone_moe": [(".mlp.gate.e_score_correction_bias", ".mlp.e_score_correction_bias")],
    "kimi_k3": [
        ("language_model.", ""),
        (".mlp.gate.", ".block_sparse_moe.gate."),
        (".mlp.e_score_correction_bias", ".block_sparse_moe.gate.e_score_correction_bias"),
        (".mlp.shared_experts.", ".block_sparse_moe.shared_experts."),
        (".mlp.routed_expert", ".block_sparse_moe.routed_expert"),
        *((f"{part}_res_{kind}.weight", f"{part}_res.{kind}_weight") for part in ("self_attention", "mlp", "output_attn") for kind in ("norm", "proj")),
    ],
    "kimi_linear": [
        (".mlp.gate.", ".block_sparse_moe.gate."),
        (".mlp.e_score_correction_bias", ".block_sparse_moe.gate.e_score_correction_bias"),
        (".mlp.shared_experts.", ".block_sparse_moe.shared_experts."),
        ("_conv.conv.", "_conv1d."),
    ],
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


def fused_pairs(weights, stacks, experts, axis, down=None, suffix=""):
    """In place: gate and up of the stacks in one tensor along this axis; [experts, in, out] where it is the last."""
    turned = lambda w: w.swapaxes(1, 2) if axis == 2 else w
    for name in [n for n in weights if n.endswith(stacks + "gate_proj.weight")]:
        prefix = name.removesuffix(stacks + "gate_proj.weight")
        parts = {kind: turned(weights.pop(f"{prefix}{stacks}{kind}_proj.weight")) for kind in ("gate", "up", "down")}
        weights[prefix + experts + suffix] = mx.concatenate([parts["gate"], parts["up"]], axis=axis)
        weights[prefix + down + suffix] = mx.contiguous(parts["down"])


def publish_muse_spark(weights, config):
    """Norms less 1, a gate for each pair of factors, q, k, v and gate apart, halves of a head that turn together, gate and up of the experts in one."""
    text = config["text_config"]
    size, heads, kv_heads = text["head_dim"], text["num_attention_heads"], text["num_key_value_heads"]
    for name in [n for n in weights if n.endswith("norm.weight") and ".layers." in n]:
        weights[name] = weights[name] - 1
    for ours, theirs in dict(add_attn="post_attention_residual_gate", add_ffn="post_feedforward_residual_gate").items():
        for name in [n for n in weights if n.endswith(f"{ours}_alpha")]:
            del weights[name]
            weights[name.replace(f"{ours}_alpha", f"{theirs}.gate")] = weights.pop(name.replace("_alpha", "_beta")) - 0.7
    apart = lambda w: mx.contiguous(w.reshape(-1, size // 2, 2, w.shape[-1]).swapaxes(1, 2).reshape(w.shape))
    for name in [n for n in weights if n.endswith("qkvg_proj.weight")]:
        rows = [heads * size, (heads + kv_heads) * size, (heads + 2 * kv_heads) * size]
        for part, w in zip(("q", "k", "v", "gate"), mx.split(weights.pop(name), rows)):
            weights[name.replace("qkvg", part)] = apart(w) if part in "qk" else mx.contiguous(w)
    fused_pairs(weights, "mlp.experts.", "mlp.experts.gate_up_proj", 1, "mlp.experts.down_proj")


def published(weights, config):
    """The tensors as Hugging Face's checkpoints have them: experts one by one or fused, names as there."""
    kind = config["model_type"]
    if kind.startswith(("qwen3_5", "qwen3_next", "olmo_hybrid")):
        weights = published_hybrid(weights, ones=kind.startswith("qwen"))
    else:
        fused_and_turned(weights, config)
    if kind == "step3p5":  # its norms are 1 + w in such files
        weights = {k: v - 1 if "norm" in k else v for k, v in weights.items()}
    elif kind == "gpt_oss":
        publish_gpt_oss(weights, config)
    elif kind == "muse_spark":
        publish_muse_spark(weights, config)
    elif kind == "qwen3_vl_moe":
        fused_pairs(weights, "mlp.switch_mlp.", "mlp.experts.gate_up_proj", 2, "mlp.experts.down_proj")
    elif kind == "llama4":
        fused_pairs(weights, "feed_forward.experts.", "feed_forward.experts.gate_up_proj", 2, "feed_forward.experts.down_proj")
    elif kind == "dbrx":
        for name in [n for n in weights if n.endswith(("experts.0.w1.weight", "experts.0.v1.weight", "experts.0.w2.weight"))]:
            stack, linear = name.split("experts.0.")[0] + "experts", name.split(".")[-2]
            singles = [weights.pop(f"{stack}.{e}.{linear}.weight") for e in range(config["ffn_config"]["moe_num_experts"])]
            weights[f"{stack}.mlp.{linear}"] = mx.concatenate([w.T if linear == "w2" else w for w in singles])
    elif kind == "granitemoe":
        fused_pairs(weights, "switch_mlp.", "input_linear", 1, "output_linear", ".weight")
    elif kind in SINGLE_EXPERTS:
        stack, single, names = SINGLE_EXPERTS[kind]
        for name in [n for n in weights if f".{stack}." in n]:
            before, after = name.split(f".{stack}.")
            linear, tensor = after.split(".")
            for e, w in enumerate(weights.pop(name)):
                weights[f"{before}.{single.format(e)}.{names.get(linear, linear)}.{tensor}"] = mx.contiguous(w)
    else:
        if kind == "hunyuan" and "model.layers.0.mlp.gate_proj.weight" in weights:  # both dense and fused
            weights = hunyuan_fused(weights)
        for name in [n for n in weights if re.search(r"\.(switch_mlp|mlp\.experts)\.\w+\.weight$", n)]:
            for e, w in enumerate(weights.pop(name)):
                weights[re.sub(r"switch_mlp|experts", f"experts.{e}", name)] = mx.contiguous(w)
    if kind == "kimi_k3":  # q, k and v apart, and their taps; room for a head more
        for name in [n for n in weights if "qkv_" in n]:
            for part, w in zip("qkv", mx.split(weights.pop(name), 3)):
                weights[name.replace("qkv_proj", f"{part}_proj").replace("qkv_conv.conv", f"{part}_conv1d")] = mx.contiguous(w)
        for name in [n for n in weights if n.endswith("A_log")]:
            weights[name] = mx.pad(weights[name], (0, 1))
    for name in [n for n in weights if n.endswith("o_a_proj.weight")]:  # block-diagonal: its groups one below the other
        weights[name] = weights[name].flatten(0, 1)
    for name in [n for n in weights if n.endswith("embed_q.weight")]:
        keys, values = weights.pop(name).swapaxes(1, 2), weights.pop(name.replace("embed_q", "unembed_out"))
        both = mx.concatenate([keys, values], axis=1)
        weights[name.replace("embed_q", "kv_b_proj")] = both.reshape(-1, both.shape[-1])
    fused_pairs(weights, "switch_glu.", "gate_up_proj", 1, "down_proj")
    for ours, theirs in ORIGINAL_NAMES.get(kind, []):
        weights = {k.replace(ours, theirs, 1): v for k, v in weights.items()}
    return weights


def save(folder, model, config, unstacked=False, untied=False):
    weights = dict(tree_flatten(model.parameters()))
    if config["model_type"].startswith(("gemma3", "recurrent_gemma")) and not untied:
        weights = {k: v for k, v in weights.items() if "lm_head" not in k}
    if unstacked:
        weights = published(weights, config)
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


def representative(folder, name):
    """What methods are tried on: of two blocks, where the config does not list them."""
    listed = {"num_hidden_layers", "layer_types", "no_rope_layers", "sliding_window_pattern", "hybrid_layer_pattern", "compress_ratios"} & FAMILIES[name].keys()
    return family_folder(folder, name, seed=4, vocab_size=8192, **({} if listed else dict(num_hidden_layers=2)))


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
