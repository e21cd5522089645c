// Other tools keep several tensors where an architecture has one weight. To the import rows the weight is there all the same, under the name that a
// dense checkpoint would have: so prefixes of wrappers and experts kept one by one need no rows of their own.
#include "model/foreign.h"

#include <mlx/mlx.h>

#include <algorithm>

#include "base/error.h"
#include "base/shown.h"
#include "model/imports.h"

namespace lquant::model {
namespace {

constexpr const char* kWeight = ".weight";

/// The path before ".weight"; stacks of experts are stored under names without it.
std::string path_of(const std::string& name) { return name.ends_with(kWeight) ? name.substr(0, name.size() - std::string(kWeight).size()) : name; }

/// Names of the tensors that say that a weight is packed: not those that a dense one can have.
std::vector<std::string> packed_names(const codec::Foreign& foreign, const std::string& path) {
  auto names = codec::foreign_tensor_names(foreign, path);
  std::erase_if(names, [&](const auto& name) { return name == path || name == path + kWeight; });
  return names;
}

codec::StoredOf headers_of(const checkpoint::Checkpoint& checkpoint, const std::string& path) {
  return [&checkpoint, path](const std::string& suffix) -> std::optional<codec::Stored> {
    if (!checkpoint.has(path + suffix)) return std::nullopt;
    const auto& info = checkpoint.info(path + suffix);
    return codec::Stored{info.shape, info.dtype};
  };
}

/// Of the linear's dense weight.
mx::Shape weight_shape(const LinearSpec& linear) {
  return linear.experts > 0 ? mx::Shape{linear.experts, linear.out, linear.in} : mx::Shape{linear.out, linear.in};
}

ForeignWeight::Piece piece_of(const std::string& path, const mx::Shape& shape) {
  return {path, shape[shape.size() - 2], shape.back(), shape.size() == 3 ? shape.front() : 0};
}

/// The linear's weight, checked; none where no piece of it is packed.
std::optional<ForeignWeight> weight_of(const checkpoint::Checkpoint& checkpoint, const ModelSpec& spec, const LinearSpec& linear,
                                       const codec::Foreign& foreign) {
  const auto has = [&](const std::string& name) { return has_numbers(checkpoint, &foreign, name); };
  const auto source = find_source(spec.imports, linear.path + kWeight, has);
  if (!source) return std::nullopt;
  ForeignWeight weight{{}, source->changes};
  std::vector<mx::Shape> shapes;
  bool packed = false;
  for (const auto& name : source->names) {
    if (!has(name)) fail("model", "missing tensor {}", shown(name));
    const auto path = path_of(name);
    const auto headers = headers_of(checkpoint, path);
    const auto told = shape_of_each(source->changes, weight_shape(linear));
    const auto shape = told ? *told : codec::shape_of_weight(foreign, path, headers);
    if (shape.size() != 2 && shape.size() != 3) return std::nullopt;  // dense, and not of the right shape, as will be said
    weight.pieces.push_back(piece_of(path, shape));
    shapes.push_back(shape);
    const auto& piece = weight.pieces.back();
    // What is dense is checked with all other dense tensors.
    const bool is_packed =
        std::ranges::any_of(packed_names(foreign, path), [&](const auto& one) { return checkpoint.has(one); }) ||
        (checkpoint.has(name) && (checkpoint.info(name).stored.starts_with("F8_") || !mx::issubdtype(checkpoint.info(name).dtype, mx::floating)));
    if (!is_packed) continue;
    packed = true;
    if (!codec::check_shapes(foreign, path, headers, piece.out, piece.in, piece.stack) && checkpoint.info(name).stored.starts_with("F8_"))
      fail("model", "tensor {} holds fp8 numbers without scales, which its config.json's quantization_config asks for; get the checkpoint again",
           shown(name));
  }
  if (!packed) return std::nullopt;
  // What is cut into matrices first is stored as other weights are; a part of it may well be turned then.
  bool cut = false;
  for (const auto& change : source->changes) {
    cut = cut || change.kind == Change::Kind::reshape;
    if (change.kind == Change::Kind::transpose && !cut)
      fail("model", "tensor {} is packed, and a model of this type has its weights transposed, which is not read; give the unquantized model",
           shown(source->names.front()));
  }
  if (changed_shape(source->changes, shapes) != weight_shape(linear))
    fail("model", "tensor {} and what lies beside it do not make {} of {} outputs and {} inputs; the files of the folder do not belong together",
         shown(source->names.front()), linear.path, linear.out, linear.in);
  return weight;
}

/// What stands beside a packed linear and holds nothing of its weight.
void leave_out(const checkpoint::Checkpoint& checkpoint, const LinearSpec& linear, const std::string& path, ForeignLinears& found) {
  auto names = codec::foreign_unused_names(path);
  for (const char* scale : {".q_scale", ".k_scale", ".v_scale"})
    names.push_back(path.substr(0, path.rfind('.')) + scale);  // of the attention around it
  for (auto& name : names)
    if (checkpoint.has(name)) found.left_out.emplace(std::move(name), "what another tool needs to quantize activations, keys and values");
  const auto bias = path + ".bias";
  if (linear.bias || found.description.method != "gptq" || !checkpoint.has(bias)) return;
  if (!mx::any(mx::not_equal(checkpoint.load(bias), mx::array(0.0f))).item<bool>()) found.left_out.emplace(bias, "biases of zeros");
}

}  // namespace

bool has_numbers(const checkpoint::Checkpoint& checkpoint, const codec::Foreign* foreign, const std::string& name) {
  if (checkpoint.has(name)) return true;
  if (foreign == nullptr) return false;
  return std::ranges::any_of(packed_names(*foreign, path_of(name)), [&](const auto& one) { return checkpoint.has(one); });
}

ForeignLinears find_foreign(const checkpoint::Checkpoint& checkpoint, const ModelSpec& spec, const Formats& formats,
                            const codec::Foreign& description) {
  ForeignLinears found{description, {}, {}, {}};
  with_place([&] { return checkpoint.folder().string(); },
             [&] {
               for (const auto* linear : spec.linears()) {
                 if (formats.contains(linear->path)) continue;
                 auto weight = weight_of(checkpoint, spec, *linear, description);
                 if (!weight) continue;
                 for (const auto& piece : weight->pieces) {
                   for (auto& name : codec::foreign_tensor_names(description, piece.path))
                     if (checkpoint.has(name)) found.taken.insert(std::move(name));
                   if (checkpoint.has(piece.path)) found.taken.insert(piece.path);
                   leave_out(checkpoint, *linear, piece.path, found);
                 }
                 found.weights.emplace(linear->path + kWeight, std::move(*weight));
               }
             });
  return found;
}

mx::array load_foreign(const checkpoint::Checkpoint& checkpoint, const ForeignLinears& foreign, const std::string& name, mx::Dtype dtype) {
  const auto& weight = foreign.weights.at(name);
  std::vector<mx::array> pieces;
  for (const auto& piece : weight.pieces) {
    std::map<std::string, mx::array> tensors;
    const auto tensor = [&](const std::string& suffix) -> const mx::array* {
      if (const auto have = tensors.find(suffix); have != tensors.end()) return &have->second;
      if (!checkpoint.has(piece.path + suffix)) return nullptr;
      return &tensors.emplace(suffix, checkpoint.load(piece.path + suffix)).first->second;
    };
    with_place([&] { return checkpoint.folder().string(); },
               [&] {
                 auto dense = codec::decode(foreign.description, piece.path, tensor, piece.out, piece.in, dtype, piece.stack);
                 dense.eval();  // now, for the steps on the way are several times as large
                 if (!mx::all(mx::isfinite(dense)).item<bool>())
                   fail("model", "{}: the packed weight holds a NaN, an infinity or a number too large for its dtype; get the checkpoint again",
                        shown(piece.path));
                 pieces.push_back(std::move(dense));
               });
  }
  if (weight.changes.empty()) return pieces.front();
  auto made = changed(weight.changes, std::move(pieces));
  made.eval();
  return made;
}

}  // namespace lquant::model
