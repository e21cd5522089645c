#include "model/spec.h"

#include "model/ops/attention.h"
#include "model/ops/experts.h"
#include "model/ops/gated_mlp.h"
#include "model/ops/latent_attention.h"
#include "model/ops/lightning.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>
#include <map>
#include <set>

#include "base/error.h"
#include "model/forward.h"
#include "oracle/model_random.h"

namespace lquant::model {
namespace {

namespace mx = mlx::core;
using nlohmann::json;

// Fields as published: Llama 3.2 1B, Mistral 7B v0.3, Qwen2.5 0.5B, Qwen3 0.6B, SmolLM3 3B, Phi-3.5 mini, Gemma 2 2B, Gemma 3 1B, Qwen3 30B-A3B,
// Seed-OSS 36B, GLM-4-9B-0414.
const std::map<std::string, const char*>& published() {
  static const std::map<std::string, const char*> configs = {
      {"llama", R"({"model_type":"llama","hidden_size":2048,"num_hidden_layers":16,"intermediate_size":8192,"num_attention_heads":32,
        "num_key_value_heads":8,"head_dim":64,"rms_norm_eps":1e-05,"vocab_size":128256,"max_position_embeddings":131072,"rope_theta":500000.0,
        "rope_scaling":{"factor":32.0,"high_freq_factor":4.0,"low_freq_factor":1.0,"original_max_position_embeddings":8192,"rope_type":"llama3"},
        "tie_word_embeddings":true,"attention_bias":false,"mlp_bias":false,"hidden_act":"silu","torch_dtype":"bfloat16"})"},
      {"mistral", R"({"model_type":"mistral","hidden_size":4096,"num_hidden_layers":32,"intermediate_size":14336,"num_attention_heads":32,
        "num_key_value_heads":8,"head_dim":128,"rms_norm_eps":1e-05,"vocab_size":32768,"max_position_embeddings":32768,"rope_theta":1000000.0,
        "sliding_window":null,"tie_word_embeddings":false})"},
      {"qwen2", R"({"model_type":"qwen2","hidden_size":896,"num_hidden_layers":24,"intermediate_size":4864,"num_attention_heads":14,
        "num_key_value_heads":2,"rms_norm_eps":1e-06,"vocab_size":151936,"max_position_embeddings":32768,"rope_theta":1000000.0,
        "sliding_window":32768,"use_sliding_window":false,"tie_word_embeddings":true})"},
      {"qwen3", R"({"model_type":"qwen3","hidden_size":1024,"num_hidden_layers":28,"intermediate_size":3072,"num_attention_heads":16,
        "num_key_value_heads":8,"head_dim":128,"rms_norm_eps":1e-06,"vocab_size":151936,"max_position_embeddings":40960,"rope_theta":1000000,
        "rope_scaling":null,"tie_word_embeddings":true,"attention_bias":false})"},
      {"smollm3", R"({"model_type":"smollm3","hidden_size":2048,"num_hidden_layers":36,"intermediate_size":11008,"num_attention_heads":16,
        "num_key_value_heads":4,"rms_norm_eps":1e-06,"vocab_size":128256,"max_position_embeddings":65536,"rope_theta":5000000.0,
        "no_rope_layer_interval":4,"tie_word_embeddings":true})"},
      {"phi3", R"({"model_type":"phi3","hidden_size":3072,"num_hidden_layers":32,"intermediate_size":8192,"num_attention_heads":32,
        "num_key_value_heads":32,"rms_norm_eps":1e-05,"vocab_size":32064,"max_position_embeddings":131072,"original_max_position_embeddings":4096,
        "rope_theta":10000.0,"rope_scaling":{"type":"longrope","short_factor":1.0,"long_factor":2.0},"sliding_window":262144,"tie_word_embeddings":false})"},
      {"gemma2", R"({"model_type":"gemma2","hidden_size":2304,"num_hidden_layers":26,"intermediate_size":9216,"num_attention_heads":8,
        "num_key_value_heads":4,"head_dim":256,"rms_norm_eps":1e-06,"vocab_size":256000,"rope_theta":10000.0,"query_pre_attn_scalar":256,
        "attn_logit_softcapping":50.0,"final_logit_softcapping":30.0,"sliding_window":4096,"hidden_activation":"gelu_pytorch_tanh"})"},
      {"gemma3_text", R"({"model_type":"gemma3_text","rope_theta":1000000,"rope_local_base_freq":10000,"sliding_window":512,
        "sliding_window_pattern":6,"query_pre_attn_scalar":256,"rope_scaling":null})"},
      {"afm7",
       R"({"model_type":"afm7","hidden_dim":2048,"num_layers":56,"num_kv_reuse_layers":21,"num_heads":16,"num_kv_heads":2,"vocab_size":153600})"},
      {"gemma4_text", R"({"model_type":"gemma4_text","hidden_size":2816,"num_hidden_layers":30,"intermediate_size":2112,"num_attention_heads":16,
        "num_key_value_heads":8,"num_global_key_value_heads":2,"head_dim":256,"global_head_dim":512,"attention_k_eq_v":true,"num_kv_shared_layers":0,
        "hidden_size_per_layer_input":0,"enable_moe_block":true,"num_experts":128,"top_k_experts":8,"moe_intermediate_size":704,"vocab_size":262144,
        "sliding_window":1024,"sliding_window_pattern":6,"use_double_wide_mlp":false})"},
      {"dbrx", R"({"model_type":"dbrx","d_model":6144,"n_heads":48,"n_layers":40,"vocab_size":100352,"max_seq_len":32768,
        "attn_config":{"clip_qkv":8,"kv_n_heads":8,"rope_theta":500000},"ffn_config":{"ffn_hidden_size":10752,"moe_num_experts":16,"moe_top_k":4}})"},
      {"kimi_linear", R"({"model_type":"kimi_linear","hidden_size":2304,"num_hidden_layers":27,"intermediate_size":9216,"num_attention_heads":32,
        "num_key_value_heads":32,"head_dim":72,"rms_norm_eps":1e-05,"vocab_size":163840,"rope_theta":10000.0,"model_max_length":1048576,
        "linear_attn_config":{"full_attn_layers":[4,8,12,16,20,24,27],"head_dim":128,
          "kda_layers":[1,2,3,5,6,7,9,10,11,13,14,15,17,18,19,21,22,23,25,26],"num_heads":32,"short_conv_kernel_size":4},
        "num_experts":256,"num_experts_per_token":8,"num_shared_experts":1,"moe_intermediate_size":1024,"first_k_dense_replace":1,"moe_layer_freq":1,
        "routed_scaling_factor":2.446,"kv_lora_rank":512,"q_lora_rank":null,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"v_head_dim":128,
        "mla_use_nope":true,"tie_word_embeddings":false})"},
      {"qwen3_moe", R"({"model_type":"qwen3_moe","hidden_size":2048,"num_hidden_layers":48,"intermediate_size":6144,"num_attention_heads":32,
        "num_key_value_heads":4,"head_dim":128,"rms_norm_eps":1e-06,"vocab_size":151936,"max_position_embeddings":40960,"rope_theta":1000000.0,
        "num_experts":128,"num_experts_per_tok":8,"decoder_sparse_step":1,"mlp_only_layers":[],"moe_intermediate_size":768,"norm_topk_prob":true,
        "tie_word_embeddings":false})"},
      {"gpt_oss", R"({"model_type":"gpt_oss","hidden_size":2880,"num_hidden_layers":24,"intermediate_size":2880,"num_attention_heads":64,
        "num_key_value_heads":8,"head_dim":64,"num_local_experts":32,"num_experts_per_tok":4,"rms_norm_eps":1e-05,"vocab_size":201088,
        "max_position_embeddings":131072,"sliding_window":128,"rope_theta":150000,"rope_scaling":{"beta_fast":32.0,"beta_slow":1.0,"factor":32.0,
        "original_max_position_embeddings":4096,"rope_type":"yarn","truncate":false},"tie_word_embeddings":false})"},
      {"mixtral", R"({"model_type":"mixtral","hidden_size":4096,"num_hidden_layers":32,"intermediate_size":14336,"num_attention_heads":32,
        "num_key_value_heads":8,"num_local_experts":8,"num_experts_per_tok":2,"rms_norm_eps":1e-05,"vocab_size":32000,"rope_theta":1000000.0,
        "tie_word_embeddings":false})"},
      {"olmoe", R"({"model_type":"olmoe","hidden_size":2048,"num_hidden_layers":16,"intermediate_size":1024,"num_attention_heads":16,
        "num_key_value_heads":16,"num_experts":64,"num_experts_per_tok":8,"rms_norm_eps":1e-05,"vocab_size":50304,"rope_theta":10000.0,
        "norm_topk_prob":false,"clip_qkv":null,"tie_word_embeddings":false})"},
      {"qwen2_moe", R"({"model_type":"qwen2_moe","hidden_size":2048,"num_hidden_layers":24,"intermediate_size":5632,"num_attention_heads":16,
        "num_key_value_heads":16,"num_experts":60,"num_experts_per_tok":4,"moe_intermediate_size":1408,"shared_expert_intermediate_size":5632,
        "rms_norm_eps":1e-06,"vocab_size":151936,"rope_theta":1000000.0,"tie_word_embeddings":false})"},
      {"deepseek", R"({"model_type":"deepseek","hidden_size":2048,"num_hidden_layers":28,"intermediate_size":10944,"moe_intermediate_size":1408,
        "num_attention_heads":16,"num_key_value_heads":16,"n_routed_experts":64,"n_shared_experts":2,"num_experts_per_tok":6,"moe_layer_freq":1,
        "first_k_dense_replace":1,"rms_norm_eps":1e-06,"vocab_size":102400,"rope_theta":10000,"rope_scaling":null,"attention_bias":false})"},
      {"phimoe", R"({"model_type":"phimoe","hidden_size":4096,"num_hidden_layers":32,"intermediate_size":6400,"num_attention_heads":32,
        "num_key_value_heads":8,"num_local_experts":16,"num_experts_per_tok":2,"rms_norm_eps":1e-05,"vocab_size":32064,
        "max_position_embeddings":131072,"original_max_position_embeddings":4096,"rope_theta":10000.0,"router_jitter_noise":0.01,
        "rope_scaling":{"type":"longrope","short_factor":1.0,"long_factor":2.0,"short_mscale":1.243163121016122,"long_mscale":1.243163121016122}})"},
      {"minimax_m2", R"({"model_type":"minimax_m2","hidden_size":3072,"num_hidden_layers":62,"intermediate_size":1536,"num_attention_heads":48,
        "num_key_value_heads":8,"head_dim":128,"num_local_experts":256,"num_experts_per_tok":8,"shared_intermediate_size":0,"rotary_dim":64,
        "rms_norm_eps":1e-06,"vocab_size":200064,"max_position_embeddings":196608,"rope_theta":5000000,"tie_word_embeddings":false})"},
      {"ernie4_5_moe", R"({"model_type":"ernie4_5_moe","hidden_size":2560,"num_hidden_layers":28,"intermediate_size":12288,"num_attention_heads":20,
        "num_key_value_heads":4,"moe_num_experts":64,"moe_k":6,"moe_intermediate_size":1536,"moe_num_shared_experts":2,"moe_layer_start_index":1,
        "moe_layer_end_index":27,"rms_norm_eps":1e-05,"vocab_size":103424,"max_position_embeddings":131072,"rope_theta":500000.0,"use_bias":false,
        "tie_word_embeddings":true})"},
      {"glm4_moe", R"({"model_type":"glm4_moe","hidden_size":4096,"num_hidden_layers":46,"intermediate_size":10944,"moe_intermediate_size":1408,
        "num_attention_heads":96,"num_key_value_heads":8,"head_dim":128,"n_routed_experts":128,"n_shared_experts":1,"num_experts_per_tok":8,
        "first_k_dense_replace":1,"n_group":1,"topk_group":1,"norm_topk_prob":true,"routed_scaling_factor":1.0,"use_qk_norm":false,
        "attention_bias":true,"partial_rotary_factor":0.5,"rope_theta":1000000,"rope_scaling":null,"rms_norm_eps":1e-05,"vocab_size":151552,
        "max_position_embeddings":131072,"tie_word_embeddings":false})"},
      {"seed_oss", R"({"model_type":"seed_oss","hidden_size":5120,"num_hidden_layers":64,"intermediate_size":27648,"num_attention_heads":80,
        "num_key_value_heads":8,"head_dim":128,"rms_norm_eps":1e-06,"vocab_size":155136,"max_position_embeddings":524288,"rope_theta":10000000.0,
        "attention_bias":true,"attention_out_bias":false,"mlp_bias":false,"tie_word_embeddings":false})"},
      {"cohere", R"({"model_type":"cohere","hidden_size":12288,"num_hidden_layers":64,"intermediate_size":33792,"num_attention_heads":96,
        "num_key_value_heads":8,"vocab_size":256000,"rope_theta":75000000.0,"layer_norm_eps":1e-05,"logit_scale":0.8333333333333334,
        "use_qk_norm":true,"attention_bias":false})"},
      {"cohere2", R"({"model_type":"cohere2","hidden_size":4096,"num_hidden_layers":32,"intermediate_size":14336,"num_attention_heads":32,
        "num_key_value_heads":8,"head_dim":128,"vocab_size":256000,"rope_theta":50000,"layer_norm_eps":1e-05,"logit_scale":0.25,
        "sliding_window":4096,"sliding_window_pattern":4,"attention_bias":false})"},
      {"olmo2", R"({"model_type":"olmo2","hidden_size":4096,"num_hidden_layers":32,"intermediate_size":11008,"num_attention_heads":32,
        "num_key_value_heads":32,"rms_norm_eps":1e-06,"vocab_size":100352,"max_position_embeddings":4096,"rope_theta":500000,
        "tie_word_embeddings":false})"},
      {"olmo3", R"({"model_type":"olmo3","hidden_size":4096,"num_hidden_layers":32,"intermediate_size":11008,"num_attention_heads":32,
        "num_key_value_heads":32,"rms_norm_eps":1e-06,"vocab_size":100278,"max_position_embeddings":65536,"sliding_window":4096,"rope_theta":500000,
        "rope_scaling":{"attention_factor":1.2079441541679836,"beta_fast":32.0,"beta_slow":1.0,"factor":8.0,"original_max_position_embeddings":8192,
        "rope_type":"yarn"},"tie_word_embeddings":false})"},
      {"phi", R"({"model_type":"phi","hidden_size":2560,"num_hidden_layers":32,"intermediate_size":10240,"num_attention_heads":32,
        "num_key_value_heads":32,"vocab_size":51200,"layer_norm_eps":1e-05,"rope_theta":10000.0,"partial_rotary_factor":0.4})"},
      {"stablelm", R"({"model_type":"stablelm","hidden_size":5120,"num_hidden_layers":40,"intermediate_size":13824,"num_attention_heads":32,
        "num_key_value_heads":8,"vocab_size":100352,"layer_norm_eps":1e-05,"rope_theta":10000,"partial_rotary_factor":0.25,"qk_layernorm":true,
        "use_parallel_residual":true,"use_qkv_bias":false})"},
      {"starcoder2", R"({"model_type":"starcoder2","hidden_size":3072,"num_hidden_layers":30,"intermediate_size":12288,"num_attention_heads":24,
        "num_key_value_heads":2,"vocab_size":49152,"norm_epsilon":1e-05,"rope_theta":999999.4420358813})"},
      {"granite", R"({"model_type":"granite","hidden_size":4096,"num_hidden_layers":40,"intermediate_size":12800,"num_attention_heads":32,
        "num_key_value_heads":8,"rms_norm_eps":1e-05,"vocab_size":49159,"max_position_embeddings":131072,"rope_theta":10000000.0,
        "attention_bias":false,"mlp_bias":false,"attention_multiplier":0.0078125,"embedding_multiplier":12.0,"residual_multiplier":0.22,
        "logits_scaling":16.0,"tie_word_embeddings":true})"},
      {"gpt_neox", R"({"model_type":"gpt_neox","hidden_size":4096,"num_hidden_layers":32,"intermediate_size":16384,"num_attention_heads":32,
        "vocab_size":50432,"max_position_embeddings":2048,"layer_norm_eps":1e-05,"rotary_emb_base":10000,"rotary_pct":0.25,
        "use_parallel_residual":true})"},
      {"gpt2", R"({"model_type":"gpt2","n_embd":768,"n_layer":12,"n_head":12,"n_positions":1024,"n_ctx":1024,"vocab_size":50257,
        "layer_norm_epsilon":1e-05})"},
      {"gpt_bigcode", R"({"model_type":"gpt_bigcode","n_embd":6144,"n_layer":40,"n_head":48,"n_inner":24576,"n_positions":8192,"vocab_size":49152,
        "layer_norm_epsilon":1e-05,"multi_query":true})"},
      {"nemotron", R"({"model_type":"nemotron","hidden_size":3072,"num_hidden_layers":32,"intermediate_size":9216,"num_attention_heads":24,
        "num_key_value_heads":8,"head_dim":128,"norm_eps":1e-05,"vocab_size":256000,"hidden_act":"relu2","partial_rotary_factor":0.5,
        "rope_theta":10000.0,"tie_word_embeddings":false})"},
      {"ministral3", R"({"model_type":"ministral3","hidden_size":3072,"num_hidden_layers":26,"intermediate_size":9216,"num_attention_heads":32,
        "num_key_value_heads":8,"head_dim":128,"rms_norm_eps":1e-05,"vocab_size":131072,"max_position_embeddings":262144,"sliding_window":null,
        "rope_parameters":{"beta_fast":32.0,"beta_slow":1.0,"factor":16.0,"llama_4_scaling_beta":0.1,"mscale":1.0,"mscale_all_dim":1.0,
        "original_max_position_embeddings":16384,"rope_theta":1000000.0,"rope_type":"yarn","type":"yarn"},"tie_word_embeddings":true})"},
      {"apertus", R"({"model_type":"apertus","hidden_size":4096,"num_hidden_layers":32,"intermediate_size":21504,"num_attention_heads":32,
        "num_key_value_heads":8,"rms_norm_eps":1e-05,"vocab_size":131072,"max_position_embeddings":65536,"rope_theta":12000000,"attention_bias":false,
        "mlp_bias":false,"post_norm":false,"qk_norm":true,"rope_scaling":{"factor":8.0,"high_freq_factor":4.0,"low_freq_factor":1.0,
        "original_max_position_embeddings":8192,"rope_type":"llama3"},"tie_word_embeddings":false})"},
      {"lfm2", R"({"model_type":"lfm2","hidden_size":2048,"num_hidden_layers":16,"num_attention_heads":32,"num_key_value_heads":8,"vocab_size":65536,
        "max_position_embeddings":128000,"norm_eps":1e-05,"conv_bias":false,"conv_L_cache":3,"block_dim":2048,"block_ff_dim":12288,
        "block_multiple_of":256,"block_ffn_dim_multiplier":1.0,"block_auto_adjust_ff_dim":true,"rope_theta":1000000.0,
        "full_attn_idxs":[2,5,8,10,12,14]})"},
      {"gemma", R"({"model_type":"gemma","hidden_size":2048,"num_hidden_layers":18,"intermediate_size":16384,"num_attention_heads":8,
        "num_key_value_heads":1,"head_dim":256,"rms_norm_eps":1e-06,"vocab_size":256000,"rope_theta":10000.0,"hidden_act":"gelu"})"},
      {"glm", R"({"model_type":"glm","hidden_size":4096,"num_hidden_layers":40,"intermediate_size":13696,"num_attention_heads":32,
        "num_key_value_heads":2,"head_dim":128,"rms_norm_eps":1.5625e-07,"vocab_size":151552,"max_position_embeddings":131072,"rope_theta":10000.0,
        "partial_rotary_factor":0.5,"attention_bias":true,"tie_word_embeddings":false})"},
      {"internlm2", R"({"model_type":"internlm2","hidden_size":4096,"num_hidden_layers":32,"intermediate_size":14336,"num_attention_heads":32,
        "num_key_value_heads":8,"rms_norm_eps":1e-05,"vocab_size":92544,"max_position_embeddings":32768,"rope_theta":1000000,"bias":false,
        "rope_scaling":{"type":"dynamic","factor":2.0},"tie_word_embeddings":false})"},
      {"exaone", R"({"model_type":"exaone","hidden_size":2560,"num_layers":30,"intermediate_size":7168,"num_attention_heads":32,
        "num_key_value_heads":8,"head_dim":80,"layer_norm_epsilon":1e-05,"vocab_size":102400,"max_position_embeddings":32768,"rope_theta":1000000.0,
        "rope_scaling":{"factor":8.0,"high_freq_factor":4.0,"low_freq_factor":1.0,"original_max_position_embeddings":8192,"rope_type":"llama3"},
        "tie_word_embeddings":true})"},
      {"exaone4", R"({"model_type":"exaone4","hidden_size":2048,"num_hidden_layers":30,"intermediate_size":4096,"num_attention_heads":32,
        "num_key_value_heads":8,"head_dim":64,"rms_norm_eps":1e-05,"vocab_size":102400,"max_position_embeddings":65536,"rope_theta":1000000,
        "rope_scaling":{"factor":16.0,"high_freq_factor":4.0,"low_freq_factor":1.0,"original_max_position_embeddings":8192,"rope_type":"llama3"},
        "sliding_window":null,"sliding_window_pattern":null,"tie_word_embeddings":true})"},
      {"minicpm", R"({"model_type":"minicpm","hidden_size":2304,"num_hidden_layers":40,"intermediate_size":5760,"num_attention_heads":36,
        "num_key_value_heads":36,"rms_norm_eps":1e-05,"vocab_size":122753,"max_position_embeddings":2048,"rope_theta":10000.0,"rope_scaling":null,
        "scale_emb":12,"dim_model_base":256,"scale_depth":1.4})"},
      {"qwen", R"({"model_type":"qwen","hidden_size":2048,"num_hidden_layers":24,"intermediate_size":11008,"num_attention_heads":16,"kv_channels":128,
        "layer_norm_epsilon":1e-06,"vocab_size":151936,"no_bias":true,"rotary_emb_base":10000,"use_dynamic_ntk":true})"},
      {"lille-130m", R"({"model_type":"lille-130m","block_size":512,"layer_norm_eps":1e-05,"n_embd":640,"n_head":10,"n_kv_heads":2,"n_layer":24,
        "rope_theta":10000.0,"vocab_size":32768})"},
      {"openelm", R"({"model_type":"openelm","model_dim":1280,"num_transformer_layers":16,"head_dim":64,"vocab_size":32000,"ffn_dim_divisor":256,
        "num_query_heads":[12,12,12,12,12,16,16,16,16,16,16,16,20,20,20,20],"num_kv_heads":[3,3,3,3,3,4,4,4,4,4,4,4,5,5,5,5],
        "ffn_multipliers":[0.5,0.73,0.97,1.2,1.43,1.67,1.9,2.13,2.37,2.6,2.83,3.07,3.3,3.53,3.77,4.0]})"},
      {"nanochat", R"({"model_type":"nanochat"})"},
      {"gptj", R"({"model_type":"gptj","n_embd":4096,"n_layer":28,"n_head":16,"n_positions":2048,"rotary_dim":64,"vocab_size":50400,"n_inner":null,
        "layer_norm_epsilon":1e-05,"tie_word_embeddings":false})"},
      {"hunyuan_v1_dense", R"({"model_type":"hunyuan_v1_dense","hidden_size":4096,"num_hidden_layers":32,"intermediate_size":14336,
        "num_attention_heads":32,"num_key_value_heads":8,"head_dim":128,"rms_norm_eps":1e-05,"vocab_size":128167,"max_position_embeddings":262144,
        "rope_theta":10000.0,"rope_scaling":{"type":"dynamic","alpha":1000.0,"factor":1.0},"use_qk_norm":true,"tie_word_embeddings":true})"},
      {"plamo", R"({"model_type":"plamo","hidden_size":5120,"num_hidden_layers":40,"intermediate_size":16640,"num_attention_heads":40,
        "n_shared_head":8,"rms_norm_eps":1e-06,"vocab_size":50432,"max_position_embeddings":4096,"tie_word_embeddings":false})"},
      {"iquestloopcoder", R"({"model_type":"iquestloopcoder","hidden_size":5120,"num_hidden_layers":80,"intermediate_size":27648,
        "num_attention_heads":40,"num_key_value_heads":8,"head_dim":128,"rms_norm_eps":1e-05,"vocab_size":76800,"max_position_embeddings":131072,
        "rope_theta":500000.0,"loop_num":2,"loop_window_size":64,"tie_word_embeddings":false})"},
      {"qwen3_next", R"({"model_type":"qwen3_next","hidden_size":2048,"num_hidden_layers":48,"intermediate_size":5120,"num_attention_heads":16,
        "num_key_value_heads":2,"head_dim":256,"linear_num_key_heads":16,"linear_num_value_heads":32,"linear_key_head_dim":128,
        "linear_value_head_dim":128,"linear_conv_kernel_dim":4,"full_attention_interval":4,"num_experts":512,"num_experts_per_tok":10,
        "decoder_sparse_step":1,"mlp_only_layers":[],"moe_intermediate_size":512,"shared_expert_intermediate_size":512,"norm_topk_prob":true,
        "rms_norm_eps":1e-06,"vocab_size":151936,"rope_theta":10000000,"rope_scaling":null,"partial_rotary_factor":0.25,
        "max_position_embeddings":262144,"tie_word_embeddings":false})"},
      {"qwen3_5", R"({"model_type":"qwen3_5","tie_word_embeddings":true,"text_config":{"model_type":"qwen3_5_text","hidden_size":1024,
        "num_hidden_layers":24,"intermediate_size":3584,"num_attention_heads":8,"num_key_value_heads":2,"head_dim":256,"linear_num_key_heads":16,
        "linear_num_value_heads":16,"linear_key_head_dim":128,"linear_value_head_dim":128,"linear_conv_kernel_dim":4,"full_attention_interval":4,
        "rms_norm_eps":1e-06,"vocab_size":248320,"max_position_embeddings":262144,"rope_parameters":{"mrope_interleaved":true,
        "mrope_section":[11,11,10],"rope_type":"default","rope_theta":10000000,"partial_rotary_factor":0.25}}})"},
      {"deepseek_v2", R"({"model_type":"deepseek_v2","hidden_size":2048,"num_hidden_layers":27,"intermediate_size":10944,"moe_intermediate_size":1408,
        "num_attention_heads":16,"num_key_value_heads":16,"kv_lora_rank":512,"q_lora_rank":null,"qk_nope_head_dim":128,"qk_rope_head_dim":64,
        "v_head_dim":128,"n_routed_experts":64,"n_shared_experts":2,"num_experts_per_tok":6,"first_k_dense_replace":1,"moe_layer_freq":1,
        "n_group":1,"topk_group":1,"topk_method":"greedy","routed_scaling_factor":1.0,"norm_topk_prob":false,"vocab_size":102400,
        "rms_norm_eps":1e-06,"rope_theta":10000,"max_position_embeddings":163840,"rope_scaling":{"beta_fast":32,"beta_slow":1,"factor":40,
        "mscale":0.707,"mscale_all_dim":0.707,"original_max_position_embeddings":4096,"type":"yarn"}})"},
      {"deepseek_v3", R"({"model_type":"deepseek_v3","hidden_size":7168,"num_hidden_layers":61,"intermediate_size":18432,"moe_intermediate_size":2048,
        "num_attention_heads":128,"num_key_value_heads":128,"kv_lora_rank":512,"q_lora_rank":1536,"qk_nope_head_dim":128,"qk_rope_head_dim":64,
        "v_head_dim":128,"n_routed_experts":256,"n_shared_experts":1,"num_experts_per_tok":8,"first_k_dense_replace":3,"moe_layer_freq":1,
        "n_group":8,"topk_group":4,"topk_method":"noaux_tc","scoring_func":"sigmoid","routed_scaling_factor":2.5,"norm_topk_prob":true,
        "vocab_size":129280,"rms_norm_eps":1e-06,"rope_theta":10000,"max_position_embeddings":163840,"num_nextn_predict_layers":1,
        "rope_scaling":{"beta_fast":32,"beta_slow":1,"factor":40,"mscale":1.0,"mscale_all_dim":1.0,"original_max_position_embeddings":4096,
        "type":"yarn"},"tie_word_embeddings":false})"},
      {"minicpm3", R"({"model_type":"minicpm3","hidden_size":2560,"num_hidden_layers":62,"intermediate_size":6400,"num_attention_heads":40,
        "num_key_value_heads":40,"kv_lora_rank":256,"q_lora_rank":768,"qk_nope_head_dim":64,"qk_rope_head_dim":32,"vocab_size":73448,
        "rms_norm_eps":1e-05,"scale_emb":12,"dim_model_base":256,"scale_depth":1.4,"max_position_embeddings":32768,"rope_scaling":{"type":"longrope",
        "long_factor":1.0,"short_factor":1.0,"original_max_position_embeddings":32768},"tie_word_embeddings":true})"},
      {"youtu_llm", R"({"model_type":"youtu_llm"})"},
      {"bailing_moe", R"({"model_type":"bailing_moe","hidden_size":2048,"num_hidden_layers":28,"intermediate_size":5632,"num_attention_heads":16,
        "num_key_value_heads":4,"rms_norm_eps":1e-06,"vocab_size":126464,"max_position_embeddings":16384,"rope_theta":600000,"norm_topk_prob":true,
        "moe_intermediate_size":1408,"num_experts":64,"num_experts_per_tok":6,"num_shared_experts":2,"first_k_dense_replace":0,
        "tie_word_embeddings":false})"},
      {"llama4",
       R"({"model_type":"llama4","text_config":{"model_type":"llama4_text","attention_bias":false,"attention_chunk_size":8192,"head_dim":128,
        "hidden_size":5120,"interleave_moe_layer_step":1,"intermediate_size":8192,"intermediate_size_mlp":16384,"max_position_embeddings":10485760,
        "num_attention_heads":40,"num_experts_per_tok":1,"num_hidden_layers":48,"num_key_value_heads":8,"num_local_experts":16,"rms_norm_eps":1e-05,
        "rope_scaling":{"factor":16.0,"high_freq_factor":1.0,"low_freq_factor":1.0,"original_max_position_embeddings":8192,"rope_type":"llama3"},
        "rope_theta":500000.0,"use_qk_norm":true,"vocab_size":202048}})"},
      {"llama4_text", R"({"model_type":"llama4_text","hidden_size":1536,"intermediate_size":6144,"intermediate_size_mlp":6144,"num_hidden_layers":22,
        "num_attention_heads":24,"num_key_value_heads":6,"head_dim":64,"rms_norm_eps":1e-05,"rope_theta":500000.0,"vocab_size":128256,
        "tie_word_embeddings":true,"use_qk_norm":true,"no_rope_layers":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]})"},
      {"mimo_v2_flash",
       R"({"model_type":"mimo_v2_flash","hidden_size":4096,"num_hidden_layers":48,"intermediate_size":16384,"moe_intermediate_size":2048,
        "num_attention_heads":64,"num_key_value_heads":4,"head_dim":192,"v_head_dim":128,"swa_num_attention_heads":64,"swa_num_key_value_heads":8,
        "swa_head_dim":192,"swa_v_head_dim":128,"layernorm_epsilon":1e-05,"vocab_size":152576,"max_position_embeddings":262144,"rope_theta":5000000,
        "swa_rope_theta":10000,"partial_rotary_factor":0.334,"attention_value_scale":0.707,"sliding_window_size":128,"n_routed_experts":256,
        "num_experts_per_tok":8,"n_shared_experts":null,"routed_scaling_factor":null,"topk_method":"noaux_tc","scoring_func":"sigmoid",
        "norm_topk_prob":true,"n_group":1,"topk_group":1,"add_swa_attention_sink_bias":true,"add_full_attention_sink_bias":false,
        "hybrid_layer_pattern":[0,1,1,1,1,0,1,1,1,1,1,0,1,1,1,1,1,0,1,1,1,1,1,0,1,1,1,1,1,0,1,1,1,1,1,0,1,1,1,1,1,0,1,1,1,1,1,0],
        "moe_layer_freq":[0,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]})"},
      {"glm4", R"({"model_type":"glm4","hidden_size":4096,"num_hidden_layers":40,"intermediate_size":13696,"num_attention_heads":32,
        "num_key_value_heads":2,"head_dim":128,"rms_norm_eps":1e-05,"vocab_size":151552,"max_position_embeddings":32768,"rope_theta":10000.0,
        "partial_rotary_factor":0.5,"attention_bias":true,"tie_word_embeddings":false})"},
  };
  return configs;
}

