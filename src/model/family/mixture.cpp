#include "model/family/mixture.h"

#include <algorithm>

#include "base/error.h"
#include "base/shown.h"

namespace lquant::model::family {

Mixture Mixture::read(const Config& config, const char* experts, const char* top_k, const char* width) {
  Mixture mixture;
  mixture.experts = config.count(experts);
  mixture.top_k = config.count(top_k);
  if (width) mixture.width = config.count(width);
  if (mixture.top_k > mixture.experts)
    fail("model", "config.json: \"{}\" {} exceeds \"{}\" {}", config.place(top_k), mixture.top_k, config.place(experts), mixture.experts);
  return mixture;
}

void Mixture::name_as_mixtral() {
  stacks = "block_sparse_moe.switch_mlp.", singles = "block_sparse_moe.experts.";
  single_gate = "w1", single_down = "w2", single_up = "w3";
}

std::function<bool(int layer)> layers_with_experts(const Config& config) {
  const int step = config.count("decoder_sparse_step");
  return [step, dense = config.counts("mlp_only_layers")](int layer) {
    return (layer + 1) % step == 0 && std::find(dense.begin(), dense.end(), layer) == dense.end();
  };
}

ParameterSpec correction_at(const std::string& path, int experts) { return {.path = path, .shape = {experts}, .keeps_dtype = true}; }

Router::Groups read_groups(const Config& config, int experts, bool by_two) {
  Router::Groups groups;
  groups.count = config.count_or("n_group", 1), groups.kept = config.count_or("topk_group", 1), groups.by_two = by_two;
  if (groups.count == 1) return {};
  if (groups.kept > groups.count || experts % groups.count != 0 || (by_two && groups.count > groups.kept && experts < 2 * groups.count))
    fail("model", "config.json: of {} experts no {} of {} groups{} can be made (\"topk_group\", \"n_group\"); {}", experts, groups.kept, groups.count,
         by_two ? " of two and more" : "", kMend);
  return groups;
}

void read_corrected_sigmoids(const Config& config, const std::string& correction, Router& router) {
  router.score = Router::Score::sigmoid;
  router.f32 = true;
  router.correction = correction_at(correction, router.experts);
  router.normalize = config.flag("norm_topk_prob") && router.top_k > 1;
  router.factor = static_cast<float>(config.number("routed_scaling_factor"));
  router.groups = read_groups(config, router.experts);
}

Experts experts_of(const Layer& layer, int hidden, const Mixture& mixture, const std::string& router, Imports& imports) {
  const auto stack = [&](const std::string& name, const std::string& single, Role role, int out, int in) {
    auto linear = block_linear(layer.index, layer.prefix + mixture.stacks + name, role, out, in, mixture.bias);
    linear.experts = mixture.experts;
    linear.top_k = mixture.top_k;
    if (mixture.singles.empty()) return linear;
    Import row{linear.path, {}, {{Change::Kind::stack}}};
    row.apart = mixture.apart;
    for (int e = 0; e < mixture.experts; ++e)
      row.sources.push_back(layer.prefix + mixture.singles + std::to_string(e) + "." + (single.empty() ? name : single));
    imports.rows.push_back(std::move(row));
    return linear;
  };
  Experts op;
  op.router.experts = mixture.experts;
  op.router.top_k = mixture.top_k;
  op.router.linear = block_linear(layer.index, layer.prefix + router, Role::router, mixture.experts, hidden);
  if (!mixture.gate.empty()) op.gate = stack(mixture.gate, mixture.single_gate, Role::expert_gate, mixture.width, hidden);
  op.up = stack(mixture.up, mixture.single_up, Role::expert_up, mixture.width, hidden);
  op.down = stack(mixture.down, mixture.single_down, Role::expert_down, hidden, mixture.width);
  return op;
}

void require_noaux(const Config& config) {
  if (const auto method = config.value("topk_method"); !method.is_null() && method != "noaux_tc")
    fail("model", "config.json: \"{}\" is {}, and mlx_lm knows noaux_tc alone here; {}", config.place("topk_method"), shown_json(method), kMend);
}

void leave_out_layers(ModelSpec& spec, const Decoder& decoder, int count) {
  for (int i = 0; i < count; ++i)
    spec.left_out.push_back({decoder.prefix + decoder.names.layers + std::to_string(decoder.layers + i) + ".*", kNotRun});
}

void fused_experts(const Experts& op, const std::string& gate_up, const std::string& down, bool transposed, Imports& imports) {
  int first = 0;
  for (const auto* linear : {&*op.gate, &op.up}) {
    Import row{
        linear->path + ".weight", {gate_up}, {{.kind = Change::Kind::slice, .axis = transposed ? -1 : -2, .first = first, .count = linear->out}}};
    if (transposed) row.changes.push_back({Change::Kind::transpose});
    imports.rows.push_back(std::move(row));
    first += linear->out;
  }
  Import row{op.down.path + ".weight", {down}};
  if (transposed) row.changes.push_back({Change::Kind::transpose});
  imports.rows.push_back(std::move(row));
}

GatedMlp gated_mlp(const Layer& layer, const std::string& path, int hidden, int width, bool bias) {
  const auto linear = [&](const char* name, Role role, int out, int in) {
    return block_linear(layer.index, layer.prefix + path + name, role, out, in, bias);
  };
  GatedMlp mlp;
  mlp.inputs = {linear("gate_proj", Role::gate, width, hidden), linear("up_proj", Role::up, width, hidden)};
  mlp.down = linear("down_proj", Role::down, hidden, width);
  return mlp;
}

}  // namespace lquant::model::family
