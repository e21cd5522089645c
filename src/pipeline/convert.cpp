// Conversion is a walk over the blocks: load, change, journal; then one sequential write of the journalled parts.
#include "pipeline/convert.h"

#include <mlx/mlx.h>

#include "base/error.h"
#include "codec/foreign.h"
#include "codec/quantize.h"
#include "model/pack.h"
#include "pipeline/output.h"
#include "plan/recipe.h"
#include "run/run_folder.h"

namespace lquant::pipeline {
namespace mx = mlx::core;
using json = nlohmann::json;

namespace {

mx::Dtype parse_dtype(const std::string& name) {
  if (name == "bfloat16") return mx::bfloat16;
  if (name == "float16") return mx::float16;
  if (name == "float32") return mx::float32;
  throw UsageError(fmt::format("--dtype {} is not one of float16, bfloat16, float32", name));
}

/// What the model is converted to when nobody says: what its config.json asks for, as mlx_lm has it. Files of float32 that ask for bfloat16 exist.
mx::Dtype default_dtype(const model::Model& model) {
  const auto& config = model.checkpoint().config();
  auto named = config.value("torch_dtype", json());
  if (const auto& text = model.spec().text_config; named.is_null() && !text.empty()) named = config.at(text).value("dtype", json());
  for (const auto dtype : {mx::bfloat16, mx::float16, mx::float32})
    if (named == dtype_name(dtype)) return dtype;
  return model.stored_dtype();
}

plan::QuantPlan plan_for(const ConvertOptions& o, const model::ModelSpec& spec, const std::optional<json>& overrides) {
  auto plan = o.recipe ? plan::recipe_plan(spec, *o.recipe, o.format) : plan::uniform_plan(spec, o.format);
  if (overrides) plan::apply_overrides(plan, spec, *overrides, o.plan->string());
  return plan;
}

/// The tensors of one part with every linear of the plan packed (or, without plan, every packed one made dense).
model::Tensors changed(model::Tensors tensors, const model::Model& model, const plan::QuantPlan* plan, mx::Dtype dtype) {
  if (!plan) {
    auto formats = model.formats();
    // Only the packed linears of this part may be named.
    std::erase_if(formats, [&](const auto& entry) { return !tensors.contains(entry.first + ".scales"); });
    model::densify(tensors, formats, dtype);
  } else {
    for (const auto& [path, format] : plan->formats) {
      const auto it = tensors.find(path + ".weight");
      if (it == tensors.end()) continue;
      model::put_packed(tensors, path, codec::quantize(it->second, format));
    }
  }
  std::vector<mx::array> all;
  for (auto& [name, tensor] : tensors) all.push_back(tensor);
  mx::eval(all);
  return tensors;
}

}  // namespace

void check_options(const ConvertOptions& o) {
  if (o.quantize && o.dequantize) throw UsageError("--quantize and --dequantize exclude each other; give one of them");
  if (o.plan && !o.quantize) throw UsageError("--plan says how to quantize; give --quantize with it");
  if (o.recipe && !o.quantize) throw UsageError("--quant-predicate says how to quantize; give --quantize with it");
  if (o.dtype) parse_dtype(*o.dtype);
}

void convert(const ConvertOptions& options, const run::Context& context) {
  check_options(options);
  check_output(options.output);
  const auto checkpoint = model::open_checkpoint(options.model);
  const auto model = model::Model::open(checkpoint);
  if (options.quantize && !model.formats().empty())
    fail("pipeline", "{}: is quantized already; dequantize it first (lquant convert --dequantize) or start from the original",
         options.model.string());
  check_source(model, context);
  const bool packed = !model.formats().empty() || codec::foreign_of(model.checkpoint().config());  // by another tool: dense once it is loaded
  if (options.dequantize && !packed) fail("pipeline", "{}: is not quantized; there is nothing to dequantize", options.model.string());
  const auto dtype = options.dtype ? parse_dtype(*options.dtype) : default_dtype(model);

  std::optional<plan::QuantPlan> plan;
  std::optional<json> overrides;
  if (options.plan) overrides = read_plan(*options.plan);
  if (options.quantize) plan = plan_for(options, model.spec(), overrides);
  const bool keep_packed = !options.quantize && !options.dequantize && !model.formats().empty();
  if (keep_packed) plan = plan::plan_of(model.spec(), model.formats(), checkpoint.config());
  if (plan)
    for (const auto& [path, why] : plan->dense) context.line(fmt::format("{} stays dense: {}", path, why));

  json recipe{{"quantize", options.quantize}, {"dequantize", options.dequantize}, {"dtype", dtype_name(dtype)}};
  if (options.quantize)
    recipe.update({{"bits", options.format.bits}, {"group_size", options.format.group_size}, {"mode", codec::to_string(options.format.mode)}});
  if (options.recipe) recipe["quant_predicate"] = *options.recipe;
  if (overrides) recipe["plan"] = *overrides;
  run::RunFolder run(options.output, {{"command", "convert"}, {"options", recipe}, {"model", checkpoint.fingerprint()}}, options.fresh, context);

  const run::Stop::Heeding heeding(context.stop());
  const int blocks = static_cast<int>(model.spec().blocks.size());
  std::vector<std::string> units{"embedding"};
  for (int i = 0; i < blocks; ++i) units.push_back(fmt::format("block-{:05d}", i));
  units.push_back("final");
  run::Progress progress(context.events(), "converting", static_cast<std::int64_t>(units.size()));
  const auto load = [&](std::size_t u) {
    if (u == 0) return model.load_embedding(dtype);
    if (u + 1 < units.size()) return model.load_block(static_cast<int>(u) - 1, dtype);
    auto tensors = model.load_final(dtype);
    if (model.spec().tied())  // the embedding is written once, with the first unit
      std::erase_if(tensors, [&](const auto& entry) { return entry.first.starts_with(model.spec().embedding.path + "."); });
    return tensors;
  };
  for (std::size_t u = 0; u < units.size(); ++u) {
    context.check();
    if (run.has(units[u])) {
      progress.skip(1);
      continue;
    }
    auto tensors = load(u);
    if (!keep_packed) tensors = changed(std::move(tensors), model, plan ? &*plan : nullptr, dtype);
    run.save(units[u], tensors);
    progress.advance(1);
  }
  ModelWriter writer(options.output, model);
  for (const auto& unit : units) writer.add(run.need(unit).tensors);
  writer.finish(plan ? &*plan : nullptr, dtype, {"convert", recipe, nullptr, nullptr});
  run.remove();
  progress.finish();
}

}  // namespace lquant::pipeline