/// Llama 3.3 Nemotron Super 49B: Llama 3.3 70B with narrower MLPs in some blocks, and no attention in most of these.
json nemotron_super() {
  struct Run {
    int blocks;
    bool attends;
    double ffn_mult;
  };
  json blocks = json::array();
  for (const auto& run : {Run{1, true, 2.625},   Run{5, true, 5.25},    Run{2, false, 2.625},  Run{3, true, 5.25},    Run{1, false, 3.28125},
                          Run{30, true, 5.25},   Run{1, false, 1.3125}, Run{2, false, 2.625},  Run{1, false, 1.3125}, Run{1, false, 5.25},
                          Run{1, false, 1.3125}, Run{1, false, 2.625},  Run{3, false, 1.3125}, Run{1, true, 5.25},    Run{1, false, 1.3125},
                          Run{2, false, 1.0},    Run{1, false, 1.3125}, Run{3, false, 1.0},    Run{2, false, 1.3125}, Run{2, false, 0.5},
                          Run{2, false, 1.0},    Run{2, false, 0.5},    Run{1, false, 1.0},    Run{2, false, 0.5},    Run{9, true, 5.25}})
    for (int i = 0; i < run.blocks; ++i)
      blocks.push_back({{"attention", run.attends ? json{{"n_heads_in_group", 8}} : json{{"no_op", true}}}, {"ffn", {{"ffn_mult", run.ffn_mult}}}});
  return {{"model_type", "nemotron-nas"}, {"hidden_size", 8192},  {"num_hidden_layers", 80}, {"num_attention_heads", 64},
          {"rms_norm_eps", 1e-5},         {"vocab_size", 128256}, {"rope_theta", 500000.0},  {"block_configs", blocks}};
}

