// DeepSeek-V4.1: streams of the residual that hyper-connections mix, attention through a window and over compressed entries, which some layers make
// and some choose for those behind them, DeepSeek-V3's mixtures between limits in every layer. Memory of n-grams ("engram") is refused, as by mlx_lm.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/shown.h"
#include "model/family/family.h"
#include "model/family/mixture.h"
#include "model/ops/compressed_attention.h"
#include "model/ops/exact.h"
#include "model/ops/hyper_connection.h"

namespace lquant::model::family {
namespace {

/// Which layers make entries, choose them, and find candidates; what a layer reads is the last one's of those that have run.
struct Plan {
  int layers = 0;
  std::vector<int> ratios;  ///< one a layer
  std::vector<bool> makes, chooses;
  int finder = -1;  ///< of candidates

  int last(int layer, const std::function<bool(int)>& holds) const {
    while (layer >= 0 && !holds(layer)) --layer;
    return layer;
  }
  int maker(int layer) const {
    return last(layer, [&](int i) { return makes[i]; });
  }
  int key_maker(int layer) const {
    return last(layer, [&](int i) { return makes[i] && chooses[i]; });
  }
  int chooser(int layer) const {
    return last(layer, [&](int i) { return bool(chooses[i]); });
  }
  bool chooses_behind(int layer) const {
    return std::any_of(chooses.begin() + layer + 1, chooses.end(), [](bool one) { return one; });
  }
  /// Whether a later layer reads what this one chooses.
  bool is_read(int layer) const {
    for (int i = layer + 1; i < layers && !chooses[i]; ++i)
      if (ratios[i] > 0) return true;
    return false;
  }
};

std::vector<bool> listed(const Config& config, const char* key, const Plan& plan) {
  std::vector<bool> all(plan.layers, false);
  for (const int layer : config.has(key) ? config.counts(key) : std::vector<int>{}) {
    if (layer < 0 || layer >= plan.layers) continue;  // as by mlx_lm
    if (plan.ratios[layer] == 0)
      fail("model", "config.json: \"{}\" lists layer {}, for which \"compress_ratios\" has none; {}", config.place(key), layer, kMend);
    all[layer] = true;
  }
  return all;
}

Plan read_plan(const Config& config, int layers) {
  Plan plan;
  plan.layers = layers;
  const char* key = "compress_ratios";
  if (config.has(key)) plan.ratios = config.counts(key);
  plan.ratios.resize(layers, 0);
  for (const int ratio : plan.ratios)
    if (ratio < 0) fail("model", "config.json: \"{}\" has {}, where tokens are counted; {}", config.place(key), ratio, kMend);
  plan.makes = listed(config, "kv_source_layer_ids", plan);
  plan.chooses = listed(config, "index_source_layer_ids", plan);
  const int finder = config.has("candidate_source_layer_id") ? config.count("candidate_source_layer_id", std::numeric_limits<int>::min()) : -1;
  if (finder >= 0 && finder < layers && plan.chooses[finder]) plan.finder = finder;
  // What is chosen are numbers of entries, which must be those that are read; mlx_lm does not see to it.
  for (int i = 0; i < layers; ++i) {
    if (plan.ratios[i] == 0) continue;
    const int maker = plan.maker(i), chooser = plan.chooser(i), keys = plan.key_maker(i);
    if (plan.chooses[i] && keys < 0)
      fail("model", "config.json: layer {} chooses compressed entries, and none before it makes keys for that; {}", i, kMend);
    if (chooser < 0 || maker < 0) continue;
    for (const int other : {chooser, plan.key_maker(chooser), plan.chooses[i] && plan.finder >= 0 && plan.finder < i ? plan.finder : maker})
      if (other >= 0 && plan.ratios[other] != plan.ratios[maker])
        fail("model", "config.json: \"{}\" differs between layers {} and {}, of which one chooses among what the other makes; {}", config.place(key),
             maker, other, kMend);
  }
  return plan;
}

RopeSpec turning(const Config& config, int rotated, bool compressed) {
  if (!compressed) return make_rope(rotated, config.number("rope_theta"), true, nullptr, 0);
  nlohmann::json scaling{{"type", "yarn"}, {"factor", 1.0}, {"mscale", 0.0}, {"mscale_all_dim", 0.0}};
  scaling["original_max_position_embeddings"] = config.count("max_position_embeddings");
  if (config.has("rope_scaling")) {
    const auto given = config.child("rope_scaling");
    for (const char* key : {"factor", "original_max_position_embeddings"})
      if (given.has(key)) scaling[key] = given.number(key);
    // mlx_lm takes whole numbers of turns.
    for (const char* key : {"beta_fast", "beta_slow"})
      if (given.has(key)) scaling[key] = std::trunc(given.number(key));
  }
  return make_rope(rotated, config.number("compress_rope_theta"), true, scaling, 0);
}

/// Names of a layer's tensors in the published files, and here.
void name_as_published(const std::string& prefix, Imports& imports) {
  const std::pair<const char*, const char*> names[] = {
      {"input_layernorm", "attn_norm"},
      {"post_attention_layernorm", "ffn_norm"},
      {"attn_hc.fn", "hc_attn_fn"},
      {"attn_hc.base", "hc_attn_base"},
      {"attn_hc.scale", "hc_attn_scale"},
      {"ffn_hc.fn", "hc_ffn_fn"},
      {"ffn_hc.base", "hc_ffn_base"},
      {"ffn_hc.scale", "hc_ffn_scale"},
      {"self_attn.sinks", "attn.attn_sink"},
      {"self_attn.q_a_proj", "attn.wq_a"},
      {"self_attn.q_a_norm", "attn.q_norm"},
      {"self_attn.q_b_proj", "attn.wq_b"},
      {"self_attn.kv_proj", "attn.wkv"},
      {"self_attn.kv_norm", "attn.kv_norm"},
      {"self_attn.o_b_proj", "attn.wo_b"},
      {"self_attn.compressor.kv_proj", "attn.compressor.wkv"},
      {"self_attn.compressor.gate_proj", "attn.compressor.wgate"},
      {"self_attn.compressor.kv_norm", "attn.compressor.norm"},
      {"self_attn.indexer.q_b_proj", "attn.indexer.wq_b"},
      {"self_attn.indexer.weights_proj", "attn.indexer.weights_proj"},
      {"self_attn.indexer.k_proj", "attn.indexer.wk"},
      {"self_attn.indexer.k_norm", "attn.indexer.k_norm"},
      {"mlp.gate.e_score_correction_bias", "ffn.gate.bias"},
      {"mlp.gate", "ffn.gate"},
      {"mlp.shared_experts.gate_proj", "ffn.shared_experts.w1"},
      {"mlp.shared_experts.down_proj", "ffn.shared_experts.w2"},
      {"mlp.shared_experts.up_proj", "ffn.shared_experts.w3"},
  };
  for (const auto& [ours, theirs] : names) imports.rows.push_back({prefix + ours, {prefix + theirs}});
}

/// The model's fields, and ops of one layer.
struct Builder {
  const Config& config;
  const Decoder& decoder;
  Plan plan;
  HyperColumns streams;
  CompressedColumns columns = {};  ///< within a sub-layer
  int room = 0;                    ///< of what blocks carry

