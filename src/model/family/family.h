#pragma once

#include "model/family/config.h"
#include "model/family/decoder.h"
#include "model/spec.h"

namespace lquant::checkpoint::gguf {
struct Architecture;
}

// One file a family, one row in family.cpp. A family's function reads its fields of config.json (with the defaults of mlx_lm's
// ModelArgs, since its output must mean the same there), fills a Decoder, and changes in the layers what is its own.
namespace lquant::model::family {

ModelSpec afm7(const Config& config);
ModelSpec afmoe(const Config& config);
ModelSpec apertus(const Config& config);
ModelSpec baichuan_m1(const Config& config);
ModelSpec bailing_hybrid(const Config& config);
ModelSpec bailing_moe(const Config& config);
ModelSpec bailing_moe_linear(const Config& config);
ModelSpec bailing_moe_v3(const Config& config);
ModelSpec cohere(const Config& config);
ModelSpec cohere2(const Config& config);
ModelSpec dbrx(const Config& config);
ModelSpec deepseek(const Config& config);
ModelSpec deepseek_v2(const Config& config);
ModelSpec deepseek_v3(const Config& config);
ModelSpec deepseek_v32(const Config& config);
ModelSpec deepseek_v41(const Config& config);
ModelSpec dots1(const Config& config);
ModelSpec ernie4_5(const Config& config);
ModelSpec ernie4_5_moe(const Config& config);
ModelSpec exaone(const Config& config);
ModelSpec exaone4(const Config& config);
ModelSpec exaone_moe(const Config& config);
ModelSpec falcon_h1(const Config& config);
ModelSpec gemma(const Config& config);
ModelSpec gemma2(const Config& config);
ModelSpec gemma3(const Config& config);
ModelSpec gemma3_text(const Config& config);
ModelSpec gemma3n(const Config& config);
ModelSpec gemma4(const Config& config);
ModelSpec gemma4_text(const Config& config);
ModelSpec glm(const Config& config);
ModelSpec glm4(const Config& config);
ModelSpec glm4_moe(const Config& config);
ModelSpec glm4_moe_lite(const Config& config);
ModelSpec glm_moe_dsa(const Config& config);
ModelSpec gpt2(const Config& config);
ModelSpec gpt_bigcode(const Config& config);
ModelSpec gpt_neox(const Config& config);
ModelSpec gpt_oss(const Config& config);
ModelSpec gptj(const Config& config);
ModelSpec granite(const Config& config);
ModelSpec granitemoe(const Config& config);
ModelSpec granitemoehybrid(const Config& config);
ModelSpec helium(const Config& config);
ModelSpec hunyuan(const Config& config);
ModelSpec hunyuan_v1_dense(const Config& config);
ModelSpec internlm2(const Config& config);
ModelSpec internlm3(const Config& config);
ModelSpec iquestloopcoder(const Config& config);
ModelSpec jamba(const Config& config);
ModelSpec kimi_k25(const Config& config);
ModelSpec kimi_k3(const Config& config);
ModelSpec kimi_linear(const Config& config);
ModelSpec kimi_vl(const Config& config);
ModelSpec klear(const Config& config);
ModelSpec laguna(const Config& config);
ModelSpec lfm2(const Config& config);
ModelSpec lfm2_moe(const Config& config);
ModelSpec lfm2_vl(const Config& config);
ModelSpec lille_130m(const Config& config);
ModelSpec llama(const Config& config);
ModelSpec llama4(const Config& config);
ModelSpec llama4_text(const Config& config);
ModelSpec llava(const Config& config);
ModelSpec longcat_flash(const Config& config);
ModelSpec longcat_flash_ngram(const Config& config);
ModelSpec mamba(const Config& config);
ModelSpec mamba2(const Config& config);
ModelSpec mimo(const Config& config);
ModelSpec mimo_v2_flash(const Config& config);
ModelSpec minicpm(const Config& config);
ModelSpec minicpm3(const Config& config);
ModelSpec minimax(const Config& config);
ModelSpec minimax_m3_vl(const Config& config);
ModelSpec ministral3(const Config& config);
ModelSpec mistral3(const Config& config);
ModelSpec mistral4(const Config& config);
ModelSpec mixtral(const Config& config);
ModelSpec muse_glimmer(const Config& config);
ModelSpec muse_spark(const Config& config);
ModelSpec nanochat(const Config& config);
ModelSpec nemotron(const Config& config);
ModelSpec nemotron_h(const Config& config);
ModelSpec nemotron_nas(const Config& config);
ModelSpec olmo2(const Config& config);
ModelSpec olmo3(const Config& config);
ModelSpec olmo_hybrid(const Config& config);
ModelSpec olmoe(const Config& config);
ModelSpec openelm(const Config& config);
ModelSpec phi(const Config& config);
ModelSpec phi3(const Config& config);
ModelSpec phimoe(const Config& config);
ModelSpec phixtral(const Config& config);
ModelSpec pixtral(const Config& config);
ModelSpec plamo(const Config& config);
ModelSpec plamo2(const Config& config);
ModelSpec qwen(const Config& config);
ModelSpec qwen2(const Config& config);
ModelSpec qwen2_moe(const Config& config);
ModelSpec qwen2_vl(const Config& config);
ModelSpec qwen3(const Config& config);
/// What qwen3_5 and qwen3_5_moe have in text_config.
ModelSpec qwen3_5_text(const Config& config);
ModelSpec qwen3_5(const Config& config);
ModelSpec qwen3_moe(const Config& config);
ModelSpec qwen3_next(const Config& config);
ModelSpec qwen3_vl(const Config& config);
ModelSpec qwen3_vl_moe(const Config& config);
ModelSpec recurrent_gemma(const Config& config);
ModelSpec rwkv7(const Config& config);
ModelSpec seed_oss(const Config& config);
ModelSpec smollm3(const Config& config);
ModelSpec solar_open(const Config& config);
ModelSpec stablelm(const Config& config);
ModelSpec starcoder2(const Config& config);
ModelSpec step3p5(const Config& config);
ModelSpec telechat3(const Config& config);
ModelSpec youtu_llm(const Config& config);

// Rows for GGUF files (gguf.h), of the families that llama.cpp has an architecture for.
checkpoint::gguf::Architecture gemma_gguf();
checkpoint::gguf::Architecture gemma2_gguf();
checkpoint::gguf::Architecture gemma3_gguf();
checkpoint::gguf::Architecture llama_gguf();
checkpoint::gguf::Architecture mixtral_gguf();
checkpoint::gguf::Architecture phi3_gguf();
checkpoint::gguf::Architecture qwen2_gguf();
checkpoint::gguf::Architecture qwen3_gguf();
checkpoint::gguf::Architecture qwen3_moe_gguf();
checkpoint::gguf::Architecture smollm3_gguf();

/// The spec of a text model of this type, by the table of families; for wrappers, whose text_config names one. Throws Error for a type that is not
/// there.
ModelSpec spec_of_type(const std::string& type, const Config& config);

/// Llama with something of its own in each layer.
ModelSpec llama_like(const Config& config, const std::string& family, const std::function<void(Layer&)>& change);

}  // namespace lquant::model::family