ModelSpec published_spec(const std::string& type) {
  return spec_from_config(type == "nemotron-nas" ? nemotron_super() : json::parse(published().at(type)));
}

TEST(Spec, PublishedModelsHaveTheirPublishedSizes) {
  // Parameters of the linears alone (norms and biases are the small rest), from the models' own cards.
  std::map<std::string, double> billions = {
      {"llama", 1.236},        {"mistral", 7.248},   {"qwen2", 0.494},       {"qwen3", 0.596},       {"smollm3", 3.075},   {"phi3", 3.821},
      {"gemma2", 2.614},       {"qwen3_moe", 30.53}, {"gemma4_text", 25.23}, {"seed_oss", 36.15},    {"glm4", 9.40},       {"ministral3", 3.429},
      {"apertus", 8.053},      {"lfm2", 1.170},      {"cohere", 103.81},     {"cohere2", 8.028},     {"olmo2", 7.298},     {"olmo3", 7.297},
      {"phi", 2.779},          {"stablelm", 12.14},  {"starcoder2", 3.029},  {"granite", 8.17},      {"gpt_neox", 6.856},  {"gpt2", 0.12432},
      {"gpt_bigcode", 15.515}, {"nemotron", 4.19},   {"gemma", 2.506},       {"glm", 9.40},          {"internlm2", 7.738}, {"exaone", 2.405},
      {"exaone4", 1.279},      {"minicpm", 3.008},   {"qwen", 1.837},        {"lille-130m", 0.1272}, {"openelm", 0.2715},  {"nanochat", 0.561}};
  billions.insert({{"gptj", 6.05}, {"plamo", 13.10}, {"nemotron-nas", 49.87}});
  billions.insert({{"hunyuan_v1_dense", 7.504}, {"iquestloopcoder", 39.79}});  // of cards that say 7B and 40B: what follows from their configs
  billions.insert(
      {{"qwen3_next", 79.67}, {"qwen3_5", 0.752}, {"deepseek_v2", 15.7}, {"deepseek_v3", 671.0}, {"minicpm3", 4.07}, {"youtu_llm", 1.96}});
  billions.insert({{"gpt_oss", 20.91}, {"mixtral", 46.70}, {"olmoe", 6.919}, {"qwen2_moe", 14.316}, {"deepseek", 16.376}, {"phimoe", 41.87}});
  billions.insert({{"minimax_m2", 228.7}, {"ernie4_5_moe", 21.83}, {"kimi_linear", 49.12}, {"dbrx", 131.6}});
  billions.insert({{"bailing_moe", 16.80}, {"llama4_text", 0.949}, {"mimo_v2_flash", 308.8}, {"llama4", 107.77}});  // Llama 4: 108.64 with its tower
  for (const auto& [type, size] : billions) {
    const auto spec = published_spec(type);  // linears() points into it
    double total = 0;
    for (const auto* linear : spec.linears()) total += static_cast<double>(linear->parameters());
    EXPECT_NEAR(total / 1e9, size, 0.001 * size) << type;  // cards give three or four digits
  }
}

