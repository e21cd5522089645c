// The statistics come from the full-precision model as it streams by: while block i runs on all calibration rows, an observer
// sums the squares of what each linear reads; when the block is done, its linears are quantized with those sums and dropped.
#include "pipeline/start.h"

#include <mlx/mlx.h>

#include <cmath>

#include "base/error.h"
#include "codec/quantize.h"
#include "codec/range_search.h"
#include "model/pack.h"
#include "model/stream.h"
#include "pipeline/moments.h"
#include "pipeline/rows.h"

namespace lquant::pipeline {
namespace mx = mlx::core;

namespace {

/// Quantizes what the plan names among `tensors`, in place. A teacher that is quantized itself (8 bits, say) is made dense first.
void pack_linears(model::Tensors& tensors, model::Formats formats, const plan::QuantPlan& plan, const Moments& moments, mx::Dtype dtype) {
  std::erase_if(formats, [&](const auto& entry) { return !tensors.contains(entry.first + ".scales"); });
  model::densify(tensors, formats, dtype);
  for (const auto& [path, format] : plan.formats) {
    const auto it = tensors.find(path + ".weight");
    if (it == tensors.end()) continue;
    const auto weight = mx::astype(it->second, dtype);
    const auto moment = moments.find(path);
    std::optional<mx::array> importance;
    if (moment != moments.end()) importance = moment->second;
    const auto packed = format.mode == codec::Mode::affine ? codec::range_search(weight, format, importance).packed : codec::quantize(weight, format);
    model::put_packed(tensors, path, packed);
  }
}

/// search_units, which also gives each finished unit's tensors to `take`.
void search(const model::Model& model, const plan::QuantPlan& plan, const std::vector<calibration::Batch>& batches, run::RunFolder& run,
            const run::Context& context, const std::string& units,
            const std::function<void(const std::string& unit, model::Tensors& tensors)>& take) {
  const auto& spec = model.spec();
  const auto dtype = model.stored_dtype();
  const int blocks = static_cast<int>(spec.blocks.size());
  const auto unit = [&](int i) { return fmt::format("{}-{:05d}", units, i); };
  run::Progress progress(context.events(), "searching ranges", blocks + 1);
  std::vector<std::optional<mx::array>> counted;
  for (const auto& batch : batches) counted.push_back(counted_tokens(batch));

  Moments moments;
  const model::BatchObserver observer = [&](std::size_t b, const std::string& path, const mx::array& input, const model::ExpertRows* experts) {
    add_moment(moments, path, input, experts, counted[b]);
  };
  const auto finish = [&](int i, const std::function<model::Tensors()>& load) {
    if (auto done = run.load(unit(i))) {
      take(unit(i), done->tensors);
      progress.skip(1);
    } else {
      auto tensors = load();
      pack_linears(tensors, model.formats(), plan, moments, dtype);
      run.save(unit(i), tensors);
      take(unit(i), tensors);
      progress.advance(1);
    }
    context.check();
  };

  bool all_done = true;
  for (int i = 0; i <= blocks; ++i) all_done = all_done && run.has(unit(i));
  if (all_done) {
    for (int i = 0; i <= blocks; ++i) finish(i, nullptr);
    return;
  }
  model::StreamOptions options;
  options.observer = &observer;
  std::vector<mx::array> ids;
  for (const auto& batch : batches) {
    ids.push_back(batch.ids);
    options.segments.push_back(batch.segments);
  }
  options.after_block = [&](const model::Visit& visit, std::vector<mx::array>&) {
    const int i = visit.block;
    // Before its last run not all that the block's linears read has been seen.
    if (i < 0 || visit.pass + 1 < spec.passes) return;
    finish(i, [&] { return model.load_block(i, dtype); });
    for (const auto* linear : spec.blocks[i].linears()) moments.erase(linear->path);
  };
  const auto states = model::stream_blocks(model, ids, options);
  const auto final_tensors = model.load_final();
  for (std::size_t b = 0; b < states.size(); ++b)
    observer(b, spec.head ? spec.head->path : spec.embedding.path, model::final_norm(spec, final_tensors, states[b], model.formats()), nullptr);
  finish(blocks, [&] {
    auto tensors = model.load_embedding(dtype);
    tensors.merge(model.load_final(dtype));
    return tensors;
  });
  progress.finish();
}

}  // namespace

model::Tensors search_start(const model::Model& model, const plan::QuantPlan& plan, const std::vector<calibration::Batch>& batches,
                            run::RunFolder& run, const run::Context& context) {
  model::Tensors result;
  search(model, plan, batches, run, context, "start", [&](const std::string&, model::Tensors& tensors) { result.merge(tensors); });
  return result;
}

UnitOfTensor search_units(const model::Model& model, const plan::QuantPlan& plan, const std::vector<calibration::Batch>& batches, run::RunFolder& run,
                          const run::Context& context, const std::string& units) {
  UnitOfTensor found;
  search(model, plan, batches, run, context, units, [&](const std::string& unit, const model::Tensors& tensors) {
    for (const auto& [name, tensor] : tensors) found.insert({name, unit});
  });
  return found;
}

}  // namespace lquant::pipeline