  Builder(const Config& config, const Decoder& decoder)
      : config(config), decoder(decoder), plan(read_plan(config, decoder.layers)), streams{config.count("hc_mult"), decoder.hidden} {
    const bool finds = plan.finder >= 0 && plan.chooses_behind(plan.finder) && config.count("candidate_topk_blocks", 0) > 0;
    const auto place = [&](Columns& own, bool used, int width) {
      own = {decoder.hidden + streams.others() + room, width};
      if (used) room += width;
    };
    const bool makes = plan.maker(decoder.layers - 1) >= 0, chooses = plan.chooser(decoder.layers - 1) >= 0;
    place(columns.entries, makes, decoder.head_dim);
    place(columns.keys, plan.key_maker(decoder.layers - 1) >= 0, config.count("index_head_dim"));
    place(columns.choice, chooses, choice_columns(config.count("index_topk")));
    place(columns.candidates, finds, candidate_columns(config.count("candidate_topk_blocks", 0)));
    if (!finds) plan.finder = -1;
  }

  HyperConnection connection(const std::string& path) const {
    const int n = streams.streams, made = (2 + n) * n;
    HyperConnection own;
    own.columns = streams;
    own.rounds = config.count("hc_sinkhorn_iters", 0);
    own.eps = static_cast<float>(config.number("hc_eps"));
    own.norm_eps = decoder.eps;
    own.fn = {path + ".fn", {made, n * decoder.hidden}, true};
    own.base = {path + ".base", {made}, true};
    own.scale = {path + ".scale", {3}, true};
    return own;
  }