/// By value: the spec may be a temporary.
Attention attention_of(const ModelSpec& spec, int block) { return *find_op<Attention>(spec.blocks[block]); }

TEST(Spec, LlamaReadsHeadsRopeAndTies) {
  const auto spec = published_spec("llama");
  ASSERT_EQ(spec.blocks.size(), 16u);
  const auto attention = attention_of(spec, 3);
  EXPECT_EQ(attention.kv_heads, 8);
  EXPECT_FLOAT_EQ(attention.scale, 0.125f);
  EXPECT_EQ(attention.inputs[1].path, "model.layers.3.self_attn.k_proj");
  EXPECT_EQ(attention.inputs[1].out, 512);
  EXPECT_TRUE(spec.tied());
  ASSERT_TRUE(attention.rope);
  EXPECT_FLOAT_EQ(attention.rope->inv_freq[0], 1);
  // Its longest wave, far beyond the 8192 trained positions, is stretched by the factor 32.
  EXPECT_FLOAT_EQ(attention.rope->inv_freq[31], std::pow(500000.0, -62.0 / 64) / 32);
}

TEST(Spec, FamiliesDifferWhereTheyShould) {
  const auto mistral = published_spec("mistral");
  EXPECT_EQ(mistral.family, "llama");
  EXPECT_FALSE(mistral.tied());
  EXPECT_EQ(attention_of(mistral, 0).window, 0);

  const auto qwen2 = published_spec("qwen2");
  EXPECT_TRUE(attention_of(qwen2, 0).inputs[2].bias);
  EXPECT_FALSE(attention_of(qwen2, 0).output.bias);
  EXPECT_TRUE(attention_of(published_spec("qwen3"), 0).q_norm);

  const auto smollm3 = published_spec("smollm3");
  EXPECT_TRUE(attention_of(smollm3, 2).rope);
  EXPECT_FALSE(attention_of(smollm3, 3).rope);

  const auto phi3 = published_spec("phi3");
  EXPECT_EQ(attention_of(phi3, 0).inputs.size(), 1u);
  EXPECT_EQ(attention_of(phi3, 0).inputs[0].out, 3 * 3072);
  EXPECT_FLOAT_EQ(attention_of(phi3, 0).rope->magnitude, std::sqrt(1 + std::log(32.0) / std::log(4096.0)));
  EXPECT_FLOAT_EQ(attention_of(phi3, 0).rope->inv_freq[0], 0.5);

  const auto gemma2 = published_spec("gemma2");
  EXPECT_EQ(gemma2.blocks[0].steps[0].branches[0].before->offset, 1);
  EXPECT_TRUE(gemma2.blocks[0].steps[1].branches[0].after);
  EXPECT_EQ(attention_of(gemma2, 0).softcap, 50);
  EXPECT_EQ(gemma2.logit_softcap, 30);
  EXPECT_FLOAT_EQ(gemma2.embedding_multiplier, 48);

  const auto gemma3 = published_spec("gemma3_text");
  EXPECT_EQ(gemma3.hidden, 1152);
  EXPECT_EQ(gemma3.embedding_multiplier, 34);  // sqrt(1152) = 33.94 in bf16
  EXPECT_EQ(attention_of(gemma3, 4).window, 512);
  EXPECT_EQ(attention_of(gemma3, 5).window, 0);
  EXPECT_GT(attention_of(gemma3, 4).rope->inv_freq[64], attention_of(gemma3, 5).rope->inv_freq[64]);

  const auto afm = published_spec("afm7");
  EXPECT_FALSE(attention_of(afm, 34).shared);
  EXPECT_EQ(attention_of(afm, 35).shared->block, 34);
  EXPECT_EQ(attention_of(afm, 35).inputs[0].path, "model.kv_reuse_layers.0.self_attn.q_proj");
  EXPECT_FALSE(attention_of(afm, 0).inputs[0].dense_why.empty());
  for (const auto* linear : afm.blocks[40].linears()) EXPECT_EQ(linear->block, 40) << linear->path;

  const auto gemma4 = published_spec("gemma4_text");
  const auto& beside = *find_op<Experts>(gemma4.blocks[29]);
  EXPECT_EQ(beside.router.top_k, 8);
  EXPECT_FLOAT_EQ(beside.router_norm->factor, 1 / std::sqrt(2816.0f));
  EXPECT_EQ(beside.router_norm->weight_name(), "model.layers.29.router.scale");
  EXPECT_EQ(gemma4.blocks[29].steps[1].after->path, "model.layers.29.post_feedforward_layernorm");
  for (const auto& edge : gemma4.edges_of(29))
    for (const auto& reader : edge.consumers) EXPECT_NE(reader, beside.router.linear.path);  // it does not read the experts' norm

  const auto moe = published_spec("qwen3_moe");
  const auto& experts = *find_op<Experts>(moe.blocks[47]);
  EXPECT_EQ(experts.gate->experts, 128);
  EXPECT_EQ(experts.router.linear.fixed_format->bits, 8);
}

const GatedMlp* beside_experts(const ModelSpec& spec, int block) { return find_op<GatedMlp>(spec.blocks[block]); }

TEST(Spec, MixturesDifferWhereTheyShould) {
  // Three layers of four see chunks; the temperature of the fourth grows at positions 8191, 16383, … of a text.
  const auto llama4 = published_spec("llama4");
  EXPECT_EQ(attention_of(llama4, 0).chunk, 8192);
  EXPECT_TRUE(attention_of(llama4, 2).rope->interleaved);
  EXPECT_FALSE(attention_of(llama4, 2).temperature);
  EXPECT_FALSE(attention_of(llama4, 3).rope);
  EXPECT_FALSE(attention_of(llama4, 3).q_norm);
  EXPECT_EQ(attention_of(llama4, 3).temperature->first, 1);
  EXPECT_EQ(attention_of(llama4, 3).chunk, 0);
  EXPECT_TRUE(find_op<Experts>(llama4.blocks[0])->weighs_inputs);
  EXPECT_EQ(beside_experts(llama4, 0)->down.path, "language_model.model.layers.0.feed_forward.shared_expert.down_proj");

  const auto text = published_spec("llama4_text");
  EXPECT_FALSE(text.embedding.dense_why.empty());
  EXPECT_EQ(attention_of(text, 0).q_norm->parameters(), 0);

  // 0.334 · 192 features turn, rounded down; values are narrower than keys.
  const auto mimo = published_spec("mimo_v2_flash");
  EXPECT_EQ(attention_of(mimo, 1).rope->inv_freq.size(), 32u);
  EXPECT_EQ(attention_of(mimo, 1).inputs[2].out, 8 * 128);
  EXPECT_EQ(attention_of(mimo, 1).edges()[0].channels, 8 * 128);
  EXPECT_EQ(attention_of(mimo, 1).sinks->shape, mx::Shape{64});
  EXPECT_FALSE(attention_of(mimo, 0).sinks);
  EXPECT_FALSE(find_op<Experts>(mimo.blocks[1])->router.linear.dense_why.empty());
  EXPECT_TRUE(find_op<Experts>(mimo.blocks[1])->router.correction->keeps_dtype);
  EXPECT_FALSE(find_op<Experts>(mimo.blocks[0]));

  // Where a product lies between limits, no scale passes to what reads it.
  const auto step = spec_from_config(oracle::tiny_config("step3p5"));
  EXPECT_TRUE(find_op<Experts>(step.blocks[1])->edges().empty());
  EXPECT_EQ(beside_experts(step, 1)->edges().size(), 1u);
  EXPECT_EQ(attention_of(step, 1).heads, 2);
  EXPECT_EQ(attention_of(step, 1).gate->linear->out, 2);

  const auto klear = spec_from_config(oracle::tiny_config("Klear"));
  EXPECT_EQ(find_op<Experts>(klear.blocks[0])->result_gate->path, beside_experts(klear, 0)->result_gate->path);

  // The second layer's keys are the first one's products, with its own positions and norms: nothing may be scaled.
  const auto hunyuan = spec_from_config(oracle::tiny_config("hunyuan"));
  EXPECT_EQ(attention_of(hunyuan, 1).inputs.size(), 1u);
  EXPECT_TRUE(attention_of(hunyuan, 1).k_norm);
  EXPECT_TRUE(attention_of(hunyuan, 0).edges().empty());
  EXPECT_EQ(find_op<Experts>(hunyuan.blocks[0])->router.top_k, 1);
  EXPECT_EQ(find_op<Experts>(hunyuan.blocks[1])->router.top_k, 2);

  auto normed = oracle::tiny_config("bailing_moe");
  normed.update({{"norm_head", true}, {"tie_word_embeddings", false}});
  EXPECT_EQ(spec_from_config(normed).settled.at("norm_head"), false);

  // Slopes of ALiBi, smaller from layer to layer; six heads take those of four and every other one of eight.
  const auto linear = spec_from_config(oracle::tiny_config("bailing_moe_linear"));
  const auto& lightning = *find_op<Lightning>(linear.blocks[2]);
  EXPECT_FLOAT_EQ(lightning.log_decays[1], -0.0625f * (1 - 1.0f / 3 + 1e-5f));
  EXPECT_FALSE(find_op<Lightning>(linear.blocks[1]));
  EXPECT_EQ(lightning_decays(6, 1), (std::vector<float>{-0.25f, -0.0625f, -0.015625f, -0.00390625f, -0.5f, -0.125f}));

  auto renamed = oracle::tiny_config("exaone_moe");
  renamed.erase("is_moe_layer");
  renamed["mlp_layer_types"] = {"sparse", "dense"};
  EXPECT_EQ(spec_from_config(renamed).settled.at("is_moe_layer"), json({true, false}));
}

