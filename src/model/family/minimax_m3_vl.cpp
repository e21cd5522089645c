// MiniMax-M3: attention that reads, in some layers, the blocks of keys that an indexer has chosen; mixtures with DeepSeek-V3's corrected sigmoids
// beside an expert that every token meets, all with gpt-oss's gates between limits; norms of 1 + w. A tower and two projectors stand before it.
#include <algorithm>

#include "base/error.h"
#include "model/family/family.h"
#include "model/family/mixture.h"
#include "model/family/wrapper.h"

namespace lquant::model::family {
namespace {

/// Which layers are of a kind, as lists tell that may be longer than the model: `names` says it by another word than `other`, or else `numbers` by 1;
/// without both all are.
std::vector<bool> listed(const Config& config, const char* names, const std::string& other, const Config& of_numbers, const char* numbers,
                         int layers) {
  std::vector<bool> all(layers, true);
  const auto fill = [&](const Config& from, const char* key, const auto& values, const auto& is) {
    if (static_cast<int>(values.size()) < layers)
      fail("model", "config.json: \"{}\" has {} entries where the model has {} layers", from.place(key), values.size(), layers);
    std::transform(values.begin(), values.begin() + layers, all.begin(), is);
  };
  if (config.has(names))
    fill(config, names, config.texts(names, 0), [&](const std::string& kind) { return kind != other; });
  else if (of_numbers.has(numbers))
    fill(of_numbers, numbers, of_numbers.counts(numbers), [](int number) { return number != 0; });
  return all;
}

/// What positions are made of: nested in the words of transformers 5, or flat.
struct Positions {
  double base = 0;
  int turning = 0;  ///< features of a head
  nlohmann::json scaling;
  int most = 0;

  static Positions read(const Config& config, int head_dim) {
    Positions all;
    all.scaling = rope_scaling(config, "rope_parameters");
    const auto nested = all.scaling.is_object() ? config.child("rope_parameters") : Config(nlohmann::json::object());
    all.base = nested.has("rope_theta") ? nested.number("rope_theta") : config.number("rope_theta");
    all.turning = config.has("rotary_dim")              ? config.count("rotary_dim")
                  : nested.has("partial_rotary_factor") ? rotated_features(nested, head_dim, std::nullopt)
                                                        : rotated_features(config, head_dim, 0.5);
    all.most = config.count("max_position_embeddings");
    return all;
  }
  RopeSpec rope(int head_dim) const { return make_rope(std::min(turning, head_dim), base, false, scaling, most); }
};

/// The indexer without its linears and norms, and the layers that have one. Its sizes are nested in published files.
struct Indexers {
  BlockIndexer sizes;
  std::vector<bool> at;

  static Indexers read(const Config& config, const Decoder& decoder, const Positions& positions) {
    const char* key = "sparse_attention_config";
    const auto nested = config.truthy(key, false) ? config.child(key) : Config(nlohmann::json::object());
    Indexers all;
    all.at.assign(decoder.layers, false);
    const auto count = [&](const char* inner, const char* flat, int least = 1) {
      return nested.has(inner) || nested.is_null(inner) ? nested.count(inner, least) : config.count(flat, least);
    };
    if (nested.is_null("sparse_block_size") || !(nested.has("sparse_block_size") || config.has("index_block_size"))) return all;
    auto& sizes = all.sizes;
    sizes.heads = count("sparse_num_index_heads", "index_n_heads");
    sizes.dim = count("sparse_index_dim", "index_head_dim");
    sizes.block = count("sparse_block_size", "index_block_size");
    sizes.top_k = count("sparse_topk_blocks", "index_topk_blocks");
    sizes.local = count("sparse_local_block", "index_local_blocks", 0);
    sizes.rope = positions.rope(sizes.dim);
    if (decoder.heads % sizes.heads != 0)
      fail("model", "config.json: {} heads of the indexer cannot choose for {} of attention; {}", sizes.heads, decoder.heads, kMend);
    const bool inner = nested.has("sparse_attention_freq") || nested.is_null("sparse_attention_freq");
    all.at = listed(config, "layer_types", "full_attention", inner ? nested : config, "sparse_attention_freq", decoder.layers);
    return all;
  }

