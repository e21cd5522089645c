#include "pipeline/output.h"

#include <mlx/mlx.h>
#include <mlx/version.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "artifact/card.h"
#include "artifact/record.h"
#include "base/error.h"
#include "base/figures.h"
#include "base/files.h"
#include "base/json.h"
#include "base/words.h"
#include "checkpoint/hub_origin.h"
#include "lquant/version.h"
#include "pipeline/folds.h"

namespace lquant::pipeline {
namespace fs = std::filesystem;
using json = nlohmann::json;

namespace {

// Cards have a few thousand bytes of it; the longest lists of evaluation results a hundred thousand.
constexpr std::size_t kMostFrontMatter = 1'000'000;

// The formats of all linears of a model with thousands of them take less than a million.
constexpr std::size_t kMostPlan = 100'000'000;

/// The model's config with our formats: keys of the source's own quantization make way, all else is kept.
json output_config(const model::Model& source, const plan::QuantPlan* plan, mx::Dtype dtype) {
  json config = source.checkpoint().config();
  for (const char* key : {"quantization", "quantization_config", "compression_config", "_name_or_path"}) config.erase(key);
  if (source.kept().empty()) config.erase("vision_config");  // a model without its tower; mlx_lm removes it as well
  config.update(source.spec().settled);                      // what mlx_lm would read otherwise than it was read here
  for (const auto& key : source.spec().removed) config.erase(key);
  const auto name_dtype = [&](json& fields) {
    for (const char* key : {"dtype", "torch_dtype"})
      if (fields.contains(key)) fields[key] = dtype_name(dtype);
  };
  name_dtype(config);
  if (const auto& text = source.spec().text_config; !text.empty()) {
    name_dtype(config.at(text));
    for (const char* key : {"quantization_config", "compression_config"}) config.at(text).erase(key);
  }
  if (!config.contains("dtype") && !config.contains("torch_dtype")) config["torch_dtype"] = dtype_name(dtype);
  if (plan) config["quantization"] = config["quantization_config"] = plan::quantization_block(source.spec(), *plan);
  return config;
}

/// Where the weights came from, and what their card says of licence and languages, for the card of what is made of them.
json source_json(const checkpoint::Checkpoint& source) {
  json out{{"name", utf8(source.name())}, {"sha256", source.fingerprint()}};
  if (const auto origin = checkpoint::hub_origin(source.folder()))
    out["repo"] = origin->id, out["revision"] = origin->revision;
  else if (source.files().has("lquant.json")) {
    // Made by lquant itself: the original is what counts.
    const auto record = artifact::record_of(source.files());
    const auto origin = record.find("source");
    for (const char* key : {"repo", "revision", "card"})
      if (origin != record.end() && origin->is_object() && origin->contains(key) && origin->at(key).is_string()) out[key] = origin->at(key);
    return out;
  }
  const auto card = source.files().has("README.md") ? source.files().read("pipeline", "README.md", checkpoint::kLargestCopied) : std::nullopt;
  if (card && card->starts_with("---\n"))
    if (const auto end = card->find("\n---", 3); end < kMostFrontMatter) out["card"] = utf8(card->substr(0, end + 5));
  return out;
}

/// The formats in use, the most frequent first, with the number of their linears.
json formats_json(const plan::QuantPlan& plan) {
  json all = json::array();
  for (const auto& [format, linears] : plan::format_counts(plan))
    all.push_back({{"mode", codec::to_string(format.mode)}, {"bits", format.bits}, {"group_size", format.group_size}, {"linears", linears}});
  return all;
}

json record_json(const model::Model& source, const plan::QuantPlan* plan, const plan::Size& size, const Record& record) {
  json out{{"lquant", LQUANT_VERSION},
           {"mlx", fmt::format("{}.{}.{}", MLX_VERSION_MAJOR, MLX_VERSION_MINOR, MLX_VERSION_PATCH)},
           {"command", record.command},
           {"options", record.options},
           {"source", source_json(source.checkpoint())},
           {"bits_per_weight", size.bits_per_weight()},
           {"parameters", size.parameters},
           {"bytes", size.bytes}};
  if (plan) {
    out["left_dense"] = plan->dense;
    out["formats"] = formats_json(*plan);
  }
  if (const auto left_out = source.left_out(); !left_out.empty()) out["left_out"] = left_out;
  for (const auto& [what, bytes] : source.kept_bytes()) out["kept"][what] = bytes;
  if (!record.data.is_null()) out["data"] = record.data;
  if (!record.quality.is_null()) out["quality"] = record.quality;
  return out;
}

/// The card speaks of the folder as it is given, and of a model on this machine by its path; what the hub knows has a name there.
artifact::CardNames card_names(const fs::path& output, const checkpoint::Checkpoint& source, const json& record) {
  auto names = artifact::names_of(output);
  if (!record.at("source").contains("repo")) names.source = artifact::names_of(source.folder()).place;
  return names;
}

}  // namespace

std::string dtype_name(mx::Dtype dtype) { return dtype == mx::bfloat16 ? "bfloat16" : dtype == mx::float16 ? "float16" : "float32"; }

void check_output(const fs::path& output) {
  run::RunFolder::clear_removed(output);
  if (fs::exists(fs::symlink_status(output))) fail("pipeline", "{}: exists already; choose another --mlx-path or remove it", output.string());
}

void check_source(const model::Model& source, const run::Context& context) {
  checkpoint::check_copied_files(source.checkpoint().files());
  for (const auto& text : source.spec().warnings) context.warn(text);
  for (const auto& tensor : source.kept())
    if (tensor.name.ends_with(".scales"))
      fail("pipeline", "{}: {} is quantized itself ({}), which an output could not say; start from the original",
           source.checkpoint().folder().string(), tensor.what, checkpoint::in_quotes(tensor.name));
  for (const auto& [what, bytes] : source.kept_bytes())
    context.line(fmt::format("kept as they are: {}, {}", what, format_bytes(static_cast<double>(bytes))));
  for (const auto& [why, names] : source.left_out())
    context.line(fmt::format("left out: {}{}: {}", names[0], names.size() > 1 ? fmt::format(" and {} more", names.size() - 1) : "", why));
}

json read_plan(const fs::path& file) {
  const auto text = read_file("pipeline", file, kMostPlan);
  try {
    return parse_json(text);
  } catch (const JsonFault& fault) {
    fail("pipeline", "{}: is not JSON ({}); mend it or drop --plan", file.string(), fault.what());
  }
}

ModelWriter::ModelWriter(const fs::path& output, const model::Model& source) : source_(source), output_(output), writer_(output) {}

void ModelWriter::add(const model::Tensors& tensors) {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors) names.push_back(name);
  std::sort(names.begin(), names.end());
  for (const auto& name : names) add(name, tensors.at(name));
}

