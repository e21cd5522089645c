"""Random tiny checkpoints of every family of models, made by mlx_lm's own model code, and the logits of both programs."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm import utils
from mlx_lm.models.cache import make_prompt_cache

LQUANT = os.environ.get("LQUANT", "lquant")
# Threads that wait by spinning make tiny models crawl where the machine is shared, as test machines are.
ENVIRONMENT = dict(os.environ, OMP_WAIT_POLICY="passive")
TINY = Path(__file__).parents[1] / "models" / "tiny"

# Wide enough for groups of 128 in every linear, with grouped heads, and a window (8) shorter than the sequence (24).
BASE = dict(
    hidden_size=128,
    num_hidden_layers=3,
    intermediate_size=256,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    rms_norm_eps=1e-5,
    vocab_size=160,
    max_position_embeddings=64,
    rope_theta=10000.0,
    tie_word_embeddings=True,
)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
# A ramp that starts at feature 1 and ends inside the head, so that both ends tell.
YARN = dict(type="yarn", factor=4.0, original_max_position_embeddings=512)
MOE = dict(
    model_type="qwen3_moe",
    num_experts=6,
    num_experts_per_tok=2,
    moe_intermediate_size=128,
    decoder_sparse_step=1,
    mlp_only_layers=[],
    norm_topk_prob=True,
)
OPENELM = dict(model_type="openelm", model_dim=128, num_transformer_layers=3, ffn_dim_divisor=64, ffn_multipliers=[0.5, 1.7, 3.0])
STABLELM = dict(model_type="stablelm", partial_rotary_factor=0.25, layer_norm_eps=1e-5)
GRANITE = dict(model_type="granite", attention_multiplier=0.2, embedding_multiplier=1.5, residual_multiplier=0.7, logits_scaling=4.0)
GPT_NEOX = dict(model_type="gpt_neox", rotary_emb_base=10000, layer_norm_eps=1e-5)
GPT2 = dict(n_embd=128, n_layer=3, n_head=4, n_positions=512, layer_norm_epsilon=1e-5)
NEMOTRON = dict(model_type="nemotron", hidden_act="relu2", norm_eps=1e-5)


# The temperature of the queries begins to tell at position 8.
MINISTRAL = dict(
    model_type="ministral3",
    rope_theta=None,
    rope_parameters=dict(YARN, original_max_position_embeddings=8, rope_theta=20000.0, llama_4_scaling_beta=0.4, mscale=1.0, mscale_all_dim=1.0),
)
# The MLP and a mixture of experts side by side.
GEMMA4_MOE = dict(
    model_type="gemma4_text",
    num_kv_shared_layers=0,
    sliding_window=8,
    sliding_window_pattern=2,
    global_head_dim=64,
    attention_k_eq_v=True,
    num_global_key_value_heads=1,
    hidden_size_per_layer_input=0,
    enable_moe_block=True,
    num_experts=6,
    top_k_experts=2,
    moe_intermediate_size=128,
)
AFM7 = dict(model_type="afm7", hidden_dim=128, num_layers=4, num_kv_reuse_layers=2, num_heads=4, num_kv_heads=2, hidden_dim_scale_factor=3.0)
APERTUS = dict(model_type="apertus", mlp_bias=False, attention_bias=False, post_norm=False, qk_norm=True)
# Blocks of every kind: all of Llama's, a linear for each half, halves that are left out, nothing at all, an MLP of another width.
NEMOTRON_BLOCKS = [
    dict(attention=dict(n_heads_in_group=2), ffn=dict(ffn_mult=2.0)),
    dict(attention=dict(replace_with_linear=True), ffn=dict(ffn_mult=4.0)),
    dict(attention=dict(no_op=True), ffn=dict(no_op=True)),
    dict(attention=dict(n_heads_in_group=4), ffn=dict(replace_with_linear=True)),
    dict(attention=dict(no_op=True), ffn=dict(ffn_mult=2.0)),
]
BAICHUAN = dict(
    model_type="baichuan_m1", tie_word_embeddings=False, sliding_window=8, sliding_window_layers=[1], conv_window=2, num_swa_attention_heads=2
)
LFM2 = dict(
    model_type="lfm2",
    norm_eps=1e-5,
    conv_bias=False,
    conv_L_cache=3,
    block_dim=128,
    block_multiple_of=128,
    block_ffn_dim_multiplier=1.0,
    block_auto_adjust_ff_dim=False,
    layer_types=["conv", "full_attention", "conv"],
)
LFM2_MOE = dict(
    model_type="lfm2_moe",
    norm_eps=1e-5,
    conv_bias=False,
    conv_L_cache=3,
    moe_intermediate_size=128,
    num_experts=6,
    num_experts_per_tok=2,
    norm_topk_prob=True,
    use_expert_bias=True,
    num_dense_layers=1,
    layer_types=["conv", "full_attention", "conv"],
)
MAMBA2 = dict(
    model_type="mamba2",
    num_heads=8,
    state_size=24,
    conv_kernel=4,
    n_groups=2,
    use_bias=False,
    use_conv_bias=True,
    layer_norm_epsilon=1e-4,
    time_step_limit=[0.0, float("inf")],
    time_step_rank="auto",
)
MAMBA = dict(model_type="mamba", state_size=8, conv_kernel=4, use_bias=False, use_conv_bias=True, time_step_rank=64)
NEMOTRON_H = dict(
    model_type="nemotron_h",
    num_hidden_layers=4,
    layer_norm_epsilon=1e-5,
    attention_bias=False,
    mlp_bias=False,
    use_bias=False,
    mamba_num_heads=8,
    mamba_head_dim=32,
    mamba_proj_bias=False,
    ssm_state_size=16,
    conv_kernel=4,
    n_groups=2,
    use_conv_bias=True,
)
NEMOTRON_H_MOE = dict(
    NEMOTRON_H,
    n_routed_experts=8,
    num_experts_per_tok=3,
    n_group=2,
    topk_group=1,
    moe_intermediate_size=128,
    norm_topk_prob=True,
    routed_scaling_factor=2.5,
)
GRANITE_HYBRID = dict(
    GRANITE,
    model_type="granitemoehybrid",
    attention_bias=False,
    layer_types=["mamba", "attention", "mamba"],
    mamba_n_heads=8,
    mamba_d_head=32,
    mamba_proj_bias=False,
    mamba_d_state=16,
    mamba_d_conv=4,
    mamba_n_groups=2,
    mamba_conv_bias=True,
)
FALCON_H1 = dict(
    model_type="falcon_h1",
    mamba_d_ssm=256,
    mamba_d_head=32,
    mamba_n_heads=8,
    mamba_n_groups=2,
    mamba_d_state=24,
    attention_in_multiplier=1.25,
    ssm_multipliers=[0.5, 1.5, 0.75, 1.25, 0.875],
)
PLAMO2 = dict(model_type="plamo2", hidden_size_per_head=32, mamba_d_state=16, mamba_num_heads=8)
JAMBA = dict(
    model_type="jamba",
    attn_layer_offset=1,
    attn_layer_period=3,
    expert_layer_offset=1,
    expert_layer_period=2,
    mamba_d_conv=4,
    mamba_d_state=8,
    mamba_expand=2,
    mamba_dt_rank=64,
    num_experts=1,
    num_experts_per_tok=1,
)
RECURRENT_GEMMA = dict(model_type="recurrent_gemma", attention_bias=False, conv1d_width=4, logits_soft_cap=8.0, attention_window_size=8)
RWKV7 = dict(
    model_type="rwkv7",
    norm_eps=1e-5,
    tie_word_embeddings=False,
    a_low_rank_dim=64,
    v_low_rank_dim=64,
    gate_low_rank_dim=128,
    decay_low_rank_dim=64,
)


def longrope(kind, features):
    return dict(type=kind, short_factor=[1.0] * features, long_factor=[1.0 + 0.3 * i for i in range(features)])


FAMILIES = {
    "llama": dict(model_type="llama"),
    "llama-untied-biases": dict(model_type="llama", tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
    "llama-all-heads-default-dim": dict(model_type="llama", num_key_value_heads=None, head_dim=None),
    "llama-wide-heads": dict(model_type="llama", head_dim=64),
    "llama-interleaved-linear": dict(model_type="llama", rope_traditional=True, rope_scaling=dict(type="linear", factor=4.0)),
    "llama-llama3": dict(model_type="llama", rope_theta=500000.0, rope_scaling=LLAMA3),
    "llama-yarn": dict(model_type="llama", rope_scaling=YARN),
    "llama-dynamic": dict(model_type="llama", max_position_embeddings=16, rope_scaling=dict(type="dynamic", factor=2.0)),
    "llama-windows": dict(
        model_type="llama", sliding_window=8, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "mistral": dict(model_type="mistral", head_dim=None, sliding_window=8, tie_word_embeddings=False),
    "qwen2": dict(model_type="qwen2"),
    "qwen2-untied-yarn": dict(model_type="qwen2", tie_word_embeddings=False, rope_scaling=YARN),
    "qwen3": dict(model_type="qwen3"),
    "qwen3-nested-rope": dict(
        model_type="qwen3", tie_word_embeddings=False, rope_theta=None, rope_parameters=dict(YARN, rope_theta=20000.0)
    ),
    "smollm3": dict(model_type="smollm3", num_hidden_layers=5),
    "smollm3-listed": dict(model_type="smollm3", no_rope_layers=[0, 1, 0]),
    "phi3": dict(model_type="phi3", tie_word_embeddings=False),
    "phi3-partial-longrope": dict(
        model_type="phi3",
        partial_rotary_factor=0.75,
        original_max_position_embeddings=16,
        rope_scaling=longrope("longrope", 12),
    ),
    "phi3-su": dict(model_type="phi3", original_max_position_embeddings=32, rope_scaling=longrope("su", 16)),
    "phi3-linear": dict(model_type="phi3", rope_scaling=dict(type="linear", factor=2.0, long_factor=1.0)),
    "gemma": dict(model_type="gemma", head_dim=64, num_key_value_heads=1),
    "gemma2": dict(model_type="gemma2", query_pre_attn_scalar=24.0, attn_logit_softcapping=5.0, final_logit_softcapping=8.0),
    "gemma3": dict(model_type="gemma3_text", sliding_window=8, sliding_window_pattern=2, query_pre_attn_scalar=48.0),
    "gemma3-untied-scaled": dict(
        model_type="gemma3_text",
        untied=True,
        sliding_window=8,
        sliding_window_pattern=3,
        rope_scaling=dict(rope_type="linear", factor=8.0),
    ),
    "gemma4": dict(
        model_type="gemma4_text",
        num_hidden_layers=5,
        num_kv_shared_layers=2,
        sliding_window=8,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        global_head_dim=64,
        hidden_size_per_layer_input=64,
        vocab_size_per_layer_input=160,
    ),
    "gemma4-keys-as-values-untied": dict(
        model_type="gemma4_text",
        num_kv_shared_layers=0,
        sliding_window=8,
        sliding_window_pattern=2,
        global_head_dim=64,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        hidden_size_per_layer_input=0,
        final_logit_softcapping=8.0,
        tie_word_embeddings=False,
    ),
    "gemma4-shared-keys-alone": dict(
        model_type="gemma4_text",
        num_hidden_layers=4,
        num_kv_shared_layers=1,
        sliding_window=8,
        sliding_window_pattern=2,
        use_double_wide_mlp=False,
        global_head_dim=32,
        hidden_size_per_layer_input=0,
    ),
    "gemma4-mixture": GEMMA4_MOE,
    "gemma4-mixture-fused-per-layer-inputs": dict(
        GEMMA4_MOE, unstacked=True, top_k_experts=3, hidden_size_per_layer_input=64, vocab_size_per_layer_input=160, tie_word_embeddings=False
    ),
    "seed-oss": dict(model_type="seed_oss", tie_word_embeddings=False, attention_bias=True),
    "seed-oss-all-biases-yarn": dict(
        model_type="seed_oss", tie_word_embeddings=False, attention_bias=True, attention_out_bias=True, mlp_bias=True, head_dim=64, rope_scaling=YARN
    ),
    "seed-oss-tied": dict(model_type="seed_oss", attention_bias=True),
    "internlm3-dynamic": dict(
        model_type="internlm3", qkv_bias=True, bias=True, max_position_embeddings=16, rope_scaling=dict(rope_type="dynamic", factor=2.0)
    ),
    "mimo": dict(model_type="mimo", tie_word_embeddings=False),
    "telechat3": dict(model_type="telechat3", attention_bias=True, rope_scaling=dict(YARN, type="telechat3-yarn")),
    "ernie4_5": dict(model_type="ernie4_5", use_bias=False),
    "ernie4_5-biases-untied": dict(model_type="ernie4_5", use_bias=True, tie_word_embeddings=False, head_dim=64),
    "helium": dict(model_type="helium", attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
    "glm4": dict(model_type="glm4", attention_bias=True, partial_rotary_factor=0.5, tie_word_embeddings=False),
    "ministral3": MINISTRAL,
    "ministral3-windows-untied": dict(
        MINISTRAL, tie_word_embeddings=False, head_dim=64, sliding_window=8, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "afm7": AFM7,
    "afm7-all-own": dict(AFM7, num_kv_reuse_layers=0, num_kv_heads=4, rope_theta=500.0),
    "apertus": dict(APERTUS, tie_word_embeddings=False, rope_scaling=LLAMA3),
    "apertus-tied-biases": dict(APERTUS, mlp_bias=True),
    "nemotron-nas": dict(model_type="nemotron-nas", tie_word_embeddings=False, num_hidden_layers=5, block_configs=NEMOTRON_BLOCKS, rope_scaling=LLAMA3),
    "nemotron-nas-linear-first-biases": dict(
        model_type="nemotron-nas", num_hidden_layers=4, block_configs=NEMOTRON_BLOCKS[1:], hidden_act="gelu_new", attention_bias=True, mlp_bias=True
    ),
    "baichuan_m1": BAICHUAN,
    "baichuan_m1-no-windows": dict(BAICHUAN, sliding_window_layers=[], num_key_value_heads=4),
    "lfm2": LFM2,
    "lfm2-biases-adjusted": dict(
        LFM2, conv_bias=True, conv_L_cache=4, block_auto_adjust_ff_dim=True, block_ff_dim=600, block_ffn_dim_multiplier=0.7, full_attn_idxs=[2]
    ),
    "mamba2": MAMBA2,
    "mamba2-untied-biases-limits": dict(
        MAMBA2, tie_word_embeddings=False, use_bias=True, use_conv_bias=False, n_groups=1, time_step_limit=[0.5, 0.8], conv_kernel=2, unstacked=True
    ),
    "mamba": MAMBA,
    "mamba-untied-biases": dict(MAMBA, tie_word_embeddings=False, use_bias=True, use_conv_bias=False, time_step_rank="auto", unstacked=True),
    "falcon_mamba": dict(MAMBA, model_type="falcon_mamba", tie_word_embeddings=False, mixer_rms_eps=1e-4),
    "nemotron_h": dict(NEMOTRON_H, hybrid_override_pattern="M*-M"),
    "nemotron_h-biases-one-group": dict(
        NEMOTRON_H,
        layers_block_type=["mamba", "mlp", "attention", "mlp"],
        n_groups=1,
        mamba_proj_bias=True,
        attention_bias=True,
        mlp_bias=True,
        use_conv_bias=False,
        time_step_limit=[0.1, float("inf")],
        unstacked=True,
    ),
    "nemotron_h-mixtures": dict(
        NEMOTRON_H_MOE, hybrid_override_pattern="ME*E", n_shared_experts=1, moe_shared_expert_intermediate_size=384, mlp_bias=True, unstacked=True
    ),
    "nemotron_h-mixtures-latents": dict(NEMOTRON_H_MOE, hybrid_override_pattern="EM*E", n_shared_experts=1, moe_latent_size=64, norm_topk_prob=False),
    "granitemoehybrid": dict(GRANITE_HYBRID, position_embedding_type="nope"),
    "granitemoehybrid-untied-biases-rope": dict(
        GRANITE_HYBRID,
        tie_word_embeddings=False,
        attention_bias=True,
        mamba_proj_bias=True,
        mamba_conv_bias=False,
        logits_scaling=3.0,
        time_step_limit=[0.0, float("inf")],
        rope_parameters=dict(rope_theta=500.0, rope_type="default"),
        unstacked=True,
    ),
    "granitemoehybrid-mixtures": dict(
        GRANITE_HYBRID, num_local_experts=6, num_experts_per_tok=2, shared_intermediate_size=384, intermediate_size=128
    ),
    "granitemoehybrid-mixtures-fused": dict(
        GRANITE_HYBRID, num_local_experts=4, num_experts_per_tok=4, shared_intermediate_size=256, intermediate_size=128, unstacked=True
    ),
    "falcon_h1": FALCON_H1,
    "falcon_h1-multipliers-norm-biases": dict(
        FALCON_H1, unstacked=True, mamba_rms_norm=True, attention_bias=True, mlp_bias=True, projectors_bias=True, mamba_proj_bias=True
    ),
    "falcon_h1-multipliers-untied-gate-last": dict(
        FALCON_H1, unstacked=True, tie_word_embeddings=False, mamba_rms_norm=True, mamba_norm_before_gate=True, mamba_conv_bias=False
    ),
    "plamo2": PLAMO2,
    "plamo2-untied-one-in-three": dict(PLAMO2, tie_word_embeddings=False, mamba_step=3, mamba_num_heads=4, unstacked=True),
    "jamba": JAMBA,
    "jamba-mixtures-biases": dict(
        JAMBA, num_experts=6, num_experts_per_tok=2, mamba_proj_bias=True, mamba_conv_bias=False, mamba_dt_rank="auto", tie_word_embeddings=False
    ),
    "jamba-mixtures-unstacked": dict(
        JAMBA, num_experts=4, num_experts_per_tok=2, layers_block_type=["mamba", "mamba", "attention"], expert_layer_period=1, unstacked=True
    ),
    "recurrent_gemma": dict(RECURRENT_GEMMA, block_types=["recurrent", "attention", "recurrent"]),
    "recurrent_gemma-untied-no-cap": dict(
        RECURRENT_GEMMA, _block_types=["attention", "recurrent"], logits_soft_cap=0.0, embeddings_scale_by_sqrt_dim=False, unstacked=True, untied=True
    ),
    "rwkv7": RWKV7,
    "rwkv7-tied": dict(RWKV7, tie_word_embeddings=True, head_dim=64, decay_low_rank_dim=128, num_hidden_layers=2),
    "lfm2_moe": LFM2_MOE,
    "lfm2_moe-biases-unstacked": dict(
        LFM2_MOE,
        conv_bias=True,
        use_expert_bias=False,
        norm_topk_prob=False,
        routed_scaling_factor=1.5,
        rope_parameters=dict(rope_theta=500.0),
        full_attn_idxs=[0, 2],
        unstacked=True,
    ),
    "xverse": dict(model_type="xverse", num_key_value_heads=4, tie_word_embeddings=False),
    "iquestcoder": dict(model_type="iquestcoder", tie_word_embeddings=False),
    "glm": dict(model_type="glm", attention_bias=True, tie_word_embeddings=False),
    "glm-tied-wide-heads": dict(model_type="glm", head_dim=64, rope_theta=500000.0),
    "internlm2": dict(model_type="internlm2", bias=False),
    "internlm2-biases-linear": dict(model_type="internlm2", tie_word_embeddings=False, rope_scaling=dict(type="linear", factor=2.0)),
    "internlm2-dynamic": dict(
        model_type="internlm2", num_key_value_heads=1, max_position_embeddings=16, rope_scaling=dict(type="dynamic", factor=2.0)
    ),
    "exaone": dict(model_type="exaone", num_layers=3, layer_norm_epsilon=1e-5, rope_scaling=LLAMA3),
    "exaone-untied-biases": dict(
        model_type="exaone", num_layers=2, layer_norm_epsilon=1e-6, tie_word_embeddings=False, attention_bias=True, mlp_bias=True
    ),
    "exaone4": dict(model_type="exaone4", sliding_window=8, sliding_window_pattern="LG", rope_scaling=LLAMA3),
    "exaone4-no-windows": dict(
        model_type="exaone4", head_dim=64, tie_word_embeddings=False, rope_scaling=dict(rope_type="default"), sliding_window=0, sliding_window_pattern=""
    ),
    "minicpm": dict(model_type="minicpm", tie_word_embeddings=False, dim_model_base=48, scale_depth=1.4, scale_emb=12.0),
    "minicpm-longrope": dict(
        model_type="minicpm",
        tie_word_embeddings=False,
        dim_model_base=128,
        scale_depth=0.7,
        scale_emb=1,
        rope_traditional=True,
        rope_scaling=dict(longrope("longrope", 16), original_max_position_embeddings=16),
    ),
    "hunyuan": dict(model_type="hunyuan_v1_dense", rope_scaling=dict(type="dynamic", alpha=50.0, factor=1.0)),
    "hunyuan-biases-no-norms": dict(
        model_type="hunyuan_v1_dense", attention_bias=True, use_qk_norm=False, tie_word_embeddings=False, head_dim=64
    ),
    "qwen": dict(model_type="qwen", kv_channels=32, layer_norm_epsilon=1e-5),
    "qwen-biases": dict(model_type="qwen", kv_channels=64, num_attention_heads=2, no_bias=False),
    "lille-130m": dict(model_type="lille-130m", block_size=64, layer_norm_eps=1e-5, n_embd=128, n_head=4, n_kv_heads=2, n_layer=3),
    "openelm": dict(OPENELM, num_query_heads=[4, 2, 8], num_kv_heads=[2, 1, 2]),
    "openelm-untied-no-norms": dict(
        OPENELM, num_query_heads=[2, 4, 4], num_kv_heads=[1, 1, 4], share_input_output_layers=False, normalize_qk_projections=False
    ),
    "plamo": dict(model_type="plamo", n_shared_head=2),
    "plamo-one-shared-interleaved": dict(model_type="plamo", n_shared_head=4, rope_traditional=True),
    "nanochat": dict(model_type="nanochat"),
    "nanochat-all-heads": dict(model_type="nanochat", num_key_value_heads=4, rope_theta=500.0),
    "cohere": dict(model_type="cohere", logit_scale=0.3),
    "cohere-qk-norms-biases": dict(model_type="cohere", use_qk_norm=True, layer_norm_bias=True, attention_bias=True, num_key_value_heads=4),
    "cohere2": dict(model_type="cohere2", sliding_window=8, sliding_window_pattern=3),
    "cohere2-biases": dict(model_type="cohere2", sliding_window=8, sliding_window_pattern=2, layer_norm_bias=True, attention_bias=True),
    "olmo2": dict(model_type="olmo2", tie_word_embeddings=False),
    "olmo2-biases-llama3": dict(model_type="olmo2", attention_bias=True, mlp_bias=True, head_dim=64, rope_theta=500000.0, rope_scaling=LLAMA3),
    "olmo3": dict(model_type="olmo3", sliding_window=8, num_hidden_layers=5, tie_word_embeddings=False, rope_scaling=YARN),
    "olmo3-listed": dict(
        model_type="olmo3", sliding_window=8, attention_bias=True, layer_types=["full_attention", "sliding_attention", "sliding_attention"]
    ),
    "phi": dict(model_type="phi", num_key_value_heads=4),
    "phi-grouped-heads": dict(model_type="phi", partial_rotary_factor=0.75),
    "stablelm": dict(STABLELM, use_qkv_bias=False),
    "stablelm-parallel-qk-norms": dict(STABLELM, use_qkv_bias=True, use_parallel_residual=True, qk_layernorm=True),
    "starcoder2": dict(model_type="starcoder2"),
    "starcoder2-untied": dict(model_type="starcoder2", tie_word_embeddings=False, rope_theta=None),
    "granite": dict(GRANITE, attention_bias=False, mlp_bias=False),
    "granite-untied-biases-yarn": dict(
        GRANITE, attention_bias=True, mlp_bias=True, logits_scaling=3.0, tie_word_embeddings=False, rope_scaling=YARN
    ),
    "gpt_neox": dict(GPT_NEOX, rotary_pct=0.25),
    "gpt_neox-one-after-the-other": dict(GPT_NEOX, rotary_pct=1.0, use_parallel_residual=False),
    "gpt2": dict(GPT2, model_type="gpt2", n_ctx=512),
    "gpt_bigcode": dict(GPT2, model_type="gpt_bigcode", n_inner=384),
    "gpt_bigcode-untied-no-biases": dict(
        GPT2, model_type="gpt_bigcode", n_inner=256, attention_bias=False, mlp_bias=False, tie_word_embeddings=False
    ),
    "nemotron": dict(NEMOTRON, tie_word_embeddings=False),
    "nemotron-tied-biases-linear": dict(
        NEMOTRON, attention_bias=True, mlp_bias=True, partial_rotary_factor=0.75, rope_scaling=dict(type="linear", factor=2.0)
    ),
    "qwen3-moe": MOE,
    "qwen3-moe-unstacked": dict(MOE, unstacked=True),
    "gemma3-wrapper": dict(model_type="gemma3_text", wrapper="gemma3", sliding_window=8, sliding_window_pattern=2, query_pre_attn_scalar=48.0),
    "gemma3n": dict(
        model_type="gemma3n_text",
        wrapper="gemma3n",
        num_hidden_layers=5,
        intermediate_size=[256, 128, 256, 256, 128],
        num_kv_shared_layers=2,
        sliding_window=8,
        layer_types=["full_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        activation_sparsity_pattern=[0.9, 0.0, 0.6, 0.0, 0.0],
        hidden_size_per_layer_input=64,
        vocab_size_per_layer_input=160,
        altup_num_inputs=3,
        altup_coef_clip=1.0,
        altup_correct_scale=True,
        altup_active_idx=0,
        laurel_rank=64,
        rope_local_base_freq=1000.0,
        final_logit_softcapping=8.0,
    ),
    "mistral3": dict(MINISTRAL, wrapper="mistral3", tie_word_embeddings=False, head_dim=64),
    "pixtral": dict(model_type="llama", wrapper="pixtral", tie_word_embeddings=False),
    "lfm2-vl": dict(LFM2, wrapper="lfm2-vl"),
    "qwen3-vl-moe": dict(MOE, wrapper="qwen3_vl_moe", tie_word_embeddings=False),
    "qwen3-vl-moe-fused-some-dense": dict(MOE, wrapper="qwen3_vl_moe", tie_word_embeddings=False, mlp_only_layers=[1], unstacked=True),
    "gemma4-unified": dict(
        model_type="gemma4_text",
        wrapper="gemma4_unified",
        num_kv_shared_layers=0,
        sliding_window=8,
        sliding_window_pattern=2,
        global_head_dim=64,
        hidden_size_per_layer_input=0,
    ),
    "gemma4-unified-mixture": dict(GEMMA4_MOE, wrapper="gemma4_unified"),
    "qwen3-moe-some-dense-raw-probabilities": dict(MOE, mlp_only_layers=[1], norm_topk_prob=False, tie_word_embeddings=False),
}

# What stands in the tests of the methods (awq, gptq, dwq, dynamic_quant), which know ops and edges and no families, for an op or a topology: each
# such thing once. A new family is here only if it brings a new one.
REPRESENTATIVES = {
    "llama": "attention of grouped heads, gated MLP, tied head",
    "llama-untied-biases": "biases on every linear, a head of its own",
    "llama-all-heads-default-dim": "a key and value head for each query head",
    "llama-wide-heads": "heads together wider than the residual",
    "qwen3": "norms on queries and keys",
    "phi3": "fused linears",
    "smollm3-listed": "layers without positions",
    "gemma2": "norms behind branches, norms of 1 + w, softcaps",
    "gemma3-untied-scaled": "windows by layer",
    "gemma4": "inputs of each layer, keys and values of an earlier layer, norms without weights",
    "gemma3n": "streams of the residual, a layer of low rank, sparse gates, linears before the first block and behind the last",
    "gemma4-keys-as-values-untied": "values made of raw keys, heads whose width and number depend on the layer",
    "gemma4-mixture": "a mixture of experts beside an MLP, a router with a norm of its own, a norm on the sum of two branches",
    "internlm2": "queries, keys and values in one linear, group by group",
    "openelm": "sizes by layer, paths of its own",
    "nanochat": "norms without weights, relu² without a gate",
    "cohere-qk-norms-biases": "two branches after one layer norm, norms by head",
    "stablelm-parallel-qk-norms": "two branches, biases, a norm for each head",
    "phi-grouped-heads": "two branches of plain linears",
    "gpt_neox": "two branches with norms of their own, one linear head by head",
    "gpt2": "an embedding of positions, fused linears stored transposed",
    "gpt_bigcode": "one key and value head behind all queries in one linear",
    "starcoder2": "a plain MLP with biases behind layer norms",
    "nemotron": "layer norms of 1 + w, relu² between plain linears",
    "olmo2": "norms behind branches alone",
    "granite": "multipliers on branches, embeddings, scores and logits",
    "plamo": "key and value heads shared by tiles, two branches",
    "ministral3": "queries scaled by their position",
    "gemma3-wrapper": "a text model under a prefix",
    "glm4": "norms behind branches beside fused linears and biases",
    "apertus": "an activation with numbers of its own",
    "afm7": "keys and values rounded to steps, linears that stay dense, blocks under two prefixes",
    "nemotron-nas": "blocks of other sizes each, a linear alone, blocks of nothing",
    "baichuan_m1": "taps on keys and values, a head that is normed as it is read",
    "lfm2": "short convolutions",
    "mamba2": "a recurrence by head behind taps, blocks of one step without attention or MLP",
    "mamba": "a recurrence by channel, an op of four stages",
    "recurrent_gemma": "a linear recurrence with gates by head",
    "rwkv7": "linears of one stage that read inputs of their own, values of the first layer in all others",
    "falcon_h1": "a recurrence and an attention that read one norm",
    "nemotron_h": "norms in groups, one op a block",
    "nemotron_h-mixtures-latents": "experts without a gate between latents, a bare router, an MLP that every token meets",
    "qwen3-moe": "mixture of experts in stacks",
    "qwen3-moe-unstacked": "experts stored one by one",
    "qwen3-moe-some-dense-raw-probabilities": "mixtures and dense blocks in one model",
}
# Model types whose 16-bit pass mlx_lm cannot do on a CPU: MLX has no mixtures in 16 bits there.
FLOAT32_ALONE = {"lfm2_moe", "qwen3_moe", "qwen3_vl_moe"}
# Models whose tied embedding stays dense, for mlx_lm multiplies by it as it is stored: what mlx_lm.convert makes of them without a predicate does not run.
DENSE_EMBEDDING = {"seed-oss-tied"}
# Linears that mlx_lm's quantizer fails on or never packs, by the end of their path: both programs leave them dense.
STAY_DENSE = {"afm7": "qkv_proj", "nemotron_h": "mixer.gate"}
# What a reader of docs/families.md should know of a model type beside the table's figures.
NOTES = {
    "seed_oss": "a tied embedding stays dense: mlx_lm does not run it packed",
    "afm7": "its fused linears stay dense: mlx_lm cannot load them packed",
    "gemma": "exact GELU, as mlx_lm runs it; transformers runs its tanh form",
    "glm": "whole heads turn, as in mlx_lm; in transformers half of each",
    "nanochat": "transformers' names are read; eps and the logits' bound are mlx_lm's",
}


def model_type(name):
    """That of config.json, where a model that sees has its text model's inside."""
    return FAMILIES[name].get("wrapper", FAMILIES[name]["model_type"])


