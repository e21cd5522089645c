"""Tiny random checkpoints as Hugging Face's transformers saves them: the folders of tests/model/fixtures.

mlx_lm builds and saves models of its own names, so a folder that it made says nothing about what lquant is given: Hugging
Face's tensor names, and config.json in the words of transformers 5. These folders are made by transformers' own classes.
The tests read them as they lie there; this script is run again only to add a family or to follow a newer transformers:

    python -m venv /tmp/tf && /tmp/tf/bin/pip install torch transformers
    /tmp/tf/bin/python tests/model/make_fixtures.py [NAME ...]        # without a name: all of them

The committed ones were made with transformers 5.24.0, torch 2.15.0 and Python 3.11, on a CPU. A family gives the same bytes
whichever others are made with it. Weights are bf16, which makes the folders small and loses nothing: both programs are
compared in f32, from the same bf16 numbers.
"""

import argparse
import shutil
import zlib
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

FOLDER = Path(__file__).parent / "fixtures"

# Groups of 32 fit into every linear. The heads are grouped, and the tests' rows are longer than the windows.
SIZES = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
TWO_KINDS = ["sliding_attention", "full_attention"]
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)


def rope(theta, **more):
    return dict(dict(rope_type="default", rope_theta=theta), **more)


def rope_by_kind(sliding, full, **more):
    return dict(sliding_attention=rope(sliding), full_attention=rope(full, **more))


def sized(**fields):
    return dict(SIZES, **fields)


# Heads that are wider than hidden_size / num_attention_heads, which many families allow; narrower elsewhere, to stay small.
WIDE = dict(head_dim=16, num_key_value_heads=1, intermediate_size=32)


DELTA_NET = dict(
    intermediate_size=32,
    head_dim=16,
    num_key_value_heads=1,
    layer_types=["linear_attention", "full_attention"],
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    linear_conv_kernel_dim=4,
)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32)
QWEN3_5_ROPE = rope(10000000.0, mrope_section=[1, 1, 0], mrope_interleaved=True, partial_rotary_factor=0.25)
QWEN3_5_TOWER = dict(depth=1, hidden_size=8, out_hidden_size=32, num_heads=2, intermediate_size=16, patch_size=4, num_position_embeddings=16)
QWEN3_5_IDS = dict(image_token_id=90, video_token_id=91, vision_start_token_id=92, vision_end_token_id=93)
# Latent attention, and mixtures behind a dense layer.
LATENT = sized(num_key_value_heads=4, kv_lora_rank=32, q_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16)
DEEPSEEK = dict(
    LATENT, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_shared_experts=1, first_k_dense_replace=1, n_group=1, topk_group=1
)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=8, mscale=0.9, mscale_all_dim=0.7, beta_fast=4.0, beta_slow=1.0)

SMALL_EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)

GPT = dict(vocab_size=96, n_positions=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)

NEOX = {k: v for k, v in sized(intermediate_size=128).items() if k != "num_key_value_heads"}

WITHOUT_HEADS = {k: v for k, v in SIZES.items() if "heads" not in k and k not in ("intermediate_size", "max_position_embeddings")}
# Mixtures of small experts, as most and as DeepSeek-V3's followers call their fields.
FEW = dict(intermediate_size=32, num_local_experts=4, num_experts_per_tok=2)
FEW_ROUTED = dict(moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1, routed_scaling_factor=1.5)

# A vision tower of one layer, in the fields of CLIP, SigLIP and Pixtral.
VISION = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)

