// What follows from a spec alone: the order of its linears and the scale edges between them.
#include "model/spec.h"

#include <stdexcept>

namespace lquant::model {

std::string_view to_string(Role role) {
  switch (role) {
    case Role::q:
      return "q";
    case Role::k:
      return "k";
    case Role::v:
      return "v";
    case Role::qkv:
      return "qkv";
    case Role::o:
      return "o";
    case Role::gate:
      return "gate";
    case Role::up:
      return "up";
    case Role::gate_up:
      return "gate_up";
    case Role::down:
      return "down";
    case Role::router:
      return "router";
    case Role::expert_gate:
      return "expert_gate";
    case Role::expert_up:
      return "expert_up";
    case Role::expert_down:
      return "expert_down";
    case Role::embed:
      return "embed";
    case Role::head:
      return "head";
  }
  throw std::invalid_argument("[model] no such role");
}

std::vector<const LinearSpec*> BlockSpec::linears() const {
  std::vector<const LinearSpec*> all;
  for (const auto& linear : attention.inputs) all.push_back(&linear);
  all.push_back(&attention.output);
  if (const auto* dense = std::get_if<DenseMlp>(&mlp)) {
    for (const auto& linear : dense->inputs) all.push_back(&linear);
    all.push_back(&dense->down);
  } else {
    const auto& experts = std::get<ExpertMlp>(mlp);
    for (const auto* linear : {&experts.router, &experts.gate, &experts.up, &experts.down}) all.push_back(linear);
  }
  return all;
}

std::vector<const NormSpec*> BlockSpec::norms() const {
  std::vector<const NormSpec*> all = {&attention_norm, &mlp_norm};
  for (const auto* norm : {&attention.q_norm, &attention.k_norm, &attention_post_norm, &mlp_post_norm})
    if (*norm) all.push_back(&**norm);
  return all;
}

std::vector<const LinearSpec*> ModelSpec::linears() const {
  std::vector<const LinearSpec*> all = {&embedding};
  for (const auto& block : blocks)
    for (const auto* linear : block.linears()) all.push_back(linear);
  if (head) all.push_back(&*head);
  return all;
}

namespace {

Edge norm_edge(int block, const NormSpec& norm, std::vector<std::string> consumers) {
  Edge edge;
  edge.block = block;
  edge.producer = norm.path;
  edge.producer_is_norm = true;
  edge.norm_offset = norm.offset;
  edge.consumers = std::move(consumers);
  edge.channels = edge.head_dim = norm.size;
  return edge;
}

Edge value_edge(int block, const AttentionSpec& attention) {
  const bool fused = attention.inputs.size() == 1;
  Edge edge;
  edge.block = block;
  edge.producer = attention.inputs.back().path;
  edge.consumers = {attention.output.path};
  edge.channels = attention.kv_heads * attention.head_dim;
  edge.first_row = fused ? (attention.heads + attention.kv_heads) * attention.head_dim : 0;
  edge.head_dim = attention.head_dim;
  edge.repeats = attention.heads / attention.kv_heads;
  return edge;
}

Edge gated_edge(int block, const LinearSpec& up, const LinearSpec& down, bool fused) {
  Edge edge;
  edge.block = block;
  edge.producer = up.path;
  edge.consumers = {down.path};
  edge.channels = edge.head_dim = down.in;
  edge.first_row = fused ? down.in : 0;  // the gate's rows come first and pass the activation, which no scale commutes with
  edge.experts = down.experts;
  return edge;
}

std::vector<std::string> paths(const std::vector<LinearSpec>& linears) {
  std::vector<std::string> all;
  for (const auto& linear : linears) all.push_back(linear.path);
  return all;
}

}  // namespace

std::vector<Edge> ModelSpec::edges_of(int i) const {
  std::vector<Edge> all;
  const auto& block = blocks[i];
  all.push_back(norm_edge(i, block.attention_norm, paths(block.attention.inputs)));
  all.push_back(value_edge(i, block.attention));
  if (const auto* dense = std::get_if<DenseMlp>(&block.mlp)) {
    all.push_back(norm_edge(i, block.mlp_norm, paths(dense->inputs)));
    all.push_back(gated_edge(i, dense->inputs.back(), dense->down, dense->inputs.size() == 1));
  } else {
    const auto& experts = std::get<ExpertMlp>(block.mlp);
    all.push_back(norm_edge(i, block.mlp_norm, {experts.router.path, experts.gate.path, experts.up.path}));
    all.push_back(gated_edge(i, experts.up, experts.down, false));
  }
  return all;
}

std::vector<Edge> ModelSpec::edges() const {
  std::vector<Edge> all;
  for (int i = 0; i < static_cast<int>(blocks.size()); ++i)
    for (auto& edge : edges_of(i)) all.push_back(std::move(edge));
  return all;
}

}  // namespace lquant::model
