#pragma once

#include <fmt/format.h>

#include "base/error.h"
#include "base/shown.h"
#include "codec/foreign.h"

// What codec/foreign.cpp and codec/foreign_shapes.cpp share: the tensors that a linear of another tool's checkpoint has.
namespace lquant::codec::foreign {

constexpr const char* kRemedy = "the checkpoint is damaged or config.json is another model's; get it again";

using Suffixes = std::vector<std::string>;

/// Suffixes of the codes, of the scales and of what may stand beside them; among several spellings the first that exists is taken.
struct Names {
  Suffixes codes, scales, rest;
};
const Names& names_of(Layout layout);

bool is_float(mx::Dtype dtype);
bool is_word(mx::Dtype dtype);   ///< 32-bit integers
bool is_index(mx::Dtype dtype);  ///< 32- or 64-bit integers

/// One linear and the tensors that it has.
struct Linear {
  const Scheme& scheme;
  const std::string& path;
  const StoredOf& stored;
  int out, in, stack;

  int groups() const;  ///< of a row
  mx::Shape shape(std::initializer_list<int> last) const;
  /// The suffix among several spellings that exists; throws Error when there is none.
  std::string need(const Suffixes& suffixes) const;
  [[noreturn]] void wrong(const std::string& suffix, const std::string& needed) const;
  void expect_dtype(const std::string& suffix, bool (*fits)(mx::Dtype), const char* what) const;
  void expect(const std::string& suffix, const mx::Shape& shape, bool (*fits)(mx::Dtype), const char* what) const;
  void expect_whole_groups(int group) const;
};

/// How scales of numbers lie that are stored one by one: one scale for blocks of so many rows and columns.
struct Blocks {
  int rows, columns;
  mx::Shape grid;  ///< the scales, reshaped: [1, 1], [out, 1], [R, C], with the stack's axis before it
};
Blocks blocks_of(const Linear& linear, const std::string& suffix);

/// Of the layout fp8: e2m1 numbers all the same, two a byte, a power of two for 32 (the experts of DeepSeek-V4.1, beside linears in fp8).
bool holds_e2m1(const Linear& linear);

/// The scheme by which the linear is packed; null for a dense one. Throws Error when its tensors are neither.
const Scheme* packed_by(const Foreign& foreign, const std::string& path, const StoredOf& stored);

}  // namespace lquant::codec::foreign