  EntryIndexer indexer(int layer, const std::string& path, int q_rank) const {
    EntryIndexer own;
    own.heads = config.count("index_n_heads");
    own.dim = config.count("index_head_dim");
    own.top_k = config.count("index_topk");
    const auto linear = [&](const char* name, int out, int in) {
      auto one = block_linear(layer, path + name, Role::other, out, in);
      one.only_chooses = true;
      return one;
    };
    own.q_b = linear("q_b_proj", own.heads * own.dim, q_rank);
    own.weights = linear("weights_proj", own.heads, decoder.hidden);
    if (plan.makes[layer]) {
      own.k = linear("k_proj", own.dim, decoder.head_dim);
      own.k_norm = rms_norm_over(path + "k_norm", own.dim, decoder.eps);
    }
    own.block = config.count("candidate_block_size");
    if (layer == plan.finder) own.top_blocks = config.count("candidate_topk_blocks");
    own.narrowed = plan.finder >= 0 && layer > plan.finder;
    own.gives = plan.is_read(layer) || own.top_blocks > 0;
    return own;
  }

  Compressor compressor(int layer, const std::string& path) const {
    const auto linear = [&](const char* name, Role role) {
      auto one = block_linear(layer, path + name, role, decoder.head_dim, decoder.hidden);
      one.keeps_dtype = true;
      return one;
    };
    Compressor own{linear("kv_proj", Role::kv), std::nullopt, rms_norm_over(path + "kv_norm", decoder.head_dim, decoder.eps)};
    own.norm.keeps_dtype = true;
    if (plan.ratios[layer] > 1) own.gate = linear("gate_proj", Role::other);
    return own;
  }

  CompressedAttention attention(const Layer& layer, Imports& imports) const {
    const int i = layer.index, H = decoder.hidden, ratio = plan.ratios[i], q_rank = config.count("q_lora_rank"), rank = config.count("o_lora_rank");
    const auto at = layer.prefix + "self_attn.";
    const auto linear = [&](const char* name, Role role, int out, int in) { return block_linear(i, at + name, role, out, in); };
    const auto norm = [&](const char* name, int size) { return rms_norm_over(at + name, size, decoder.eps); };
    CompressedAttention op;
    op.heads = decoder.heads, op.head_dim = decoder.head_dim;
    op.rotated = config.count("qk_rope_head_dim");
    op.window = config.count("sliding_window");
    op.groups = config.count("o_groups");
    op.rope = turning(config, op.rotated, ratio > 0);
    op.q_a = linear("q_a_proj", Role::other, q_rank, H);
    op.q_a_norm = norm("q_a_norm", q_rank);
    op.q_b = linear("q_b_proj", Role::q, op.heads * op.head_dim, q_rank);
    op.kv = linear("kv_proj", Role::kv, op.head_dim, H);
    op.kv_norm = norm("kv_norm", op.head_dim);
    op.sinks = {at + "sinks", {op.heads}, true};
    op.o_a = linear("o_a_proj", Role::other, rank, op.heads * op.head_dim / op.groups);
    op.o_a.experts = op.o_a.top_k = op.groups;
    op.o_a.stack = LinearSpec::Stack::sliced;
    op.o_b = linear("o_b_proj", Role::o, H, op.groups * rank);
    imports.rows.push_back(
        {op.o_a.path + ".weight", {layer.prefix + "attn.wo_a.weight"}, {{.kind = Change::Kind::reshape, .shape = {op.groups, rank, op.o_a.in}}}});
    op.columns = columns;
    if (ratio == 0) return op;
    if (plan.makes[i]) op.compressor = compressor(i, at + "compressor.");
    if (plan.chooses[i]) op.indexer = indexer(i, at + "indexer.", q_rank);
    if (plan.maker(i) < 0 || plan.chooser(i) < 0) {  // nothing to read, or nobody who says what
      op.ratio = plan.makes[i] ? ratio : 0;
      return op;
    }
    op.entries_of = plan.maker(i), op.keys_of = plan.key_maker(i);
    op.ratio = plan.ratios[op.entries_of];
    return op;
  }

