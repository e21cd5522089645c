// How names are matched. The rows of each architecture come from outside; what all of them share stands here.
#include "checkpoint/gguf/names.h"

#include <algorithm>
#include <optional>
#include <set>

namespace lquant::checkpoint::gguf {
namespace {

/// Outside of the blocks all are alike, but for what was done to the last norm.
constexpr Architecture::Row kOutside[] = {{"token_embd", "model.embed_tokens"}, {"output_norm", "model.norm"}, {"output", "lm_head"}};

/// The number in `name` where `pattern` has its '*', or an empty view where there is none; nothing when they do not match.
std::optional<std::string_view> match(std::string_view pattern, std::string_view name) {
  const auto star = pattern.find('*');
  if (star == std::string_view::npos) return pattern == name ? std::optional(std::string_view{}) : std::nullopt;
  const auto tail = pattern.substr(star + 1);
  if (name.size() <= star + tail.size() || !name.starts_with(pattern.substr(0, star)) || !name.ends_with(tail)) return std::nullopt;
  const auto number = name.substr(star, name.size() - star - tail.size());
  return number.find_first_not_of("0123456789") == std::string_view::npos ? std::optional(number) : std::nullopt;
}

std::string fill(std::string_view pattern, std::string_view number) {
  const auto star = pattern.find('*');
  if (star == std::string_view::npos) return std::string(pattern);
  return std::string(pattern.substr(0, star)) + std::string(number) + std::string(pattern.substr(star + 1));
}

}  // namespace

const Architecture* find_architecture(const std::vector<Architecture>& architectures, std::string_view name, bool experts) {
  const Architecture* found = nullptr;
  for (const auto& row : architectures)
    if (row.name == name && (!found || experts)) found = &row;
  return found;
}

std::vector<std::string> architecture_names(const std::vector<Architecture>& architectures) {
  std::vector<std::string> names;
  for (const auto& row : architectures)
    if (std::find(names.begin(), names.end(), row.name) == names.end()) names.emplace_back(row.name);
  return names;
}

std::vector<Mapped> map_name(const Architecture& architecture, std::string_view gguf_name) {
  const auto dot = gguf_name.rfind('.');
  if (dot == std::string_view::npos) return {};
  const auto suffix = gguf_name.substr(dot);
  if (suffix != ".weight" && suffix != ".bias") return {};
  const auto stem = gguf_name.substr(0, dot);
  std::vector<Mapped> mapped;
  if (const auto block = match("blk.*", stem.substr(0, stem.find('.', 4))); block && stem.size() > 5 + block->size()) {
    const auto inner = stem.substr(5 + block->size());
    for (const auto& row : architecture.block)
      if (const auto number = match(row.gguf, inner))
        mapped.push_back({"model.layers." + std::string(*block) + "." + fill(row.hugging_face, *number) + std::string(suffix), row.change});
  } else {
    for (const auto& row : kOutside) {
      if (row.gguf != stem) continue;
      const bool norm = row.gguf == "output_norm";
      mapped.push_back({std::string(row.hugging_face) + std::string(suffix), norm ? architecture.final_norm : Change::none});
    }
  }
  return mapped;
}

bool is_table(std::string_view gguf_name) {
  static const std::set<std::string_view> outside = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"};
  if (outside.contains(gguf_name)) return true;
  const auto dot = gguf_name.find('.', 4);
  return dot != std::string_view::npos && match("blk.*", gguf_name.substr(0, dot)) && gguf_name.substr(dot) == ".attn_rot_embd.weight";
}

}  // namespace lquant::checkpoint::gguf