  void put(Layer& layer, const Decoder& decoder) const {
    if (!at[layer.index]) return;
    const auto path = layer.prefix + "self_attn.index_";
    const auto linear = [&](const char* name, int heads) {
      auto one = block_linear(layer.index, path + name, Role::other, heads * sizes.dim, decoder.hidden);
      one.only_chooses = true;
      return one;
    };
    const auto norm = [&](const char* name) {
      auto one = decoder.norm_at(path + name);
      one.size = sizes.dim;
      return one;
    };
    auto own = sizes;
    own.q = linear("q_proj", own.heads), own.k = linear("k_proj", 1);
    own.q_norm = norm("q_norm"), own.k_norm = norm("k_norm");
    layer.attention.indexer = own;
  }
};

/// Rows for the forms in which checkpoints have experts beside the usual one: gate and up in one, the one that every token meets as the last of the
/// stack.
void other_forms(const Experts& op, const GatedMlp& shared, Imports& imports) {
  const auto before = [](const std::string& path) { return path.substr(0, path.rfind('.') + 1); };
  const auto stacks = before(op.down.path), one = before(shared.down.path);
  const int experts = op.router.experts;
  const Change routed{.kind = Change::Kind::slice, .axis = 0, .first = 0, .count = experts}, last{.kind = Change::Kind::entry, .first = experts};
  const auto row = [&](const std::string& target, const std::string& source, std::vector<Change> changes, bool folded) {
    Import added{target, {source}, std::move(changes)};
    if (folded) added.where = Sign{source + ".weight", 0, experts + 1};
    imports.rows.push_back(std::move(added));
  };
  for (const char* name : {"gate_proj", "up_proj", "down_proj"}) {
    row(stacks + name, stacks + name, {routed}, true);
    row(one + name, stacks + name, {last}, true);
  }
  for (const bool up : {false, true}) {
    const auto name = up ? "up_proj" : "gate_proj";
    const auto half = [&](int width) { return Change{.kind = Change::Kind::slice, .axis = -2, .first = up ? width : 0, .count = width}; };
    const auto both = stacks + "gate_up_proj";
    row(stacks + name, both, {routed, half(op.up.out)}, true);
    row(one + name, both, {last, half(shared.down.in)}, true);
    row(stacks + name, both, {half(op.up.out)}, false);
    row(one + name, one + "gate_up_proj", {half(shared.down.in)}, false);
  }
}

ModelSpec language_model(const Config& given) {
  const auto config = given.filled({{"hidden_size", 6144},
                                    {"intermediate_size", 3072},
                                    {"dense_intermediate_size", 12288},
                                    {"shared_intermediate_size", 3072},
                                    {"num_attention_heads", 64},
                                    {"num_key_value_heads", 4},
                                    {"num_hidden_layers", 60},
                                    {"num_local_experts", 128},
                                    {"num_experts_per_tok", 4},
                                    {"max_position_embeddings", 1048576},
                                    {"rms_norm_eps", 1e-6},
                                    {"rope_theta", 5000000.0},
                                    {"head_dim", 128},
                                    {"vocab_size", 200064},
                                    {"routed_scaling_factor", 2.0},
                                    {"swiglu_alpha", 1.702},
                                    {"swiglu_limit", 7.0},
                                    {"index_local_blocks", 1}});
  auto decoder = Decoder::read(config, {.intermediate = "dense_intermediate_size"});
  decoder.read_tie(config, false);
  decoder.qk_norm = config.flag_or("use_qk_norm", true);
  if (config.flag_or("use_gemma_norm", true)) decoder.norm_offset = 1;
  auto mixture = Mixture::read(config, "num_local_experts", "num_experts_per_tok", "intermediate_size");
  mixture.name_as_mixtral();
  const int shared = config.count("shared_intermediate_size");
  const kernels::ClampedGate clamp{
      .alpha = static_cast<float>(config.number("swiglu_alpha")), .limit = static_cast<float>(config.number("swiglu_limit")), .shift = 1};
  if (!(clamp.limit > 0)) fail("model", "config.json: \"{}\" is {}, not above 0; {}", config.place("swiglu_limit"), clamp.limit, kMend);
  const auto factor = static_cast<float>(config.number("routed_scaling_factor"));
  const auto positions = Positions::read(config, decoder.head_dim);
  const auto indexers = Indexers::read(config, decoder, positions);
  const auto mixed = listed(config, "mlp_layer_types", "dense", config, "moe_layer_freq", decoder.layers);

  Imports imports;
  auto spec = decoder.build("minimax_m3_vl", positions.rope(decoder.head_dim), [&](Layer& layer) {
    indexers.put(layer, decoder);
    const auto block = layer.prefix + "block_sparse_moe.";
    if (!mixed[layer.index]) {
      auto mlp = static_cast<const GatedMlp&>(*layer.mlp);
      mlp.clamp = clamp;
      layer.mlp = std::make_shared<const GatedMlp>(mlp);
      for (const char* name : {"gate_proj", "up_proj", "down_proj"}) imports.rows.push_back({layer.prefix + "mlp." + name, {block + name}});
      return;
    }
    auto mlp = experts_of(layer, decoder.hidden, mixture, "block_sparse_moe.gate", imports);
    mlp.clamp = clamp;
    auto& router = mlp.router;
    router.linear.fixed_format = kRouterFormat;
    router.score = Router::Score::sigmoid;
    router.f32 = router.rounded = router.normalize = true;
    router.correction = correction_at(block + "e_score_correction_bias", mixture.experts);
    router.epsilon = 1e-20f;
    router.factor = factor;
    auto every = gated_mlp(layer, "block_sparse_moe.shared_experts.", decoder.hidden, shared);
    every.clamp = clamp;
    other_forms(mlp, every, imports);
    layer.mlp = std::make_shared<const Experts>(mlp);
    layer.shared = std::make_shared<const GatedMlp>(every);
  });
  spec.imports = std::move(imports);
  return spec;
}

}  // namespace

ModelSpec minimax_m3_vl(const Config& config) {
  auto parts = tower_and_projector();
  parts.push_back({"the projector of merged patches", "patch_merge_mlp.", {"model.patch_merge_mlp."}});
  return wrapped(language_model(text_of(config)), parts);
}

}  // namespace lquant::model::family
