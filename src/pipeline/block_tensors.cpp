#include "pipeline/block_tensors.h"

#include <algorithm>
#include <set>

#include "model/block.h"

namespace lquant::pipeline {
namespace {

/// The tensors of a weight: of one that is packed itself more than one.
std::vector<std::string> names_of(const model::LinearSpec& linear, const model::Model& model) {
  auto names = model::tensor_names(linear, model.formats());
  std::erase(names, linear.path + ".bias");
  return names;
}

}  // namespace

BlockTensors::BlockTensors(const model::Model& model, int block) : model_(model), block_(block) {
  std::set<std::string> read;
  for (const auto* linear : model.spec().blocks[block].linears())
    if (linear->routed())
      for (const auto& name : names_of(*linear, model)) read.insert(name);
  auto names = model.block_names(block);
  std::erase_if(names, [&](const auto& name) { return read.contains(name); });
  stored_ = model::dense_tensors(model, model.load(names, model.stored_dtype()));
  full_ = model.cast(stored_, model.compute_dtype());
}

mx::array BlockTensors::weight(const model::LinearSpec& linear) const {
  if (!linear.routed()) return stored_.at(linear.path + ".weight");
  return model::dense_tensors(model_, model_.load(names_of(linear, model_), model_.stored_dtype())).at(linear.path + ".weight");
}

std::vector<const model::LinearSpec*> BlockTensors::read_before(int stage) const {
  auto linears = model::applied(model_.spec().blocks[block_], stage);
  std::erase_if(linears, [](const auto* linear) { return !linear->routed(); });
  return linears;
}

model::Tensors BlockTensors::full_with(const std::vector<const model::LinearSpec*>& linears) const {
  model::Tensors some;
  for (const auto* linear : linears) some.insert({linear->path + ".weight", weight(*linear)});
  auto tensors = model_.cast(std::move(some), model_.compute_dtype());
  tensors.insert(full_.begin(), full_.end());
  return tensors;
}

model::Tensors BlockTensors::all_stored() const {
  auto tensors = stored_;
  for (const auto* linear : model_.spec().blocks[block_].linears()) tensors.insert({linear->path + ".weight", weight(*linear)});
  return tensors;
}

}  // namespace lquant::pipeline