# name: (class, config)
FAMILIES = {
    "llama": ("LlamaForCausalLM", sized(rope_parameters=dict(LLAMA3, rope_theta=500000.0), attention_bias=True, mlp_bias=True)),
    "mistral": ("MistralForCausalLM", sized(**WIDE, sliding_window=8, rope_parameters=rope(1000000.0))),
    "ministral3": (
        "Ministral3ForCausalLM",
        sized(
            **WIDE,
            tie_word_embeddings=True,
            rope_parameters=dict(
                rope_type="yarn",
                rope_theta=1000000.0,
                factor=4.0,
                beta_fast=32.0,
                beta_slow=1.0,
                mscale=1.0,
                mscale_all_dim=1.0,
                original_max_position_embeddings=16,
                llama_4_scaling_beta=0.1,
            ),
        ),
    ),
    "qwen2": ("Qwen2ForCausalLM", sized(rope_parameters=rope(1000000.0), tie_word_embeddings=True)),
    "qwen3": ("Qwen3ForCausalLM", sized(**WIDE, rope_parameters=rope(5000000.0), tie_word_embeddings=True)),
    "gemma": ("GemmaForCausalLM", sized(**WIDE, rope_parameters=rope(10000.0))),
    "gemma2": ("Gemma2ForCausalLM", sized(**WIDE, query_pre_attn_scalar=24, sliding_window=64, rope_parameters=rope(10000.0))),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        sized(
            **WIDE,
            num_hidden_layers=3,
            query_pre_attn_scalar=24,
            sliding_window=8,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            rope_parameters=rope_by_kind(10000.0, 1000000.0, rope_type="linear", factor=8.0),
        ),
    ),
    "gemma4_text": (
        "Gemma4ForCausalLM",
        sized(
            intermediate_size=32,
            head_dim=8,
            global_head_dim=16,
            num_hidden_layers=4,
            num_kv_shared_layers=2,
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=96,
            use_double_wide_mlp=True,
            sliding_window=8,
            final_logit_softcapping=30.0,
            layer_types=TWO_KINDS * 2,
            rope_parameters=dict(
                sliding_attention=rope(10000.0),
                full_attention=rope(1000000.0, rope_type="proportional", partial_rotary_factor=0.25),
            ),
        ),
    ),
    "phi": ("PhiForCausalLM", sized(num_attention_heads=2, num_key_value_heads=2, rope_parameters=rope(10000.0, partial_rotary_factor=0.4))),
    "phi3": (
        "Phi3ForCausalLM",
        sized(
            rope_parameters=dict(
                rope_type="longrope",
                rope_theta=10000.0,
                partial_rotary_factor=0.5,
                short_factor=[1.0, 1.1],
                long_factor=[1.0, 1.5],
            ),
            original_max_position_embeddings=16,
        ),
    ),
    "cohere": ("CohereForCausalLM", sized(use_qk_norm=True, logit_scale=0.25, rope_parameters=rope(10000.0))),
    "cohere2": (
        "Cohere2ForCausalLM",
        sized(logit_scale=0.25, sliding_window=8, layer_types=TWO_KINDS, rope_parameters=rope(50000.0)),
    ),
    "olmo2": ("Olmo2ForCausalLM", sized(rope_parameters=rope(500000.0))),
    "olmo3": ("Olmo3ForCausalLM", sized(sliding_window=8, layer_types=TWO_KINDS, rope_parameters=rope(500000.0))),
    "starcoder2": ("Starcoder2ForCausalLM", sized(sliding_window=None, rope_parameters=rope(100000.0))),
    "stablelm": (
        "StableLmForCausalLM",
        sized(use_qkv_bias=True, qk_layernorm=True, rope_parameters=rope(10000.0, partial_rotary_factor=0.25)),
    ),
    "gpt2": ("GPT2LMHeadModel", GPT),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        dict(NEOX, use_parallel_residual=True, rope_parameters=rope(10000.0, partial_rotary_factor=0.25)),
    ),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", dict(GPT, multi_query=True)),
    "granite": (
        "GraniteForCausalLM",
        sized(embedding_multiplier=12.0, residual_multiplier=0.22, attention_multiplier=0.2, logits_scaling=8.0, tie_word_embeddings=True),
    ),
    "glm": ("GlmForCausalLM", sized(head_dim=8, attention_bias=True, rope_parameters=rope(10000.0, partial_rotary_factor=0.5))),
    "glm4": ("Glm4ForCausalLM", sized(head_dim=8, attention_bias=True, rope_parameters=rope(10000.0, partial_rotary_factor=0.5))),
    "exaone4": (
        "Exaone4ForCausalLM",
        sized(head_dim=8, sliding_window=8, sliding_window_pattern="LG", layer_types=TWO_KINDS, rope_parameters=rope(1000000.0)),
    ),
    "ernie4_5": ("Ernie4_5ForCausalLM", sized(head_dim=8, use_bias=True, tie_word_embeddings=True, rope_parameters=rope(500000.0))),
    "seed_oss": (
        "SeedOssForCausalLM",
        sized(**WIDE, attention_bias=True, attention_out_bias=False, tie_word_embeddings=False, rope_parameters=rope(10000000.0)),
    ),
    "apertus": ("ApertusForCausalLM", sized(rope_parameters=dict(LLAMA3, rope_theta=12000000.0))),
    "helium": ("HeliumForCausalLM", sized(head_dim=8, rope_parameters=rope(100000.0))),
    "nemotron": ("NemotronForCausalLM", sized(rope_parameters=rope(10000.0, partial_rotary_factor=0.5))),
    "smollm3": (
        "SmolLM3ForCausalLM",
        sized(intermediate_size=32, num_hidden_layers=3, no_rope_layers=[1, 0, 1], tie_word_embeddings=True, rope_parameters=rope(2000000.0)),
    ),
    "hunyuan_v1_dense": ("HunYuanDenseV1ForCausalLM", sized(head_dim=8, rope_parameters=rope(10000.0, rope_type="dynamic", alpha=50.0, factor=1.0))),
    "internlm3": ("AutoModelForCausalLM:InternLM3Config", sized(head_dim=8, rope_parameters=rope(50000.0))),
    "iquestcoder": ("AutoModelForCausalLM:IQuestCoderConfig", sized(head_dim=8, rope_parameters=rope(500000.0))),
    "nanochat": ("NanoChatForCausalLM", sized(rope_parameters=rope(10000.0))),
    "lfm2": (
        "Lfm2ForCausalLM",
        sized(layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False, conv_L_cache=3, rope_parameters=rope(1000000.0)),
    ),
    "deepseek_v2": ("DeepseekV2ForCausalLM", dict(DEEPSEEK, rope_parameters=rope(20000.0, **YARN), topk_method="greedy", norm_topk_prob=False)),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        dict(DEEPSEEK, rope_parameters=rope(20000.0, **YARN), n_group=2, topk_group=1, q_lora_rank=None, attention_bias=True),
    ),
    "glm_moe_dsa": (
        "GlmMoeDsaForCausalLM",
        dict(DEEPSEEK, rope_parameters=rope(20000.0), index_n_heads=2, index_head_dim=16, index_topk=8, n_shared_experts=2),
    ),
    "longcat_flash": (
        "LongcatFlashForCausalLM",
        dict(
            LATENT, num_layers=1, ffn_hidden_size=32, moe_topk=2, expert_ffn_hidden_size=32, n_routed_experts=3, zero_expert_num=2,
            rope_parameters=rope(20000.0),
        ),
    ),
    "minicpm3": (
        "MiniCPM3ForCausalLM",
        dict(
            LATENT,
            v_head_dim=8,
            dim_model_base=16,
            tie_word_embeddings=False,
            rope_parameters=rope(
                20000.0, rope_type="longrope", long_factor=[1.0, 1.5, 2.0, 3.0], short_factor=[1.0] * 4, original_max_position_embeddings=32
            ),
        ),
    ),
    "mistral4": (
        "Mistral4ForCausalLM",
        dict(DEEPSEEK, rope_parameters=rope(20000.0, **YARN, llama_4_scaling_beta=0.4, max_position_embeddings=128), tie_word_embeddings=False),
    ),
    "qwen3_next": ("Qwen3NextForCausalLM", sized(**DELTA_NET, **EXPERTS, rope_parameters=rope(10000000.0, partial_rotary_factor=0.25))),
    # Queries, keys and values as wide as each other: transformers 5.24 saves the taps in three equal parts whatever they belong to.
    "olmo_hybrid": (
        "OlmoHybridForCausalLM",
        sized(**dict(DELTA_NET, linear_num_key_heads=4), rope_parameters=rope(None), tie_word_embeddings=False),
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        sized(
            **FEW,
            head_dim=8,
            sliding_window=8,
            layer_types=TWO_KINDS,
            rope_parameters=dict(rope_type="yarn", rope_theta=150000.0, factor=4.0, beta_fast=32.0, beta_slow=1.0, original_max_position_embeddings=512),
        ),
    ),
    "glm4_moe": (
        "Glm4MoeForCausalLM",
        sized(
            **FEW_ROUTED,
            head_dim=8,
            attention_bias=True,
            use_qk_norm=True,
            n_group=1,
            topk_group=1,
            norm_topk_prob=True,
            rope_parameters=rope(1000000.0, partial_rotary_factor=0.5),
        ),
    ),
    "solar_open": ("SolarOpenForCausalLM", sized(**dict(FEW_ROUTED, first_k_dense_replace=0), head_dim=8, norm_topk_prob=True, rope_parameters=rope(1000000.0, partial_rotary_factor=1.0))),
    "dots1": ("Dots1ForCausalLM", sized(**FEW_ROUTED, head_dim=8, n_group=2, topk_group=1, norm_topk_prob=True, rope_parameters=rope(10000000.0))),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        sized(
            num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32, rope_parameters=rope(1000000.0)
        ),
    ),
    "mixtral": ("MixtralForCausalLM", sized(**FEW, rope_parameters=rope(1000000.0))),
    "olmoe": (
        "OlmoeForCausalLM",
        sized(intermediate_size=32, num_experts=4, num_experts_per_tok=2, norm_topk_prob=False, rope_parameters=rope(10000.0)),
    ),
    "minimax_m2": ("MiniMaxM2ForCausalLM", sized(**FEW, head_dim=8, rope_parameters=rope(5000000.0, partial_rotary_factor=0.5))),
    "ernie4_5_moe": (
        "Ernie4_5_MoeForCausalLM",
        sized(
            moe_num_experts=4,
            moe_k=2,
            moe_intermediate_size=32,
            moe_num_shared_experts=1,
            moe_layer_start_index=1,
            head_dim=8,
            use_bias=False,
            tie_word_embeddings=True,
            rope_parameters=rope(500000.0),
        ),
    ),
    "granitemoe": (
        "GraniteMoeForCausalLM",
        sized(
            **FEW,
            embedding_multiplier=12.0,
            residual_multiplier=0.22,
            attention_multiplier=0.2,
            logits_scaling=8.0,
            tie_word_embeddings=True,
            rope_parameters=rope(10000.0),
        ),
    ),
    "phimoe": (
        "PhimoeForCausalLM",
        sized(
            **FEW,
            router_jitter_noise=0.2,
            attention_bias=True,
            lm_head_bias=True,
            original_max_position_embeddings=16,
            rope_parameters=dict(
                rope_type="longrope",
                rope_theta=10000.0,
                short_factor=[1.0, 1.1, 1.2, 1.3],
                long_factor=[1.0, 1.5, 2.0, 2.5],
                short_mscale=1.1,
                long_mscale=1.2,
                original_max_position_embeddings=16,
            ),
        ),
    ),
    "gptj": ("GPTJForCausalLM", dict(GPT, rotary_dim=4, tie_word_embeddings=False)),
    # Mixtures of experts.
    "afmoe": (
        "AfmoeForCausalLM",
        sized(
            **SMALL_EXPERTS,
            head_dim=8,
            num_hidden_layers=3,
            num_dense_layers=1,
            num_shared_experts=1,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            mup_enabled=True,
            route_scale=1.5,
            rope_parameters=rope(10000.0),
        ),
    ),
    "exaone_moe": (
        "ExaoneMoeForCausalLM",
        sized(**SMALL_EXPERTS, head_dim=8, sliding_window=8, layer_types=TWO_KINDS, mlp_layer_types=["dense", "sparse"], rope_parameters=rope(500.0)),
    ),
    "laguna": (
        "LagunaForCausalLM",
        sized(
            **SMALL_EXPERTS,
            head_dim=8,
            shared_expert_intermediate_size=32,
            sliding_window=8,
            layer_types=["full_attention", "sliding_attention"],
            num_attention_heads_per_layer=[4, 2],
            moe_routed_scaling_factor=1.5,
            rope_parameters=dict(
                sliding_attention=rope(500.0, partial_rotary_factor=1.0),
                full_attention=rope(
                    10000.0,
                    rope_type="yarn",
                    partial_rotary_factor=0.5,
                    factor=4.0,
                    original_max_position_embeddings=512,
                    beta_fast=32.0,
                    beta_slow=1.0,
                    attention_factor=1.0,
                ),
            ),
        ),
    ),
    # Wrappers: a tower for images beside a text model.
    "llama4": (
        "Llama4ForConditionalGeneration",
        dict(
            text_config=sized(
                intermediate_size=32,
                intermediate_size_mlp=32,
                head_dim=8,
                num_hidden_layers=4,
                num_local_experts=4,
                interleave_moe_layer_step=2,
                attention_chunk_size=16,
                floor_scale=8,
                rope_parameters=rope(10000.0),
            ),
            vision_config=dict(
                hidden_size=16,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=8,
                patch_size=4,
                vision_output_dim=16,
                projector_input_dim=16,
                projector_output_dim=16,
            ),
            boi_token_index=91,
            eoi_token_index=92,
            image_token_index=90,
        ),
    ),
    "muse_glimmer": (
        "MuseGlimmerForConditionalGeneration",
        dict(
            text_config=sized(
                head_dim=8,
                sliding_window=8,
                layer_types=TWO_KINDS,
                layer_rope_theta=[10000.0, 0],
                rope_parameters=rope(10000.0),
            ),
            vision_config=dict(
                hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, patch_size=4, pos_emb_height=4, pos_emb_width=4
            ),
            image_token_id=90,
            video_token_id=91,
            out_hidden_size=64,
            projector_hidden_size=32,
        ),
    ),
    "mistral3": (
        "Mistral3ForConditionalGeneration",
        dict(
            text_config=sized(model_type="mistral", **WIDE, rope_parameters=rope(1000000000.0)),
            vision_config=dict(VISION, model_type="pixtral", head_dim=8),
            image_token_index=10,
            spatial_merge_size=2,
            tie_word_embeddings=False,
        ),
    ),
    "llava": (
        "LlavaForConditionalGeneration",
        dict(
            text_config=sized(intermediate_size=32, model_type="llama", rope_parameters=rope(10000.0)),
            vision_config=dict(VISION, model_type="clip_vision_model", projection_dim=16),
            image_token_index=90,
            image_seq_length=4,
        ),
    ),
    "pixtral": (
        "LlavaForConditionalGeneration",
        dict(
            text_config=sized(model_type="mistral", **WIDE, rope_parameters=rope(1000000000.0)),
            vision_config=dict(VISION, model_type="pixtral", head_dim=8),
            image_token_index=10,
            image_seq_length=1,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        ),
    ),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        dict(
            text_config=sized(
                **WIDE,
                query_pre_attn_scalar=24,
                sliding_window=8,
                layer_types=TWO_KINDS,
                rope_parameters=rope_by_kind(10000.0, 1000000.0, rope_type="linear", factor=8.0),
            ),
            vision_config=dict(VISION, model_type="siglip_vision_model", vision_use_head=False),
            mm_tokens_per_image=4,
            image_token_index=90,
            boi_token_index=91,
            eoi_token_index=92,
        ),
    ),
    "gemma3n": (
        "Gemma3nForCausalLM",
        sized(
            intermediate_size=[32] * 4,
            head_dim=8,
            num_hidden_layers=4,
            num_kv_shared_layers=2,
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=80,
            laurel_rank=32,
            activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
            sliding_window=8,
            layer_types=TWO_KINDS * 2,
            rope_parameters=rope_by_kind(10000.0, 1000000.0),
        ),
    ),
    "gemma4": (
        "Gemma4ForConditionalGeneration",
        dict(
            text_config=sized(
                intermediate_size=32,
                head_dim=8,
                global_head_dim=16,
                num_global_key_value_heads=1,
                attention_k_eq_v=True,
                hidden_size_per_layer_input=0,
                sliding_window=8,
                final_logit_softcapping=30.0,
                layer_types=TWO_KINDS,
                rope_parameters=dict(
                    sliding_attention=rope(10000.0),
                    full_attention=rope(1000000.0, rope_type="proportional", partial_rotary_factor=0.25),
                ),
            ),
            vision_config=dict(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=8,
                patch_size=4,
                position_embedding_size=16,
                use_clipped_linears=True,
            ),
            audio_config=None,
            image_token_id=90,
            video_token_id=91,
            boi_token_id=92,
            eoi_token_id=93,
            boa_token_id=94,
            eoa_token_index=94,
            audio_token_id=95,
        ),
    ),
    "qwen2_vl": (
        "Qwen2VLForConditionalGeneration",
        dict(
            text_config=sized(intermediate_size=32, rope_parameters=rope(1000000.0, mrope_section=[1, 1, 2]), tie_word_embeddings=True),
            vision_config=dict(depth=1, embed_dim=8, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=4),
            tie_word_embeddings=True,
            image_token_id=90,
            video_token_id=91,
            vision_start_token_id=92,
            vision_end_token_id=93,
        ),
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLForConditionalGeneration",
        dict(
            text_config=sized(intermediate_size=32, rope_parameters=rope(1000000.0, mrope_section=[1, 1, 2])),
            vision_config=dict(
                depth=1, hidden_size=8, out_hidden_size=32, num_heads=2, intermediate_size=16, patch_size=4, window_size=16, fullatt_block_indexes=[0]
            ),
            tie_word_embeddings=False,
            image_token_id=90,
            video_token_id=91,
            vision_start_token_id=92,
            vision_end_token_id=93,
        ),
    ),
    "qwen3_vl": (
        "Qwen3VLForConditionalGeneration",
        dict(
            text_config=sized(intermediate_size=32, head_dim=8, rope_parameters=rope(5000000.0, mrope_section=[2, 1, 1], mrope_interleaved=True), tie_word_embeddings=True),
            vision_config=dict(
                depth=1,
                hidden_size=8,
                out_hidden_size=32,
                num_heads=2,
                intermediate_size=16,
                patch_size=4,
                num_position_embeddings=16,
                deepstack_visual_indexes=[0],
            ),
            tie_word_embeddings=True,
            image_token_id=90,
            video_token_id=91,
            vision_start_token_id=92,
            vision_end_token_id=93,
        ),
    ),
    "qwen3_5": (
        "Qwen3_5ForConditionalGeneration",
        dict(
            text_config=sized(**DELTA_NET, rope_parameters=QWEN3_5_ROPE, tie_word_embeddings=True),
            vision_config=QWEN3_5_TOWER,
            tie_word_embeddings=True,
            **QWEN3_5_IDS,
        ),
    ),
    "qwen3_5_moe": (
        "Qwen3_5MoeForConditionalGeneration",
        dict(
            text_config=sized(**DELTA_NET, **EXPERTS, rope_parameters=QWEN3_5_ROPE, tie_word_embeddings=False),
            vision_config=QWEN3_5_TOWER,
            tie_word_embeddings=False,
            **QWEN3_5_IDS,
        ),
    ),
    "lfm2_vl": (
        "Lfm2VlForConditionalGeneration",
        dict(
            text_config=sized(
                intermediate_size=32,
                model_type="lfm2",
                layer_types=["conv", "full_attention"],
                block_auto_adjust_ff_dim=False,
                conv_L_cache=3,
                rope_parameters=rope(1000000.0),
            ),
            vision_config=dict(
                model_type="siglip2_vision_model",
                vision_use_head=False,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                patch_size=4,
                num_patches=16,
            ),
            projector_hidden_size=32,
            image_token_id=90,
        ),
    ),
    "mamba": ("MambaForCausalLM", dict(WITHOUT_HEADS, state_size=8, expand=2, conv_kernel=4, time_step_rank=32)),
    "falcon_mamba": (
        "FalconMambaForCausalLM",
        dict(WITHOUT_HEADS, state_size=8, expand=2, conv_kernel=3, time_step_rank=32, use_bias=True, tie_word_embeddings=False),
    ),
    "mamba2": ("Mamba2ForCausalLM", dict(WITHOUT_HEADS, num_heads=4, head_dim=16, state_size=8, n_groups=2, conv_kernel=4, chunk_size=8)),
    "jamba": (
        "JambaForCausalLM",
        sized(
            attn_layer_offset=1,
            attn_layer_period=2,
            expert_layer_offset=1,
            expert_layer_period=2,
            num_experts=4,
            num_experts_per_tok=2,
            mamba_d_state=8,
            mamba_dt_rank=32,
            tie_word_embeddings=False,
        ),
    ),
    "nemotron_h": (
        "NemotronHForCausalLM",
        dict(
            {k: v for k, v in SIZES.items() if k != "num_hidden_layers"},
            layers_block_type=["linear_attention", "moe", "full_attention", "mlp"],
            head_dim=8,
            mamba_num_heads=4,
            mamba_head_dim=16,
            ssm_state_size=8,
            n_groups=2,
            chunk_size=8,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=2,
            topk_group=1,
            moe_intermediate_size=32,
            moe_shared_expert_intermediate_size=32,
            routed_scaling_factor=1.5,
        ),
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridForCausalLM",
        sized(
            intermediate_size=32,
            layer_types=["linear_attention", "full_attention"],
            mamba_n_heads=4,
            mamba_d_state=8,
            mamba_n_groups=2,
            mamba_chunk_size=8,
            num_local_experts=4,
            num_experts_per_tok=2,
            shared_intermediate_size=32,
            attention_multiplier=0.3,
            embedding_multiplier=1.5,
            residual_multiplier=0.7,
            logits_scaling=2.0,
            position_embedding_type="rope",
            rope_parameters=rope(500.0),
        ),
    ),
    "falcon_h1": (
        "FalconH1ForCausalLM",
        sized(
            head_dim=8,
            mamba_d_ssm=64,
            mamba_n_heads=4,
            mamba_d_head=16,
            mamba_d_state=8,
            mamba_n_groups=2,
            mamba_chunk_size=8,
            mamba_rms_norm=True,
            mamba_norm_before_gate=False,
            embedding_multiplier=1.5,
            lm_head_multiplier=0.5,
            attention_out_multiplier=0.75,
            ssm_in_multiplier=1.25,
            ssm_out_multiplier=0.5,
            mlp_multipliers=[0.875, 1.5],
            ssm_multipliers=[0.5, 1.5, 0.75, 1.25, 0.875],
            tie_word_embeddings=False,
        ),
    ),
    "lfm2_moe": (
        "Lfm2MoeForCausalLM",
        sized(
            layer_types=["conv", "full_attention"],
            moe_intermediate_size=32,
            num_dense_layers=1,
            num_experts=4,
            num_experts_per_tok=2,
            rope_parameters=rope(500.0),
        ),
    ),
    "recurrent_gemma": (
        "RecurrentGemmaForCausalLM",
        sized(num_key_value_heads=1, block_types=["recurrent", "attention"], attention_window_size=8, logits_soft_cap=8.0),
    ),
}