def by_model_type():
    """{model type: its rows of FAMILIES}, the first of which stands for it where one row is enough."""
    types = {}
    for name in FAMILIES:
        types.setdefault(model_type(name), []).append(name)
    return types


FIRST = [names[0] for names in by_model_type().values()]


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
    offset = config["model_type"].startswith(("gemma", "recurrent_gemma")) or config["model_type"] == "nemotron"  # norms whose weight in use is 1 + w

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
        if path.endswith("e_score_correction_bias"):  # below 0 an expert could be worth less than those of lost groups, which all tie at 0
            return mx.array(0.3 * np.abs(noise))
        norm = ("norm" in path or "ln_" in path) and path.endswith("weight")
        if old.ndim == 1 or norm:
            return mx.array((1.0 if norm and not offset else 0.0) + 0.3 * noise)
        return mx.array(noise * (1.0 if is_embedding(path) else 1.2 / np.sqrt(old.shape[-1])))

    weights = [(path, draw(path, old)) for path, old in tree_flatten(model.parameters())]
    model.load_weights(weights)
    return model, config, unstacked, untied


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


def save(folder, model, config, unstacked=False, untied=False):
    weights = dict(tree_flatten(model.parameters()))
    if config["model_type"].startswith(("gemma3", "recurrent_gemma")) and not untied:
        weights = {k: v for k, v in weights.items() if "lm_head" not in k}
    if unstacked and config["model_type"] == "qwen3_vl_moe":  # gate and up in one, everything [experts, in, out]
        for name in [n for n in weights if n.endswith("switch_mlp.gate_proj.weight")]:
            stacks = name.removesuffix("switch_mlp.gate_proj.weight")
            gate, up, down = (weights.pop(f"{stacks}switch_mlp.{kind}_proj.weight").swapaxes(1, 2) for kind in ("gate", "up", "down"))
            weights[stacks + "experts.gate_up_proj"] = mx.concatenate([gate, up], axis=2)
            weights[stacks + "experts.down_proj"] = mx.contiguous(down)
    elif unstacked:
        fused_and_turned(weights, config)
        for name in [n for n in weights if "switch_mlp" in n]:
            for e, w in enumerate(weights.pop(name)):
                weights[name.replace("switch_mlp", f"experts.{e}")] = mx.contiguous(w)
        for name in [n for n in weights if n.endswith("switch_glu.gate_proj.weight")]:
            stacks = name.removesuffix("switch_glu.gate_proj.weight")
            gate, up, down = (weights.pop(f"{stacks}switch_glu.{kind}_proj.weight") for kind in ("gate", "up", "down"))
            weights[stacks + "gate_up_proj"], weights[stacks + "down_proj"] = mx.concatenate([gate, up], axis=1), down
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