  /// The first column of what the layer gives to later ones; −1: nothing.
  int gives(const CompressedAttention& op) const {
    if (op.compressor) return op.columns.entries.first;
    return op.indexer && op.indexer->gives ? op.columns.choice.first : -1;
  }

  std::pair<Experts, GatedMlp> mixture(const Layer& layer, Imports& imports) const {
    auto sizes = Mixture::read(config, "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size");
    sizes.stacks = "mlp.experts.switch_mlp.", sizes.singles = "ffn.experts.";
    sizes.single_gate = "w1", sizes.single_down = "w2", sizes.single_up = "w3";
    auto experts = experts_of(layer, decoder.hidden, sizes, "mlp.gate", imports);
    auto& router = experts.router;
    router.linear.dense_why = kBareRouter;
    const auto score = config.text("scoring_func");
    router.score = score == "sigmoid" ? Router::Score::sigmoid : score == "softmax" ? Router::Score::softmax : Router::Score::sqrt_softplus;
    router.temperature = static_cast<float>(config.number("gate_temp"));
    router.f32 = router.f32_product = true;
    router.correction = correction_at(layer.prefix + "mlp.gate.e_score_correction_bias", sizes.experts);
    router.normalize = config.flag("norm_topk_prob") && sizes.top_k > 1;
    router.epsilon = 1e-20f;
    router.factor = static_cast<float>(config.number("routed_scaling_factor"));
    auto shared = gated_mlp(layer, "mlp.shared_experts.", decoder.hidden, sizes.width);
    if (const auto limit = static_cast<float>(config.number("swiglu_limit")); limit > 0)
      experts.clamp = shared.clamp = kernels::ClampedGate{.limit = limit};
    return {std::move(experts), std::move(shared)};
  }

