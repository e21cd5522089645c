#include "oracle/model_random.h"

#include <mlx/mlx.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>

#include "base/error.h"
#include "model/ops/attention.h"
#include "model/ops/compressed_attention.h"
#include "model/ops/experts.h"
#include "model/ops/gated_mlp.h"
#include "model/ops/latent_attention.h"

namespace lquant::oracle {

namespace mx = mlx::core;
using nlohmann::json;

json tiny_config(const std::string& model_type) {
  // Wrappers: the text model stands inside.
  static const std::map<std::string, std::string> inner = {
      {"gemma3", "gemma3_text"},    {"gemma4", "gemma4_text"}, {"kimi_k25", "deepseek_v3"}, {"kimi_vl", "deepseek_v3"},   {"lfm2-vl", "lfm2"},
      {"lfm2_vl", "lfm2"},          {"llama4", "llama4_text"}, {"llava", "llama"},          {"mistral3", "ministral3"},   {"pixtral", "mistral"},
      {"minimax_m3_vl", "minimax"}, {"qwen2_vl", "qwen2"},     {"qwen3_vl", "qwen3"},       {"qwen3_vl_moe", "qwen3_moe"}};
  if (const auto text = inner.find(model_type); text != inner.end()) {
    auto config = tiny_config(text->second);
    if (model_type == "gemma4")  // its mixture; gemma4_text is dense here
      config.update({{"enable_moe_block", true}, {"num_experts", 5}, {"top_k_experts", 2}, {"moe_intermediate_size", 32}});
    if (model_type == "llama4") {
      config.update({{"num_hidden_layers", 4}, {"attention_bias", true}, {"attention_chunk_size", 4}, {"floor_scale", 3}, {"num_local_experts", 4}});
      config.update({{"interleave_moe_layer_step", 2}, {"num_experts_per_tok", 1}});
    }
    if (model_type == "minimax_m3_vl") {
      config.update({{"dense_intermediate_size", 96}, {"shared_intermediate_size", 32}, {"moe_layer_freq", {0, 1}}, {"swiglu_limit", 7.0}});
      config["sparse_attention_config"] = {{"sparse_num_index_heads", 2}, {"sparse_index_dim", 16}, {"sparse_block_size", 2}};
      config["sparse_attention_config"].update({{"sparse_topk_blocks", 2}, {"sparse_local_block", 1}, {"sparse_attention_freq", {0, 1}}});
    }
    if (model_type == "qwen3_vl_moe") config["tie_word_embeddings"] = false;
    return {{"model_type", model_type}, {"text_config", config}, {"vocab_size", config.at("vocab_size")}};
  }
  if (const auto target = model::run_as(model_type); target != model_type && model_type != "mistral") {
    auto config = tiny_config(target);
    config["model_type"] = model_type;
    return config;
  }
  if (model_type == "gemma3n") {
    auto text = tiny_config("gemma3_text");
    text.update({{"num_hidden_layers", 5}, {"intermediate_size", {96, 64, 96, 96, 64}}, {"num_kv_shared_layers", 2}, {"sliding_window", 5}});
    text.update({{"layer_types", {"full_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"}}});
    text.update(
        {{"activation_sparsity_pattern", {0.9, 0.0, 0.6, 0.0, 0.0}}, {"hidden_size_per_layer_input", 32}, {"vocab_size_per_layer_input", 40}});
    text.update({{"altup_num_inputs", 3}, {"altup_coef_clip", 1.0}, {"altup_correct_scale", true}, {"altup_active_idx", 0}, {"laurel_rank", 32}});
    text.update({{"rope_local_base_freq", 1000.0}, {"final_logit_softcapping", 8.0}});
    return {{"model_type", model_type}, {"text_config", text}};
  }
  if (model_type == "muse_spark") {
    auto text = tiny_config("llama");
    text.update({{"post_norm_eps", 1e-4}, {"layer_rope_theta", {10000.0, 0}}, {"rope_parameters", {{"rope_theta", 10000.0}}}});
    text.update({{"layer_types", {"sliding_attention", "full_attention"}}, {"sliding_window", 5}, {"final_logit_softcapping", 8.0}});
    text.update({{"output_multiplier", 0.7}, {"num_local_experts", 5}, {"num_experts_per_tok", 2}, {"moe_hidden_size", 32}});
    text.update({{"moe_intermediate_size", 32}, {"routed_scaling_factor", 1.5}, {"qk_scale_factor", 2.0}});
    return {{"model_type", model_type}, {"text_config", text}};
  }
  json config = {{"model_type", model_type}, {"hidden_size", 64},
                 {"num_hidden_layers", 2},   {"intermediate_size", 96},
                 {"num_attention_heads", 4}, {"num_key_value_heads", 2},
                 {"head_dim", 16},           {"rms_norm_eps", 1e-5},
                 {"vocab_size", 48},         {"max_position_embeddings", 128},
                 {"rope_theta", 10000.0},    {"tie_word_embeddings", true}};
  if (model_type == "llama") config["layer_types"] = {"sliding_attention", "full_attention"}, config["sliding_window"] = 5;
  if (model_type == "mistral") config["tie_word_embeddings"] = false, config["sliding_window"] = nullptr, config["head_dim"] = nullptr;
  if (model_type == "smollm3") config["no_rope_layers"] = {1, 0}, config["attention_bias"] = true;
  if (model_type == "phi3") config["partial_rotary_factor"] = 0.75, config["tie_word_embeddings"] = false;
  if (model_type == "ernie4_5") config["use_bias"] = true;
  if (model_type == "internlm3") config["qkv_bias"] = true;
  for (const char* untied : {"seed_oss", "helium", "glm4"})
    if (model_type == untied) config.update({{"tie_word_embeddings", false}, {"attention_bias", true}});
  if (model_type == "helium") config["mlp_bias"] = true;
  if (model_type == "glm4") config["partial_rotary_factor"] = 0.5;
  if (model_type == "gemma") config["num_key_value_heads"] = 1;
  if (model_type == "glm") config["attention_bias"] = true;
  if (model_type == "exaone") config.update({{"num_layers", 2}, {"layer_norm_epsilon", 1e-5}, {"mlp_bias", true}});
  if (model_type == "exaone4") config.update({{"rope_scaling", nullptr}, {"sliding_window", 5}, {"sliding_window_pattern", "LG"}});
  if (model_type == "minicpm") config.update({{"tie_word_embeddings", false}, {"dim_model_base", 24}, {"scale_depth", 1.4}, {"scale_emb", 3.0}});
  if (model_type == "hunyuan_v1_dense") config["rope_scaling"] = {{"type", "dynamic"}, {"alpha", 50.0}, {"factor", 1.0}};
  if (model_type == "qwen") config.update({{"intermediate_size", 128}, {"kv_channels", 16}, {"layer_norm_epsilon", 1e-5}, {"no_bias", false}});
  if (model_type == "lille-130m")
    config.update({{"block_size", 128}, {"layer_norm_eps", 1e-5}, {"n_embd", 64}, {"n_head", 4}, {"n_kv_heads", 2}, {"n_layer", 2}});
  if (model_type == "openelm") {
    config.update({{"model_dim", 64}, {"num_transformer_layers", 2}, {"ffn_dim_divisor", 16}});
    config.update({{"num_query_heads", {4, 6}}, {"num_kv_heads", {2, 3}}, {"ffn_multipliers", {0.5, 1.5}}});
  }
  if (model_type == "iquestloopcoder") config.update({{"attention_bias", true}, {"loop_window_size", 5}});
  if (model_type == "plamo") config["n_shared_head"] = 2;
  if (model_type == "gemma2") config["query_pre_attn_scalar"] = 24, config["attn_logit_softcapping"] = 5.0, config["final_logit_softcapping"] = 8.0;
  if (model_type == "gemma3_text") config["sliding_window"] = 5, config["sliding_window_pattern"] = 2, config["query_pre_attn_scalar"] = 24;
  if (model_type == "ministral3")
    config["rope_parameters"] = {
        {"rope_type", "yarn"}, {"rope_theta", 10000.0}, {"factor", 4.0}, {"original_max_position_embeddings", 3}, {"llama_4_scaling_beta", 0.4}};
  if (model_type == "apertus") config.update({{"mlp_bias", true}, {"attention_bias", false}, {"post_norm", false}, {"qk_norm", true}});
  if (model_type == "nemotron-nas") {
    const json heads = {{"n_heads_in_group", 2}}, mlp = {{"ffn_mult", 2.0}}, linear = {{"replace_with_linear", true}}, none = {{"no_op", true}};
    config["num_hidden_layers"] = 5, config["attention_bias"] = true, config["mlp_bias"] = true;
    config["block_configs"] = {{{"attention", linear}, {"ffn", mlp}},
                               {{"attention", heads}, {"ffn", mlp}},
                               {{"attention", none}, {"ffn", none}},
                               {{"attention", heads}, {"ffn", linear}},
                               {{"attention", none}, {"ffn", mlp}}};
  }
  if (model_type == "baichuan_m1")
    config.update({{"tie_word_embeddings", false},
                   {"sliding_window", 5},
                   {"sliding_window_layers", {0}},
                   {"conv_window", 2},
                   {"num_swa_attention_heads", 2},
                   {"num_swa_key_value_heads", 1}});
  if (model_type == "lfm2") {
    config.update({{"norm_eps", 1e-5}, {"conv_bias", true}, {"conv_L_cache", 4}, {"block_dim", 64}, {"block_ff_dim", 96}, {"block_multiple_of", 32}});
    config.update({{"block_ffn_dim_multiplier", 1.0}, {"block_auto_adjust_ff_dim", false}, {"layer_types", {"full_attention", "conv"}}});
  }
  if (model_type == "afm7")
    config.update(
        {{"hidden_dim", 64}, {"num_layers", 4}, {"num_kv_reuse_layers", 2}, {"num_heads", 4}, {"num_kv_heads", 2}, {"hidden_dim_scale_factor", 1.5}});
  if (model_type == "gemma4_text")
    config.update({{"num_hidden_layers", 4},
                   {"num_kv_shared_layers", 2},
                   {"sliding_window", 5},
                   {"sliding_window_pattern", 2},
                   {"global_head_dim", 24},
                   {"hidden_size_per_layer_input", 32},
                   {"vocab_size_per_layer_input", 40}});
  if (model_type == "afmoe") {
    config.update({{"layer_types", {"sliding_attention", "full_attention"}}, {"sliding_window", 5}, {"num_dense_layers", 1}});
    config.update({{"num_experts", 6}, {"num_experts_per_tok", 2}, {"moe_intermediate_size", 32}});
  }
  if (model_type == "bailing_moe") {
    config.update({{"num_experts", 6}, {"num_experts_per_tok", 2}, {"moe_intermediate_size", 32}, {"num_shared_experts", 1}});
    config.update({{"first_k_dense_replace", 1}, {"norm_topk_prob", true}, {"use_bias", true}, {"use_qkv_bias", true}, {"use_qk_norm", true}});
    config.update({{"moe_router_enable_expert_bias", true}, {"score_function", "sigmoid"}, {"n_group", 3}, {"topk_group", 2}});
  }
  if (model_type == "bailing_moe_linear") {
    config = tiny_config("bailing_moe");
    config.update({{"model_type", model_type}, {"num_hidden_layers", 4}, {"layer_group_size", 2}, {"group_norm_size", 2}, {"head_dim", 24}});
  }
  if (model_type == "bailing_hybrid") {
    config = tiny_config("bailing_moe_linear");
    config.update({{"model_type", model_type}, {"kv_lora_rank", 32}, {"q_lora_rank", 64}, {"qk_nope_head_dim", 32}, {"qk_rope_head_dim", 8}});
    config.update({{"v_head_dim", 24}, {"routed_scaling_factor", 1.5}});
  }
  if (model_type == "bailing_moe_v3") {
    config.update({{"num_hidden_layers", 4}, {"layer_group_size", 2}, {"num_experts", 6}, {"num_experts_per_tok", 2}, {"n_group", 3}});
    config.update({{"topk_group", 2}, {"moe_intermediate_size", 32}, {"moe_shared_expert_intermediate_size", 32}, {"kv_lora_rank", 32}});
    config.update({{"q_lora_rank", 64}, {"qk_nope_head_dim", 32}, {"qk_rope_head_dim", 8}, {"v_head_dim", 24}, {"short_conv_kernel_size", 3}});
    config["rms_norm_eps"] = 1e-3;
  }
  if (model_type == "kimi_linear") {
    config["linear_attn_config"] = {{"num_heads", 2}, {"head_dim", 32}, {"kda_layers", {1}}, {"short_conv_kernel_size", 3}};
    config.update({{"model_max_length", 128}, {"num_experts", 6}, {"num_experts_per_token", 2}, {"num_shared_experts", 1}});
    config.update({{"moe_intermediate_size", 32}, {"first_k_dense_replace", 1}, {"num_expert_group", 3}, {"topk_group", 2}});
    config.update({{"kv_lora_rank", 32}, {"qk_nope_head_dim", 32}, {"qk_rope_head_dim", 8}, {"v_head_dim", 24}, {"rms_norm_eps", 1e-3}});
  }
  if (model_type == "kimi_k3") {
    config["linear_attn_config"] = {
        {"num_heads", 2}, {"head_dim", 32}, {"kda_layers", {1, 3}}, {"short_conv_kernel_size", 3}, {"gate_lower_bound", -5.0}};
    config.update({{"num_hidden_layers", 4}, {"attn_res_block_size", 2}, {"q_lora_rank", 64}, {"kv_lora_rank", 32}, {"qk_nope_head_dim", 32}});
    config.update({{"qk_rope_head_dim", 8}, {"v_head_dim", 24}, {"mla_use_output_gate", true}, {"num_experts", 6}, {"num_experts_per_token", 2}});
    config.update({{"num_shared_experts", 1}, {"moe_intermediate_size", 32}, {"first_k_dense_replace", 1}, {"routed_expert_hidden_size", 32}});
    config.update(
        {{"latent_moe_use_norm", true}, {"num_expert_group", 3}, {"topk_group", 2}, {"rms_norm_eps", 1e-3}, {"tie_word_embeddings", false}});
  }
  if (model_type == "deepseek_v41") {  // layers that make and choose entries, do either, read what others chose, have a window alone
    config.update(
        {{"num_hidden_layers", 5}, {"compress_ratios", {2, 2, 2, 2, 0}}, {"kv_source_layer_ids", {0, 3}}, {"index_source_layer_ids", {0, 2}}});
    config.update({{"candidate_source_layer_id", 0}, {"candidate_topk_blocks", 2}, {"candidate_block_size", 2}, {"index_topk", 3}});
    config.update({{"index_n_heads", 4}, {"index_head_dim", 32}, {"head_dim", 32}, {"qk_rope_head_dim", 8}, {"q_lora_rank", 64}, {"o_groups", 2}});
    config.update({{"o_lora_rank", 32}, {"sliding_window", 5}, {"hc_mult", 3}, {"n_routed_experts", 6}, {"num_experts_per_tok", 2}});
    config.update({{"moe_intermediate_size", 32}, {"tie_word_embeddings", false}});
  }
  if (model_type == "dbrx") {  // the limit cuts one number of some hundred: finite differences are wrong where one is at it
    config.update({{"d_model", 64}, {"n_heads", 4}, {"n_layers", 2}, {"attn_config", {{"kv_n_heads", 2}, {"clip_qkv", 4.0}, {"rope_theta", 1e4}}}});
    config["ffn_config"] = {{"ffn_hidden_size", 32}, {"moe_num_experts", 5}, {"moe_top_k", 2}};
  }
  if (model_type == "exaone_moe") {
    config.update({{"layer_types", {"full_attention", "sliding_attention"}}, {"sliding_window", 5}, {"is_moe_layer", {false, true}}});
    config.update({{"num_experts", 5}, {"num_experts_per_tok", 2}, {"moe_intermediate_size", 32}, {"num_shared_experts", 1}});
  }
  if (model_type == "hunyuan") {
    config.update({{"rope_scaling", {{"type", "dynamic"}, {"alpha", 50.0}, {"factor", 1.0}}}, {"attention_bias", true}, {"use_qk_norm", true}});
    config.update({{"use_cla", true}, {"cla_share_factor", 2}, {"num_experts", 5}, {"moe_topk", {1, 2}}, {"num_shared_expert", {1, 1}}});
    config.update({{"use_mixed_mlp_moe", true}, {"moe_intermediate_size", {32, 64}}});
  }
  if (model_type == "Klear") {
    config.update({{"num_experts", 5}, {"num_experts_per_tok", 2}, {"moe_intermediate_size", 32}, {"n_shared_experts", 1}, {"attention_bias", true}});
    config.update({{"decoder_sparse_step", 1}, {"mlp_only_layers", json::array()}, {"norm_topk_prob", true}});
  }
  if (model_type == "laguna") {
    config.update({{"num_experts", 5}, {"num_experts_per_tok", 2}, {"moe_intermediate_size", 32}, {"shared_expert_intermediate_size", 32}});
    config.update({{"layer_types", {"full_attention", "sliding_attention"}}, {"sliding_window", 5}, {"num_attention_heads_per_layer", {4, 2}}});
    config.update({{"qkv_bias", true}, {"attention_bias", true}, {"moe_router_logit_softcapping", 0.5}});
  }
  if (model_type == "llama4_text") config.update({{"intermediate_size_mlp", 64}, {"no_rope_layers", {1, 0}}, {"use_qk_norm", true}});
  if (model_type == "mimo_v2_flash") {
    config.update({{"hybrid_layer_pattern", {0, 1}}, {"moe_layer_freq", {0, 1}}, {"sliding_window_size", 5}, {"v_head_dim", 8}});
    config.update({{"add_swa_attention_sink_bias", true}, {"add_full_attention_sink_bias", true}, {"attention_value_scale", 0.7}});
    config.update({{"swa_num_attention_heads", 2}, {"swa_num_key_value_heads", 1}, {"swa_head_dim", 24}, {"swa_v_head_dim", 16}});
    config.update({{"swa_rope_theta", 500.0}, {"partial_rotary_factor", 0.5}, {"layernorm_epsilon", 1e-5}});
    config.update({{"n_routed_experts", 5}, {"num_experts_per_tok", 2}, {"moe_intermediate_size", 32}, {"n_shared_experts", 1}});
    config["norm_topk_prob"] = true;
  }
  if (model_type == "muse_glimmer")
    config.update({{"layer_types", {"sliding_attention", "full_attention"}}, {"sliding_window", 5}, {"tie_word_embeddings", false}});
  if (model_type == "step3p5") {
    config.update({{"num_attention_groups", 2}, {"layer_types", {"full_attention", "sliding_attention"}}, {"sliding_window", 5}});
    config.update({{"attention_other_setting", {{"num_attention_heads", 2}, {"num_attention_groups", 1}}}, {"swiglu_limits", {0.0, 0.7}}});
    config.update({{"moe_num_experts", 5}, {"moe_top_k", 2}, {"moe_intermediate_size", 32}, {"share_expert_dim", 32}});
  }
  if (model_type == "qwen3_moe") {
    config.update({{"num_experts", 5}, {"num_experts_per_tok", 2}, {"moe_intermediate_size", 32}, {"decoder_sparse_step", 1}});
    config.update({{"mlp_only_layers", json::array()}, {"norm_topk_prob", true}});
  }
  if (model_type == "olmo_hybrid")
    config.update({{"attention_bias", true},
                   {"linear_allow_neg_eigval", true},
                   {"linear_num_key_heads", 2},
                   {"linear_num_value_heads", 4},
                   {"linear_key_head_dim", 24},
                   {"linear_value_head_dim", 16},
                   {"linear_conv_kernel_dim", 3},
                   {"layer_types", {"linear_attention", "full_attention"}}});
  if (model_type.starts_with("qwen3_5") || model_type == "qwen3_next") {
    config.update({{"full_attention_interval", 2}, {"partial_rotary_factor", 0.5}, {"linear_conv_kernel_dim", 3}});
    config.update({{"linear_num_key_heads", 2}, {"linear_num_value_heads", 4}, {"linear_key_head_dim", 24}, {"linear_value_head_dim", 16}});
    config["rope_parameters"] = {{"rope_theta", 10000.0}, {"partial_rotary_factor", 0.5}};
  }
  if (model_type == "qwen3_5_moe" || model_type == "qwen3_next") {
    config.update({{"num_experts", 5}, {"num_experts_per_tok", 2}, {"moe_intermediate_size", 32}, {"decoder_sparse_step", 1}});
    config.update({{"mlp_only_layers", json::array()}, {"norm_topk_prob", true}, {"shared_expert_intermediate_size", 64}});
  }
  for (const char* latent : {"deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "minicpm3", "mistral4", "youtu_llm"}) {
    if (model_type != latent) continue;
    config.update({{"kv_lora_rank", 32}, {"q_lora_rank", 64}, {"qk_nope_head_dim", 32}, {"qk_rope_head_dim", 8}, {"v_head_dim", 24}});
    config.update({{"n_routed_experts", 6}, {"num_experts_per_tok", 2}, {"moe_intermediate_size", 32}, {"n_shared_experts", 1}});
    config.update({{"first_k_dense_replace", 1}, {"moe_layer_freq", 1}, {"routed_scaling_factor", 1.5}, {"tie_word_embeddings", false}});
    config.update({{"n_group", 1}, {"topk_group", 1}, {"norm_topk_prob", true}, {"topk_method", "noaux_tc"}, {"attention_bias", true}});
  }
  if (model_type == "deepseek_v2") config["rope_scaling"] = {{"factor", 4.0}, {"original_max_position_embeddings", 32}, {"mscale_all_dim", 0.7}};
  if (model_type == "deepseek_v3") config.update({{"n_group", 3}, {"topk_group", 2}, {"q_lora_rank", nullptr}});
  if (model_type == "deepseek_v32" || model_type == "glm_moe_dsa")
    config.update({{"index_n_heads", 2}, {"index_head_dim", 32}, {"index_topk", 5}, {"rope_parameters", {{"rope_theta", 10000.0}}}});
  if (model_type == "mistral4")
    config["rope_parameters"] = {
        {"type", "yarn"}, {"rope_theta", 10000.0}, {"factor", 4.0}, {"original_max_position_embeddings", 3}, {"llama_4_scaling_beta", 0.4}};
  if (model_type.starts_with("longcat_flash")) {
    config.update({{"kv_lora_rank", 32}, {"q_lora_rank", 64}, {"qk_nope_head_dim", 32}, {"qk_rope_head_dim", 8}, {"v_head_dim", 24}});
    config.update({{"attention_method", "MLA"}, {"zero_expert_type", "identity"}, {"ffn_hidden_size", 96}, {"moe_topk", 2}, {"num_layers", 2}});
    config.update({{"expert_ffn_hidden_size", 32}, {"n_routed_experts", 4}, {"zero_expert_num", 2}, {"routed_scaling_factor", 1.5}});
    config.update({{"mla_scale_q_lora", true}, {"mla_scale_kv_lora", true}, {"router_bias", true}, {"attention_bias", true}});
    config.update({{"ngram_vocab_size_ratio", 2}, {"emb_split_num", 1}, {"emb_neighbor_num", 3}});
  }
  if (model_type == "minicpm3") {
    config.erase("v_head_dim");
    config.update({{"dim_model_base", 24}, {"scale_depth", 1.4}, {"scale_emb", 3.0}});
    config["rope_scaling"] = {
        {"type", "longrope"}, {"long_factor", {1.0, 1.5, 2.0, 3.0}}, {"short_factor", 1.0}, {"original_max_position_embeddings", 32}};
  }
  if (model_type == "youtu_llm") config.update({{"q_lora_rank", nullptr}, {"mlp_bias", true}});
  if (model_type == "lfm2_moe") {
    config.update({{"norm_eps", 1e-5}, {"conv_bias", true}, {"conv_L_cache", 4}, {"layer_types", {"full_attention", "conv"}}});
    config.update({{"num_experts", 5}, {"num_experts_per_tok", 2}, {"moe_intermediate_size", 32}, {"num_dense_layers", 1}});
    config.update({{"norm_topk_prob", true}, {"use_expert_bias", true}, {"routed_scaling_factor", 1.5}});
  }
  if (model_type == "mamba" || model_type == "mamba2") {
    config.update({{"state_size", 8}, {"conv_kernel", 3}, {"use_bias", true}, {"use_conv_bias", true}, {"time_step_rank", 32}});
    config.update({{"num_heads", 4}, {"n_groups", 2}});
  }
  if (model_type == "nemotron_h") {
    config.update({{"hybrid_override_pattern", "ME*-"}, {"attention_bias", true}, {"mlp_bias", true}, {"use_bias", false}});
    config.update({{"mamba_num_heads", 4}, {"mamba_head_dim", 16}, {"mamba_proj_bias", true}, {"ssm_state_size", 8}});
    config.update({{"conv_kernel", 3}, {"n_groups", 2}, {"use_conv_bias", true}});
    config.update({{"n_routed_experts", 6}, {"num_experts_per_tok", 2}, {"n_group", 2}, {"topk_group", 1}, {"moe_intermediate_size", 32}});
    config.update({{"norm_topk_prob", true}, {"routed_scaling_factor", 1.5}, {"n_shared_experts", 1}, {"moe_latent_size", 32}});
  }
  if (model_type == "granitemoehybrid") {
    config.update({{"attention_bias", true}, {"logits_scaling", 3.0}, {"attention_multiplier", 0.2}, {"embedding_multiplier", 1.5}});
    config.update({{"residual_multiplier", 0.7}, {"layer_types", {"mamba", "attention"}}, {"mamba_n_heads", 4}, {"mamba_d_head", 16}});
    config.update({{"mamba_proj_bias", true}, {"mamba_d_state", 8}, {"mamba_d_conv", 3}, {"mamba_n_groups", 2}, {"mamba_conv_bias", true}});
    config.update({{"num_local_experts", 5}, {"num_experts_per_tok", 2}, {"intermediate_size", 32}, {"shared_intermediate_size", 64}});
  }
  if (model_type == "falcon_h1") {
    config.update({{"mamba_d_ssm", 64}, {"mamba_d_head", 16}, {"mamba_n_heads", 4}, {"mamba_n_groups", 2}, {"mamba_d_state", 8}});
    config.update({{"mamba_rms_norm", true}, {"mamba_proj_bias", true}, {"projectors_bias", true}, {"attention_bias", true}});
  }
  if (model_type == "recurrent_gemma") {
    config.update({{"block_types", {"recurrent", "attention"}}, {"attention_window_size", 5}, {"logits_soft_cap", 8.0}});
    config.update({{"attention_bias", false}, {"conv1d_width", 4}, {"intermediate_size", 128}});
  }
  if (model_type == "rwkv7") config.update({{"a_low_rank_dim", 32}, {"v_low_rank_dim", 32}, {"gate_low_rank_dim", 32}, {"decay_low_rank_dim", 32}});
  if (model_type == "plamo2") config.update({{"hidden_size_per_head", 16}, {"mamba_num_heads", 4}, {"mamba_d_state", 32}, {"mamba_d_conv", 3}});
  if (model_type == "jamba") {
    config.update({{"attn_layer_offset", 1}, {"attn_layer_period", 2}, {"expert_layer_offset", 1}, {"expert_layer_period", 2}});
    config.update({{"mamba_d_conv", 3}, {"mamba_d_state", 8}, {"mamba_expand", 2}, {"mamba_dt_rank", 32}, {"mamba_proj_bias", true}});
    config.update({{"num_experts", 5}, {"num_experts_per_tok", 2}, {"intermediate_size", 64}});
  }
  const json few = {{"num_local_experts", 5}, {"num_experts_per_tok", 2}, {"intermediate_size", 32}};
  for (const char* type : {"gpt_oss", "mixtral", "minimax", "phimoe", "granitemoe"})
    if (model_type == type) config.update(few);
  if (model_type == "gpt_oss") config["sliding_window"] = 5;
  if (model_type == "minimax") config.update({{"shared_intermediate_size", 0}, {"rotary_dim", 8}});
  if (model_type == "phimoe") config["router_jitter_noise"] = 1e3;  // all are near: what just is so in f32 may not be in 16 bits
  for (const char* type : {"qwen2_moe", "olmoe"})
    if (model_type == type) config.update({{"num_experts", 5}, {"num_experts_per_tok", 2}, {"moe_intermediate_size", 32}});
  if (model_type == "qwen2_moe") config["shared_expert_intermediate_size"] = 96;
  if (model_type == "olmoe") config.update({{"intermediate_size", 32}, {"mlp_bias", true}, {"attention_bias", true}});
  for (const char* type : {"glm4_moe", "solar_open", "dots1", "deepseek"})
    if (model_type == type) {
      config.update({{"n_routed_experts", 6}, {"n_shared_experts", 2}, {"num_experts_per_tok", 2}, {"moe_intermediate_size", 32}});
      config.update({{"first_k_dense_replace", 1}, {"norm_topk_prob", true}, {"routed_scaling_factor", 1.5}, {"n_group", 3}, {"topk_group", 2}});
      config.update({{"partial_rotary_factor", 0.5}, {"use_qk_norm", true}, {"attention_bias", true}, {"rope_scaling", nullptr}, {"mlp_bias", true}});
    }
  if (model_type == "ernie4_5_moe") {
    config.update({{"use_bias", true}, {"moe_num_experts", 5}, {"moe_k", 2}, {"moe_intermediate_size", 32}, {"moe_num_shared_experts", 1}});
    config["moe_layer_start_index"] = 1;
  }
  if (model_type == "phixtral") config.update({{"num_vocab", 48}, {"model_dim", 64}, {"num_heads", 2}, {"num_layers", 2}, {"rotary_dim", 16}});
  // Sizes, norms and positions of models that name them otherwise.
  config.update({{"layer_norm_eps", 1e-5}, {"norm_epsilon", 1e-5}, {"norm_eps", 1e-5}, {"layer_norm_epsilon", 1e-5}});
  config.update({{"n_embd", 64}, {"n_layer", 2}, {"n_head", 4}, {"n_positions", 32}, {"n_ctx", 32}, {"n_inner", 96}});
  // A delta net norms each head's result; one that nearly cancels would be made as large as the others, and what rounded it with it.
  if (config.contains("linear_num_key_heads")) config[model_type == "olmo_hybrid" ? "layer_norm_epsilon" : "rms_norm_eps"] = 1e-3;
  if (model_type == "cohere") config.update({{"use_qk_norm", true}, {"layer_norm_bias", true}, {"attention_bias", true}, {"logit_scale", 0.25}});
  if (model_type == "cohere2") config.update({{"sliding_window", 5}, {"sliding_window_pattern", 2}, {"logit_scale", 0.25}});
  if (model_type == "olmo2") config.update({{"attention_bias", true}, {"mlp_bias", true}, {"tie_word_embeddings", false}});
  if (model_type == "olmo3") config.update({{"sliding_window", 5}, {"layer_types", {"sliding_attention", "full_attention"}}});
  if (model_type == "phi") config["partial_rotary_factor"] = 0.5;
  if (model_type == "stablelm") config.update({{"partial_rotary_factor", 0.25}, {"use_qkv_bias", true}, {"qk_layernorm", true}});
  if (model_type == "granite" || model_type == "granitemoe") {
    config.update({{"attention_bias", true}, {"mlp_bias", false}, {"tie_word_embeddings", false}, {"logits_scaling", 3.0}});
    config.update({{"attention_multiplier", 0.2}, {"embedding_multiplier", 1.5}, {"residual_multiplier", 0.7}});
  }
  if (model_type == "gpt_neox") config.update({{"rotary_emb_base", 10000}, {"rotary_pct", 0.5}});
  if (model_type == "gptj") config.update({{"rotary_dim", 8}, {"n_inner", nullptr}});
  if (model_type == "nemotron") config.update({{"hidden_act", "relu2"}, {"attention_bias", true}, {"mlp_bias", true}});
  return config;
}

std::string refusal_of(const std::string& model_type, const json& changes) {
  auto config = tiny_config(model_type);
  config.update(changes);
  try {
    model::spec_from_config(config);
    return {};
  } catch (const Error& e) {
    return e.what();
  }
}

model::Tensors random_tensors(const model::ModelSpec& spec, std::uint64_t seed) {
  model::Tensors tensors;
  const auto normal = [&](const mx::Shape& shape, float mean, float deviation) {
    return mx::random::normal(shape, mx::float32, mean, deviation, mx::random::key(seed++));
  };
  for (const auto* linear : spec.linears()) {
    mx::Shape shape = {linear->out, linear->in}, bias = {linear->out};
    if (linear->experts > 0) shape.insert(shape.begin(), linear->experts), bias.insert(bias.begin(), linear->experts);
    const float deviation = linear->role == model::Role::embed ? 1.0f : 1.2f / std::sqrt(static_cast<float>(linear->in));
    tensors.emplace(linear->path + ".weight", normal(shape, 0, deviation));
    if (linear->bias) tensors.emplace(linear->path + ".bias", normal(bias, 0, 0.3f));
  }
  const auto add_norm = [&](const model::NormSpec& norm) {
    if (norm.weight)
      for (int piece = 0; piece < std::max(1, norm.pieces); ++piece)
        tensors.emplace(norm.weight_name(piece),
                        normal(norm.rows > 0 ? mx::Shape{norm.rows, norm.size} : mx::Shape{norm.size}, 1 - norm.offset, 0.3f));
    if (norm.bias) tensors.emplace(norm.bias_name(), normal({norm.size}, 0, 0.3f));
  };
  auto blocks = spec.blocks;
  for (const auto* outer : {&spec.front, &spec.tail})
    if (*outer) blocks.push_back(**outer);
  for (const auto& block : blocks) {
    const auto contents = block.contents();
    for (const auto* norm : contents.norms) add_norm(*norm);
    // A factor of a whole layer is near 1: near 0 the layers before it would not count. An activation's limit is where it would have a step
    // elsewhere. In wide steps hardly any two sums that differ in their order are rounded apart.
    for (const auto* parameter : contents.parameters) {
      const bool factor = parameter->shape == mx::Shape{1}, limit = parameter->path.ends_with(".eps");
      const bool step = parameter->path.find(".quant_") != std::string::npos;
      const bool share = parameter->path.ends_with("_alpha") || parameter->path.ends_with("_beta");  // of a residual and of what is added to it
      tensors.emplace(parameter->path, limit   ? mx::array(-1e-6f)
                                       : step  ? mx::array(0.5f)
                                       : share ? normal(parameter->shape, 0.7f, 0.1f)
                                               : normal(parameter->shape, factor ? 1 : 0, factor ? 0.1f : 0.3f));
    }
  }
  if (spec.embedding_norm) add_norm(*spec.embedding_norm);
  add_norm(spec.final_norm);
  for (auto& [name, value] : tensors) value.eval();
  return tensors;
}

model::ModelSpec without_steps(model::ModelSpec spec) {
  for (auto& block : spec.blocks)
    for (auto& step : block.steps)
      for (auto& branch : step.branches) {
        if (const auto* compressed = dynamic_cast<const model::CompressedAttention*>(branch.op.get())) {
          auto own = *compressed;
          own.rounds = false;
          branch.op = std::make_shared<const model::CompressedAttention>(own);
        }
        const auto* stepped = dynamic_cast<const model::Attention*>(branch.op.get());
        if (!stepped || !stepped->k_step) continue;
        auto own = *stepped;
        own.k_step = own.v_step = std::nullopt;
        branch.op = std::make_shared<const model::Attention>(own);
      }
  return spec;
}

model::ModelSpec with_all_experts(model::ModelSpec spec) {
  for (auto& block : spec.blocks)
    for (auto& step : block.steps)
      for (auto& branch : step.branches) {
        if (const auto* latent = dynamic_cast<const model::LatentAttention*>(branch.op.get()); latent && latent->indexer) {
          auto all = *latent;
          all.indexer->top_k = std::numeric_limits<int>::max();
          branch.op = std::make_shared<const model::LatentAttention>(all);
        }
        if (const auto* attention = dynamic_cast<const model::Attention*>(branch.op.get()); attention && attention->indexer) {
          auto all = *attention;
          all.indexer->top_k = std::numeric_limits<int>::max();
          branch.op = std::make_shared<const model::Attention>(all);
        }
        if (const auto* compressed = dynamic_cast<const model::CompressedAttention*>(branch.op.get())) {
          auto all = *compressed;
          all.chosen = false;
          if (all.indexer) {
            all.indexer->top_k = std::numeric_limits<int>::max();
            all.indexer->top_blocks = 0;
            all.indexer->narrowed = all.indexer->gives = false;
          }
          branch.op = std::make_shared<const model::CompressedAttention>(all);
        }
        const auto* chosen = dynamic_cast<const model::Experts*>(branch.op.get());
        if (!chosen) continue;
        auto all = *chosen;
        for (int* top_k : {&all.router.top_k, &all.up.top_k, &all.down.top_k}) *top_k = all.router.experts;
        if (all.gate) all.gate->top_k = all.router.experts;
        all.router.groups = {};
        // The sparse mixer's weights depend on the order of the logits as well.
        if (all.router.score == model::Router::Score::sparse_mixer) all.router.score = model::Router::Score::softmax;
        branch.op = std::make_shared<const model::Experts>(all);
      }
  return spec;
}

model::ModelSpec without_limits(model::ModelSpec spec) {
  for (auto& block : spec.blocks)
    for (auto& step : block.steps)
      for (auto& branch : step.branches) {
        if (const auto* experts = dynamic_cast<const model::Experts*>(branch.op.get()); experts && experts->clamp) {
          auto own = *experts;
          own.clamp->limit = std::numeric_limits<float>::infinity();
          branch.op = std::make_shared<const model::Experts>(own);
        } else if (const auto* mlp = dynamic_cast<const model::GatedMlp*>(branch.op.get()); mlp && mlp->clamp) {
          auto own = *mlp;
          own.clamp->limit = std::numeric_limits<float>::infinity();
          branch.op = std::make_shared<const model::GatedMlp>(own);
        }
      }
  return spec;
}

std::string name_of(std::string model_type) {
  std::erase(model_type, '-');
  std::erase(model_type, '-');  // "lfm2_vl" is another type than "lfm2-vl"
  return model_type;
}

std::string name_of(mx::Dtype dtype) { return dtype == mx::float32 ? "f32" : dtype == mx::bfloat16 ? "bf16" : "f16"; }

double unit_of(mx::Dtype dtype) { return dtype == mx::float32 ? 0x1p-24 : dtype == mx::bfloat16 ? 0x1p-8 : 0x1p-11; }

double rounding_of(int blocks, mx::Dtype dtype) { return 2 * std::sqrt(10.0 * blocks) * unit_of(dtype) + 100 * 0x1p-24; }

double distance_between(const mx::array& a, const mx::array& b) {
  const auto f32 = [](const mx::array& x) { return mx::astype(x, mx::float32); };
  const auto norm = [](const mx::array& x) { return std::sqrt(mx::sum(mx::square(x)).item<float>()); };
  return norm(mx::subtract(f32(a), f32(b))) / norm(f32(b));
}

void pack(model::Tensors& tensors, model::Formats& formats, const std::string& path, codec::Format format) {
  const auto parts = mx::quantize(tensors.at(path + ".weight"), format.group_size, format.bits, codec::to_string(format.mode));
  tensors.insert_or_assign(path + ".weight", parts[0]);
  tensors.insert_or_assign(path + ".scales", parts[1]);
  if (parts.size() > 2) tensors.insert_or_assign(path + ".biases", parts[2]);
  formats.insert_or_assign(path, format);
}

Folder::Folder(const json& config, const model::Tensors& tensors) {
  static std::atomic<int> count = 0;
  path_ = std::filesystem::temp_directory_path() / ("lquant-model-test-" + std::to_string(getpid()) + "-" + std::to_string(count++));
  std::filesystem::create_directories(path_);
  std::ofstream(path_ / "config.json") << config.dump();
  mx::save_safetensors((path_ / "model.safetensors").string(), tensors, {{"format", "mlx"}});
}

Folder::~Folder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace lquant::oracle
