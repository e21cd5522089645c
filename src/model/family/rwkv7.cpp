// RWKV-7 (arXiv 2503.14456): time mixing by a recurrence and channel mixing, both with the token before; the first layer's values join those of all
// later ones. mlx_lm packs what its low ranks end in, and the embedding, in 8 bits.
#include "base/error.h"
#include "model/family/family.h"
#include "model/ops/per_layer.h"
#include "model/ops/rwkv.h"

namespace lquant::model::family {
namespace {

struct Ranks {
  int decay, rate, gate, value;
};

constexpr codec::Format kEightBits{codec::Mode::affine, 8, 64};

RwkvTimeMix time_mix(int block, const std::string& prefix, int hidden, int head_dim, const Ranks& ranks, Imports& imports) {
  const auto path = prefix + "attn.";
  const int heads = hidden / head_dim;
  const auto linear = [&](const std::string& name, int out, int in, bool bias = false) {
    return block_linear(block, path + name, Role::other, out, in, bias);
  };
  const auto low_rank = [&](const std::string& name, int rank, bool bias = true) {
    LowRank both{linear(name + "_lora.lora.0", rank, hidden), linear(name + "_lora.lora.2", hidden, rank, bias)};
    both.second.fixed_format = kEightBits;
    both.second.only_advised = true;
    return both;
  };
  // Some checkpoints have these in one row.
  const auto by_head = [&](const char* name, bool in_one_row) {
    ParameterSpec parameter{path + name, {heads, head_dim}};
    if (in_one_row) imports.rows.push_back(reshaped(parameter));
    return parameter;
  };
  RwkvTimeMix op;
  op.heads = heads, op.head_dim = head_dim;
  const char* names[] = {"x_r", "x_w", "x_k", "x_v", "x_a", "x_g"};
  for (int mix = 0; mix < 6; ++mix) op.mixes[mix] = {path + names[mix], {1, 1, hidden}};
  op.r = linear("r_proj", hidden, hidden), op.k = linear("k_proj", hidden, hidden), op.v = linear("v_proj", hidden, hidden);
  op.decay = low_rank("w", ranks.decay), op.rate = low_rank("a", ranks.rate), op.gate = low_rank("g", ranks.gate, false);
  if (block > 0) op.value = low_rank("v", ranks.value), op.first_values = hidden;
  op.k_k = by_head("k_k", true), op.k_a = by_head("k_a", true), op.r_k = by_head("r_k", false);
  op.norm_weight = by_head("g_norm.weight", true), op.norm_bias = by_head("g_norm.bias", true);
  op.output = linear("o_proj", hidden, hidden);
  return op;
}

RwkvChannelMix channel_mix(int block, const std::string& prefix, int hidden, int width) {
  RwkvChannelMix op;
  op.mix = {prefix + "ffn.x_k", {hidden}};
  op.key = block_linear(block, prefix + "ffn.key", Role::up, width, hidden);
  op.value = block_linear(block, prefix + "ffn.value", Role::down, hidden, width);
  return op;
}

}  // namespace

ModelSpec rwkv7(const Config& config) {
  auto decoder = Decoder::read(config, {.heads = nullptr, .head_dim = nullptr, .eps = "norm_eps"});
  decoder.read_tie(config, false);
  decoder.norm = NormSpec::Kind::layer;
  decoder.norm_bias = true;
  auto& names = decoder.names;
  names.embedding = "model.embeddings";
  const int hidden = decoder.hidden, head_dim = config.count("head_dim");
  if (hidden % head_dim != 0) fail("model", "config.json: \"hidden_size\" {} is no multiple of \"head_dim\" {}; {}", hidden, head_dim, kMend);
  const Ranks ranks{config.count("decay_low_rank_dim"), config.count("a_low_rank_dim"), config.count("gate_low_rank_dim"),
                    config.count("v_low_rank_dim")};
  auto spec = decoder.outer("rwkv7");
  spec.embedding.fixed_format = kEightBits;
  spec.embedding.only_advised = true;
  spec.embedding_norm = decoder.norm_at(decoder.prefix + names.layers + "0.pre_norm");
  for (int i = 0; i < decoder.layers; ++i) {
    const auto prefix = decoder.prefix + names.layers + std::to_string(i) + ".";
    Branch time{.before = decoder.norm_at(prefix + "attn_norm"),
                .op = std::make_shared<const RwkvTimeMix>(time_mix(i, prefix, hidden, head_dim, ranks, spec.imports))};
    if (i == 0 && decoder.layers > 1) time.gives = hidden;
    Branch channel{.before = decoder.norm_at(prefix + "ffn_norm"),
                   .op = std::make_shared<const RwkvChannelMix>(channel_mix(i, prefix, hidden, decoder.intermediate))};
    BlockSpec block;
    block.steps = {{.branches = {std::move(time)}, .columns = {0, hidden}}, {.branches = {std::move(channel)}, .columns = {0, hidden}}};
    spec.blocks.push_back(std::move(block));
  }
  EmptyColumns room;
  room.width = hidden;
  spec.front = BlockSpec{};
  spec.front->steps = {{.branches = {{.op = std::make_shared<const EmptyColumns>(room)}}, .replaces = true}};
  return spec;
}

}  // namespace lquant::model::family
