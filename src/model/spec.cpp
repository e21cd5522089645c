// What follows from a spec alone: the order of its linears and the scale edges between them.
#include "model/spec.h"

#include <algorithm>
#include <stdexcept>

#include "model/block.h"
#include "model/op.h"

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
    case Role::kv:
      return "kv";
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
    case Role::other:
      return "other";
    case Role::embed:
      return "embed";
    case Role::head:
      return "head";
  }
  throw std::invalid_argument("[model] no such role");
}

std::int64_t ParameterSpec::parameters() const {
  std::int64_t n = 1;
  for (const auto length : shape) n *= length;
  return n;
}

Contents BlockSpec::contents() const {
  Contents all;
  int op = 0;
  for (int s = 0; s < static_cast<int>(steps.size()); ++s) {
    const auto& step = steps[s];
    const int first = first_stage(*this, s);
    if (step.before) all.norms.push_back(&*step.before);
    for (const auto& branch : step.branches) {
      if (branch.before) all.norms.push_back(&*branch.before);
      branch.op->contents(op++, first, all);
      if (branch.after) all.norms.push_back(&*branch.after);
    }
    if (step.after) all.norms.push_back(&*step.after);
    if (step.factors)
      for (const auto* parameter : {&step.factors->of_residual, &step.factors->of_branches}) all.parameters.push_back(parameter);
  }
  // Stage by stage, as they are applied; within one in the order of the branches.
  std::stable_sort(all.readings.begin(), all.readings.end(), [](const auto& a, const auto& b) { return a.stage < b.stage; });
  if (scalar) all.parameters.push_back(&*scalar);
  return all;
}

std::vector<const LinearSpec*> BlockSpec::linears() const {
  std::vector<const LinearSpec*> all;
  for (const auto& reading : contents().readings) all.push_back(reading.linear);
  return all;
}

std::vector<const NormSpec*> BlockSpec::norms() const { return contents().norms; }

std::vector<const ParameterSpec*> BlockSpec::parameters() const { return contents().parameters; }

std::vector<Visit> ModelSpec::visits() const {
  std::vector<Visit> all;
  for (int pass = 0; pass < passes; ++pass)
    for (int i = 0; i < static_cast<int>(blocks.size()); ++i) all.emplace_back(i, pass);
  return all;
}

std::vector<const LinearSpec*> ModelSpec::linears() const {
  std::vector<const LinearSpec*> all = {&embedding};
  for (const auto* linear : front_linears()) all.push_back(linear);
  for (const auto& block : blocks)
    for (const auto* linear : block.linears()) all.push_back(linear);
  for (const auto* linear : tail_linears()) all.push_back(linear);
  if (head) all.push_back(&*head);
  return all;
}

std::vector<const LinearSpec*> ModelSpec::front_linears() const {
  std::vector<const LinearSpec*> all;
  if (position_embedding) all.push_back(&*position_embedding);
  if (front)
    for (const auto* linear : front->linears()) all.push_back(linear);
  return all;
}

std::vector<const LinearSpec*> ModelSpec::tail_linears() const { return tail ? tail->linears() : std::vector<const LinearSpec*>{}; }

std::vector<const NormSpec*> ModelSpec::outer_norms() const {
  std::vector<const NormSpec*> all;
  if (embedding_norm) all.push_back(&*embedding_norm);
  if (front)
    for (const auto* norm : front->norms()) all.push_back(norm);
  if (tail)
    for (const auto* norm : tail->norms()) all.push_back(norm);
  all.push_back(&final_norm);
  return all;
}

std::vector<std::vector<const LinearSpec*>> ModelSpec::shared_inputs() const {
  // What stands outside the blocks goes with the embedding.
  std::vector<std::vector<const LinearSpec*>> groups = {{&embedding}};
  for (const auto* linear : front_linears()) groups.front().push_back(linear);
  for (const auto* linear : tail_linears()) groups.front().push_back(linear);
  for (const auto& block : blocks) {
    std::optional<Reading> last;
    for (const auto& reading : block.contents().readings) {
      // Experts read rows of what their router reads.
      const bool same = last && last->op == reading.op && last->stage == reading.stage && last->input == reading.input &&
                        last->linear->experts == reading.linear->experts;
      if (!same) groups.emplace_back();
      groups.back().push_back(reading.linear);
      last = reading;
    }
  }
  if (head) groups.push_back({&*head});
  return groups;
}

namespace {

std::optional<Edge> norm_edge(const std::optional<NormSpec>& norm, std::vector<std::string> consumers) {
  // Of a norm without weight nothing can be divided, and what is weighed before it is normed keeps no scale; a weight a head is not one a channel.
  if (!norm || !norm->weight || norm->weighs_input || norm->rows > 0 || norm->pieces > 0 || norm->suffix != ".weight" || consumers.empty())
    return std::nullopt;
  Edge edge;
  edge.producer = norm->path;
  edge.norm = norm;
  edge.consumers = std::move(consumers);
  edge.channels = edge.head_dim = norm->size;
  return edge;
}

/// A norm that several branches read; one of them may use it in a way that no scale passes.
std::optional<Edge> shared_edge(const Step& step) {
  std::vector<std::string> all;
  for (const auto& branch : step.branches) {
    if (branch.before) continue;
    const auto own = branch.op->readers();
    if (own.empty()) return std::nullopt;
    all.insert(all.end(), own.begin(), own.end());
  }
  return norm_edge(step.before, std::move(all));
}

}  // namespace

std::vector<Edge> ModelSpec::edges_of(int i) const {
  std::vector<Edge> all;
  const auto& steps = blocks[i].steps;
  const auto add = [&](int step, Edge edge) {
    edge.block = i;
    edge.step = step;
    all.push_back(std::move(edge));
  };
  for (int s = 0; s < static_cast<int>(steps.size()); ++s) {
    if (auto edge = shared_edge(steps[s])) add(s, std::move(*edge));
    for (const auto& branch : steps[s].branches) {
      if (auto edge = norm_edge(branch.before, branch.op->readers())) add(s, std::move(*edge));
      for (auto& edge : branch.op->edges()) add(s, std::move(edge));
    }
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
