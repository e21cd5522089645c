#include "pipeline/folds.h"

#include <mlx/mlx.h>

#include <algorithm>

#include "base/error.h"
#include "base/links.h"
#include "checkpoint/file.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tensor.h"

namespace lquant::pipeline {
namespace fs = std::filesystem;

model::Folds read_folds(const fs::path& folder, const model::ModelSpec& spec) {
  model::Folds folds;
  if (!fs::is_directory(folder)) fail("pipeline", "{}: is no folder; give --scales one that lquant awq has written", folder.string());
  const auto path = folder / kFoldFile;
  if (!has_entry(folder, kFoldFile)) return folds;
  const auto file = checkpoint::File::open(folder, kFoldFile);
  const auto header = checkpoint::read_header(file);
  const auto edges = spec.edges();
  for (const auto& [producer, info] : header.tensors) {
    const auto edge = std::find_if(edges.begin(), edges.end(), [&](const auto& e) { return e.producer == producer; });
    const bool fits = edge != edges.end() && info.dtype == mx::float32 &&
                      info.shape == (edge->experts > 0 ? mx::Shape{edge->experts, edge->channels} : mx::Shape{edge->channels});
    if (!fits)
      fail("pipeline", "{}: its scales of {} are not for this model; make the folder again with lquant awq", path.string(),
           checkpoint::in_quotes(producer));
    auto scales = checkpoint::read_tensor(file, info);
    if (!mx::all(mx::logical_and(mx::isfinite(scales), mx::greater(scales, mx::array(0.0f)))).item<bool>())
      fail("pipeline", "{}: its scales of {} are not all finite and above 0; make the folder again with lquant awq", path.string(), producer);
    folds.insert({producer, scales});
  }
  return folds;
}

model::Folds as_powers_of_two(model::Folds folds, const model::ModelSpec& spec) {
  for (const auto& edge : spec.edges()) {
    const auto it = folds.find(edge.producer);
    if (it == folds.end() || edge.norm) continue;
    // The producer is divided by the root of the scale that its degree says: that too shall be a power of two.
    const mx::array base(edge.degree == 2 ? 4.0f : 2.0f);
    it->second = mx::power(base, mx::round(mx::divide(mx::log2(it->second), mx::log2(base))));
    it->second.eval();
  }
  return folds;
}

model::Folds take_folds(model::Tensors& unit) {
  model::Folds folds;
  for (const auto& [name, tensor] : unit)
    if (name.starts_with(kFoldPrefix)) folds.insert({name.substr(std::string_view(kFoldPrefix).size()), tensor});
  std::erase_if(unit, [](const auto& entry) { return entry.first.starts_with(kFoldPrefix); });
  return folds;
}

model::Tensors walked(const model::Model& model, const plan::QuantPlan& plan, model::Tensors unit) {
  take_folds(unit);
  auto formats = plan.by_path();
  std::erase_if(formats, [&](const auto& entry) { return !unit.contains(entry.first + ".scales"); });
  model::densify(unit, formats, model.stored_dtype());
  if (model.compute_dtype() != model.stored_dtype())
    for (auto& [name, tensor] : unit) tensor = mx::astype(tensor, model.compute_dtype());
  return unit;
}

void fold_all(const model::ModelSpec& spec, const model::Folds& folds, model::Tensors& tensors, mx::Dtype stored) {
  const auto before = tensors;
  for (int i = 0; i < static_cast<int>(spec.blocks.size()); ++i) model::fold_block(spec, i, folds, tensors, stored);
  for (auto& [name, tensor] : tensors) tensor = mx::astype(tensor, before.at(name).dtype());
}

}  // namespace lquant::pipeline
