"""The families of models that tests run: random tiny configurations of each, which tiny_models.py makes models of, and what is known of them."""

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
# Three layers, the second of which has attention; more value heads than key heads, and heads of widths of their own.
DELTA_NET = dict(
    full_attention_interval=2,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=32,
    linear_value_head_dim=64,
    linear_conv_kernel_dim=4,
)
OLMO_HYBRID = dict(
    DELTA_NET,
    model_type="olmo_hybrid",
    layer_norm_epsilon=1e-4,
    linear_allow_neg_eigval=True,
    attention_bias=False,
    tie_word_embeddings=False,
    layer_types=["linear_attention", "full_attention", "linear_attention"],
    rope_theta=None,
    rope_parameters=dict(rope_theta=20000.0),
)
QWEN3_5 = dict(
    DELTA_NET,
    model_type="qwen3_5",
    rope_theta=None,
    rope_parameters=dict(rope_type="default", rope_theta=20000.0, partial_rotary_factor=0.5, mrope_section=[2, 1, 1]),
)
QWEN3_NEXT = dict(
    MOE,
    **DELTA_NET,
    partial_rotary_factor=0.25,
    shared_expert_intermediate_size=192,
)
QWEN3_NEXT["model_type"] = "qwen3_next"
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
# Latent attention: a query head has 16 features of its own and 32 that turn; values have their own width.
LATENT = dict(kv_lora_rank=128, q_lora_rank=128, qk_nope_head_dim=16, qk_rope_head_dim=32)
MINICPM3 = dict(
    LATENT,
    model_type="minicpm3",
    tie_word_embeddings=False,
    dim_model_base=48,
    scale_depth=1.4,
    scale_emb=3.0,
    rope_scaling=dict(
        type="longrope", short_factor=[1.0] * 16, long_factor=[1.0 + 0.2 * i for i in range(16)], original_max_position_embeddings=32
    ),
)
# Keys of 128 features: enough for any group.
ABSORBED = dict(
    LATENT,
    qk_nope_head_dim=128,
    v_head_dim=32,
    n_routed_experts=8,
    num_experts_per_tok=3,
    moe_intermediate_size=128,
    n_shared_experts=1,
    first_k_dense_replace=1,
    moe_layer_freq=1,
    routed_scaling_factor=1.7,
    num_key_value_heads=4,
)
# Layers that make entries of pairs of tokens and choose among them, do either, read what others chose, and have a window alone; 12 entries of 24
# tokens, of which 4 are chosen, and candidates that leave some out. Heads are of sizes that nothing is rounded to fp8 and fp4 of.
DEEPSEEK_V41 = dict(
    model_type="deepseek_v41",
    tie_word_embeddings=False,
    num_hidden_layers=5,
    compress_ratios=[2, 2, 2, 2, 0],
    kv_source_layer_ids=[0, 3],
    index_source_layer_ids=[0, 2],
    candidate_source_layer_id=0,
    candidate_topk_blocks=3,
    candidate_block_size=2,
    index_topk=4,
    index_n_heads=8,
    index_head_dim=40,
    num_attention_heads=16,
    head_dim=40,
    qk_rope_head_dim=32,
    q_lora_rank=128,
    o_groups=5,
    o_lora_rank=128,
    sliding_window=8,
    n_routed_experts=6,
    num_experts_per_tok=2,
    moe_intermediate_size=128,
    hc_mult=3,
)
DEEPSEEK_YARN = dict(YARN, mscale=0.9, mscale_all_dim=0.7, beta_fast=20, beta_slow=2)
DEEPSEEK_V2 = dict(ABSORBED, model_type="deepseek_v2", qk_nope_head_dim=16, rope_scaling=DEEPSEEK_YARN)
DEEPSEEK_V3 = dict(ABSORBED, model_type="deepseek_v3")
# A query of the 24 tokens reads 8 keys.
DEEPSEEK_V32 = dict(ABSORBED, model_type="deepseek_v32", index_n_heads=4, index_head_dim=64, index_topk=8)
MISTRAL4 = dict(
    ABSORBED,
    model_type="mistral4",
    n_group=1,
    topk_group=1,
    norm_topk_prob=True,
    tie_word_embeddings=False,
    rope_theta=None,
    rope_parameters=MINISTRAL["rope_parameters"],
)
LONGCAT = dict(
    LATENT,
    model_type="longcat_flash",
    attention_method="MLA",
    zero_expert_type="identity",
    ffn_hidden_size=256,
    moe_topk=3,
    expert_ffn_hidden_size=128,
    n_routed_experts=6,
    zero_expert_num=3,
    num_layers=2,
    v_head_dim=32,
    routed_scaling_factor=1.5,
    mla_scale_q_lora=True,
    mla_scale_kv_lora=True,
    attention_bias=False,
)
YOUTU = dict(LATENT, model_type="youtu_llm", v_head_dim=64)
# One of the two windows is shorter than the rows of the tests; limits of the gates are seldom reached by what is about 1 large.
GPT_OSS = dict(model_type="gpt_oss", num_hidden_layers=4, num_local_experts=6, num_experts_per_tok=2, intermediate_size=128, sliding_window=8)
# DeepSeek-V3's routers, beside experts that every token meets.
CORRECTED = dict(
    n_routed_experts=8,
    n_shared_experts=1,
    num_experts_per_tok=2,
    moe_intermediate_size=128,
    first_k_dense_replace=1,
    norm_topk_prob=True,
    routed_scaling_factor=1.5,
    n_group=1,
    topk_group=1,
)
GLM4_MOE = dict(CORRECTED, model_type="glm4_moe", partial_rotary_factor=0.5, attention_bias=True, use_qk_norm=True, rope_scaling={})
MIXTRAL = dict(model_type="mixtral", num_local_experts=6, num_experts_per_tok=2, head_dim=None)
# A query of the 24 tokens reads 3 of 6 blocks in two of the layers; some of what the gates cut is beyond its limit.
MINIMAX_M3 = dict(
    wrapper="minimax_m3_vl",
    model_type="minimax_m3_vl_text",
    dense_intermediate_size=256,
    intermediate_size=128,
    shared_intermediate_size=128,
    num_local_experts=6,
    num_experts_per_tok=2,
    rotary_dim=16,
    swiglu_limit=1.5,
    moe_layer_freq=[0, 1, 1],
    tie_word_embeddings=False,
    sparse_attention_config=dict(
        sparse_num_index_heads=2,
        sparse_index_dim=32,
        sparse_block_size=4,
        sparse_topk_blocks=3,
        sparse_local_block=1,
        sparse_attention_freq=[0, 1, 1],
    ),
)
# The same in the words of transformers 5.
MINIMAX_M3_FLAT = dict(
    MINIMAX_M3,
    rope_theta=None,
    rotary_dim=None,
    moe_layer_freq=None,
    sparse_attention_config=None,
    mlp_layer_types=["sparse", "dense", "sparse"],
    layer_types=["minimax_m3_sparse", "full_attention", "minimax_m3_sparse"],
    index_n_heads=4,
    index_head_dim=64,
    index_block_size=5,
    index_topk_blocks=2,
    index_local_blocks=0,
    rope_parameters=dict(YARN, rope_theta=20000.0, partial_rotary_factor=1.0),
)
# Experts with one that every token meets, behind a sigmoid router with a correction.
BAILING = dict(
    model_type="bailing_moe",
    moe_intermediate_size=128,
    num_experts=6,
    num_experts_per_tok=2,
    num_shared_experts=1,
    first_k_dense_replace=1,
    norm_topk_prob=True,
)
BAILING_LINEAR = dict(
    BAILING, model_type="bailing_moe_linear", layer_group_size=2, group_norm_size=2, use_qk_norm=True, num_hidden_layers=4, head_dim=64
)
# Lightning attention beside latent attention; then a delta net with a decay for each key channel in place of the former.
BAILING_HYBRID = dict(
    BAILING_LINEAR,
    model_type="bailing_hybrid",
    kv_lora_rank=128,
    q_lora_rank=128,
    qk_nope_head_dim=64,
    qk_rope_head_dim=32,
    v_head_dim=32,
    n_group=1,
    topk_group=1,
    routed_scaling_factor=1.5,
)
BAILING_V3 = dict(
    model_type="bailing_moe_v3",
    num_hidden_layers=4,
    layer_group_size=2,
    moe_intermediate_size=128,
    moe_shared_expert_intermediate_size=128,
    num_experts=8,
    num_experts_per_tok=2,
    n_group=4,
    topk_group=2,
    kv_lora_rank=128,
    q_lora_rank=128,
    qk_nope_head_dim=64,
    qk_rope_head_dim=32,
    v_head_dim=32,
    tie_word_embeddings=False,
)
KIMI_LINEAR = dict(
    model_type="kimi_linear",
    linear_attn_config=dict(num_heads=4, head_dim=32, kda_layers=[1, 3], full_attn_layers=[2], short_conv_kernel_size=4),
    model_max_length=64,
    num_experts=8,
    num_experts_per_token=2,
    num_shared_experts=1,
    moe_intermediate_size=128,
    first_k_dense_replace=1,
    routed_scaling_factor=1.7,
    kv_lora_rank=128,
    qk_nope_head_dim=64,
    qk_rope_head_dim=32,
    v_head_dim=32,
    tie_word_embeddings=False,
)
# Residuals are put on the list at layers 1 and 3; latent experts, latent attention with gates by feature.
KIMI_K3 = dict(
    KIMI_LINEAR,
    model_type="kimi_k3",
    model_max_length=None,
    num_hidden_layers=4,
    linear_attn_config=dict(num_heads=4, head_dim=32, kda_layers=[1, 3], short_conv_kernel_size=4, gate_lower_bound=-5.0),
    attn_res_block_size=2,
    activation_situ_beta=4.0,
    activation_situ_linear_beta=25.0,
    q_lora_rank=128,
    qk_nope_head_dim=128,
    mla_use_output_gate=True,
    routed_expert_hidden_size=128,
    latent_moe_use_norm=True,
)
# Products of queries, keys and values are about 1 large: some are cut.
DBRX = dict(
    model_type="dbrx",
    d_model=128,
    n_heads=4,
    n_layers=3,
    attn_config=dict(kv_n_heads=2, clip_qkv=2.0, rope_theta=20000.0),
    ffn_config=dict(ffn_hidden_size=128, moe_num_experts=6, moe_top_k=2),
)
EXAONE_MOE = dict(
    model_type="exaone_moe",
    moe_intermediate_size=128,
    num_experts=8,
    num_experts_per_tok=3,
    num_shared_experts=1,
    sliding_window=8,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    is_moe_layer=[False, True, True],
)
KLEAR = dict(
    model_type="Klear",
    attention_bias=False,
    moe_intermediate_size=128,
    num_experts=6,
    num_experts_per_tok=2,
    n_shared_experts=2,
    decoder_sparse_step=1,
    mlp_only_layers=[],
    norm_topk_prob=True,
)
# Chunks of 8, and a temperature that tells from position 8 on.
LLAMA4 = dict(
    model_type="llama4_text",
    wrapper="llama4",
    num_hidden_layers=4,
    attention_bias=False,
    attention_chunk_size=8,
    interleave_moe_layer_step=1,
    intermediate_size=128,
    intermediate_size_mlp=256,
    num_experts_per_tok=1,
    num_local_experts=4,
    rope_scaling=dict(rope_type="default"),
    use_qk_norm=True,
    floor_scale=8,
    tie_word_embeddings=False,
)
LLAMA4_TEXT = dict(model_type="llama4_text", intermediate_size_mlp=384, no_rope_layers=[1, 0, 1], use_qk_norm=True)
MIMO_V2 = dict(
    model_type="mimo_v2_flash",
    num_experts_per_tok=2,
    hybrid_layer_pattern=[0, 1, 1],
    moe_layer_freq=[0, 1, 1],
    add_swa_attention_sink_bias=True,
    add_full_attention_sink_bias=False,
    sliding_window_size=8,
    moe_intermediate_size=128,
    n_shared_experts=1,
    n_routed_experts=8,
    routed_scaling_factor=1.5,
    topk_method="noaux_tc",
    scoring_func="sigmoid",
    norm_topk_prob=True,
    n_group=1,
    topk_group=1,
    layernorm_epsilon=1e-5,
    head_dim=48,
    v_head_dim=32,
    swa_rope_theta=500.0,
    swa_num_attention_heads=4,
    swa_num_key_value_heads=1,
    swa_head_dim=64,
    swa_v_head_dim=32,
    partial_rotary_factor=0.5,
    attention_value_scale=0.7,
)
STEP3P5 = dict(
    model_type="step3p5",
    num_attention_groups=2,
    sliding_window=8,
    layer_types=["full_attention", "sliding_attention", "full_attention"],
    attention_other_setting=dict(num_attention_heads=8, num_attention_groups=4),
    rope_theta=[10000.0, 500.0, 20000.0],
    partial_rotary_factors=[0.5, 1.0, 0.5],
    yarn_only_types=["full_attention"],
    rope_scaling=LLAMA3,
    moe_num_experts=6,
    moe_top_k=2,
    moe_intermediate_size=128,
    share_expert_dim=256,
    swiglu_limits=[0.0, 0.0, 0.7],
    swiglu_limits_shared=[0.6, 0.5, 0.0],
)
MUSE = dict(
    model_type="muse_glimmer", sliding_window=8, layer_types=["sliding_attention", "full_attention", "sliding_attention"], qk_scale_factor=2.0
)
# Layers with a window and positions, and one without either; the experts of the layer between the first and the last alone are packed.
MUSE_SPARK = dict(
    wrapper="muse_spark",
    model_type="muse_spark_text",
    post_norm_eps=1e-4,
    sliding_window=8,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    layer_rope_theta=[20000.0, 0, 20000.0],
    rope_parameters=dict(rope_theta=20000.0),
    qk_scale_factor=2.0,
    num_local_experts=6,
    num_experts_per_tok=2,
    moe_hidden_size=128,
    moe_intermediate_size=128,
    routed_scaling_factor=1.5,
    output_multiplier=0.6,
    final_logit_softcapping=8.0,
)
LAGUNA = dict(
    model_type="laguna",
    sliding_window=8,
    num_experts=6,
    num_experts_per_tok=2,
    moe_intermediate_size=128,
    shared_expert_intermediate_size=256,
    moe_routed_scaling_factor=1.5,
    layer_types=["full_attention", "sliding_attention", "sliding_attention"],
    num_attention_heads_per_layer=[4, 8, 2],
    rope_parameters=dict(
        full_attention=dict(rope_theta=20000.0, partial_rotary_factor=0.5, rope_type="yarn", factor=4.0, original_max_position_embeddings=512),
        sliding_attention=dict(rope_theta=500.0, rope_type="default"),
    ),
)
AFMOE = dict(
    model_type="afmoe",
    sliding_window=8,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    num_experts=8,
    num_experts_per_tok=2,
    num_shared_experts=1,
    num_dense_layers=1,
    moe_intermediate_size=128,
)
HUNYUAN_MOE = dict(
    model_type="hunyuan",
    head_dim=None,
    attention_bias=False,
    moe_topk=2,
    num_experts=4,
    num_shared_expert=1,
    use_mixed_mlp_moe=True,
    use_qk_norm=True,
    use_cla=True,
    cla_share_factor=2,
    rope_scaling=dict(type="dynamic", alpha=50.0, factor=1.0),
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
    "iquestloopcoder": dict(model_type="iquestloopcoder", loop_window_size=8, tie_word_embeddings=False),
    "iquestloopcoder-tied-biases-yarn": dict(
        model_type="iquestloopcoder", loop_window_size=5, attention_bias=True, mlp_bias=True, rope_scaling=YARN, num_key_value_heads=4
    ),
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
    "gptj": dict(model_type="gptj", n_embd=128, n_layer=3, n_head=4, rotary_dim=16),
    "gptj-whole-heads-turn": dict(model_type="gptj", n_embd=128, n_layer=2, n_head=2, rotary_dim=0),
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
    "gpt_oss": dict(GPT_OSS, rope_scaling=dict(YARN, type=None, rope_type="yarn")),
    "gpt_oss-listed": dict(
        GPT_OSS, num_key_value_heads=1, head_dim=64, layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    ),
    "glm4_moe": GLM4_MOE,
    "glm4_moe-groups-unstacked": dict(
        GLM4_MOE, unstacked=True, n_group=4, topk_group=2, num_experts_per_tok=3, n_shared_experts=2, attention_bias=False, use_qk_norm=False
    ),
    "solar_open": dict(CORRECTED, model_type="solar_open", partial_rotary_factor=1.0, head_dim=64, norm_topk_prob=False, unstacked=True),
    "dots1": dict(CORRECTED, model_type="dots1", mlp_bias=True, unstacked=True, rope_scaling=YARN),
    "dots1-groups-untied": dict(CORRECTED, model_type="dots1", tie_word_embeddings=False, n_group=2, num_experts_per_tok=1, first_k_dense_replace=0),
    "deepseek": dict(CORRECTED, model_type="deepseek", moe_layer_freq=2, attention_bias=True, rope_scaling=dict(type="linear", factor=2.0)),
    "deepseek-unstacked-none-shared": dict(CORRECTED, model_type="deepseek", unstacked=True, n_shared_experts=None, num_key_value_heads=4),
    "qwen2_moe": dict(MOE, model_type="qwen2_moe", shared_expert_intermediate_size=192),
    "qwen2_moe-unstacked-interleaved": dict(
        MOE, model_type="qwen2_moe", unstacked=True, shared_expert_intermediate_size=64, rope_traditional=True, num_key_value_heads=4
    ),
    "mixtral": dict(MIXTRAL, tie_word_embeddings=False, unstacked=True),
    "mixtral-tied-interleaved": dict(MIXTRAL, num_experts_per_tok=3, rope_traditional=True, rope_theta=500.0),
    "olmoe": dict(model_type="olmoe", num_experts=6, num_experts_per_tok=2, tie_word_embeddings=False, unstacked=True),
    "olmoe-normed-biases-yarn": dict(
        model_type="olmoe",
        num_experts=6,
        num_experts_per_tok=3,
        norm_topk_prob=True,
        attention_bias=True,
        mlp_bias=True,
        head_dim=64,
        rope_scaling=YARN,
    ),
    "minimax": dict(MIXTRAL, model_type="minimax", shared_intermediate_size=0, rotary_dim=16, tie_word_embeddings=False, unstacked=True),
    "minimax_m2": dict(
        MIXTRAL, model_type="minimax_m2", shared_intermediate_size=0, rotary_dim=32, head_dim=64, num_experts_per_tok=3, use_qk_norm=False
    ),
    "minimax_m3_vl": MINIMAX_M3,
    "minimax_m3_vl-flat-local-tied-unstacked": dict(
        MINIMAX_M3_FLAT, index_local_blocks=2, tie_word_embeddings=True, use_qk_norm=False, use_gemma_norm=False, unstacked=True
    ),
    "minimax_m3_vl-wide-indexer-one-expert": dict(MINIMAX_M3_FLAT, num_experts_per_tok=1, routed_scaling_factor=1.0),
    "minimax_m3_vl-all-keys": dict(MINIMAX_M3, sparse_attention_config=None, moe_layer_freq=None, swiglu_alpha=1.0, unstacked=True),
    "ernie4_5_moe": dict(
        model_type="ernie4_5_moe",
        use_bias=False,
        moe_num_experts=6,
        moe_k=2,
        moe_intermediate_size=128,
        moe_num_shared_experts=2,
        moe_layer_start_index=1,
        unstacked=True,
    ),
    "ernie4_5_moe-sigmoid-biases-some-layers": dict(
        model_type="ernie4_5_moe",
        num_hidden_layers=5,
        tie_word_embeddings=False,
        head_dim=64,
        use_bias=True,
        moe_num_experts=6,
        moe_k=3,
        moe_gate_act="sigmoid",
        moe_layer_interval=2,
        moe_layer_start_index=[1, 2],
        moe_layer_end_index=[2, 3],
    ),
    "granitemoe": dict(GRANITE, model_type="granitemoe", attention_bias=False, num_local_experts=6, num_experts_per_tok=2, unstacked=True),
    "granitemoe-untied-biases-yarn": dict(
        GRANITE,
        model_type="granitemoe",
        attention_bias=True,
        num_local_experts=6,
        num_experts_per_tok=3,
        tie_word_embeddings=False,
        rope_scaling=YARN,
    ),
    "phimoe": dict(
        MIXTRAL,
        model_type="phimoe",
        router_jitter_noise=0.2,
        original_max_position_embeddings=16,
        rope_scaling=dict(longrope("longrope", 16), short_mscale=1.1, long_mscale=1.2),
        unstacked=True,
    ),
    "phimoe-plain-positions": dict(MIXTRAL, model_type="phimoe", num_experts_per_tok=3, rope_scaling=None),
    "phixtral": dict(
        model_type="phixtral", num_vocab=160, model_dim=128, num_heads=2, num_layers=3, num_local_experts=4, num_experts_per_tok=2, unstacked=True
    ),
    "phi-msft": dict(
        model_type="phi-msft", num_vocab=160, model_dim=128, num_heads=4, num_layers=2, rotary_dim=16, num_local_experts=6, num_experts_per_tok=3
    ),
    "qwen3-moe": MOE,
    "qwen3-moe-unstacked": dict(MOE, unstacked=True),
    "afmoe": AFMOE,
    "afmoe-untied-groups-softmax-no-shared-unstacked": dict(
        AFMOE,
        unstacked=True,
        tie_word_embeddings=False,
        n_group=4,
        topk_group=2,
        score_func="softmax",
        num_shared_experts=0,
        route_norm=False,
        mup_enabled=False,
        rope_scaling=LLAMA3,
    ),
    "bailing_moe": dict(BAILING, moe_router_enable_shared_expert=True),
    "bailing_moe-sigmoid-groups-biases-normed-head": dict(
        BAILING,
        unstacked=True,
        tie_word_embeddings=False,
        use_bias=True,
        use_qkv_bias=True,
        use_qk_norm=True,
        norm_head=True,
        partial_rotary_factor=0.5,
        moe_router_enable_expert_bias=True,
        routed_scaling_factor=2.5,
        score_function="sigmoid",
        num_experts=8,
        n_group=4,
        topk_group=2,
        num_shared_experts=2,
        moe_shared_expert_intermediate_size=64,
    ),
    "bailing_moe-no-shared-rotary-dim": dict(BAILING, rotary_dim=16, moe_router_enable_shared_expert=False, norm_topk_prob=False, rope_scaling=YARN),
    "bailing_moe_linear": BAILING_LINEAR,
    "bailing_moe_linear-interleaved-groups-biases-odd-heads": dict(
        BAILING_LINEAR,
        unstacked=True,
        tie_word_embeddings=False,
        hidden_size=192,
        num_attention_heads=6,
        num_key_value_heads=3,
        num_hidden_layers=4,
        layer_group_size=3,
        group_norm_size=3,
        use_bias=True,
        use_qkv_bias=True,
        norm_head=True,
        rope_traditional=True,
        partial_rotary_factor=0.5,
        moe_router_enable_expert_bias=True,
        score_function="sigmoid",
        num_experts=8,
        n_group=4,
        topk_group=2,
    ),
    "bailing_hybrid": BAILING_HYBRID,
    "bailing_hybrid-groups-no-query-rank-biases-unstacked": dict(
        BAILING_HYBRID,
        unstacked=True,
        tie_word_embeddings=False,
        q_lora_rank=None,
        rope_interleave=False,
        use_bias=True,
        use_qkv_bias=True,
        use_qk_norm=False,
        num_experts=8,
        n_group=4,
        topk_group=2,
        num_shared_experts=2,
        moe_shared_expert_intermediate_size=64,
        moe_router_enable_expert_bias=False,
        rope_scaling=DEEPSEEK_YARN,
        layer_group_size=3,
    ),
    "bailing_moe_v3": BAILING_V3,
    "bailing_moe_v3-by-architecture-no-query-rank-tied-unstacked": dict(
        BAILING_V3,
        model_type="bailing_hybrid",
        architectures=["BailingMoeV3ForCausalLM"],
        unstacked=True,
        tie_word_embeddings=True,
        q_lora_rank=None,
        n_group=1,
        topk_group=1,
        num_shared_experts=2,
        kda_lower_bound=-2.0,
        short_conv_kernel_size=3,
        rope_scaling=DEEPSEEK_YARN,
        layer_group_size=3,
    ),
    "kimi_k3": KIMI_K3,
    "kimi_k3-wide-gate-groups-tied-published": dict(
        KIMI_K3,
        wrapper="kimi_k3",
        unstacked=True,
        tie_word_embeddings=True,
        linear_attn_config=dict(num_heads=2, head_dim=64, kda_layers=[2, 3, 4], short_conv_kernel_size=3, use_full_rank_gate=True),
        attn_res_block_size=3,
        activation_situ_beta=None,
        activation_situ_linear_beta=None,
        num_expert_group=4,
        topk_group=2,
        moe_renormalize=False,
        routed_expert_hidden_size=None,
        num_shared_experts=0,
    ),
    "kimi_k3-plain-residuals-no-query-rank-wrapper": dict(
        KIMI_K3, wrapper="kimi_k3", attn_res_block_size=None, q_lora_rank=None, mla_use_output_gate=False, latent_moe_use_norm=False, first_k_dense_replace=0
    ),
    "kimi_linear": KIMI_LINEAR,
    "kimi_linear-groups-softmax-tied-unstacked": dict(
        KIMI_LINEAR,
        unstacked=True,
        tie_word_embeddings=True,
        num_expert_group=4,
        topk_group=2,
        moe_router_activation_func="softmax",
        moe_renormalize=False,
        num_shared_experts=2,
        linear_attn_config=dict(num_heads=2, head_dim=64, kda_layers=[2, 3], short_conv_kernel_size=3),
    ),
    "kimi_linear-dense": dict(KIMI_LINEAR, num_experts=0, qk_nope_head_dim=None, v_head_dim=None),
    "exaone_moe": EXAONE_MOE,
    "exaone_moe-no-windows-groups-unstacked": dict(
        EXAONE_MOE,
        unstacked=True,
        tie_word_embeddings=False,
        layer_types=["full_attention"] * 3,
        rope_parameters=dict(rope_theta=500.0),
        rope_scaling=LLAMA3,
        n_group=4,
        topk_group=2,
        num_shared_experts=2,
        norm_topk_prob=False,
    ),
    "hunyuan-moe": HUNYUAN_MOE,
    "hunyuan-moe-own-keys-biases-sizes-by-layer": dict(
        HUNYUAN_MOE,
        unstacked=True,
        attention_bias=True,
        use_cla=False,
        moe_topk=[1, 2, 3],
        num_shared_expert=[1, 2, 1],
        moe_intermediate_size=[128, 64, 128],
    ),
    "hunyuan-moe-dense-fused": dict(HUNYUAN_MOE, unstacked=True, num_experts=1, use_qk_norm=False),
    "klear": KLEAR,
    "klear-some-dense-biases-unstacked": dict(KLEAR, unstacked=True, attention_bias=True, mlp_only_layers=[1], norm_topk_prob=False, n_shared_experts=1),
    "laguna": LAGUNA,
    "laguna-untied-biases-softcap-unstacked": dict(
        LAGUNA,
        unstacked=True,
        tie_word_embeddings=False,
        qkv_bias=True,
        attention_bias=True,
        moe_router_logit_softcapping=0.5,
        moe_router_score_func="sqrtsoftplus",
        mlp_layer_types=["sparse", "dense", "sparse"],
    ),
    "laguna-no-gates": dict(LAGUNA, gating=False, rope_parameters=None, layer_types=None, partial_rotary_factor=0.5),
    "llama4": LLAMA4,
    "llama4-biases-some-dense-fused": dict(
        LLAMA4, unstacked=True, num_hidden_layers=5, attention_bias=True, interleave_moe_layer_step=2, use_qk_norm=False, rope_scaling=LLAMA3
    ),
    "llama4-no-temperature": dict(LLAMA4, attn_temperature_tuning=False),
    "llama4_text": dict(LLAMA4_TEXT, tie_word_embeddings=False),
    "llama4_text-tied-no-norms": dict(LLAMA4_TEXT, use_qk_norm=False),
    "mimo_v2_flash": MIMO_V2,
    "mimo_v2_flash-groups-other-sinks-unstacked": dict(
        MIMO_V2,
        unstacked=True,
        hybrid_layer_pattern=[1, 0, 1],
        moe_layer_freq=[1, 0, 1],
        add_swa_attention_sink_bias=False,
        add_full_attention_sink_bias=True,
        n_group=4,
        topk_group=2,
        n_shared_experts=2,
        attention_value_scale=None,
        swa_num_attention_heads=2,
    ),
    "muse_glimmer": dict(MUSE, tie_word_embeddings=False),
    "muse_glimmer-tied-positions-by-layer": dict(MUSE, layer_rope_theta=[0, 10000.0, 10000.0], rope_parameters=dict(rope_theta=500.0)),
    "muse_spark": MUSE_SPARK,
    "muse_spark-all-positions-one-expert-published": dict(
        MUSE_SPARK,
        unstacked=True,
        num_hidden_layers=4,
        layer_types=["full_attention"] * 4,
        layer_rope_theta=[20000.0] * 4,
        rope_parameters=dict(rope_theta=500.0),
        qk_scale_factor=None,
        num_experts_per_tok=1,
        routed_scaling_factor=None,
        moe_hidden_size=64,
    ),
    "step3p5": STEP3P5,
    "step3p5-original-names": dict(STEP3P5, unstacked=True, moe_layers_enum="0,2", norm_expert_weight=False, attention_other_setting=None),
    "step3p5-no-gates-no-types": dict(STEP3P5, use_head_wise_attn_gate=False, layer_types=None, yarn_only_types=None, rope_theta=10000.0, swiglu_limits=None),
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
    "olmo_hybrid": OLMO_HYBRID,
    "olmo_hybrid-published-biases-tied": dict(
        OLMO_HYBRID,
        unstacked=True,
        tie_word_embeddings=True,
        attention_bias=True,
        linear_allow_neg_eigval=False,
        layer_types=["full_attention", "linear_attention", "linear_attention"],
        rope_parameters=dict(rope_theta=None, rope_type="default"),
    ),
    "qwen3_5": QWEN3_5,
    "qwen3_5-published-biases-untied": dict(
        QWEN3_5, wrapper="qwen3_5", unstacked=True, tie_word_embeddings=False, attention_bias=True, linear_num_value_heads=2, rope_parameters=None
    ),
    "qwen3_5-moe": dict(MOE, **{**QWEN3_5, "model_type": "qwen3_5_moe", "shared_expert_intermediate_size": 192}),
    "qwen3_5-moe-published": dict(
        MOE, **{**QWEN3_5, "wrapper": "qwen3_5_moe", "model_type": "qwen3_5_moe_text", "unstacked": True, "shared_expert_intermediate_size": 192}
    ),
    "qwen3_next": QWEN3_NEXT,
    "qwen3_next-published-some-dense": dict(QWEN3_NEXT, unstacked=True, mlp_only_layers=[1], norm_topk_prob=False, attention_bias=True),
    "dbrx": DBRX,
    "dbrx-tight-limit-published": dict(DBRX, unstacked=True, attn_config=dict(kv_n_heads=4, clip_qkv=True, rope_theta=500.0)),
    "deepseek-v2": DEEPSEEK_V2,
    "deepseek-v2-groups-no-query-rank-unstacked": dict(
        DEEPSEEK_V2, q_lora_rank=None, topk_method="group_limited_greedy", n_group=4, topk_group=2, attention_bias=True, unstacked=True
    ),
    "deepseek-v3": DEEPSEEK_V3,
    "deepseek-v3-groups-yarn-unstacked": dict(
        DEEPSEEK_V3, n_group=4, topk_group=2, rope_scaling=DEEPSEEK_YARN, attention_bias=True, n_shared_experts=2, unstacked=True
    ),
    "deepseek-v3-dense-no-query-rank": dict(DEEPSEEK_V3, n_routed_experts=None, q_lora_rank=None, qk_nope_head_dim=48),
    "deepseek-v32": DEEPSEEK_V32,
    "deepseek-v32-few-keys-yarn-unstacked": dict(DEEPSEEK_V32, index_topk=64, rope_scaling=DEEPSEEK_YARN, norm_topk_prob=False, unstacked=True),
    "deepseek-v41": DEEPSEEK_V41,
    "deepseek-v41-single-tokens-softmax-no-limit-published": dict(
        DEEPSEEK_V41,
        num_hidden_layers=4,
        compress_ratios=[1, 0, 1],
        kv_source_layer_ids=[0],
        candidate_source_layer_id=-1,
        scoring_func="softmax",
        gate_temp=0.7,
        norm_topk_prob=False,
        swiglu_limit=0.0,
        hc_mult=2,
        hc_sinkhorn_iters=1,
        o_groups=1,
        rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=20, beta_slow=2),
        unstacked=True,
    ),
    "deepseek-v41-groups-of-four-by-sigmoid": dict(
        DEEPSEEK_V41,
        compress_ratios=[0, 4, 4, 4, 4],
        kv_source_layer_ids=[1, 2],
        index_source_layer_ids=[2],
        candidate_source_layer_id=-1,
        index_topk=64,
        scoring_func="sigmoid",
        num_experts_per_tok=1,
    ),
    # Of some thousand rounded numbers hardly one lies so near a border that two sums of other order fall on both sides of it.
    "deepseek-v41-rounded": dict(
        DEEPSEEK_V41,
        num_hidden_layers=2,
        num_attention_heads=4,
        compress_ratios=[2, 2],
        kv_source_layer_ids=[0],
        index_source_layer_ids=[0],
        candidate_source_layer_id=-1,
        head_dim=32,
        index_head_dim=32,
        o_groups=1,
    ),
    "deepseek-v41-windows-alone-wrapper-published": dict(
        DEEPSEEK_V41, model_type="deepseek_v41_text", wrapper="deepseek_v41", compress_ratios=[], kv_source_layer_ids=[], index_source_layer_ids=[], unstacked=True
    ),
    "deepseek-v41-text": dict(DEEPSEEK_V41, model_type="deepseek_v41_text", num_hidden_layers=2),
    "glm4-moe-lite": dict(ABSORBED, model_type="glm4_moe_lite"),
    "glm4-moe-lite-groups-unstacked": dict(ABSORBED, model_type="glm4_moe_lite", n_group=2, topk_group=1, moe_layer_freq=2, unstacked=True),
    "kimi-k2": dict(DEEPSEEK_V3, model_type="kimi_k2"),
    "kimi-k25": dict(DEEPSEEK_V3, wrapper="kimi_k25", unstacked=True),
    "kimi-vl": dict(DEEPSEEK_V3, wrapper="kimi_vl", rope_scaling=DEEPSEEK_YARN),
    "joyai-llm-flash": dict(DEEPSEEK_V3, model_type="joyai_llm_flash", num_experts_per_tok=1),
    "longcat-flash": LONGCAT,
    "longcat-flash-normalized-yarn-unstacked": dict(
        LONGCAT, norm_topk_prob=True, router_bias=True, attention_bias=True, rope_scaling=DEEPSEEK_YARN, unstacked=True
    ),
    "longcat-flash-ngram": dict(LONGCAT, model_type="longcat_flash_ngram", ngram_vocab_size_ratio=3, emb_split_num=1, emb_neighbor_num=3),
    "longcat-flash-ngram-narrow-tables-unstacked": dict(
        LONGCAT, model_type="longcat_flash_ngram", ngram_vocab_size_ratio=2, emb_split_num=2, emb_neighbor_num=4, norm_topk_prob=True, unstacked=True
    ),
    "mistral4": MISTRAL4,
    "mistral4-groups-tied-halves-unstacked": dict(
        MISTRAL4, n_group=4, topk_group=2, norm_topk_prob=False, tie_word_embeddings=True, rope_interleave=False, attention_bias=True, unstacked=True
    ),
    "glm-moe-dsa": dict(
        DEEPSEEK_V32,
        model_type="glm_moe_dsa",
        rope_theta=None,
        rope_parameters=dict(rope_theta=20000.0, rope_type="default"),
        topk_method="noaux_tc",
        scoring_func="sigmoid",
        norm_topk_prob=True,
        n_group=1,
        topk_group=1,
        attention_bias=False,
    ),
    "minicpm3": MINICPM3,
    "minicpm3-tied-biases-usual-positions": dict(
        MINICPM3, tie_word_embeddings=True, attention_bias=True, num_key_value_heads=4, rope_theta=30000.0, rope_scaling=dict(type="dynamic")
    ),
    "youtu-llm": YOUTU,
    "youtu-llm-no-query-rank-halves": dict(YOUTU, q_lora_rank=None, rope_traditional=False, tie_word_embeddings=False),
    "youtu-llm-biases-yarn": dict(YOUTU, attention_bias=True, mlp_bias=True, rope_scaling=dict(YARN, mscale=1.0, mscale_all_dim=0.7)),
    "qwen3-moe-some-dense-raw-probabilities": dict(MOE, mlp_only_layers=[1], norm_topk_prob=False, tie_word_embeddings=False),
}

