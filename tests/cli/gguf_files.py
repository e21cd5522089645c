"""Model folders as GGUF files, by the conventions of llama.cpp's convert_hf_to_gguf.py, for tests of the way back."""

import json
import math
from pathlib import Path

import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6

BLOCK = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.qkv_proj": "attn_qkv", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp", "mlp.switch_mlp.gate_proj": "ffn_gate_exps", "mlp.switch_mlp.up_proj": "ffn_up_exps",
    "mlp.switch_mlp.down_proj": "ffn_down_exps",
}  # fmt: skip
SANDWICH = {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3", "qwen3_moe": "qwen3moe"}


def gguf_name(name, sandwich):
    path, suffix = name.rsplit(".", 1)
    if path in OUTSIDE:
        return f"{OUTSIDE[path]}.{suffix}"
    _, _, block, inner = path.split(".", 3)
    names = {**BLOCK, **(SANDWICH if sandwich else {"post_attention_layernorm": "ffn_norm"})}
    return f"blk.{block}.{names[inner]}.{suffix}"


def interleaved(w, heads):
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def llama3_factors(config, scaling, features):
    context, low, high = (scaling[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
    factors = []
    for f in range(features // 2):
        wave = 2 * math.pi * config["rope_theta"] ** (2 * f / features)
        smooth = (context / wave - low) / (high - low)
        blended = 1 / ((1 - smooth) / scaling["factor"] + smooth)
        factors.append(1.0 if wave < context / high else scaling["factor"] if wave > context / low else blended)
    return np.array(factors, np.float32)


def add_rope(writer, config, features):
    scaling = config.get("rope_scaling") or (config.get("rope_parameters") if "rope_theta" not in config else None)
    if not scaling:
        return
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(config, scaling, features))
    elif kind in ("longrope", "su"):
        writer.add_tensor("rope_factors_long.weight", np.array(scaling["long_factor"], np.float32))
        writer.add_tensor("rope_factors_short.weight", np.array(scaling["short_factor"], np.float32))
        writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
    else:
        writer.add_string(f"{writer.arch}.rope.scaling.type", kind)
        writer.add_rope_scaling_factor(scaling["factor"])
        if kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])


def add_config(writer, config, head_dim):
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    theta = config["rope_theta"] if "rope_theta" in config else config["rope_parameters"]["rope_theta"]
    writer.add_rope_freq_base(theta)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(int(head_dim * config.get("partial_rotary_factor", 1)))
    if config["model_type"] != "phi3":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if config["model_type"] == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if "sliding_window" in config:
        writer.add_sliding_window(config["sliding_window"])
    if "sliding_window_pattern" in config:
        writer.add_uint32(f"{writer.arch}.attention.sliding_window_pattern", config["sliding_window_pattern"])
    if "num_experts" in config:
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])


def add_tokenizer(writer, tokenizer, config, pre, scores=None):
    """`tokenizer`: a tokenizer.json. With scores it is a SentencePiece one: only their order matters."""
    vocab = dict(tokenizer["model"]["vocab"])
    special = {t["id"]: t for t in tokenizer["added_tokens"]}
    vocab.update({t["content"]: t["id"] for t in special.values()})
    tokens = [text for text, _ in sorted(vocab.items(), key=lambda item: item[1])]
    types = [NORMAL] * len(tokens)
    for i, token in special.items():
        types[i] = CONTROL if token["special"] else USER_DEFINED
    if scores is None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in tokenizer["model"]["merges"]])
    else:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(scores)
    writer.add_token_list([t.replace("▁", " ") if types[i] == USER_DEFINED else t for i, t in enumerate(tokens)])
    writer.add_token_types(types)
    for role in ("bos", "eos", "unk", "pad"):
        text = config.get(f"{role}_token")
        if text in vocab:
            getattr(writer, f"add_{role}_token_id")(vocab[text])
    if "chat_template" in config:
        writer.add_chat_template(config["chat_template"])


def write_gguf(folder, path, kind=None, pre="smollm", pieces=0, tokenizer_folder=None, extra=lambda writer: None):
    """`folder` as the file `path`; matrices of the given type (default: as they are), vectors F32, of `pieces` > 0 tensors in a file."""
    folder, path = Path(folder), Path(path)
    config = json.loads((folder / "config.json").read_text())
    model_type = config["model_type"]
    gemma, heads = model_type.startswith("gemma"), config["num_attention_heads"]
    sandwich = gemma and model_type != "gemma"  # norms behind attention and MLP too
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer = GGUFWriter(path, ARCHITECTURES.get(model_type, model_type), split_max_tensors=pieces)
    add_config(writer, config, head_dim)
    add_rope(writer, config, int(head_dim * config.get("partial_rotary_factor", 1)))
    source = Path(tokenizer_folder or folder)
    tokenizer_config = source / "tokenizer_config.json"
    add_tokenizer(
        writer,
        json.loads((source / "tokenizer.json").read_text(encoding="utf-8")),
        json.loads(tokenizer_config.read_text(encoding="utf-8")) if tokenizer_config.exists() else {},
        pre,
    )
    extra(writer)
    for name, array in unstacked_to_stacked(mx.load(str(folder / "model.safetensors"))).items():
        stored = GGMLQuantizationType[kind] if kind else {mx.float32: None, mx.float16: None, mx.bfloat16: GGMLQuantizationType.BF16}[array.dtype]
        values = np.array(array.astype(mx.float32))
        if model_type in ("llama", "mistral", "smollm3") and ".q_proj." in name:
            values = interleaved(values, heads)
        if model_type in ("llama", "mistral", "smollm3") and ".k_proj." in name:
            values = interleaved(values, config.get("num_key_value_heads") or heads)
        if gemma and name.endswith("norm.weight"):
            values = values + np.float32(1)
        if values.ndim == 1 or name.endswith(".mlp.gate.weight"):
            writer.add_tensor(gguf_name(name, sandwich), values)  # norms, biases and routers stay F32
        elif stored is None:
            writer.add_tensor(gguf_name(name, sandwich), values.astype(np.float16) if array.dtype == mx.float16 else values)
        else:
            writer.add_tensor(gguf_name(name, sandwich), quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def unstacked_to_stacked(weights):
    """Experts that lie one by one as the stacks that GGUF files have."""
    experts = {}
    for name in [n for n in weights if ".mlp.experts." in n]:
        before, after = name.split(".mlp.experts.")
        number, rest = after.split(".", 1)
        experts.setdefault(f"{before}.mlp.switch_mlp.{rest}", {})[int(number)] = weights.pop(name)
    for name, parts in experts.items():
        weights[name] = mx.stack([parts[e] for e in range(len(parts))])
    return weights