  BlockSpec block(const Layer& layer, Imports& imports) const {
    const auto op = [](auto own) { return std::make_shared<const decltype(own)>(std::move(own)); };
    const auto alone = [](std::shared_ptr<const Op> one) { return Step{.branches = {{.op = std::move(one)}}, .replaces = true}; };
    HyperEnter attention_enter, mlp_enter;
    attention_enter.connection = connection(layer.prefix + "attn_hc");
    mlp_enter.connection = connection(layer.prefix + "ffn_hc");
    HyperLeave leave;
    leave.columns = streams;
    const auto own = attention(layer, imports);
    const auto [experts, shared] = mixture(layer, imports);
    name_as_published(layer.prefix, imports);
    BlockSpec block;
    const Columns x{0, decoder.hidden};
    Branch attends{.before = layer.attention_norm, .op = op(own)};
    attends.gives = gives(own);
    block.steps = {alone(op(attention_enter)),
                   {.branches = {attends}, .columns = x, .instead = true},
                   alone(op(leave)),
                   alone(op(mlp_enter)),
                   {.before = layer.mlp_norm, .branches = {{.op = op(experts)}, {.op = op(shared)}}, .columns = x, .instead = true},
                   alone(op(leave))};
    return block;
  }
};

nlohmann::json defaults() {
  return {{"vocab_size", 129280},
          {"hidden_size", 5120},
          {"num_hidden_layers", 40},
          {"num_attention_heads", 64},
          {"head_dim", 512},
          {"q_lora_rank", 1280},
          {"qk_rope_head_dim", 64},
          {"o_groups", 8},
          {"o_lora_rank", 1024},
          {"moe_intermediate_size", 2304},
          {"n_routed_experts", 384},
          {"num_experts_per_tok", 6},
          {"scoring_func", "sqrtsoftplus"},
          {"gate_temp", 1.0},
          {"norm_topk_prob", true},
          {"routed_scaling_factor", 1.5},
          {"swiglu_limit", 10.0},
          {"rms_norm_eps", 1e-20},
          {"sliding_window", 128},
          {"compress_rope_theta", 160000.0},
          {"candidate_topk_blocks", 2048},
          {"candidate_block_size", 8},
          {"index_n_heads", 32},
          {"index_head_dim", 128},
          {"index_topk", 512},
          {"rope_theta", 10000.0},
          {"max_position_embeddings", 1048576},
          {"hc_mult", 4},
          {"hc_sinkhorn_iters", 20},
          {"hc_eps", 1e-6}};
}

void refuse(const Config& config, const Decoder& decoder) {
  if (config.has("engram_layer_ids") && !config.counts("engram_layer_ids").empty())
    fail("model", "config.json: \"{}\" names layers with a memory of n-grams, which mlx_lm 0.32.2 does not run; nor does lquant",
         config.place("engram_layer_ids"));
  if (config.number("gate_temp") == 0) fail("model", "config.json: \"{}\" is 0, and logits are divided by it; {}", config.place("gate_temp"), kMend);
  const int rotated = config.count("qk_rope_head_dim"), groups = config.count("o_groups");
  for (const char* key : {"head_dim", "index_head_dim"})
    if (config.count(key) < rotated)
      fail("model", "config.json: \"{}\" {} is less than \"qk_rope_head_dim\" {}; {}", config.place(key), config.count(key), rotated, kMend);
  if (decoder.heads * decoder.head_dim % groups != 0)
    fail("model", "config.json: {} heads of {} features cannot be cut into \"{}\" {} groups; {}", decoder.heads, decoder.head_dim,
         config.place("o_groups"), groups, kMend);
  // Indices of columns are ints.
  const auto widest = std::int64_t{config.count("hc_mult")} * decoder.hidden + 3LL * config.count("index_topk") +
                      2LL * config.count("candidate_topk_blocks", 0) + 64LL * config.count("hc_mult") * config.count("hc_mult");
  if (widest > std::numeric_limits<int>::max() / 64) fail("model", "config.json: {} numbers a token between two layers are too many", widest);
}

}  // namespace

ModelSpec deepseek_v41(const Config& given) {
  const bool inside = given.has("text_config");
  const auto config = (inside ? given.child("text_config") : given).filled(defaults());
  auto decoder = Decoder::read(config, {.intermediate = nullptr, .kv_heads = nullptr});
  decoder.tied = false;
  refuse(config, decoder);
  const Builder builder(config, decoder);
  auto spec = decoder.outer("deepseek_v41");
  if (inside) spec.text_config = "text_config";
  spec.streams = builder.streams.streams;
  Imports imports;
  for (int i = 0; i < decoder.layers; ++i) spec.blocks.push_back(builder.block(decoder.layer(i, std::nullopt), imports));

  HyperSplit split;
  split.columns = builder.streams, split.room = builder.room;
  HyperMerge merge;
  merge.columns = builder.streams;
  spec.front = BlockSpec{};
  spec.front->steps = {{.branches = {{.op = std::make_shared<const HyperSplit>(split)}}, .replaces = true}};
  spec.tail = BlockSpec{};
  spec.tail->steps = {{.branches = {{.op = std::make_shared<const HyperMerge>(merge)}}, .replaces = true}};

  imports.rows.push_back({spec.embedding.path, {"embed"}});
  imports.rows.push_back({spec.head->path, {"head"}});
  imports.renames = {{"model.layers.", "layers."}, {"model.norm.", "norm."}};
  spec.imports = std::move(imports);
  const char* sees = "what reads pictures, which mlx_lm does not run";
  for (const char* pattern : {"vision.*", "aligner.*", "image_*"}) spec.left_out.push_back({pattern, sees});
  spec.left_out.push_back({"*.gate.bias_vl", "corrections of the choice of experts for tokens of pictures"});
  spec.left_out.push_back({"*.engram.*", "memory of n-grams, which config.json does not ask for"});
  return spec;
}

}  // namespace lquant::model::family