void ModelWriter::add(const std::string& name, const mx::array& tensor) {
  const auto dot = std::min(name.rfind('.'), name.size());
  const auto* paths = model::paths_apart(source_.spec().imports, name.substr(0, dot));
  if (!paths) return writer_.add(name, tensor);
  for (std::size_t i = 0; i < paths->size(); ++i) writer_.add(paths->at(i) + name.substr(dot), mx::take(tensor, static_cast<int>(i), 0));
}

void ModelWriter::add_folds(const model::Folds& folds) {
  if (!folds.empty()) writer_.write_tensors(kFoldFile, {folds.begin(), folds.end()});
}

void ModelWriter::finish(const plan::QuantPlan* plan, mx::Dtype dtype, const Record& record) {
  const plan::QuantPlan dense;
  const auto size = plan::size_of(source_.spec(), plan ? *plan : dense, static_cast<int>(mx::size_of(dtype)));
  const auto& checkpoint = source_.checkpoint();
  auto parameters = size.parameters;
  for (const auto& tensor : source_.kept()) {
    const auto& info = checkpoint.info(tensor.name);
    writer_.copy(tensor.as, info, checkpoint.file_of(tensor.name));
    parameters += std::accumulate(info.shape.begin(), info.shape.end(), std::int64_t{1}, std::multiplies<>());
  }
  writer_.set_total_parameters(parameters);
  const auto config = output_config(source_, plan, dtype);
  const auto made = record_json(source_, plan, size, record);
  writer_.write_json("config.json", config);
  writer_.write_json(artifact::kRecordFile, made);
  writer_.write_text("README.md", artifact::model_card(made, config, card_names(output_, checkpoint, made)));
  for (const auto& file : checkpoint::copied_files())
    if (const auto bytes = checkpoint.files().read("pipeline", file, checkpoint::kLargestCopied)) writer_.write_text(file, *bytes);
  writer_.commit();
}

model::Folds write_units(ModelWriter& writer, const run::RunFolder& run, const std::vector<std::string>& units) {
  model::Folds folds;
  for (const auto& unit : units) {
    auto tensors = run.need(unit).tensors;
    folds.merge(take_folds(tensors));
    writer.add(tensors);
  }
  writer.add_folds(folds);
  return folds;
}

// Names of a block stand together in the order of names, so that a block's unit is read once; only what stands around all blocks is read twice.
void write_tensors(ModelWriter& writer, const run::RunFolder& run, const UnitOfTensor& unit_of) {
  std::string loaded;
  model::Tensors tensors;
  for (const auto& [name, unit] : unit_of) {
    if (unit != loaded) {
      tensors.clear();
      tensors = run.need(unit).tensors;
      loaded = unit;
    }
    writer.add(name, tensors.at(name));
    tensors.erase(name);
  }
}

}  // namespace lquant::pipeline