TEST(Spec, FamiliesNearLlamaDifferWhereTheyShould) {
  const auto gemma = published_spec("gemma");
  EXPECT_TRUE(gemma.tied());
  EXPECT_FALSE(gemma.blocks[0].steps[0].branches[0].after);

  const auto internlm2 = attention_of(published_spec("internlm2"), 0);
  EXPECT_EQ(internlm2.inputs[0].parts[2].row(128),
            (6 + 5) * 128);  // the second value head: behind the second group's four query heads and its key head

  // Layers with a window have positions, the others see everything and have none.
  const auto exaone4 = spec_from_config(oracle::tiny_config("exaone4"));
  EXPECT_EQ(attention_of(exaone4, 0).window, 5);
  EXPECT_TRUE(attention_of(exaone4, 0).rope);
  EXPECT_EQ(attention_of(exaone4, 1).window, 0);
  EXPECT_FALSE(attention_of(exaone4, 1).rope);
  EXPECT_FALSE(exaone4.blocks[0].steps[0].branches[0].before);
  EXPECT_TRUE(attention_of(published_spec("exaone4"), 7).rope);

  const auto minicpm = published_spec("minicpm");
  EXPECT_EQ(minicpm.head_input_divisor, 9);
  EXPECT_FLOAT_EQ(minicpm.blocks[0].steps[1].branches[0].scale, 1.4 / std::sqrt(40.0));

  const auto hunyuan = attention_of(spec_from_config(oracle::tiny_config("hunyuan_v1_dense")), 0);
  EXPECT_TRUE(hunyuan.norms_behind_rope);
  EXPECT_FLOAT_EQ(hunyuan.rope->inv_freq[1], std::pow(10000 * std::pow(50.0, 16.0 / 14), -2.0 / 16));

  const auto qwen = published_spec("qwen");
  EXPECT_EQ(qwen.blocks[0].linears()[2]->path, "transformer.h.0.mlp.w2");
  EXPECT_EQ(qwen.blocks[0].linears()[2]->role, Role::gate);
  EXPECT_TRUE(attention_of(qwen, 0).inputs[0].bias);
  EXPECT_FALSE(qwen.head->bias);

  const auto nanochat = published_spec("nanochat");
  EXPECT_TRUE(nanochat.embedding_norm);
  EXPECT_EQ(attention_of(nanochat, 0).rope->inv_freq[0], -1);
  EXPECT_EQ(nanochat.logit_softcap, 15);
  for (const auto* norm : nanochat.blocks[0].norms()) EXPECT_EQ(norm->parameters(), 0);

  const auto plamo = spec_from_config(oracle::tiny_config("plamo"));
  EXPECT_EQ(plamo.edges_of(0)[0].consumers.size(), 5u);
}

TEST(Spec, LatentAttentionDiffersWhereItShould) {
  const auto v2 = published_spec("deepseek_v2"), v3 = published_spec("deepseek_v3"), youtu = published_spec("youtu_llm");
  const auto& plain = *find_op<LatentAttention>(v2.blocks[0]);
  EXPECT_FALSE(plain.q_a);
  EXPECT_EQ(plain.stages(), 3);
  // The second head's first value: behind the first head's 128 keys and 128 values and its own keys.
  EXPECT_EQ(plain.kv_b->parts[1].row(128), 256 + 128);
  const double gain = 0.1 * 0.707 * std::log(40.0) + 1;
  EXPECT_FLOAT_EQ(plain.scale, gain * gain / std::sqrt(192.0));
  EXPECT_FLOAT_EQ(plain.rope->magnitude, 1);  // both of its gains are equal
  EXPECT_TRUE(find_op<GatedMlp>(v2.blocks[0]));
  EXPECT_EQ(find_op<Experts>(v2.blocks[1])->router.groups.count, 1);

  const auto& absorbed = *find_op<LatentAttention>(v3.blocks[60]);
  EXPECT_EQ(absorbed.stages(), 5);
  EXPECT_EQ(absorbed.embed_q->stack, LinearSpec::Stack::sliced);
  EXPECT_EQ(absorbed.embed_q->experts, 128);
  EXPECT_FALSE(absorbed.embed_q->routed());
  EXPECT_TRUE(find_op<Experts>(v3.blocks[3])->up.routed());
  EXPECT_EQ(absorbed.unembed_out->out, 128);
  EXPECT_TRUE(absorbed.rope->interleaved);
  const auto& router = find_op<Experts>(v3.blocks[3])->router;
  EXPECT_EQ(router.groups.kept, 4);
  EXPECT_TRUE(router.correction->keeps_dtype);
  EXPECT_FALSE(router.linear.dense_why.empty());
  EXPECT_EQ(v3.left_out.back().pattern, "model.layers.61.*");

  EXPECT_TRUE(youtu.tied());
  EXPECT_FLOAT_EQ(find_op<LatentAttention>(youtu.blocks[0])->scale, 1 / std::sqrt(192.0f));

  EXPECT_FALSE(find_op<LatentAttention>(published_spec("kimi_linear").blocks[26])->rope);

  const auto v32 = spec_from_config(oracle::tiny_config("deepseek_v32"));
  const auto choosing = [](const LinearSpec* linear) { return linear->only_chooses; };
  const auto linears = v32.blocks[0].linears();
  EXPECT_EQ(std::count_if(linears.begin(), linears.end(), choosing), 3);
  EXPECT_EQ(v32.edges_of(0)[0].consumers.size(), 4u);

  const auto longcat = spec_from_config(oracle::tiny_config("longcat_flash"));
  EXPECT_TRUE(longcat.blocks[0].steps[1].branches[1].late);
  for (const auto& edge : longcat.edges_of(0)) EXPECT_NE(edge.producer, "model.layers.0.post_attention_layernorm.0");  // experts give it back
}

TEST(Spec, MixturesOfOwnRoutersDifferWhereTheyShould) {
  const auto experts_in = [](const ModelSpec& spec, int block) { return *find_op<Experts>(spec.blocks[block]); };
  const auto oss = published_spec("gpt_oss");
  EXPECT_EQ(attention_of(oss, 0).window, 128);
  EXPECT_EQ(attention_of(oss, 1).window, 0);
  EXPECT_EQ(attention_of(oss, 1).sinks->shape, (mx::Shape{64}));
  EXPECT_FLOAT_EQ(attention_of(oss, 1).rope->magnitude, 0.1 * std::log(32.0) + 1);
  EXPECT_TRUE(experts_in(oss, 0).router.linear.bias);
  EXPECT_TRUE(experts_in(oss, 0).down.bias);
  for (const auto& edge : oss.edges_of(0)) EXPECT_NE(edge.producer, "model.layers.0.mlp.experts.up_proj");  // behind it are limits

  const auto glm = published_spec("glm4_moe");
  EXPECT_FALSE(find_op<Experts>(glm.blocks[0]));
  const auto routed = experts_in(glm, 1);
  EXPECT_FALSE(routed.router.linear.dense_why.empty());
  EXPECT_TRUE(routed.router.correction->keeps_dtype);
  EXPECT_EQ(attention_of(glm, 1).rope->inv_freq.size(), 32u);
  EXPECT_EQ(glm.blocks[1].linears().back()->path, "model.layers.1.mlp.shared_experts.down_proj");
  EXPECT_FALSE(experts_in(spec_from_config(oracle::tiny_config("dots1")), 1).router.correction->keeps_dtype);

  const auto mixtral = published_spec("mixtral");
  EXPECT_EQ(experts_in(mixtral, 31).gate->path, "model.layers.31.block_sparse_moe.switch_mlp.gate_proj");
  EXPECT_FALSE(experts_in(mixtral, 31).router.linear.fixed_format);
  EXPECT_EQ(attention_of(published_spec("olmoe"), 0).q_norm->size, 2048);
  EXPECT_TRUE(published_spec("olmoe").warnings.empty());
  EXPECT_FLOAT_EQ(attention_of(published_spec("phimoe"), 0).rope->magnitude, 1.243163121016122);
  EXPECT_TRUE(published_spec("phimoe").head->bias);
  const auto m2 = published_spec("minimax_m2");
  EXPECT_EQ(attention_of(m2, 0).q_norm->size, 48 * 128);
  EXPECT_TRUE(experts_in(m2, 0).router.f32_product);
  const auto m3 = spec_from_config(oracle::tiny_config("minimax_m3_vl"));
  EXPECT_FALSE(attention_of(m3, 0).indexer);
  EXPECT_TRUE(find_op<GatedMlp>(m3.blocks[0])->clamp);
  const auto indexer = *attention_of(m3, 1).indexer;
  EXPECT_EQ(indexer.q.path, "language_model.model.layers.1.self_attn.index_q_proj");
  EXPECT_TRUE(indexer.q.only_chooses && indexer.k.only_chooses);
  EXPECT_EQ(indexer.k.out, 16);
  EXPECT_FLOAT_EQ(indexer.k_norm.offset, 1);
  EXPECT_EQ(m3.edges_of(1)[0].consumers.size(), 5u);  // the input's norm before q, k, v and the indexer's two
  EXPECT_FALSE(experts_in(m3, 1).router.f32_product);
  const auto ernie = published_spec("ernie4_5_moe");
  EXPECT_FALSE(find_op<Experts>(ernie.blocks[0]));
  EXPECT_FLOAT_EQ(experts_in(ernie, 27).router.floor, 1e-12);
  const auto phixtral = spec_from_config(oracle::tiny_config("phixtral"));
  EXPECT_EQ(phixtral.blocks[0].steps.size(), 1u);
  EXPECT_FALSE(experts_in(phixtral, 0).gate);
  EXPECT_EQ(phixtral.edges_of(0)[0].consumers.size(), 3u);  // one norm before Wqkv, router and fc1
}

TEST(Spec, AliasesRunAsTheirTargets) {
  const auto known = known_model_types();
  for (const char* alias : {"iquestcoder", "mistral", "xverse"}) {
    EXPECT_EQ(run_as(alias), "llama");
    EXPECT_EQ(std::count(known.begin(), known.end(), alias), 1) << alias;
  }
  EXPECT_EQ(run_as("llama"), "llama");
  EXPECT_EQ(run_as("abacus"), "abacus");
  EXPECT_TRUE(std::is_sorted(known.begin(), known.end()));
}

// One sentence or two that help, however many types are known.
TEST(Spec, AMissingTypeIsRefusedWithTheNearest) {
  const auto said = [](const std::string& type, const json& changes = json::object()) {
    auto config = oracle::tiny_config("llama");
    config["model_type"] = type;
    config.update(changes);
    try {
      spec_from_config(config);
    } catch (const Error& e) {
      const std::string text = e.what();
      EXPECT_LT(text.size(), 400u) << text;
      EXPECT_NE(text.find("\"lquant families\" lists"), std::string::npos) << text;
      EXPECT_NE(text.find("CONTRIBUTING.md"), std::string::npos) << text;
      return text;
    }
    return "accepted: " + type;
  };
  const auto holds = [](const std::string& text, const std::string& part) { EXPECT_NE(text.find(part), std::string::npos) << text; };
  holds(said("llamma"), "model_type \"llamma\" is not supported; nearest by name: llama. ");
  holds(said("LLAMA"), "nearest by name: llama. ");
  // Relatives: the longest common beginning first, at most three.
  holds(said("qwen3_abacus"), "nearest by name: qwen3_5, qwen3_5_moe, qwen3_moe. ");
  holds(said("abacus"), "\"abacus\" is not supported. \"lquant families\"");
  // What the config tells.
  holds(said("abacus", {{"num_local_experts", 8}}), "Its \"num_local_experts\" says that it has a mixture of experts. ");
  holds(said("abacus", {{"num_local_experts", 8}, {"kv_lora_rank", 16}}), "latent attention");
  holds(said("abacus", {{"num_local_experts", 0}, {"kv_lora_rank", nullptr}}), "is not supported. \"lquant");
  holds(said("abacus", {{"text_config", {{"model_type", "llama"}}}}),
        "Its text_config is of type \"llama\", which is supported without this wrapper. ");
  holds(said("abacus", {{"text_config", {{"model_type", "bead"}}}}), "Its text_config is of type \"bead\", which is not supported either. ");
  const std::string longest(1000, 'x');
  holds(said(longest, {{"text_config", {{"model_type", longest}}}}), "not supported either");
}