# What stands in the tests of the methods (awq, gptq, dwq, dynamic_quant), which know ops and edges and no families, for an op or a topology: each
# such thing once. A new family is here only if it brings a new one.
REPRESENTATIVES = {
    "llama": "attention of grouped heads, gated MLP, tied head",
    "llama-untied-biases": "biases on every linear, a head of its own",
    "qwen3": "norms on queries and keys",
    "phi3": "fused linears",
    "gemma2": "norms behind branches, norms of 1 + w, softcaps",
    "gemma3-untied-scaled": "windows by layer",
    "gemma4": "inputs of each layer, keys and values of an earlier layer, norms without weights",
    "gemma3n": "streams of the residual, a layer of low rank, sparse gates, linears before the first block and behind the last",
    "gemma4-keys-as-values-untied": "values made of raw keys, heads whose width and number depend on the layer",
    "gemma4-mixture": "a mixture of experts beside an MLP, a router with a norm of its own, a norm on the sum of two branches",
    "internlm2": "queries, keys and values in one linear, group by group",
    "nanochat": "norms without weights, relu² without a gate",
    "cohere-qk-norms-biases": "two branches after one layer norm, norms by head",
    "stablelm-parallel-qk-norms": "two branches, biases, a norm for each head",
    "phi-grouped-heads": "two branches of plain linears",
    "gpt_neox": "two branches with norms of their own, one linear head by head",
    "gpt2": "an embedding of positions, fused linears stored transposed",
    "nemotron": "layer norms of 1 + w, relu² between plain linears",
    "olmo2": "norms behind branches alone",
    "granite": "multipliers on branches, embeddings, scores and logits",
    "plamo": "key and value heads shared by tiles, two branches",
    "gemma3-wrapper": "a text model under a prefix",
    "apertus": "an activation with numbers of its own",
    "afm7": "keys and values rounded to steps, linears that stay dense, blocks under two prefixes",
    "nemotron-nas": "blocks of other sizes each, a linear alone, blocks of nothing",
    "baichuan_m1": "taps on keys and values, a head that is normed as it is read",
    "iquestloopcoder": "blocks that run twice, the second time over the first pass's keys and values too",
    "lfm2": "short convolutions",
    "qwen3_5": "gated delta nets of convolutions, attention with an output gate",
    "qwen3_next-published-some-dense": "gated delta nets of fused linears, an MLP beside the experts with a gate on its result, norms stored less 1",
    "kimi_linear": "delta nets with decays by channel, linears of low rank that read inputs of their own, latent attention without positions",
    "kimi_k3": "a list of residuals that sub-layers attend over, delta nets of one linear with gates of low rank, a norm between experts and a latent",
    "minicpm3": "latent attention, keys and values by one linear",
    "deepseek-v3": "latent attention, keys and values by stacks that are not routed",
    "mamba": "a recurrence by channel, an op of four stages, blocks of one step without attention or MLP",
    "recurrent_gemma": "a linear recurrence with gates by head",
    "rwkv7": "linears of one stage that read inputs of their own, values of the first layer in all others",
    "falcon_h1": "a recurrence by head behind taps and an attention that read one norm",
    "nemotron_h-mixtures-latents": "one op a block, norms in groups, experts without a gate between latents, a bare router, an MLP that every token meets",
    "muse_spark": "a residual in f32 with factors by feature, norms that weigh what they norm, norms of each head's and of each expert's result",
    "gpt_oss": "sinks, experts with biases and gates between limits, a softmax over the chosen",
    "glm4_moe-groups-unstacked": "corrected sigmoids in groups, experts that every token meets, routers that are never packed",
    "deepseek-v32": "linears that only choose, which no gradient reaches",
    "minimax_m3_vl": "attention to blocks of keys that an indexer chooses, experts with gates between limits beside one that every token meets",
    "deepseek-v41": "hyper-connections of several streams, entries of groups of tokens that one layer makes and others choose and read, rounded keys",
    "longcat-flash-ngram": "embeddings of n-grams, tables and linears before the first block",
    "longcat-flash": "a result that joins at the end of its block, experts without weights",
    "qwen3-moe": "mixture of experts in stacks",
    "qwen3-moe-some-dense-raw-probabilities": "mixtures and dense blocks in one model",
    "hunyuan-moe": "keys and values of an earlier layer before norms and positions",
    "bailing_moe_linear": "linear attention of a fixed decay, a norm of groups inside an op",
    "llama4": "attention in chunks, experts whose inputs are weighed, beside one that every token meets",
    "step3p5": "attention weighed head by head, products between limits",
    "mimo_v2_flash": "values narrower than keys, logits of attention without a value, a router that is never packed",
    "dbrx": "attention between limits, experts that are linears of their own in an output",
    "klear": "experts mixed with the one that every token meets by a linear of two rows",
}
# Model types whose 16-bit pass mlx_lm cannot do on a CPU: MLX has no mixtures in 16 bits there.
FLOAT32_ALONE = {
    "Klear",
    "afmoe",
    "bailing_hybrid",
    "bailing_moe",
    "bailing_moe_linear",
    "bailing_moe_v3",
    "deepseek",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "deepseek_v41",
    "deepseek_v41_text",
    "dots1",
    "ernie4_5_moe",
    "exaone_moe",
    "glm4_moe",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "gpt_oss",
    "granitemoe",
    "hunyuan",
    "joyai_llm_flash",
    "kimi_k2",
    "kimi_k25",
    "kimi_k3",
    "kimi_linear",
    "kimi_vl",
    "laguna",
    "lfm2_moe",
    "llama4",
    "longcat_flash",
    "longcat_flash_ngram",
    "mimo_v2_flash",
    "minimax",
    "minimax_m2",
    "minimax_m3_vl",
    "mistral4",
    "mixtral",
    "muse_spark",
    "olmoe",
    "phi-msft",
    "phimoe",
    "phixtral",
    "qwen2_moe",
    "qwen3_5_moe",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_vl_moe",
    "solar_open",
    "step3p5",
}
# Models whose tied embedding stays dense, for mlx_lm multiplies by it as it is stored: what mlx_lm.convert makes of them without a predicate does not run.
DENSE_EMBEDDING = {"seed-oss-tied": "Seed-OSS", "llama4_text-tied-no-norms": "Llama 4"}
# Linears that mlx_lm's quantizer fails on or never packs, by the end of their path: both programs leave them dense.
STAY_DENSE = {"afm7": "qkv_proj", "nemotron_h": "mixer.gate"}
# Linears that mlx_lm's own quantizer leaves dense unless a predicate of the user's says otherwise, by the ends of their paths. It does not list them.
LEFT_DENSE = {
    "bailing_hybrid": ("embed_q", "unembed_out"),
    "bailing_moe_v3": (
        *("word_embeddings", "lm_head", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa"),
        *("embed_q", "unembed_out", "b_proj", "attention.q_proj", "attention.g_proj"),
    ),
    "muse_spark": (
        *("embed_tokens", "lm_head", "qkvg_proj", "o_proj", "pre_expert_proj", "post_expert_proj"),
        *(f"layers.{i}.mlp.experts.{kind}_proj" for i in (0, 2, 3) for kind in ("gate", "up", "down")),
    ),
}
# What a reader of docs/families.md should know of a model type beside the table's figures.
NOTES = {
    "seed_oss": "a tied embedding stays dense: mlx_lm does not run it packed",
    "llama4_text": "a tied embedding stays dense: mlx_lm does not run it packed",
    "afm7": "its fused linears stay dense: mlx_lm cannot load them packed",
    "kimi_k3": "projections of residuals stay dense: mlx_lm's recipes pack them, and it does not run that",
    "gemma": "exact GELU, as mlx_lm runs it; transformers runs its tanh form",
    "glm": "whole heads turn, as in mlx_lm; in transformers half of each",
    "ernie4_5_moe": "corrections of the routers' choices are left out, as in mlx_lm",
    "minimax": "MiniMax-M2; MiniMax-Text-01 is refused",
    "muse_spark": "its Metal kernels in plain ops for these tests (`tests/metal_kernels.py`); the head stays dense: mlx_lm does not run it packed",
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