def build(name):
    """A model whose every number is random: norms and scales around what they begin at, products about as large as their input."""
    kind, fields = FAMILIES[name]
    if ":" in kind:
        auto, config = kind.split(":")
        model = getattr(transformers, auto).from_config(getattr(transformers, config)(**fields))
    else:
        model_class = getattr(transformers, kind)
        model = model_class(model_class.config_class(**fields))
    random = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    with torch.no_grad():
        for path, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=random)
            if p.dim() < 2 or "norm" in path:
                p.copy_((p if torch.all(p == p.flatten()[0]) else torch.zeros_like(p)) + 0.3 * noise)
            elif p.dim() == 3 and "experts" in path:
                p.copy_(noise * 1.2 / p.shape[-1] ** 0.5)
            elif "embed_tokens" in path or "wte" in path or "embed_in" in path:
                p.copy_(noise)
            else:
                p.copy_(noise * 1.2 / p[0].numel() ** 0.5)
        for path, b in model.named_buffers():
            if path.endswith("layer_scalar"):
                b.copy_(1 + 0.3 * torch.randn(b.shape, generator=random))
            if path.endswith("e_score_correction_bias"):
                b.copy_(0.3 * torch.randn(b.shape, generator=random))
    return model.to(torch.bfloat16)


# Where transformers 5 saves other names than the files on the hub have: those of the towers have `vision_model.`, GPT-2's have no
# prefix. Gemma 3n is built without its towers, which are made of timm's classes, and put under the wrapper's names here.
RENAMED = {
    "gemma3": ("vision_tower.", "vision_tower.vision_model."),
    "llava": ("vision_tower.", "vision_tower.vision_model."),
    "lfm2_vl": ("model.vision_tower.", "model.vision_tower.vision_model."),
    "gpt2": ("transformer.", ""),
    "gemma3n": ("model.", "model.language_model."),
}


