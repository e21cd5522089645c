#include "checkpoint/gguf/types.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>

#include "checkpoint/gguf/blocks.h"

namespace lquant::checkpoint::gguf {
namespace {

const BlockType kTypes[] = {
    {0, "F32", 1, 4, blocks::f32},
    {1, "F16", 1, 2, blocks::f16},
    {2, "Q4_0", 32, 18, blocks::q4_0},
    {3, "Q4_1", 32, 20, blocks::q4_1},
    {6, "Q5_0", 32, 22, blocks::q5_0},
    {7, "Q5_1", 32, 24, blocks::q5_1},
    {8, "Q8_0", 32, 34, blocks::q8_0},
    {10, "Q2_K", 256, 84, blocks::q2_k},
    {11, "Q3_K", 256, 110, blocks::q3_k},
    {12, "Q4_K", 256, 144, blocks::q4_k},
    {13, "Q5_K", 256, 176, blocks::q5_k},
    {14, "Q6_K", 256, 210, blocks::q6_k},
    {20, "IQ4_NL", 32, 18, blocks::iq4_nl},
    {23, "IQ4_XS", 256, 136, blocks::iq4_xs},
    {24, "I8", 1, 1, nullptr},
    {25, "I16", 1, 2, nullptr},
    {26, "I32", 1, 4, nullptr},
    {27, "I64", 1, 8, nullptr},
    {28, "F64", 1, 8, blocks::f64},
    {30, "BF16", 1, 2, blocks::bf16},
    {39, "MXFP4", 32, 17, blocks::mxfp4},
};

/// What exists and is not read: named in messages alone.
const std::pair<std::uint32_t, const char*> kOthers[] = {
    {4, "Q4_2"},   {5, "Q4_3"},   {9, "Q8_1"},        {15, "Q8_K"},       {16, "IQ2_XXS"},    {17, "IQ2_XS"},   {18, "IQ3_XXS"},
    {19, "IQ1_S"}, {21, "IQ3_S"}, {22, "IQ2_S"},      {29, "IQ1_M"},      {31, "Q4_0_4_4"},   {32, "Q4_0_4_8"}, {33, "Q4_0_8_8"},
    {34, "TQ1_0"}, {35, "TQ2_0"}, {36, "IQ4_NL_4_4"}, {37, "IQ4_NL_4_8"}, {38, "IQ4_NL_8_8"}, {40, "NVFP4"},    {41, "Q1_0"},
};

template <class Match>
const BlockType* find(Match match) {
  const auto* found = std::find_if(std::begin(kTypes), std::end(kTypes), match);
  return found == std::end(kTypes) ? nullptr : found;
}

}  // namespace

const BlockType* find_type(std::uint32_t id) {
  return find([&](const BlockType& type) { return type.id == id; });
}

const BlockType* find_type(const std::string& name) {
  return find([&](const BlockType& type) { return type.name == name; });
}

std::string type_name(std::uint32_t id) {
  if (const auto* type = find_type(id)) return type->name;
  for (const auto& [other, name] : kOthers)
    if (other == id) return name;
  return fmt::format("number {}", id);
}

std::vector<std::string> type_names() {
  std::vector<std::string> names;
  for (const auto& type : kTypes) names.emplace_back(type.name);
  return names;
}

}  // namespace lquant::checkpoint::gguf
