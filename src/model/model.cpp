// A model is opened from headers alone: the spec says which tensors must be there and how large, the checkpoint which are. All
// that can be wrong with a folder is found here, before any work begins; loading afterwards only fetches and casts.
#include "model/model.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <stdexcept>
#include <unordered_set>

#include "base/error.h"
#include "base/shown.h"
#include "kernels/primitive.h"
#include "model/family/gguf.h"
#include "model/formats.h"

namespace lquant::model {
namespace {

std::string text(const mx::Shape& shape) { return shown(fmt::format("[{}]", fmt::join(shape, ", "))); }

bool is_float(mx::Dtype dtype) { return mx::issubdtype(dtype, mx::floating); }

void check_holds(const checkpoint::TensorInfo& info, const std::string& name, Holds holds) {
  const bool right = holds == Holds::codes ? info.dtype == mx::uint32 : holds == Holds::bytes ? info.dtype == mx::uint8 : is_float(info.dtype);
  if (!right)
    fail("model", "{}: tensor {} is stored as {} but should hold {}; the quantization in config.json does not fit the files", info.file.string(),
         name, info.stored,
         holds == Holds::codes   ? "packed codes (U32)"
         : holds == Holds::bytes ? "scales of a microscaling format (U8)"
                                 : "floating-point numbers");
}

void check(const checkpoint::Checkpoint& checkpoint, const std::optional<Source>& source, const Expected& expected) {
  if (!source) fail("model", "{}: missing tensor {} of shape {}", checkpoint.folder().string(), expected.name, text(expected.shape));
  const auto wanted = shape_of_each(source->changes, expected.shape);
  std::vector<mx::Shape> shapes;
  for (const auto& name : source->names) {
    if (!checkpoint.has(name))
      fail("model", "{}: missing tensor {}{}", checkpoint.folder().string(), name, wanted ? " of shape " + text(*wanted) : "");
    const auto& info = checkpoint.info(name);
    if (wanted && info.shape != *wanted)
      fail("model", "{}: tensor {} has shape {} where config.json asks for {}; the files of the folder do not belong together", info.file.string(),
           name, text(info.shape), text(*wanted));
    check_holds(info, name, expected.holds);
    shapes.push_back(info.shape);
  }
  if (wanted) return;
  if (const auto made = changed_shape(source->changes, shapes); made != expected.shape) {
    const auto& info = checkpoint.info(source->names.front());
    fail("model", "{}: tensor {} has shape {}, of which {} of shape {} cannot be made; the files of the folder do not belong together",
         info.file.string(), source->names.front(), text(info.shape), expected.name, text(expected.shape));
  }
}

void add(std::vector<Expected>& all, std::vector<Expected> more) {
  for (auto& expected : more) all.push_back(std::move(expected));
}

std::vector<Expected> expected_of(const BlockSpec& block, const Formats& formats) {
  const auto contents = block.contents();
  std::vector<Expected> all;
  for (const auto* norm : contents.norms) add(all, expected_tensors(*norm));
  for (const auto& reading : contents.readings) add(all, expected_tensors(*reading.linear, formats));
  for (const auto* parameter : contents.parameters) all.push_back(expected_tensor(*parameter));
  return all;
}

/// What stands before the first block.
std::vector<Expected> expected_before(const ModelSpec& spec, const Formats& formats) {
  auto all = expected_tensors(spec.embedding, formats);
  if (spec.position_embedding) add(all, expected_tensors(*spec.position_embedding, formats));
  if (spec.embedding_norm) add(all, expected_tensors(*spec.embedding_norm));
  if (spec.front) add(all, expected_of(*spec.front, formats));
  return all;
}

std::vector<Expected> expected_outside(const ModelSpec& spec, const Formats& formats) {
  auto all = expected_before(spec, formats);
  if (spec.tail) add(all, expected_of(*spec.tail, formats));
  add(all, expected_tensors(spec.final_norm));
  if (spec.head) add(all, expected_tensors(*spec.head, formats));
  return all;
}

std::vector<std::string> names_of(const std::vector<Expected>& all) {
  std::vector<std::string> names;
  for (const auto& expected : all) names.push_back(expected.name);
  return names;
}

const LeftOut* row_of(const ModelSpec& spec, const std::string& name) {
  const auto names = our_names(spec.imports, name);
  const auto row = std::find_if(spec.left_out.begin(), spec.left_out.end(), [&](const auto& r) {
    return std::any_of(names.begin(), names.end(), [&](const auto& one) { return fits(r.pattern, one); });
  });
  return row == spec.left_out.end() ? nullptr : &*row;
}

/// The names of tensors whose dtype is the model's, in the order in which they are asked. An embedding of the microscaling formats has u8 scales:
/// then a norm's weight tells, or the first number of any other tensor.
std::vector<std::string> names_with_dtype(const ModelSpec& spec) {
  std::vector<std::string> names = {spec.embedding.path + ".weight", spec.embedding.path + ".scales"};
  if (spec.final_norm.weight) names.push_back(spec.final_norm.weight_name());
  for (const auto& block : spec.blocks)
    for (const auto* linear : block.linears()) names.insert(names.end(), {linear->path + ".weight", linear->path + ".scales"});
  return names;
}

/// The names of tensors of the blocks that keep their dtype.
std::unordered_set<std::string> names_with_own_dtype(const ModelSpec& spec, const Formats& formats) {
  std::unordered_set<std::string> names;
  const auto insert = [&](const std::vector<Expected>& all) {
    for (const auto& expected : all) names.insert(expected.name);
  };
  for (const auto& block : spec.blocks) {
    const auto contents = block.contents();
    for (const auto* parameter : contents.parameters)
      if (parameter->keeps_dtype) names.insert(parameter->path);
    for (const auto* norm : contents.norms)
      if (norm->keeps_dtype) insert(expected_tensors(*norm));
    for (const auto& reading : contents.readings)
      if (reading.linear->keeps_dtype) insert(expected_tensors(*reading.linear, formats));
  }
  return names;
}

/// What is settled of the text model's fields; null when nothing is.
nlohmann::json* settled_text(ModelSpec& spec) {
  if (spec.text_config.empty()) return &spec.settled;
  return spec.settled.contains(spec.text_config) ? &spec.settled.at(spec.text_config) : nullptr;
}

}  // namespace

checkpoint::Checkpoint open_checkpoint(const std::filesystem::path& path) { return checkpoint::Checkpoint::open(path, family::gguf_architectures()); }

Model Model::open(const checkpoint::Checkpoint& checkpoint) {
  Model model(checkpoint);
  model.spec_ = spec_from_config(checkpoint.config());
  auto& spec = model.spec_;
  settle_form(spec.imports,
              [&](const std::string& name) { return checkpoint.has(name) ? std::optional(checkpoint.info(name).shape) : std::nullopt; });
  const auto description = codec::foreign_of(checkpoint.config());
  if (description) model.foreign_ = std::make_shared<const ForeignLinears>(*description);
  if (spec.head_if_present && spec.head && !model.source_of(spec.head->path + ".weight")) spec.head.reset();
  if (auto* settled = settled_text(spec); settled && settled->contains("tie_word_embeddings")) (*settled)["tie_word_embeddings"] = spec.tied();
  model.formats_ = read_formats(checkpoint, spec);
  if (description) model.foreign_ = std::make_shared<const ForeignLinears>(find_foreign(checkpoint, spec, model.formats_, *description));
  // Of a model that sees, the tower may be what is packed.
  if (description && model.foreign_->weights.empty() && model.formats_.empty() && spec.imports.kept.empty())
    fail(
        "model",
        "{}: config.json says that the model is quantized by {}, and none of its tensors is; the files of the folder do not belong together, or take "
        "\"quantization_config\" out of config.json",
        checkpoint.folder().string(), description->method);
  const auto check_all = [&](const std::vector<Expected>& all) {
    for (const auto& expected : all)
      if (!description || !model.foreign_->weights.contains(expected.name)) check(checkpoint, model.source_of(expected.name), expected);
  };
  model.own_dtype_ = names_with_own_dtype(spec, model.formats_);
  check_all(expected_outside(spec, model.formats_));
  for (const auto& block : spec.blocks) check_all(expected_of(block, model.formats_));
  model.account();
  model.refuse_unknown();
  model.stored_dtype_ = model.dtype_of_numbers();
  return model;
}

/// Where the tensor, or what stands for it in another tool's files, lies.
std::optional<Source> Model::source_of(const std::string& name) const {
  const auto* description = foreign_ ? &foreign_->description : nullptr;
  return find_source(spec_.imports, name, [&](const std::string& other) { return has_numbers(checkpoint_, description, other); });
}

mx::Dtype Model::dtype_of_numbers() const {
  for (const auto& name : names_with_dtype(spec_)) {
    if (foreign_ && foreign_->weights.contains(name)) continue;  // fp8 numbers are bf16 when they are read
    if (const auto source = source_of(name); source && !source->names.empty() && checkpoint_.has(source->names.front()))
      if (const auto dtype = checkpoint_.info(source->names.front()).dtype; is_float(dtype)) return dtype;
  }
  return mx::bfloat16;
}

mx::Dtype Model::compute_dtype() const { return kernels::cpu_kernels() && stored_dtype_ != mx::bfloat16 ? mx::float32 : stored_dtype_; }

Tensors Model::cast(Tensors tensors, mx::Dtype dtype) const { return model::cast(std::move(tensors), dtype, own_dtype_); }

Tensors Model::load(const std::vector<std::string>& names, std::optional<mx::Dtype> dtype) const {
  const auto target = dtype.value_or(compute_dtype());
  Tensors tensors;
  const auto value_of = [&](const std::string& name) {
    if (foreign_ && foreign_->weights.contains(name)) return load_foreign(checkpoint_, *foreign_, name, stored_dtype_);
    const auto source = source_of(name);
    if (!source) throw std::invalid_argument("[model] no tensor " + name);
    std::vector<mx::array> found;
    for (const auto& one : source->names) found.push_back(checkpoint_.load(one));
    auto value = changed(source->changes, std::move(found));
    value.eval();  // so that a stack and its pieces are together in memory one stack at a time
    return value;
  };
  for (const auto& name : names) tensors.emplace(name, value_of(name));
  return cast(std::move(tensors), target);
}

Tensors Model::load_block(int i, std::optional<mx::Dtype> dtype) const { return load(block_names(i), dtype); }

Tensors Model::load_embedding(std::optional<mx::Dtype> dtype) const { return load(names_of(expected_before(spec_, formats_)), dtype); }

Tensors Model::load_final(std::optional<mx::Dtype> dtype) const {
  auto names = tensor_names(spec_.head ? *spec_.head : spec_.embedding, formats_);
  if (spec_.tail)
    for (const auto& expected : expected_of(*spec_.tail, formats_)) names.push_back(expected.name);
  for (const auto& expected : expected_tensors(spec_.final_norm)) names.push_back(expected.name);
  return load(names, dtype);
}

Tensors Model::load_all(std::optional<mx::Dtype> dtype) const {
  auto names = outer_names();
  for (int i = 0; i < static_cast<int>(spec_.blocks.size()); ++i)
    for (auto& name : block_names(i)) names.push_back(std::move(name));
  return load(names, dtype);
}

std::vector<std::string> Model::block_names(int i) const { return names_of(expected_of(spec_.blocks.at(i), formats_)); }

std::vector<std::string> Model::outer_names() const { return names_of(expected_outside(spec_, formats_)); }

/// Every tensor is used, kept or left over.
void Model::account() {
  std::unordered_set<std::string> used;
  std::vector<std::string> packed;  // what the names of packed tensors end in
  if (foreign_) {
    used.insert(foreign_->taken.begin(), foreign_->taken.end());
    packed = codec::foreign_tensor_names(foreign_->description, "");
    std::erase_if(packed, [](const auto& suffix) { return suffix.empty() || suffix == ".weight"; });
  }
  const auto use = [&](const Expected& expected) {
    if (foreign_ && foreign_->weights.contains(expected.name)) return;
    if (const auto source = source_of(expected.name)) used.insert(source->names.begin(), source->names.end());
  };
  for (const auto& expected : expected_outside(spec_, formats_)) use(expected);
  for (const auto& block : spec_.blocks)
    for (const auto& expected : expected_of(block, formats_)) use(expected);
  std::map<std::string, std::string> written;
  for (const auto& name : checkpoint_.names()) {
    if (used.count(name)) continue;
    const auto& rows = spec_.imports.kept;
    const auto row = std::find_if(rows.begin(), rows.end(), [&](const auto& r) { return r.fits(name); });
    if (row == rows.end()) {
      unused_.push_back(name);
      continue;
    }
    if (std::ranges::any_of(packed, [&](const auto& suffix) { return name.ends_with(suffix); }))
      fail("model", "{}: {} is quantized itself ({}), which an output could not say; start from the original", checkpoint_.folder().string(),
           row->what, checkpoint::in_quotes(name));
    const auto as = row->written(name);
    if (const auto [other, is_new] = written.emplace(as, name); !is_new)
      fail("model", "{}: tensors {} and {} are both called {} in an output; the folder holds the same part twice, so remove one of them",
           checkpoint_.folder().string(), checkpoint::in_quotes(other->second), checkpoint::in_quotes(name), checkpoint::in_quotes(as));
    kept_.push_back({name, as, row->what});
  }
  std::sort(unused_.begin(), unused_.end());
}

/// The reason for which a tensor is left out; null when there is none.
const std::string* Model::why_left_out(const std::string& name) const {
  if (foreign_)
    if (const auto found = foreign_->left_out.find(name); found != foreign_->left_out.end()) return &found->second;
  const auto* row = row_of(spec_, name);
  return row != nullptr ? &row->why : nullptr;
}

/// Dropping a tensor that nobody has heard of would change what the model computes, and nobody would know.
void Model::refuse_unknown() const {
  auto unused = unused_;
  std::erase_if(unused, [&](const auto& name) { return why_left_out(name) != nullptr; });
  if (unused.empty()) return;
  fail("model",
       "{}: tensor {}{} is not one that a model of type {} has as config.json describes it; the file belongs to another model, or this is a variant "
       "that "
       "lquant does not know",
       checkpoint_.info(unused[0]).file.string(), checkpoint::in_quotes(unused[0]),
       unused.size() > 1 ? fmt::format(" (with {} others)", unused.size() - 1) : "", checkpoint_.config().at("model_type").get<std::string>());
}

std::map<std::string, std::int64_t> Model::kept_bytes() const {
  std::map<std::string, std::int64_t> bytes;
  for (const auto& tensor : kept_) {
    const auto& info = checkpoint_.info(tensor.name);
    bytes[tensor.what] += static_cast<std::int64_t>(info.end - info.begin);
  }
  return bytes;
}

std::map<std::string, std::vector<std::string>> Model::left_out() const {
  std::map<std::string, std::vector<std::string>> all;
  for (const auto& name : unused_names()) all[*why_left_out(name)].push_back(name);
  return all;
}

Tensors cast(Tensors tensors, mx::Dtype dtype, const std::unordered_set<std::string>& except) {
  for (auto& [name, tensor] : tensors)
    if (is_float(tensor.dtype()) && tensor.dtype() != dtype && !except.contains(name)) tensor = mx::astype(tensor, dtype);
  return tensors;
}

std::vector<std::string> tensor_names(const LinearSpec& linear, const Formats& formats) { return names_of(expected_tensors(linear, formats)); }

Tensors dense_tensors(const Model& model, Tensors tensors) {
  auto formats = model.formats();
  std::erase_if(formats, [&](const auto& entry) { return !tensors.contains(entry.first + ".scales"); });
  densify(tensors, formats, model.stored_dtype());
  return tensors;
}

}  // namespace lquant::model
