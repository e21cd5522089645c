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
#include "pipeline/block_tensors.h"
#include "pipeline/memory.h"
#include "pipeline/moments.h"
#include "pipeline/rows.h"

namespace lquant::pipeline {
namespace mx = mlx::core;

namespace {

codec::Packed packed(const std::string& path, const mx::array& weight, const codec::Format& format, const Moments& moments) {
  if (format.mode != codec::Mode::affine) return codec::quantize(weight, format);
  const auto moment = moments.find(path);
  return codec::range_search(weight, format, moment == moments.end() ? std::nullopt : std::optional(moment->second)).packed;
}

/// Quantizes what the plan names among `tensors`, in place. A teacher that is quantized itself (8 bits, say) is made dense first.
void pack_linears(model::Tensors& tensors, model::Formats formats, const plan::QuantPlan& plan, const Moments& moments, mx::Dtype dtype) {
  std::erase_if(formats, [&](const auto& entry) { return !tensors.contains(entry.first + ".scales"); });
  model::densify(tensors, formats, dtype);
  for (const auto& [path, format] : plan.formats)
    if (const auto it = tensors.find(path + ".weight"); it != tensors.end())
      model::put_packed(tensors, path, packed(path, mx::astype(it->second, dtype), format, moments));
}

model::Tensors packed_block(const model::Model& model, int block, const plan::QuantPlan& plan, const Moments& moments) {
  const BlockTensors source(model, block);
  auto tensors = source.stored();
  pack_linears(tensors, {}, plan, moments, model.stored_dtype());
  for (const auto* linear : model.spec().blocks[block].linears()) {
    if (!linear->routed()) continue;
    if (const auto planned = plan.formats.find(linear->path); planned != plan.formats.end())
      model::put_packed(tensors, linear->path, packed(linear->path, source.weight(*linear), planned->second, moments));
    else
      tensors.insert({linear->path + ".weight", source.weight(*linear)});
  }
  return tensors;
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
  const auto finish = [&](int i, const std::function<model::Tensors()>& make) {
    if (auto done = run.load(unit(i))) {
      take(unit(i), done->tensors);
      progress.skip(1);
    } else {
      auto tensors = make();
      run.save(unit(i), tensors);
      take(unit(i), tensors);
      progress.advance(1);
    }
    release_freed_memory(model.spec());
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
    finish(i, [&] { return packed_block(model, i, plan, moments); });
    for (const auto* linear : spec.blocks[i].linears()) moments.erase(linear->path);
  };
  const auto states = model::stream_blocks(model, ids, options);
  const auto final_tensors = model.load_final();
  for (std::size_t b = 0; b < states.size(); ++b)
    observer(b, spec.head ? spec.head->path : spec.embedding.path, model::final_norm(spec, final_tensors, states[b], model.formats()), nullptr);
  finish(blocks, [&] {
    auto tensors = model.load_embedding(dtype);
    tensors.merge(model.load_final(dtype));
    pack_linears(tensors, model.formats(), plan, moments, dtype);
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
