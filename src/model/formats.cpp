// mlx_lm trusts the shapes over the config's global values wherever a path is not named, since mixed checkpoints
// exist whose block names only some paths; so do we, or the same folder would mean two things.
#include "model/formats.h"

#include "base/error.h"
#include "base/json.h"
#include "base/shown.h"

namespace lquant::model {
namespace {

using codec::Format;
using codec::Mode;
using nlohmann::json;

/// Whether the block describes MLX's own tensors. The microscaling exports (mxfp4, mxfp8) may hold them, and are told by their shapes; what other
/// tools describe so is codec::foreign_of's.
bool is_mlx(const json& block) {
  if (block.contains("config_groups") || block.contains("quant_algo")) return false;
  const auto method = block.find("quant_method");
  return method == block.end() || method->is_null() || *method == "" || *method == "mxfp4" || *method == "mxfp8";
}

const json& block_of(const json& config) {
  static const json none = json::object();
  // As mlx_lm has it: the text model's own block where the wrapper has none.
  if (!config.contains("quantization") && !config.contains("quantization_config") && config.contains("text_config"))
    if (const auto& text = config["text_config"]; text.is_object() && text.contains("quantization_config")) return block_of(text);
  if (config.contains("quantization") && config["quantization"].is_object()) return config["quantization"];
  if (config.contains("quantization_config") && config["quantization_config"].is_object() && is_mlx(config["quantization_config"]))
    return config["quantization_config"];
  return none;
}

/// mode, bits and group_size of a block or of one path's entry in it.
Format read_format(const std::string& place, const json& source) {
  const JsonView view("model", place, source, "take the config.json that was written with the weights");
  const auto number = [&](const char* key, int otherwise) { return view.has(key) ? static_cast<int>(view.at(key).whole(1, 1 << 20)) : otherwise; };
  auto mode = Mode::affine;
  if (view.has("mode")) mode = with_place([&] { return place; }, [&, name = view.at("mode").text()] { return codec::parse_mode(name); });
  auto format = codec::default_format(mode);
  format.bits = number("bits", format.bits);
  format.group_size = number("group_size", format.group_size);  // null in what mlx_lm's recipes make without --q-group-size
  return format;
}

Format named_format(const std::string& path, const json& entry, const json& global) {
  const auto place = fmt::format("config.json: the quantization of {}", path);
  const auto format = read_format(place, entry.is_object() ? entry : global);  // `true` means the global values
  with_place([&] { return place; }, [&] { codec::check(format); });
  return format;
}

/// `weight` and `scales`: the checkpoint's names of the linear's own, or of the first of several that make it.
Format told_by_shapes(const checkpoint::Checkpoint& checkpoint, const LinearSpec& linear, const std::string& weight, const std::string& scale) {
  const auto &codes = checkpoint.info(weight), &scales = checkpoint.info(scale);
  if (codes.shape.empty() || scales.shape.empty() || scales.shape.back() < 1 || linear.in % scales.shape.back() != 0)
    fail("model", "{}: {}.scales does not divide the {} inputs of its linear; the checkpoint is damaged or not in MLX's format", scales.file.string(),
         linear.path, linear.in);
  Format format;
  format.group_size = linear.in / scales.shape.back();
  format.bits = static_cast<int>(std::int64_t{32} * codes.shape.back() / linear.in);
  if (scales.dtype == mx::uint8) format.mode = format.bits == 8 ? Mode::mxfp8 : format.group_size == 16 ? Mode::nvfp4 : Mode::mxfp4;
  with_place([&] { return fmt::format("{}: {}", codes.file.string(), linear.path); }, [&] { codec::check(format); });
  return format;
}

}  // namespace

std::optional<Format> common_format(const json& config) {
  for (const char* key : {"quantization", "quantization_config"})
    if (config.contains(key) && config.at(key).contains("bits") && is_mlx(config.at(key)))
      return read_format(fmt::format("config.json: {}", key), config.at(key));
  return std::nullopt;
}

Formats read_formats(const checkpoint::Checkpoint& checkpoint, const ModelSpec& spec) {
  const auto& block = block_of(checkpoint.config());
  Formats formats;
  for (const auto* linear : spec.linears()) {
    const auto source = [&](const char* suffix) {
      return find_source(spec.imports, linear->path + suffix, [&](const std::string& name) { return checkpoint.has(name); });
    };
    if (checkpoint.has(linear->path + ".global_scale"))
      fail("model", "{}: {}.global_scale: NVFP4 with a scale of the whole tensor is not supported; quantize the model without it",
           checkpoint.info(linear->path + ".global_scale").file.string(), linear->path);
    if (block.contains(linear->path) && !block[linear->path].is_null()) {
      const auto& entry = block[linear->path];
      if (entry.is_object() || (entry.is_boolean() && entry.get<bool>())) formats.emplace(linear->path, named_format(linear->path, entry, block));
    } else if (const auto weight = source(".weight"), scales = source(".scales"); weight && scales) {
      formats.emplace(linear->path, told_by_shapes(checkpoint, *linear, weight->names.front(), scales->names.front()));
    }
  }
  return formats;
}

std::vector<Expected> expected_tensors(const LinearSpec& linear, const Formats& formats) {
  const auto shape = [&](std::initializer_list<int> last) {
    mx::Shape all(last);
    if (linear.experts > 0) all.insert(all.begin(), linear.experts);
    return all;
  };
  std::vector<Expected> expected;
  const auto found = formats.find(linear.path);
  if (found == formats.end()) {
    expected.push_back({linear.path + ".weight", shape({linear.out, linear.in})});
  } else {
    const auto& format = found->second;
    if (linear.in % format.group_size != 0)
      fail("model", "config.json: the quantization of {} has groups of {}, into which its {} inputs cannot be cut", linear.path, format.group_size,
           linear.in);
    const int words = static_cast<int>(std::int64_t{1} * linear.in * format.bits / 32), groups = linear.in / format.group_size;
    expected.push_back({linear.path + ".weight", shape({linear.out, words}), Holds::codes});
    const bool affine = format.mode == Mode::affine;
    expected.push_back({linear.path + ".scales", shape({linear.out, groups}), affine ? Holds::numbers : Holds::bytes});
    if (affine) expected.push_back({linear.path + ".biases", shape({linear.out, groups})});
  }
  if (linear.bias) expected.push_back({linear.path + ".bias", shape({linear.out})});
  return expected;
}

std::vector<Expected> expected_tensors(const NormSpec& norm) {
  std::vector<Expected> expected;
  if (norm.weight)
    for (int piece = 0; piece < std::max(1, norm.pieces); ++piece)
      expected.push_back({norm.weight_name(piece), norm.rows > 0 ? mx::Shape{norm.rows, norm.size} : mx::Shape{norm.size}});
  if (norm.bias) expected.push_back({norm.bias_name(), {norm.size}});
  return expected;
}

Expected expected_tensor(const ParameterSpec& parameter) { return {parameter.path, parameter.shape}; }

}  // namespace lquant::model