TEST(Spec, WrongConfigsAreRefusedByName) {
  const auto refused = [](const json& config, const std::string& part) {
    try {
      spec_from_config(config);
      ADD_FAILURE() << "accepted: " << config.dump();
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
    }
  };
  const auto with = [](const char* key, json value) {
    auto config = oracle::tiny_config("llama");
    config[key] = std::move(value);
    return config;
  };
  refused(json::array(), "object");
  refused(json::object(), "model_type");
  refused(with("model_type", "abacus"), "lquant families");
  refused(with("hidden_size", nullptr), "hidden_size");
  refused(with("hidden_size", "64"), "hidden_size");
  refused(with("hidden_size", 64.5), "hidden_size");
  refused(with("num_hidden_layers", 0), "num_hidden_layers");
  refused(with("num_hidden_layers", 1e8), "num_hidden_layers");
  refused(with("num_attention_heads", 3), "num_attention_heads");
  refused(with("head_dim", 15), "rotated");
  refused(with("layer_types", {"full_attention"}), "layer_types");
  refused(with("rope_theta", -1), "rope_theta");
  refused(with("rope_scaling", {{"type", "spiral"}}), "spiral");
  refused(with("rope_scaling", {{"type", "linear"}}), "factor");
  refused(with("rope_scaling", {{"type", 7}}), "rope_scaling: \"type\" is 7, not a text");
  refused(with("rope_scaling", "linear"), "not an object");
  refused(with("rope_scaling", {{"type", "su"}, {"original_max_position_embeddings", 64}, {"long_factor", 1.0}}), "su");
  refused(with("rope_scaling", {{"type", "mrope"}}), "mrope_section");
  refused(with("rope_scaling", {{"type", "longrope"}, {"original_max_position_embeddings", 64}, {"long_factor", 1.0}}), "short_factor");
  refused(with("model_file", "model.py"), "model_file");
  const auto changed = [](const char* type, const json& changes) {
    auto config = oracle::tiny_config(type);
    config.update(changes);
    return config;
  };
  refused(changed("internlm2", {{"rope_scaling", {{"type", "yarn"}, {"factor", 2.0}}}}), "linear or dynamic");
  refused(changed("internlm2", {{"rope_scaling", {{"rope_type", "linear"}, {"factor", 2.0}}}}), "\"type\" is missing");
  refused(changed("exaone", {{"head_dim", 8}}), "hidden_size");
  refused(changed("exaone4", {{"sliding_window_pattern", "LLLG"}}), "makes no layer G of 2");
  refused(changed("exaone4", {{"sliding_window_pattern", "G"}}), "makes no layer L");
  refused(changed("exaone4", {{"sliding_window", nullptr}}), "sliding_window");
  refused(changed("hunyuan_v1_dense", {{"rope_scaling", {{"rope_type", "dynamic"}, {"alpha", 2.0}, {"factor", 1.0}}}}), "\"type\" is missing");
  refused(changed("hunyuan_v1_dense", {{"rope_scaling", {{"type", "dynamic"}, {"alpha", 0}, {"factor", 1.0}}}}), "above 0");
  refused(changed("qwen", {{"kv_channels", 8}}), "kv_channels");
  refused(changed("bailing_moe", {{"n_group", 4}}), "of 4 groups");
  refused(changed("bailing_moe", {{"norm_head", true}}), "norm_head");
  refused(changed("exaone_moe", {{"topk_method", "greedy"}}), "noaux_tc");
  refused(changed("exaone_moe", {{"is_moe_layer", {1, 0}}}), "is_moe_layer[0]");
  refused(changed("hunyuan", {{"rope_scaling", nullptr}}), "alpha");
  refused(changed("laguna", {{"gating", "per-element"}}), "per-element");
  refused(changed("laguna", {{"num_attention_heads_per_layer", {4, 3}}}), "num_attention_heads_per_layer");
  refused(changed("laguna", {{"moe_router_score_func", "softmax"}}), "moe_router_score_func");
  refused(changed("mimo_v2_flash", {{"hybrid_layer_pattern", {1, 1}}}), "hybrid_layer_pattern");
  refused(changed("step3p5", {{"layer_types", {"full_attention"}}}), "layer_types");
  refused(changed("step3p5", {{"moe_layers_enum", "one"}}), "moe_layers_enum");
  refused(changed("step3p5", {{"swiglu_limits", {0.0, "7"}}}), "swiglu_limits");
  for (const auto& [key, value] : {std::pair{"num_hidden_layers", 3}, {"num_experts_per_tok", 2}}) {
    auto llama4 = oracle::tiny_config("llama4");
    llama4["text_config"][key] = value;
    refused(llama4, std::string("text_config.") + key);
  }
  refused(changed("openelm", {{"ffn_multipliers", {0.5, -1}}}), "ffn_multipliers[1]");
  refused(changed("openelm", {{"num_kv_heads", {2, 4}}}), "num_kv_heads");
  refused(changed("plamo", {{"n_shared_head", 3}}), "n_shared_head");
  refused(changed("gptj", {{"rotary_dim", 18}}), "rotary_dim");
  refused(changed("gptj", {{"n_inner", 96}}), "n_inner");
  refused(changed("iquestloopcoder", {{"loop_num", 3}}), "loop_num");
  refused(changed("nanochat", {{"num_attention_heads", 5}, {"num_key_value_heads", 5}}), "num_attention_heads");
  refused(with("rope_scaling", {{"type", "longrope"}, {"original_max_position_embeddings", 64}, {"long_factor", {1.0, 2.0}}}), "long_factor");
}

