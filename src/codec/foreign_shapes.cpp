// A linear is found by the tensors that it has, not by the lists in config.json: those name modules by paths of other programs, by classes and by
// parts of names. Shapes are compared before anything is computed, so that the arithmetic in foreign_decode.cpp can trust them.
#include "codec/foreign_shapes.h"

#include <algorithm>
#include <cstdint>

namespace lquant::codec {
namespace foreign {
namespace {

bool is_byte(mx::Dtype dtype) { return dtype == mx::uint8; }
bool is_fp8(mx::Dtype dtype) { return is_byte(dtype) || is_float(dtype); }
bool is_small_int(mx::Dtype dtype) { return dtype == mx::int8; }

std::string shape_text(const mx::Shape& shape) {
  std::string text;
  for (int d : shape) text += (text.empty() ? "" : ", ") + std::to_string(d);
  return "[" + text + "]";
}

/// Elements; what is above all that can be stored is as good as any other large number.
std::int64_t size_of(const mx::Shape& shape) {
  std::int64_t size = 1;
  for (int d : shape) size = std::min(size * d, std::int64_t{1} << 31);
  return size;
}

int ceil_of(std::int64_t size, std::int64_t part) { return static_cast<int>((size + part - 1) / part); }

/// The spelling among `suffixes` that exists.
std::optional<std::string> found(const StoredOf& stored, const Suffixes& suffixes) {
  for (const auto& suffix : suffixes)
    if (stored(suffix)) return suffix;
  return std::nullopt;
}

}  // namespace

const Names& names_of(Layout layout) {
  // An empty suffix is a parameter without ".weight", as stacks of experts are stored.
  static const Names fp8{{".weight", ""}, {".weight_scale_inv", ".weight_scale", ".scale", "_scale_inv"}, {}};
  static const Names ints{{".weight"}, {".weight_scale"}, {".weight_zero_point"}};
  static const Names packed{{".weight_packed"}, {".weight_scale"}, {".weight_zero_point", ".weight_shape", ".weight_g_idx"}};
  static const Names nvfp4{
      {".weight_packed", ".weight", ""}, {".weight_scale", "_weight_scale"}, {".weight_global_scale", ".weight_scale_2", "_weight_scale_2"}};
  static const Names mxfp4{{".weight_packed"}, {".weight_scale"}, {".weight_shape"}};
  static const Names awq{{".qweight"}, {".scales"}, {".qzeros"}};
  static const Names gptq{{".qweight"}, {".scales"}, {".qzeros", ".g_idx"}};
  static const Names blocks{{"_blocks"}, {"_scales"}, {}};
  switch (layout) {
    case Layout::fp8:
      return fp8;
    case Layout::ints:
      return ints;
    case Layout::packed_ints:
      return packed;
    case Layout::nvfp4:
      return nvfp4;
    case Layout::mxfp4:
      return mxfp4;
    case Layout::awq:
      return awq;
    case Layout::gptq:
      return gptq;
    case Layout::mxfp4_blocks:
      break;
  }
  return blocks;
}

bool is_float(mx::Dtype dtype) { return dtype == mx::float32 || dtype == mx::bfloat16 || dtype == mx::float16; }
bool is_word(mx::Dtype dtype) { return dtype == mx::int32 || dtype == mx::uint32; }
bool is_index(mx::Dtype dtype) { return is_word(dtype) || dtype == mx::int64 || dtype == mx::uint64; }

int Linear::groups() const { return scheme.group == 0 ? 1 : ceil_of(in, scheme.group); }

mx::Shape Linear::shape(std::initializer_list<int> last) const {
  mx::Shape all(last);
  if (stack > 0) all.insert(all.begin(), stack);
  return all;
}

std::string Linear::need(const Suffixes& suffixes) const {
  const auto suffix = found(stored, suffixes);
  if (!suffix) fail("codec", "{}{} is missing beside the other tensors of its linear; {}", shown(path), suffixes.front(), kRemedy);
  return *suffix;
}

void Linear::wrong(const std::string& suffix, const std::string& needed) const {
  fail("codec", "{}{} has the shape {}, but its linear of {} outputs and {} inputs needs {}; {}", shown(path), suffix,
       shape_text(stored(suffix)->shape), out, in, needed, kRemedy);
}

void Linear::expect_dtype(const std::string& suffix, bool (*fits)(mx::Dtype), const char* what) const {
  if (!fits(stored(suffix)->dtype)) fail("codec", "{}{} does not hold {}; {}", shown(path), suffix, what, kRemedy);
}

void Linear::expect(const std::string& suffix, const mx::Shape& shape, bool (*fits)(mx::Dtype), const char* what) const {
  if (stored(suffix)->shape != shape) wrong(suffix, shape_text(shape));
  expect_dtype(suffix, fits, what);
}

void Linear::expect_whole_groups(int group) const {
  if (in % group != 0) fail("codec", "{} has {} inputs, which cannot be cut into groups of {}; {}", shown(path), in, group, kRemedy);
}

Blocks blocks_of(const Linear& l, const std::string& suffix) {
  const auto shape = l.stored(suffix)->shape;
  const int lead = l.stack > 0 ? l.stack : 1;
  const auto size = size_of(shape);
  const auto grid = [&](int rows, int columns) { return l.shape({rows, columns}); };
  if (size == 1) return {l.out, l.in, mx::Shape(l.stack > 0 ? 3 : 2, 1)};
  if (l.stack > 0 && size == lead && shape.front() == lead) return {l.out, l.in, grid(1, 1)};
  if (shape == l.shape({l.out}) || shape == l.shape({l.out, 1})) return {1, l.in, grid(l.out, 1)};
  const bool told = l.scheme.block_rows > 0;
  const int rows = told ? l.scheme.block_rows : 128, columns = told ? l.scheme.block_columns : 128;
  const int needed_rows = ceil_of(l.out, rows), needed_columns = ceil_of(l.in, columns);
  if (shape.size() == l.shape({0, 0}).size() && (l.stack == 0 || shape.front() == lead)) {
    const int r = shape[shape.size() - 2], c = shape.back();
    if (r == needed_rows && c == needed_columns) return {rows, columns, shape};
    if (r == l.out && c == needed_columns) return {1, columns, shape};  // blocks of one row: MX formats
    // MiMo pads its weights to whole parts of a fused projection before it takes blocks; scales behind the last row or column stand for nothing.
    const bool padded = r >= needed_rows && c >= needed_columns && r - needed_rows < needed_rows && c - needed_columns < needed_columns;
    if (told && padded) return {rows, columns, shape};
  }
  l.wrong(suffix,
          fmt::format("one scale, one for each output, or {} for blocks of {} × {}", shape_text(grid(needed_rows, needed_columns)), rows, columns));
}

bool holds_e2m1(const Linear& l) {
  const auto& names = names_of(Layout::fp8);
  const auto codes = found(l.stored, names.codes), scales = found(l.stored, names.scales);
  if (l.scheme.layout != Layout::fp8 || !codes || !scales || l.in % 32 != 0) return false;
  const auto bytes = *l.stored(*codes), powers = *l.stored(*scales);
  return (is_byte(bytes.dtype) || is_small_int(bytes.dtype)) && bytes.shape == l.shape({l.out, l.in / 2}) && is_byte(powers.dtype) &&
         powers.shape == l.shape({l.out, l.in / 32});
}

const Scheme* packed_by(const Foreign& foreign, const std::string& path, const StoredOf& stored) {
  const auto* scheme = foreign.schemes.size() == 1 ? &foreign.schemes.front() : scheme_of(foreign, path);
  const auto is_packed = [&](const Scheme& s) {
    const auto codes = found(stored, names_of(s.layout).codes);
    // Where codes and dense weights have one name, a scale beside it makes the difference.
    return codes && ((*codes != ".weight" && !codes->empty()) || found(stored, names_of(s.layout).scales));
  };
  if (scheme != nullptr && is_packed(*scheme)) return scheme;
  const auto dense = found(stored, {".weight", ""});
  if (dense && is_float(stored(*dense)->dtype) && (scheme == nullptr || !found(stored, names_of(scheme->layout).scales))) return nullptr;
  if (scheme == nullptr) {
    fail("codec", "config.json: quantization_config does not say how {} is packed, and it has no dense weight; give the unquantized model",
         shown(path));
  }
  if (dense) fail("codec", "{}{} holds no floating-point numbers, and the scales beside it are missing; {}", shown(path), *dense, kRemedy);
  fail("codec", "{}{} is missing; {}", shown(path), names_of(scheme->layout).codes.front(), kRemedy);
}

}  // namespace foreign

namespace {

using namespace foreign;

void check_integers(const Linear& l) {
  const auto& s = l.scheme;
  const auto scale = l.need({".weight_scale"});
  l.expect_dtype(scale, is_float, "floating-point scales");
  const auto single = [&](const std::string& suffix) { return size_of(l.stored(suffix)->shape) == 1; };
  const auto scales = l.shape({l.out, l.groups()});
  if (!single(scale) && l.stored(scale)->shape != scales) l.wrong(scale, shape_text(scales));
  const std::string zeros = ".weight_zero_point", order = ".weight_g_idx";
  if (!s.symmetric) {
    l.need({zeros});
    const auto stored = *l.stored(zeros);
    if (is_word(stored.dtype) && s.layout == Layout::packed_ints)
      l.expect(zeros, l.shape({ceil_of(std::int64_t{l.out} * s.bits, 32), l.groups()}), is_word, "packed zero points");
    else if (!single(zeros))
      l.expect(zeros, scales, is_small_int, "8-bit zero points");
    else
      l.expect_dtype(zeros, is_small_int, "8-bit zero points");
  }
  if (s.layout != Layout::packed_ints) return;
  if (l.stored(order) && (s.act_order || l.stored(order)->shape != mx::Shape{0})) l.expect(order, {l.in}, is_index, "indices of groups");
  if (s.act_order && !l.stored(order) && s.group > 0) l.need({order});
}

void check_layout(const Linear& l) {
  const auto& s = l.scheme;
  const auto codes = l.need(names_of(s.layout).codes);
  switch (s.layout) {
    case Layout::fp8: {
      if (holds_e2m1(l)) return;
      l.expect(codes, l.shape({l.out, l.in}), is_fp8, "fp8 numbers");
      const auto scales = l.need(names_of(s.layout).scales);
      l.expect_dtype(scales, is_fp8, "scales");
      blocks_of(l, scales);
      return;
    }
    case Layout::ints:
      l.expect(codes, l.shape({l.out, l.in}), is_small_int, "8-bit integers");
      return check_integers(l);
    case Layout::packed_ints:
      l.expect(codes, l.shape({l.out, ceil_of(std::int64_t{l.in} * s.bits, 32)}), is_word, "packed integers");
      return check_integers(l);
    case Layout::nvfp4: {
      l.expect_whole_groups(16);
      l.expect(codes, l.shape({l.out, l.in / 2}), is_byte, "bytes");
      l.expect(l.need(names_of(s.layout).scales), l.shape({l.out, l.in / 16}), is_fp8, "fp8 scales");
      const auto global = l.need(names_of(s.layout).rest);
      l.expect_dtype(global, is_float, "a floating-point scale");
      const auto shape = l.stored(global)->shape;
      const auto size = size_of(shape);
      // A stack of fused matrices has one for each of these: a column for an equal part of their rows.
      const bool by_matrix = l.stack > 0 && size >= l.stack && shape.front() == l.stack && l.out % (size / l.stack) == 0;
      if (size != 1 && !by_matrix) l.wrong(global, "one scale");
      return;
    }
    case Layout::mxfp4:
      l.expect_whole_groups(32);
      l.expect(codes, l.shape({l.out, l.in / 2}), is_byte, "bytes");
      return l.expect(l.need({".weight_scale"}), l.shape({l.out, l.in / 32}), is_byte, "bytes");
    case Layout::mxfp4_blocks:
      l.expect_whole_groups(32);
      l.expect(codes, l.shape({l.out, l.in / 32, 16}), is_byte, "bytes");
      return l.expect(l.need({"_scales"}), l.shape({l.out, l.in / 32}), is_byte, "bytes");
    case Layout::awq:
    case Layout::gptq:
      break;
  }
  if (l.stack > 0)
    fail("codec", "{}: stacks of matrices are not stored in {}'s format; {}", shown(l.path), s.layout == Layout::awq ? "AWQ" : "GPTQ", kRemedy);
  const int per_unit = s.bits == 3 ? 32 : 32 / s.bits;  // outputs (and with GPTQ inputs) that fill whole words
  if (l.out % per_unit != 0 || (s.layout == Layout::gptq && l.in % per_unit != 0))
    fail("codec", "{} has {} outputs and {} inputs, which do not fill whole words of {}-bit codes; {}", shown(l.path), l.out, l.in, s.bits, kRemedy);
  const int packed_out = static_cast<int>(std::int64_t{l.out} * s.bits / 32), packed_in = static_cast<int>(std::int64_t{l.in} * s.bits / 32);
  l.expect(codes, s.layout == Layout::awq ? mx::Shape{l.in, packed_out} : mx::Shape{packed_in, l.out}, is_word, "packed integers");
  l.expect(l.need({".scales"}), {l.groups(), l.out}, is_float, "floating-point scales");
  if (s.layout == Layout::gptq || l.stored(".qzeros")) l.expect(l.need({".qzeros"}), {l.groups(), packed_out}, is_word, "packed zero points");
  if (s.layout == Layout::awq) {
    if (s.group > 0) l.expect_whole_groups(s.group);
    return;
  }
  if (s.act_order && s.group > 0) l.need({".g_idx"});
  if (const auto order = l.stored(".g_idx"); order && order->shape != mx::Shape{0}) l.expect(".g_idx", {l.in}, is_index, "indices of groups");
}

}  // namespace

std::vector<std::string> foreign_tensor_names(const Foreign& foreign, const std::string& path) {
  std::vector<std::string> names;
  const auto add = [&](const Suffixes& suffixes) {
    for (const auto& suffix : suffixes)
      if (auto name = path + suffix; std::find(names.begin(), names.end(), name) == names.end()) names.push_back(std::move(name));
  };
  for (const auto& scheme : foreign.schemes) {
    const auto& all = names_of(scheme.layout);
    add(all.codes);
    add(all.scales);
    add(all.rest);
  }
  add({".weight"});
  return names;
}

std::vector<std::string> foreign_unused_names(const std::string& path) {
  std::vector<std::string> names;
  for (const char* suffix : {".activation_scale", "_activation_scale", ".input_scale", "_input_scale", ".input_scale_ub", ".input_zero_point",
                             ".input_global_scale", ".output_scale", ".output_zero_point", ".k_scale", ".v_scale"})
    names.push_back(path + suffix);
  return names;
}

mx::Shape shape_of_weight(const Foreign& foreign, const std::string& path, const StoredOf& stored) {
  const auto* scheme = packed_by(foreign, path, stored);
  auto shape = stored(*found(stored, scheme != nullptr ? names_of(scheme->layout).codes : Suffixes{".weight", ""}))->shape;
  if (scheme == nullptr) return shape;
  const std::size_t axes = scheme->layout == Layout::mxfp4_blocks ? 3 : 2;
  if (shape.size() < axes) return {};
  const auto times = [](int size, int count, int bits) {
    return static_cast<int>(std::min<std::int64_t>(std::int64_t{size} * count / bits, 1 << 30));
  };
  switch (scheme->layout) {
    case Layout::fp8:
      if (is_small_int(stored(*found(stored, names_of(scheme->layout).codes))->dtype)) shape.back() = times(shape.back(), 2, 1);  // of e2m1
      break;
    case Layout::ints:
      break;
    case Layout::packed_ints:
      shape.back() = times(shape.back(), 32, scheme->bits);
      break;
    case Layout::nvfp4:
    case Layout::mxfp4:
      shape.back() = times(shape.back(), 2, 1);
      break;
    case Layout::mxfp4_blocks:
      shape.pop_back();
      shape.back() = times(shape.back(), 32, 1);
      break;
    case Layout::awq:
      return shape.size() == 2 ? mx::Shape{times(shape[1], 32, scheme->bits), shape[0]} : mx::Shape{};
    case Layout::gptq:
      return shape.size() == 2 ? mx::Shape{shape[1], times(shape[0], 32, scheme->bits)} : mx::Shape{};
  }
  return shape;
}

bool check_shapes(const Foreign& foreign, const std::string& path, const StoredOf& stored, int out, int in, int stack) {
  if (out < 1 || in < 1 || stack < 0 || foreign.schemes.empty()) throw std::invalid_argument("[codec] check_shapes: a linear has outputs and inputs");
  const auto* scheme = packed_by(foreign, path, stored);
  if (scheme != nullptr) {
    check_layout({*scheme, path, stored, out, in, stack});
    return true;
  }
  const Linear linear{foreign.schemes.front(), path, stored, out, in, stack};
  linear.expect(linear.need({".weight", ""}), linear.shape({out, in}), is_float, "floating-point numbers");
  return false;
}

}  // namespace lquant::codec
