// Every tool has a vocabulary of its own for the same few facts: how many bits, which numbers share a scale, is there a zero point. Each reader below
// turns one of them into Schemes; nothing that a Scheme cannot say is let through.
#include "codec/foreign_config.h"

#include <algorithm>
#include <array>
#include <initializer_list>

#include "base/error.h"
#include "base/json.h"
#include "base/shown.h"

namespace lquant::codec {
namespace {

using nlohmann::json;

constexpr int kLargestGroup = 1 << 20;         // far above the inputs of any linear, far below what overflows
constexpr std::size_t kLongestPattern = 1000;  // published patterns have some fifty characters
constexpr std::size_t kMostNames = 1 << 16;    // lists name single linears; large mixtures have some thousands
constexpr const char* kAdvice = "give the unquantized model";

JsonView view_of(const json& block) { return JsonView("codec", "config.json: quantization_config", block, kAdvice); }

/// The text of a field, or `otherwise` where there is none.
std::string text_or(const JsonView& view, const char* key, const char* otherwise) { return view.has(key) ? view.at(key).text() : otherwise; }
bool flag_or(const JsonView& view, const char* key, bool otherwise) { return view.has(key) ? view.at(key).flag() : otherwise; }

int bits_among(const JsonView& value, std::initializer_list<int> possible) {
  const auto bits = value.whole(-kLargestGroup, kLargestGroup);
  if (std::find(possible.begin(), possible.end(), bits) == possible.end()) {
    std::string all;
    for (int one : possible) all += (all.empty() ? "" : ", ") + std::to_string(one);
    value.refuse(possible.size() == 1 ? all : "one of " + all);
  }
  return static_cast<int>(bits);
}

/// Inputs of a group; −1, the usual word for a whole row, becomes 0.
int group_of(const JsonView& value) {
  const auto group = value.whole(-1, kLargestGroup);
  if (group == 0) value.refuse("a size of groups (−1 for whole rows)");
  return group < 0 ? 0 : static_cast<int>(group);
}

void read_blocks(const JsonView& value, Scheme& scheme) {
  if (value.size() != 2) value.refuse("a number of rows and one of columns");
  scheme.block_rows = static_cast<int>(value.at(std::size_t{0}).whole(1, kLargestGroup));
  scheme.block_columns = static_cast<int>(value.at(std::size_t{1}).whole(1, kLargestGroup));
}

std::shared_ptr<const std::regex> compile(const JsonView& place, const std::string& pattern) {
  if (pattern.size() > kLongestPattern) place.complain(fmt::format("has a pattern of more than {} characters", kLongestPattern));
  auto flags = std::regex::ECMAScript;
#ifdef __GLIBCXX__
  flags |= std::regex_constants::__polynomial;  // its usual matcher needs exponential time for patterns such as (a+)+b
#endif
  try {
    return std::make_shared<const std::regex>(pattern, flags);
  } catch (const std::regex_error&) {
    place.refuse("a pattern that is understood");
  }
}

NamePattern pattern_of(const JsonView& place, const std::string& text, NamePattern::Kind plain) {
  if (text.starts_with("re:")) return {NamePattern::Kind::regex, text.substr(3), compile(place, text.substr(3))};
  return {plain, text, nullptr};
}

std::vector<std::string> names_at(const JsonView& view, const char* key) {
  std::vector<std::string> names;
  if (!view.has(key)) return names;
  const auto list = view.at(key);
  if (list.size() > kMostNames) list.complain(fmt::format("lists more than {} names", kMostNames));
  for (std::size_t i = 0; i < list.size(); ++i) names.push_back(list.at(i).text());
  return names;
}

void add_ignored(const JsonView& view, const char* key, NamePattern::Kind plain, Foreign& foreign) {
  for (const auto& name : names_at(view, key)) foreign.ignore.push_back(pattern_of(view.at(key), name, plain));
}

void add(Foreign& foreign, Scheme scheme, const JsonView& place) {
  std::vector<NamePattern> patterns;
  for (const auto& target : scheme.targets) patterns.push_back(pattern_of(place, target, NamePattern::Kind::exact));
  foreign.schemes.push_back(std::move(scheme));
  foreign.targets.push_back(std::move(patterns));
}

/// DeepSeek, Qwen, GLM, MiniMax, Mistral ("fp8"), and FBGEMM, whose scales are of rows.
void read_fp8(const JsonView& view, Foreign& foreign) {
  Scheme scheme{.layout = Layout::fp8, .bits = 8};
  for (const char* key : {"fmt", "format"})
    if (view.has(key) && view.at(key).text() != "e4m3" && view.at(key).text() != "float8_e4m3fn")
      view.at(key).refuse("e4m3, the one fp8 that is read");
  if (view.has("weight_block_size")) read_blocks(view.at("weight_block_size"), scheme);
  for (const char* key : {"modules_to_not_convert", "ignored_layers"}) add_ignored(view, key, NamePattern::Kind::part, foreign);
  add(foreign, scheme, view);
}

void read_awq(const JsonView& view, Foreign& foreign) {
  Scheme scheme{.layout = Layout::awq, .bits = 4, .group = 128, .symmetric = false};
  for (const char* key : {"bits", "w_bit"})
    if (view.has(key)) scheme.bits = bits_among(view.at(key), {4});
  for (const char* key : {"group_size", "q_group_size"})
    if (view.has(key)) scheme.group = group_of(view.at(key));
  auto version = text_or(view, "version", "gemm");
  std::transform(version.begin(), version.end(), version.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  if (version != "gemm") view.at("version").refuse("gemm, the one packing of AWQ that is read");
  scheme.symmetric = !flag_or(view, "zero_point", true);
  add_ignored(view, "modules_to_not_convert", NamePattern::Kind::part, foreign);
  add(foreign, scheme, view);
}

bool made_by_gptqmodel(const JsonView& view) {
  if (!view.has("meta") || !view.at("meta").value().is_object()) return false;
  return view.at("meta").value().value("quantizer", json()).dump(-1, ' ', false, json::error_handler_t::replace).find("gptqmodel") !=
         std::string::npos;
}

void check_gptq(const JsonView& view, const Scheme& scheme) {
  // GPTQModel takes 1 from the 3-bit zero points of its files with other words than those in which they lie.
  if (scheme.bits == 3 && scheme.zeros_less_one && made_by_gptqmodel(view))
    view.complain("describes 3-bit weights in GPTQ's first format written by GPTQModel, whose zero points cannot be told");
}

void read_gptq(const JsonView& view, Foreign& foreign) {
  Scheme scheme{.layout = Layout::gptq, .bits = 4, .group = 128, .zeros_less_one = true};
  scheme.bits = bits_among(view.at("bits"), {2, 3, 4, 8});
  if (view.has("group_size")) scheme.group = group_of(view.at("group_size"));
  scheme.symmetric = flag_or(view, "sym", true);
  scheme.act_order = flag_or(view, "desc_act", false);
  for (const char* key : {"checkpoint_format", "format"}) {
    if (!view.has(key)) continue;
    const auto format = view.at(key).text();
    if (format != "gptq" && format != "gptq_v2") view.at(key).refuse("gptq or gptq_v2");
    scheme.zeros_less_one = format == "gptq";
    break;
  }
  check_gptq(view, scheme);
  // GPTQModel's "dynamic": "-:" and a pattern are left dense, "+:" (or nothing) and a pattern have settings of their own.
  if (view.has("dynamic")) {
    const auto dynamic = view.at("dynamic");
    if (!dynamic.value().is_object()) dynamic.refuse("an object of patterns");
    if (dynamic.value().size() > kMostNames) dynamic.complain(fmt::format("lists more than {} names", kMostNames));
    for (const auto& [key, settings] : dynamic.value().items()) {
      const auto pattern = "re:" + (key.starts_with("-:") || key.starts_with("+:") ? key.substr(2) : key);
      if (key.starts_with("-:")) {
        foreign.ignore.push_back(pattern_of(dynamic, pattern, NamePattern::Kind::exact));
        continue;
      }
      auto own = scheme;
      own.targets = {pattern};
      const auto entry = dynamic.at(key);
      if (entry.has("bits")) own.bits = bits_among(entry.at("bits"), {2, 3, 4, 8});
      if (entry.has("group_size")) own.group = group_of(entry.at("group_size"));
      own.symmetric = flag_or(entry, "sym", own.symmetric);
      own.act_order = flag_or(entry, "desc_act", own.act_order);
      check_gptq(view, own);
      add(foreign, own, dynamic);
    }
  }
  add_ignored(view, "modules_to_not_convert", NamePattern::Kind::part, foreign);
  add(foreign, scheme, view);
}

void read_modelopt(const JsonView& outer, Foreign& foreign) {
  const auto view = outer.has("quantization") && outer.at("quantization").value().is_object() ? outer.at("quantization") : outer;
  const auto algorithm = view.at("quant_algo").text();
  Scheme scheme{.layout = algorithm == "NVFP4" ? Layout::nvfp4 : Layout::fp8, .bits = algorithm == "NVFP4" ? 4 : 8};
  if (algorithm == "NVFP4") {
    scheme.group = 16;
    if (view.has("group_size")) view.at("group_size").whole(16, 16);
  } else if (algorithm != "FP8") {
    view.at("quant_algo").refuse("NVFP4 or FP8");
  }
  for (const char* key : {"exclude_modules", "ignore"}) {
    for (auto name : names_at(view, key)) {  // names with * for any characters
      std::string pattern = "re:";
      for (char c : name) {
        if (c == '*') {
          pattern += ".*";
        } else {
          if (std::string_view("\\^$.|?+()[]{}").find(c) != std::string_view::npos) pattern += '\\';
          pattern += c;
        }
      }
      foreign.ignore.push_back(pattern_of(view.at(key), pattern + "$", NamePattern::Kind::exact));
    }
  }
  add(foreign, scheme, view);
}

/// One of compressed-tensors' config_groups.
void read_group(const JsonView& group, const std::string& common, Foreign& foreign) {
  if (!group.has("weights")) return;  // activations alone
  const auto weights = group.at("weights");
  const auto format = text_or(group, "format", common.c_str());
  const auto type = text_or(weights, "type", "int"), strategy = text_or(weights, "strategy", "");
  const bool floats = type == "float";
  Scheme scheme;
  scheme.symmetric = flag_or(weights, "symmetric", true);
  if (weights.has("group_size")) scheme.group = group_of(weights.at("group_size"));
  if (strategy == "channel" || strategy == "tensor") scheme.group = 0;
  scheme.targets = names_at(group, "targets");
  if (std::find(scheme.targets.begin(), scheme.targets.end(), "Linear") != scheme.targets.end()) scheme.targets.clear();
  const auto bits = [&](std::initializer_list<int> possible) { return weights.has("num_bits") ? bits_among(weights.at("num_bits"), possible) : 8; };

  if (format == "pack-quantized") {
    scheme.layout = Layout::packed_ints;
    if (floats) weights.at("type").refuse("int, which alone is packed so");
    scheme.bits = bits({2, 4, 8});
    // actorder "group" shuffles the inputs among groups; "weight" and "static" leave them where they were.
    if (weights.has("actorder")) {
      const auto& order = weights.at("actorder").value();
      scheme.act_order = order.is_boolean() ? order.get<bool>() : weights.at("actorder").text() == "group";
    }
  } else if (format == "float-quantized" || (format == "naive-quantized" && floats)) {
    scheme.layout = Layout::fp8;
    scheme.bits = bits({8});
    if (weights.has("block_structure")) {
      const auto blocks = weights.at("block_structure");
      if (blocks.value().is_string()) {  // "128x128" in files of early versions
        const auto text = blocks.text();
        if (text != "128x128") blocks.refuse("a list of two numbers");
        scheme.block_rows = scheme.block_columns = 128;
      } else {
        read_blocks(blocks, scheme);
      }
    } else if (scheme.group > 0) {
      scheme.block_rows = 1;
      scheme.block_columns = scheme.group;
    }
  } else if (format == "int-quantized" || format == "naive-quantized") {
    scheme.layout = Layout::ints;
    scheme.bits = bits({8});
  } else if (format == "nvfp4-pack-quantized") {
    scheme.layout = Layout::nvfp4;
    scheme.bits = bits({4});
    scheme.group = 16;
  } else if (format == "mxfp4-pack-quantized") {
    scheme.layout = Layout::mxfp4;
    scheme.bits = bits({4});
    scheme.group = 32;
  } else if (format == "mxfp8-quantized") {
    scheme.layout = Layout::fp8;
    scheme.bits = bits({8});
    scheme.group = scheme.block_columns = 32;
    scheme.block_rows = 1;
  } else {
    group.complain(fmt::format("has the format \"{}\", which is not read", shown(format)));
  }
  add(foreign, scheme, group);
}

void read_compressed(const JsonView& view, Foreign& foreign) {
  const auto common = text_or(view, "format", "");
  if (view.has("sparsity_config") && view.at("sparsity_config").value().is_object()) {
    const auto sparse = text_or(view.at("sparsity_config"), "format", "dense");
    if (sparse != "dense") view.at("sparsity_config").complain(fmt::format("packs zeros away (\"{}\"), which is not read", shown(sparse)));
  }
  if (!view.has("config_groups"))
    fail("codec", "config.json: quantization_config of compressed-tensors: \"config_groups\" is missing; {}", kAdvice);
  const auto groups = view.at("config_groups");
  if (!groups.value().is_object()) groups.refuse("an object of groups");
  if (groups.value().size() > 1000) groups.complain("has more than 1000 groups");
  for (const auto& [name, ignored] : groups.value().items()) read_group(groups.at(name), common, foreign);
  if (foreign.schemes.empty()) groups.complain("has no group that says how weights are quantized");
  add_ignored(view, "ignore", NamePattern::Kind::exact, foreign);
}

const json* block_of(const json& config) {
  if (!config.is_object()) return nullptr;
  const auto own = config.find("quantization");
  if (own != config.end() && own->is_object()) return nullptr;  // MLX's block
  for (const char* key : {"quantization_config", "compression_config"}) {
    const auto block = config.find(key);
    if (block != config.end() && block->is_object()) return &*block;
  }
  const auto text = config.find("text_config");
  return text != config.end() ? block_of(*text) : nullptr;
}

}  // namespace

bool NamePattern::matches(const std::string& name) const {
  switch (kind) {
    case Kind::exact:
      return name == text;
    case Kind::part:
      return name.find(text) != std::string::npos;
    case Kind::regex:
      return std::regex_search(name, *regex, std::regex_constants::match_continuous);
  }
  return false;
}

std::optional<Foreign> foreign_of(const json& config) {
  const auto* block = block_of(config);
  if (block == nullptr) return std::nullopt;
  const auto view = view_of(*block);
  const bool nested = view.has("quantization") && view.at("quantization").value().is_object();  // ModelOpt's hf_quant_config.json
  if (!view.has("quant_method") && !view.has("quant_algo") && !view.has("config_groups") && !nested) return std::nullopt;
  Foreign foreign;
  foreign.method = text_or(view, "quant_method", view.has("config_groups") ? "compressed-tensors" : "modelopt");
  if (foreign.method == "fp8" || foreign.method == "fbgemm_fp8") {
    read_fp8(view, foreign);
  } else if (foreign.method == "awq") {
    read_awq(view, foreign);
  } else if (foreign.method == "gptq") {
    read_gptq(view, foreign);
  } else if (foreign.method == "compressed-tensors") {
    read_compressed(view, foreign);
  } else if (foreign.method == "modelopt") {
    read_modelopt(view, foreign);
  } else if (foreign.method == "mxfp4") {
    add_ignored(view, "modules_to_not_convert", NamePattern::Kind::part, foreign);
    add(foreign, {.layout = Layout::mxfp4_blocks, .bits = 4, .group = 32}, view);
  } else if (foreign.method == "mxfp8") {
    for (const char* key : {"modules_to_not_convert", "ignored_layers"}) add_ignored(view, key, NamePattern::Kind::part, foreign);
    add(foreign, {.layout = Layout::fp8, .bits = 8, .group = 32, .block_rows = 1, .block_columns = 32}, view);
  } else {
    view.complain(fmt::format("was written by \"{}\", whose tensors are not read (fp8, compressed-tensors, awq, gptq, mxfp4, mxfp8 and modelopt are)",
                              shown(foreign.method)));
  }
  return foreign;
}

const Scheme* scheme_of(const Foreign& foreign, const std::string& path) {
  for (const auto& pattern : foreign.ignore)
    if (pattern.matches(path)) return nullptr;
  for (const auto kind : {NamePattern::Kind::exact, NamePattern::Kind::regex}) {
    for (std::size_t i = 0; i < foreign.schemes.size(); ++i)
      for (const auto& pattern : foreign.targets[i])
        if (pattern.kind == kind && pattern.matches(path)) return &foreign.schemes[i];
  }
  for (std::size_t i = 0; i < foreign.schemes.size(); ++i)
    if (foreign.targets[i].empty()) return &foreign.schemes[i];
  return nullptr;
}

}  // namespace lquant::codec