def rename(file, old, new):
    weights = {new + k.removeprefix(old) if k.startswith(old) else k: v for k, v in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


def make(name):
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    build(name).save_pretrained(folder)
    if name in RENAMED:
        rename(folder / "model.safetensors", *RENAMED[name])
    if name == "gemma3n":
        text = transformers.AutoConfig.from_pretrained(folder).to_dict()
        del text["_name_or_path"], text["architectures"]
        config = transformers.Gemma3nConfig(text_config=text, architectures=["Gemma3nForConditionalGeneration"], dtype="bfloat16")
        config.save_pretrained(folder)
    for file in folder.iterdir():
        if file.name not in ("model.safetensors", "config.json"):
            file.unlink()
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: {size} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    for name in parser.parse_args().names or FAMILIES:
        make(name)


if __name__ == "__main__":
    main()

# What mlx_lm 0.32.2 makes of the folders, seen with these files. test_fixtures.py has the fields, and for each form a test that it runs.
#
# as saved, loads and loses nothing   gemma, gemma2, glm, gptj, llava, ministral3, mixtral, nemotron, olmoe, phi, qwen2, qwen2_moe, qwen2_vl, qwen3,
#                                     qwen3_vl, starcoder2
#   (gemma2, gptj, llava, mixtral, nemotron, olmoe, phi, starcoder2, gemma, glm, qwen2, qwen2_moe and qwen2_vl pass over rope_parameters: mlx_lm's default is what it says here)
# as saved, loads and passes over     cohere, hunyuan_v1_dense, internlm3, iquestcoder, llama, mistral, mistral3, olmo2, phi3, phimoe, pixtral,
#   rope_parameters without a word    seed_oss, smollm3: other logits, by 0.1 to 0.7 of their range
# as saved, does not load             apertus, cohere2, dots1, ernie4_5, ernie4_5_moe, exaone4, gemma3, gemma3_text, gemma3n, gemma4, gemma4_text, glm4,
#                                     glm4_moe, gpt2, gpt_bigcode, gpt_neox, gpt_oss, granite, granitemoe, helium, lfm2, lfm2_vl, minimax_m2,
#                                     nanochat, olmo3, qwen2_5_vl, solar_open, stablelm
# as saved, loads and loses nothing   afmoe, gemma, gemma2, glm, gptj, laguna, llava, ministral3, nemotron, phi, qwen2, qwen2_vl, qwen3, qwen3_vl, starcoder2
#   (gemma2, gptj, llava, nemotron, phi, starcoder2, gemma, glm, qwen2 and qwen2_vl pass over rope_parameters: mlx_lm's default is what it says here)
# as saved, loads and passes over     cohere, hunyuan_v1_dense, internlm3, iquestcoder, llama, mistral, mistral3, olmo2, phi3, pixtral,
#   rope_parameters without a word    seed_oss, smollm3: other logits, by 0.1 to 0.7 of their range
# as saved, does not load             apertus, cohere2, ernie4_5, exaone4, exaone_moe, gemma3, gemma3_text, gemma3n, gemma4, gemma4_text, glm4, gpt2,
#                                     gpt_bigcode, gpt_neox, granite, helium, lfm2, lfm2_vl, llama4, muse_glimmer, nanochat, olmo3, qwen2_5_vl, stablelm
# config of transformers 4, loads     all but gemma3 and gemma4 (sizes of the vocabulary), gpt_bigcode (n_inner), and those of the next row
# other tensors needed                gemma3n (k and v of sharing layers), gpt_oss (experts in 16 bits are not read), lfm2_vl (names, axes of the taps), nanochat (names)
#
# In the spelling of transformers 4, mlx_lm and transformers agree on these weights to 1e-3 of the logits' range (transformers 5.24 rounds the
# frequencies of rotary positions with the weights; nearer where it does not). Two differ by what mlx_lm leaves out: glm (it turns the whole head),
# mistral (it knows no window). Ids from 90 on stand for images in some wrappers: transformers' gemma4 alone embeds those as padding.
#
# No class in transformers 5.24, so no folder here; their files come with code of their own:
#   exaone, internlm2, minicpm, plamo, plamo2, plamo3, baichuan_m1, telechat3, mimo, nemotron-nas, lille-130m, iquestloopcoder, qwen, phi3small,
#   phixtral, deepseek, openelm, afm7, xverse
# A class in transformers and none in mlx_lm: arcee.