TEST(Spec, WhatADamagedFieldHoldsIsShownShortened) {
  const auto message = [](const char* type, const json& changes) {
    auto config = oracle::tiny_config(type);
    config.update(changes);
    try {
      spec_from_config(config);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return "accepted: " + changes.dump().substr(0, 200);
  };
  const std::string long_text(100'000, 'x');
  const json long_list(10'000, "\x1b[2J"), factors(8, "1.0");
  const std::vector<std::tuple<const char*, json, const char*>> faults = {
      {"llama", {{"model_type", 7}}, "\"model_type\" is 7, not a text"},
      {"llama", {{"model_type", long_text}}, "is not supported"},
      {"llama", {{"hidden_size", long_text}}, "\"hidden_size\" is \"xxx"},
      {"llama", {{"num_hidden_layers", true}}, "\"num_hidden_layers\" is true"},
      {"llama", {{"vocab_size", 1e300}}, "\"vocab_size\" is 1e+300, not a whole number from 1 to 1000000000"},
      {"llama", {{"attention_bias", long_list}}, "\"attention_bias\" is [\"\\u001b"},
      {"llama", {{"layer_types", long_text}}, "not a list"},
      {"llama", {{"layer_types", {1, 2}}}, "\"layer_types[0]\" is 1, not a text"},
      {"llama", {{"rope_scaling", long_text}}, "\"rope_scaling\" is \"xxx"},
      {"llama", {{"rope_scaling", {{"type", long_text}}}}, "is not known"},
      {"llama", {{"rope_scaling", {{"type", "linear"}, {"factor", long_list}}}}, "rope_scaling: \"factor\" is [\"\\u001b"},
      {"llama", {{"rope_scaling", {{"type", "linear"}, {"factor", 0}}}}, "no finite numbers"},
      {"llama",
       {{"rope_scaling", {{"type", "longrope"}, {"original_max_position_embeddings", 64}, {"long_factor", factors}, {"short_factor", factors}}}},
       "\"long_factor[0]\" is \"1.0\", not a number"},
      {"llama",
       {{"rope_scaling", {{"type", "proportional"}, {"partial_rotary_factor", -1e9}}}},
       "\"partial_rotary_factor\" is -1000000000.0, not a share"},
      {"llama",
       {{"hidden_size", 1'000'000'000}, {"num_attention_heads", 4}, {"num_key_value_heads", 4}, {"head_dim", 100'000'000}},
       "in a head are more than"},
      {"phi3", {{"rope_scaling", {{"type", json::array()}}}}, "\"type\" is [], not a text"},
      {"phi3", {{"partial_rotary_factor", 1e300}}, "\"partial_rotary_factor\" is 1e+300"},
      {"gemma2", {{"query_pre_attn_scalar", 0}}, "\"query_pre_attn_scalar\" is 0"},
      {"smollm3", {{"no_rope_layers", {0, "1"}}}, "\"no_rope_layers[1]\" is \"1\""},
      {"gemma4_text",
       {{"enable_moe_block", true}, {"num_experts", 4}, {"top_k_experts", 5}, {"moe_intermediate_size", 8}},
       "\"top_k_experts\" 5 exceeds \"num_experts\" 4"},
      {"qwen3_moe", {{"mlp_only_layers", {1.5}}}, "\"mlp_only_layers[0]\" is 1.5"},
  };
  for (const auto& [type, changes, part] : faults) {
    const auto text = message(type, changes);
    EXPECT_TRUE(text.starts_with("[model] config.json: ")) << text;
    EXPECT_NE(text.find(part), std::string::npos) << text;
    EXPECT_EQ(text.find("json.exception"), std::string::npos) << text;
    EXPECT_LT(text.size(), 400u) << text;
    for (const unsigned char c : text) EXPECT_GE(c, 0x20) << text;
  }
}

TEST(Spec, BlocksOfNemotronNasAreOfManyKinds) {
  const auto spec = spec_from_config(oracle::tiny_config("nemotron-nas"));
  const auto paths = [&](int block) {
    std::vector<std::string> all;
    for (const auto* linear : spec.blocks[block].linears()) all.push_back(linear->path.substr(std::string("model.layers.0.").size()));
    return all;
  };
  EXPECT_EQ(paths(0), (std::vector<std::string>{"self_attn.linear", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}));
  EXPECT_TRUE(spec.blocks[2].steps.empty());
  EXPECT_TRUE(spec.blocks[2].norms().empty());
  EXPECT_EQ(paths(3).back(), "mlp.linear");
  EXPECT_EQ(paths(4), (std::vector<std::string>{"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}));
  EXPECT_EQ(attention_of(spec, 1).kv_heads, 2);
  EXPECT_EQ(spec.blocks[1].linears().back()->in, 256);  // 2 · 2.0 · 64 / 3, up to a multiple of 256
}

TEST(Spec, HeadsOfBaichuanM1DifferByLayer) {
  const auto spec = spec_from_config(oracle::tiny_config("baichuan_m1"));
  EXPECT_EQ(attention_of(spec, 0).heads, 2);
  EXPECT_EQ(attention_of(spec, 0).head_dim, 32);
  EXPECT_EQ(attention_of(spec, 0).window, 5);
  EXPECT_EQ(attention_of(spec, 1).heads, 4);
  EXPECT_EQ(attention_of(spec, 1).window, 0);
  EXPECT_EQ(attention_of(spec, 1).k_taps->shape, (mx::Shape{1, 1, 2, 1, 2}));
}

// What mlx_lm cannot run, or would run as something else.
TEST(Spec, WhatMlxLmCannotRunIsRefused) {
  const auto refused = [](const char* type, const json& changes, const std::string& part) {
    const auto said = oracle::refusal_of(type, changes);
    EXPECT_NE(said.find(part), std::string::npos) << type << " " << changes.dump() << ": " << (said.empty() ? "accepted" : said);
  };
  refused("ministral3", {{"rope_parameters", nullptr}}, "rope_parameters");
  refused("ministral3", {{"rope_parameters", {{"rope_theta", 1e4}, {"original_max_position_embeddings", 4}}}}, "llama_4_scaling_beta");
  refused("ministral3", {{"layer_types", {"sliding_attention", "sliding_attention"}}, {"sliding_window", 4}}, "full_attention");
  refused("baichuan_m1", {{"tie_word_embeddings", true}}, "tie_word_embeddings");
  refused("baichuan_m1", {{"conv_window", 3}}, "conv_window");
  refused("baichuan_m1", {{"sliding_window_layers", {2}}}, "layer 2 of 2");
  refused("baichuan_m1", {{"num_swa_attention_heads", 3}}, "no multiple of 3 attention heads");
  refused("lfm2", {{"layer_types", {"conv", "conv"}}}, "layers of both kinds");
  refused("lfm2", {{"layer_types", {"full_attention", "full_attention"}}}, "layers of both kinds");
  refused("lfm2", {{"block_dim", 32}}, "block_dim");
  refused("lfm2", {{"conv_L_cache", 1}}, "conv_L_cache");
  refused("qwen3_next", {{"full_attention_interval", 1}}, "layers of one kind");
  refused("qwen3_next", {{"full_attention_interval", 3}}, "layers of one kind");
  refused("qwen3_next", {{"linear_num_value_heads", 3}}, "linear_num_value_heads");
  refused("qwen3_5", {{"linear_conv_kernel_dim", 1}}, "linear_conv_kernel_dim");
  refused("olmo_hybrid", {{"rope_parameters", {{"rope_type", "yarn"}, {"rope_theta", 1e4}}}}, "scales the positions");
  refused("gpt_oss", {{"layer_types", {"full_attention", "full_attention"}}}, "sliding_attention");
  refused("gpt_oss", {{"num_hidden_layers", 3}}, "all but the last");
  refused("glm4_moe", {{"topk_method", "greedy"}}, "noaux_tc");
  refused("glm4_moe", {{"topk_group", 4}}, "topk_group");
  refused("dots1", {{"n_group", 4}}, "n_group");
  refused("qwen2_moe", {{"rope_scaling", {{"type", "yarn"}, {"factor", 2.0}}}}, "rope_scaling");
  refused("minimax", {{"attn_type_list", {0, 1}}}, "MiniMax-Text-01");
  refused("minimax", {{"layer_types", {"linear_attention", "full_attention"}}}, "MiniMax-Text-01");
  const auto refused_inside = [&](json changes, const char* told) {
    auto text = oracle::tiny_config("minimax_m3_vl").at("text_config");
    text.update(changes);
    refused("minimax_m3_vl", {{"text_config", text}}, told);
  };
  const json blocks_of_keys{{"sparse_num_index_heads", 2}, {"sparse_index_dim", 16}, {"sparse_block_size", 2}, {"sparse_topk_blocks", 2}};
  auto three_heads = blocks_of_keys, no_dim = blocks_of_keys, few = blocks_of_keys;
  three_heads["sparse_num_index_heads"] = 3, no_dim["sparse_index_dim"] = nullptr, few["sparse_attention_freq"] = {1};
  refused_inside({{"sparse_attention_config", three_heads}}, "3 heads of the indexer");
  refused_inside({{"sparse_attention_config", no_dim}}, "text_config.sparse_attention_config.sparse_index_dim");
  refused_inside({{"sparse_attention_config", few}}, "text_config.sparse_attention_config.sparse_attention_freq\" has 1 entries");
  refused_inside({{"mlp_layer_types", {"dense"}}}, "mlp_layer_types");
  refused_inside({{"swiglu_limit", 0.0}}, "swiglu_limit");
  refused("ernie4_5_moe", {{"moe_gate_act", "tanh"}}, "moe_gate_act");
  refused("mixtral", {{"num_experts_per_tok", 6}}, "exceeds");
  refused("phimoe", {{"rope_scaling", {{"type", "longrope"}, {"short_factor", 1.0}, {"long_factor", 1.0}}}}, "short_mscale");
  const auto blocks = oracle::tiny_config("nemotron-nas").at("block_configs");
  const auto changed = [&](int block, const char* half, const json& value) {
    auto all = blocks;
    all[block][half] = value;
    return json{{"block_configs", all}};
  };
  refused("nemotron-nas", {{"block_configs", {blocks[0]}}}, "list of 5 entries");
  refused("nemotron-nas", changed(1, "attention", {{"n_heads_in_group", 3}}), "n_heads_in_group");
  refused("nemotron-nas", changed(1, "attention", {{"n_heads_in_group", 2}, {"mamba", true}}), "\"mamba\"");
  refused("nemotron-nas", changed(1, "ffn", json::object()), "ffn_mult");
  refused("nemotron-nas", changed(1, "ffn", {{"ffn_mult", -1}}), "ffn_mult");
  refused("nemotron-nas", {{"hidden_act", "tanh"}}, "hidden_act");
  refused("nemotron-nas", {{"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}}}, "rope_type");
}

json muse_spark_with(const json& changes) {
  auto text = oracle::tiny_config("muse_spark").at("text_config");
  text.update(changes);
  return {{"text_config", text}};
}

TEST(Spec, MuseSparkPacksTheExpertsBetweenTheFirstAndTheLastLayer) {
  auto config = oracle::tiny_config("muse_spark");
  config.update(muse_spark_with({{"num_hidden_layers", 4},
                                 {"layer_rope_theta", {1.0, 1.0, 1.0, 1.0}},
                                 {"layer_types", json::array({"full_attention", "full_attention", "full_attention", "full_attention"})}}));
  const auto spec = spec_from_config(config);
  for (const auto* linear : spec.linears()) {
    const bool packed = linear->experts > 0 && (linear->block == 1 || linear->block == 2);
    EXPECT_EQ(linear->dense_why.empty(), packed) << linear->path;
    EXPECT_EQ(linear->must_stay_dense(), linear->role == Role::head || linear->role == Role::router) << linear->path;
  }
  // Scales pass from a norm to what reads it and from up to down; not through a norm of each head's or of each expert's result.
  std::set<std::string> producers;
  const std::string layer = "model.language_model.layers.1.";
  for (const auto& edge : spec.edges_of(1)) producers.insert(edge.producer.substr(layer.size()));
  EXPECT_EQ(producers, (std::set<std::string>{"input_layernorm", "pre_feedforward_layernorm", "mlp.pre_expert_norm", "mlp.experts.up_proj"}));
  // Towers that the config describes are kept, the others are left out, as mlx_lm has it.
  EXPECT_TRUE(spec.imports.kept.empty());
  config["vision_config"] = {{"hidden_size", 16}};
  EXPECT_EQ(spec_from_config(config).imports.kept.size(), 3u);
}

TEST(Spec, WhatMlxLmDoesNotRunIsRefused) {
  const std::vector<std::tuple<const char*, json, const char*>> faults = {
      {"cohere2", {{"head_dim", 8}}, "are not the hidden size 64"},
      {"cohere2", {{"sliding_window_pattern", 3}}, "exceeds \"num_hidden_layers\" 2"},
      {"cohere2", {{"sliding_window_pattern", nullptr}, {"layer_types", {"sliding_attention", "sliding_attention"}}}, "exceeds"},
      {"cohere2", {{"sliding_window_pattern", nullptr}, {"layer_types", {"full_attention", "sliding_attention"}}}, "repeats no pattern"},
      {"olmo3", {{"layer_types", {"full_attention", "full_attention"}}}, "has no sliding_attention"},
      {"olmo3", {{"layer_types", nullptr}}, "has no full_attention"},
      {"phi", {{"num_attention_heads", 3}, {"num_key_value_heads", 3}}, "cannot be cut into 3 heads"},
      {"phi", {{"qk_layernorm", true}}, "norms of q and k"},
      {"granite", {{"logits_scaling", 0}}, "logits are divided by it"},
      {"gpt_bigcode", {{"multi_query", false}}, "head by head"},
      {"deepseek_v41", {{"engram_layer_ids", {1}}}, "memory of n-grams"},
      {"deepseek_v41", {{"compress_ratios", {0, 2, 2, 2, 0}}}, "lists layer 0, for which \"compress_ratios\" has none"},
      {"deepseek_v41", {{"compress_ratios", {2, 2, 2, 4, 0}}}, "differs between layers 3 and 2"},
      {"deepseek_v41", {{"kv_source_layer_ids", {3}}}, "none before it makes keys"},
      {"deepseek_v41", {{"index_head_dim", 4}}, "is less than \"qk_rope_head_dim\" 8"},
      {"deepseek_v41", {{"o_groups", 3}}, "cannot be cut into"},
      {"kimi_k3", {{"hidden_act", "silu"}}, "knows situ alone"},
      {"kimi_k3", {{"moe_router_activation_func", "softmax"}}, "knows sigmoid alone"},
      {"kimi_k3", {{"mla_use_nope", false}}, "without positions alone"},
      {"kimi_k3", {{"topk_group", 4}}, "no 4 of 3 groups"},
      {"kimi_k3", {{"activation_situ_linear_beta", 0.0}}, "is not above 0"},
      {"muse_spark", muse_spark_with({{"num_shared_experts", 1}}), "\"text_config.num_shared_experts\" asks for MLPs"},
      {"muse_spark", muse_spark_with({{"mlp_layer_types", {"sparse", "dense"}}}), "\"text_config.mlp_layer_types\" asks for MLPs"},
      {"muse_spark", muse_spark_with({{"layer_types", {"full_attention"}}}), "layer_types\" has 1 entries"},
      {"muse_spark", muse_spark_with({{"layer_rope_theta", {0, 0, 0}}}), "layer_rope_theta\" has 3 entries"},
      {"nemotron", {{"rope_scaling", {{"type", "yarn"}, {"factor", 2.0}}}}, "not linear, which is what mlx_lm knows"},
      {"nemotron", {{"rope_scaling", {{"type", "linear"}}}}, "\"factor\""},
  };
  for (const auto& [type, changes, part] : faults) {
    const auto said = oracle::refusal_of(type, changes);
    EXPECT_NE(said.find(part), std::string::npos) << type << " " << changes.dump() << ": " << (said.empty() ? "accepted" : said);
  }
}

// transformers 5 has no fields of these names. mlx_lm demands them, so that it opens no such config; what is written says them.
TEST(Spec, FieldsThatMlxLmDemandsAreSettled) {
  const auto settled = [](const char* type, const json& changes, const std::vector<const char*>& absent) {
    auto config = oracle::tiny_config(type);
    for (const auto* key : absent) config.erase(key);
    config.update(changes);
    return spec_from_config(config).settled;
  };
  const json plain{{"rope_type", "default"}, {"rope_theta", 5000.0}, {"partial_rotary_factor", 0.5}};
  const json yarn{{"rope_type", "yarn"}, {"factor", 2.0}, {"original_max_position_embeddings", 64}};
  auto with_base = yarn;
  with_base["rope_theta"] = 5000.0;
  EXPECT_EQ(settled("stablelm", {{"rope_parameters", plain}}, {"rope_theta", "partial_rotary_factor"}),
            (json{{"rope_theta", 5000.0}, {"partial_rotary_factor", 0.5}}));
  EXPECT_EQ(settled("gpt_neox", {{"rope_parameters", plain}}, {"rotary_emb_base", "rotary_pct"}),
            (json{{"rotary_emb_base", 5000.0}, {"rotary_pct", 0.5}}));
  EXPECT_EQ(settled("granite", {{"rope_parameters", with_base}}, {"rope_theta"}), (json{{"rope_theta", 5000.0}, {"rope_scaling", yarn}}));
  const json kinds{{"full_attention", with_base}, {"sliding_attention", plain}};
  EXPECT_EQ(settled("olmo3", {{"rope_parameters", kinds}}, {"rope_theta"}), (json{{"rope_theta", 5000.0}, {"rope_scaling", yarn}}));
  // A field that is there counts, as in mlx_lm.
  EXPECT_EQ(settled("granite", {{"rope_parameters", with_base}}, {}), json::object());
  EXPECT_EQ(settled("cohere2", {{"layer_types", {"sliding_attention", "full_attention"}}}, {"sliding_window_pattern"}),
            (json{{"sliding_window_pattern", 2}}));
  EXPECT_EQ(settled("gpt2", json::object(), {"n_ctx"}), (json{{"n_ctx", 32}}));
  EXPECT_EQ(settled("gpt_bigcode", {{"n_inner", nullptr}}, {}), (json{{"n_inner", 256}}));
  EXPECT_EQ(settled("nemotron", json::object(), {"hidden_act"}), (json{{"hidden_act", "relu2"}}));
  EXPECT_EQ(settled("nemotron", {{"rope_scaling", {{"rope_type", "linear"}, {"factor", 2}}}}, {}),
            (json{{"rope_scaling", {{"rope_type", "linear"}, {"type", "linear"}, {"factor", 2.0}}}}));
  EXPECT_EQ(settled("nemotron", {{"rope_scaling", {{"rope_type", "default"}}}}, {}), (json{{"rope_scaling", nullptr}}));
  EXPECT_EQ(settled("phi", {{"vocab_size", nullptr}, {"layer_norm_eps", nullptr}}, {}), (json{{"vocab_size", 51200}, {"layer_norm_eps", 1e-5}}));
}

TEST(Spec, AbsolutePositionsAreBounded) {
  EXPECT_EQ(published_spec("gpt2").positions(), 1024);
  EXPECT_EQ(published_spec("phi").positions(), 0);
}

// What mlx_lm would read otherwise from the same file: its dataclasses take null for a value and have no default for every key.
TEST(Spec, FieldsThatMlxLmWouldReadOtherwiseAreSettled) {
  const auto settled = [](const char* type, const json& changes) {
    auto config = oracle::tiny_config(type);
    config.update(changes);
    for (const auto& [key, value] : changes.items())
      if (value == "absent") config.erase(key);
    return spec_from_config(config).settled;
  };
  EXPECT_EQ(settled("llama", json::object()), json::object());
  EXPECT_EQ(settled("llama", {{"rope_theta", nullptr}, {"mlp_bias", nullptr}}), (json{{"rope_theta", 10000.0}, {"mlp_bias", false}}));
  EXPECT_EQ(settled("llama", {{"head_dim", nullptr}, {"rope_scaling", nullptr}, {"max_position_embeddings", nullptr}}), json::object());
  EXPECT_EQ(settled("llama", {{"hidden_size", 64.0}, {"vocab_size", 48.0}}), (json{{"hidden_size", 64}, {"vocab_size", 48}}));
  for (const char* type : {"qwen2", "qwen3", "gemma2", "phi3"})
    EXPECT_EQ(settled(type, {{"num_key_value_heads", "absent"}}), (json{{"num_key_value_heads", 4}})) << type;
  EXPECT_EQ(settled("gemma3_text", {{"num_hidden_layers", nullptr}, {"sliding_window_pattern", nullptr}}),
            (json{{"num_hidden_layers", 26}, {"sliding_window_pattern", 6}}));
  EXPECT_EQ(settled("qwen", {{"num_hidden_layers", nullptr}}), (json{{"num_hidden_layers", 24}}));
  EXPECT_EQ(settled("minicpm", {{"tie_word_embeddings", true}}), (json{{"tie_word_embeddings", false}}));
  EXPECT_EQ(settled("openelm", {{"share_input_output_layers", nullptr}}), (json{{"share_input_output_layers", false}}));
  // Null is false, as in Python, also where a flag that is absent would be true.
  EXPECT_EQ(settled("ernie4_5", {{"use_bias", nullptr}}), (json{{"head_dim", 16}, {"use_bias", false}}));
  EXPECT_EQ(settled("internlm2", {{"bias", nullptr}}), (json{{"bias", false}}));
  EXPECT_EQ(settled("gemma4_text", {{"use_double_wide_mlp", nullptr}, {"hidden_size_per_layer_input", nullptr}}),
            (json{{"use_double_wide_mlp", false}, {"hidden_size_per_layer_input", 0}}));
  // What transformers 5 says otherwise, where mlx_lm opens no model without these.
  const json positions{{"rope_type", "llama3"}, {"rope_theta", 5000.0}, {"factor", 8.0}};
  EXPECT_EQ(settled("exaone", {{"rope_theta", "absent"}, {"rope_parameters", positions}}),
            (json{{"rope_theta", 5000.0}, {"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8.0}}}}));
  EXPECT_EQ(settled("glm4", {{"rope_theta", "absent"},
                             {"partial_rotary_factor", "absent"},
                             {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 5000.0}, {"partial_rotary_factor", 0.5}}}}),
            (json{{"rope_theta", 5000.0}, {"partial_rotary_factor", 0.5}}));
  EXPECT_EQ(settled("exaone4", {{"rope_scaling", "absent"}, {"sliding_window_pattern", 2}}),
            (json{{"rope_scaling", nullptr}, {"sliding_window_pattern", "LG"}}));
  EXPECT_EQ(settled("exaone4",
                    {{"rope_scaling", "absent"}, {"sliding_window_pattern", "absent"}, {"layer_types", {"full_attention", "sliding_attention"}}}),
            (json{{"rope_scaling", nullptr}, {"sliding_window_pattern", "GL"}}));
  EXPECT_EQ(settled("exaone4", {{"rope_scaling", "absent"}, {"sliding_window_pattern", "absent"}, {"sliding_window", "absent"}}),
            (json{{"rope_scaling", nullptr}, {"sliding_window_pattern", nullptr}, {"sliding_window", nullptr}}));
  EXPECT_EQ(settled("qwen2", {{"rope_scaling", {{"type", "yarn"}, {"factor", 2.0}, {"beta_fast", nullptr}}}}),
            (json{{"rope_scaling", {{"type", "yarn"}, {"factor", 2.0}}}}));
  EXPECT_EQ(settled("llama", {{"rope_scaling", {{"type", nullptr}, {"rope_type", "linear"}, {"factor", 2}}}}),
            (json{{"rope_scaling", {{"rope_type", "linear"}, {"factor", 2}}}}));
  const json longrope{{"rope_type", "longrope"}, {"short_factor", 1.0}, {"long_factor", 2.0}};
  auto typed = longrope;
  typed["type"] = "longrope";
  EXPECT_EQ(settled("phi3", {{"rope_scaling", longrope}}), (json{{"rope_scaling", typed}}));
  EXPECT_EQ(settled("phi3", {{"rope_scaling", typed}}), json::object());
  const auto linear = settled("phi3", {{"rope_scaling", {{"type", "linear"}, {"factor", 2}, {"long_factor", 1.0}}}});
  EXPECT_TRUE(linear.at("rope_scaling").at("factor").is_number_float());
  EXPECT_EQ(settled("phi3", {{"rope_scaling", {{"type", "yarn"}, {"factor", 2.0}}}}), (json{{"rope_scaling", nullptr}}));
  // transformers 5 leaves out what mlx_lm demands of these.
  const json scaling{{"rope_type", "linear"}, {"factor", 2.0}};
  auto within = scaling;
  within["rope_theta"] = 500.0;
  EXPECT_EQ(settled("apertus", {{"rope_theta", "absent"}, {"rope_parameters", within}, {"post_norm", "absent"}, {"qk_norm", "absent"}}),
            (json{{"rope_theta", 500.0}, {"rope_scaling", scaling}, {"post_norm", false}, {"qk_norm", true}}));
  EXPECT_EQ(settled("lfm2", {{"block_dim", "absent"}}), (json{{"block_dim", 64}}));
  EXPECT_EQ(settled("qwen3_5", {{"full_attention_interval", "absent"}, {"layer_types", {"linear_attention", "full_attention"}}}),
            (json{{"full_attention_interval", 2}}));
  EXPECT_EQ(settled("olmo_hybrid", {{"rope_theta", "absent"}, {"rope_parameters", nullptr}}), (json{{"rope_theta", nullptr}}));
  EXPECT_EQ(settled("nemotron-nas", {{"rope_scaling", {{"rope_type", "default"}}}}), (json{{"rope_scaling", nullptr}}));
  // mlx_lm opens such a gpt-oss, and does not scale.
  EXPECT_EQ(settled("gpt_oss", {{"rope_theta", "absent"}, {"rope_parameters", within}}), (json{{"rope_theta", 500.0}, {"rope_scaling", scaling}}));
  EXPECT_EQ(settled("gpt_oss", {{"head_dim", nullptr}}), (json{{"head_dim", 64}}));
  EXPECT_EQ(settled("glm4_moe", {{"rope_scaling", "absent"}}), (json{{"rope_scaling", nullptr}}));
  EXPECT_EQ(settled("minimax", {{"rotary_dim", "absent"}, {"shared_intermediate_size", "absent"}}),
            (json{{"rotary_dim", 16}, {"shared_intermediate_size", 0}}));
  EXPECT_EQ(settled("deepseek", {{"rope_scaling", {{"type", "linear"}, {"factor", 2}}}}),
            (json{{"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}}}));
  EXPECT_EQ(settled("mixtral", {{"num_key_value_heads", nullptr}}), (json{{"num_key_value_heads", 4}}));
}

TEST(Spec, PositionsThatAreNotFollowedAreTold) {
  const auto warnings = [](const std::string& type, const json& parameters) {
    auto config = oracle::tiny_config(type);
    auto& text = config.contains("text_config") ? config["text_config"] : config;
    text.erase("rope_theta");
    text["rope_parameters"] = parameters;
    return spec_from_config(config).warnings;
  };
  const json other{{"rope_type", "default"}, {"rope_theta", 500000.0}}, usual{{"rope_type", "default"}, {"rope_theta", 10000.0}};
  EXPECT_TRUE(warnings("llama", usual).empty());  // the default of mlx_lm
  EXPECT_TRUE(warnings("qwen3", other).empty());  // which mlx_lm reads
  const auto told = warnings("llama", other);
  ASSERT_EQ(told.size(), 1u);
  EXPECT_NE(told[0].find("500000"), std::string::npos) << told[0];
  ASSERT_EQ(warnings("gemma3", {{"full_attention", other}, {"sliding_attention", usual}}).size(), 1u);
}

// A wrapper's text model is described inside; what is settled of it is settled there, as the whole object.
TEST(Spec, WrappersSettleWithinTheirTextConfig) {
  auto config = oracle::tiny_config("gemma3");
  const auto text = config.at("text_config");
  EXPECT_EQ(spec_from_config(config).settled, json::object());
  EXPECT_EQ(spec_from_config(config).text_config, "text_config");
  EXPECT_EQ(spec_from_config(config).embedding.path, "language_model.model.embed_tokens");
  config["text_config"].erase("num_key_value_heads");
  auto expected = text;
  expected["num_key_value_heads"] = 4;
  EXPECT_EQ(spec_from_config(config).settled, (json{{"text_config", expected}}));
  config["vocab_size"] = 32;  // which counts, whatever stands inside
  EXPECT_EQ(spec_from_config(config).vocab, 32);
  config.erase("vocab_size");
  config["text_config"].erase("vocab_size");
  EXPECT_EQ(spec_from_config(config).settled.at("vocab_size"), 262208);

  config = oracle::tiny_config("qwen3_vl");
  config["text_config"].erase("tie_word_embeddings");
  for (const bool tied : {true, false}) {
    config["tie_word_embeddings"] = tied;
    EXPECT_EQ(spec_from_config(config).settled.at("text_config").at("tie_word_embeddings"), tied);
  }

  config = oracle::tiny_config("qwen3_vl_moe");
  config["text_config"].erase("norm_topk_prob");
  EXPECT_EQ(spec_from_config(config).settled.at("text_config").at("norm_topk_prob"), true);
  config["text_config"]["tie_word_embeddings"] = true;
  EXPECT_THROW(spec_from_config(config), Error);  // mlx_lm asks for a head in the file

  // Of Qwen2-VL the text's fields are written at the top, where all its readers look.
  const auto flat = spec_from_config(oracle::tiny_config("qwen2_vl"));
  EXPECT_EQ(flat.removed, std::vector<std::string>{"text_config"});
  EXPECT_EQ(flat.settled.at("hidden_size"), 64);
  EXPECT_FALSE(flat.settled.contains("model_type"));
}

TEST(Spec, PixtralIsWrittenUnderItsOwnName) {
  auto config = oracle::tiny_config("llava");
  config["vision_config"] = {{"model_type", "pixtral"}};
  config["text_config"]["tie_word_embeddings"] = false;
  EXPECT_EQ(spec_from_config(config).settled.at("model_type"), "pixtral");
  config["vision_config"]["model_type"] = "clip_vision_model";
  EXPECT_FALSE(spec_from_config(config).settled.contains("model_type"));
}

TEST(Spec, MessagesNameTheFieldInsideAWrapper) {
  auto config = oracle::tiny_config("mistral3");
  config["text_config"]["num_hidden_layers"] = "many";
  try {
    spec_from_config(config);
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("\"text_config.num_hidden_layers\" is \"many\""), std::string::npos) << e.what();
  }
}

TEST(Spec, DynamicRopeGrowsItsBaseBeyondTheTrainedLength) {
  const auto rope = make_rope(8, 100, false, {{"type", "dynamic"}, {"factor", 2.0}}, 16);
  const auto within = inverse_frequencies(rope, 16), beyond = inverse_frequencies(rope, 32);
  // 2·32/16 − 1 = 3 times the base to the power 8/6.
  const double base = 100 * std::pow(3.0, 8.0 / 6);
  for (int f = 0; f < 4; ++f) {
    EXPECT_FLOAT_EQ(within.data<float>()[f], std::pow(100.0, -f / 4.0));
    EXPECT_FLOAT_EQ(beyond.data<float>()[f], std::pow(base, -f / 4.0));
  }
}

}  // namespace
}  // namespace lquant::model
