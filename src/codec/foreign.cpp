// The arithmetic of each layout is in foreign_decode.cpp; here the tensors of a linear are found and handed to it.
#include "codec/foreign.h"

#include <mlx/mlx.h>

#include <cstdint>

#include "codec/foreign_decode.h"
#include "codec/foreign_shapes.h"
#include "codec/quantize.h"

namespace lquant::codec {
namespace {

using namespace foreign;

StoredOf headers(const TensorOf& tensor) {
  return [&tensor](const std::string& suffix) -> std::optional<Stored> {
    const auto* array = tensor(suffix);
    return array == nullptr ? std::nullopt : std::optional(Stored{array->shape(), array->dtype()});
  };
}

const mx::array& get(const TensorOf& tensor, const Suffixes& suffixes) {
  for (const auto& suffix : suffixes)
    if (const auto* array = tensor(suffix)) return *array;
  throw std::invalid_argument("[codec] decode: a tensor went away between check and use");
}

/// g_idx as i32, its values checked: what lies outside of the groups would be read from elsewhere in memory.
std::optional<mx::array> order_of(const Linear& l, const TensorOf& tensor, const char* suffix) {
  const auto* stored = tensor(suffix);
  if (stored == nullptr || stored->size() == 0 || l.groups() == 1) return std::nullopt;
  const auto wide = mx::astype(*stored, mx::int64);
  const auto least = mx::min(wide).item<std::int64_t>(), most = mx::max(wide).item<std::int64_t>();
  if (least == -1 && most == -1) return std::nullopt;  // compressed-tensors' word for "in order"
  if (least < 0 || most >= l.groups())
    fail("codec", "{}{} names group {} where there are {}; {}", shown(l.path), suffix, least < 0 ? least : most, l.groups(), kRemedy);
  return mx::astype(wide, mx::int32);
}

void check_stored_shape(const Linear& l, const TensorOf& tensor) {
  const auto* stored = tensor(".weight_shape");
  if (stored == nullptr) return;
  const auto size = stored->size();
  bool same = is_index(stored->dtype()) && size >= 2 && size <= 3;
  if (same) {
    auto wide = mx::contiguous(mx::reshape(mx::astype(*stored, mx::int64), {-1}));
    wide.eval();
    const auto* values = wide.data<std::int64_t>();
    same = values[size - 2] == l.out && values[size - 1] == l.in;
  }
  if (!same) fail("codec", "{}.weight_shape is not [{}, {}], the shape of its linear; {}", shown(l.path), l.out, l.in, kRemedy);
}

mx::array scaled_bytes(const Foreign& source, const Linear& l, const TensorOf& tensor) {
  const auto& names = names_of(l.scheme.layout);
  const auto suffix = l.need(names.scales);
  const auto blocks = blocks_of(l, suffix);
  auto scales = mx::reshape(get(tensor, {suffix}), blocks.grid);
  if (scales.dtype() == mx::uint8) scales = e8m0(scales);
  // compressed-tensors computes in the scale's dtype; the others in MLX's wider of bfloat16 and that.
  const auto dtype = source.method == "compressed-tensors" ? scales.dtype() : mx::Dtype(mx::bfloat16);
  return times_blocks(e4m3(get(tensor, names.codes), dtype), scales, blocks.rows, blocks.columns);
}

mx::array integers(const Linear& l, const TensorOf& tensor) {
  const auto& s = l.scheme;
  const bool packed = s.layout == Layout::packed_ints;
  const auto as_matrix = [&](const mx::array& x) { return x.size() == 1 ? mx::reshape(x, mx::Shape(l.stack > 0 ? 3 : 2, 1)) : x; };
  check_stored_shape(l, tensor);
  const auto& stored = get(tensor, names_of(s.layout).codes);
  const auto codes = packed ? unpack(stored, s.bits, l.in) : stored;
  const int middle = packed ? 1 << (s.bits - 1) : 0;  // packed codes are stored with this added
  std::optional<mx::array> zeros;
  if (!s.symmetric) {
    const auto& z = get(tensor, {".weight_zero_point"});
    if (is_word(z.dtype())) {
      zeros = mx::swapaxes(unpack(mx::swapaxes(z, -1, -2), s.bits, l.out), -1, -2);
    } else {
      zeros = mx::add(mx::astype(as_matrix(z), mx::int16), mx::array(middle, mx::int16));
    }
  }
  return times_groups(codes, zeros, middle, as_matrix(get(tensor, {".weight_scale"})), s.group, order_of(l, tensor, ".weight_g_idx"));
}

mx::array nvfp4(const Linear& l, const TensorOf& tensor) {
  const auto& s = l.scheme;
  const auto scales = e4m3(get(tensor, names_of(s.layout).scales), mx::float32);
  const auto* global = tensor(".weight_global_scale");
  const auto shaped = [&](const mx::array& x) {
    const auto wide = mx::astype(x, mx::float32);
    if (x.size() == 1) return mx::reshape(wide, {1, 1});
    const int parts = static_cast<int>(x.size()) / l.stack;
    return mx::repeat(mx::reshape(wide, {l.stack, parts, 1}), parts == 1 ? 1 : l.out / parts, 1);
  };
  const auto whole =
      global != nullptr ? mx::divide(scales, shaped(*global)) : mx::multiply(scales, shaped(get(tensor, {".weight_scale_2", "_weight_scale_2"})));
  return times_blocks(unpack_e2m1(get(tensor, names_of(s.layout).codes), mx::float32), whole, 1, 16);
}

/// Codes [out, in], scales and zero points [out, groups] of AWQ and GPTQ.
struct Columns {
  mx::array codes, scales;
  std::optional<mx::array> zeros;
};

Columns columns_of(const Linear& l, const TensorOf& tensor) {
  const auto& s = l.scheme;
  const bool awq = s.layout == Layout::awq;
  const auto& words = get(tensor, {".qweight"});
  const auto codes = awq ? mx::transpose(unpack_awq(words)) : unpack(mx::transpose(words), s.bits, l.in);
  std::optional<mx::array> zeros;
  if (const auto* z = tensor(".qzeros")) zeros = mx::transpose(awq ? unpack_awq(*z) : gptq_zeros(*z, s.bits, l.out, s.zeros_less_one));
  return {codes, mx::transpose(get(tensor, {".scales"})), zeros};
}

/// −zero point · scale, in the scale's dtype.
mx::array bias_of(const Columns& c, int middle) {
  const auto zeros = c.zeros ? mx::astype(*c.zeros, mx::float32) : mx::full(c.scales.shape(), static_cast<float>(middle));
  return mx::astype(mx::multiply(mx::negative(zeros), c.scales), c.scales.dtype());
}

bool mlx_group(int group) { return group == 32 || group == 64 || group == 128; }

mx::array awq(const Linear& l, const TensorOf& tensor) {
  const auto c = columns_of(l, tensor);
  const int group = l.scheme.group > 0 ? l.scheme.group : l.in;
  const auto product = times_groups(c.codes, std::nullopt, 0, c.scales, group, std::nullopt);
  const auto bias = bias_of(c, 8);
  return mx::add(product, bias.shape(-1) == 1 ? bias : mx::repeat(bias, group, -1));
}

std::optional<InMlx> affine(const mx::array& codes, const mx::array& scales, const mx::array& biases, int bits, int group) {
  return InMlx{{Mode::affine, bits, group}, {pack_codes(mx::contiguous(codes), bits), mx::contiguous(scales), mx::contiguous(biases)}};
}

}  // namespace

mx::array decode(const Foreign& source, const std::string& path, const TensorOf& tensor, int out, int in, mx::Dtype dtype, int stack) {
  if (!is_float(dtype)) throw std::invalid_argument("[codec] decode: dtype must be float32, bfloat16 or float16");
  const auto stored = headers(tensor);
  if (!check_shapes(source, path, stored, out, in, stack)) return mx::astype(get(tensor, {".weight", ""}), dtype);
  const Linear l{*packed_by(source, path, stored), path, stored, out, in, stack};
  switch (l.scheme.layout) {
    case Layout::fp8:
      if (holds_e2m1(l)) break;
      return mx::astype(scaled_bytes(source, l, tensor), dtype);
    case Layout::ints:
    case Layout::packed_ints:
      return mx::astype(integers(l, tensor), dtype);
    case Layout::nvfp4:
      return mx::astype(nvfp4(l, tensor), dtype);
    case Layout::gptq: {
      const auto c = columns_of(l, tensor);
      return mx::astype(times_groups(c.codes, c.zeros, 0, c.scales, l.scheme.group, order_of(l, tensor, ".g_idx")), dtype);
    }
    case Layout::awq:
      if (!mlx_group(l.scheme.group)) return mx::astype(awq(l, tensor), dtype);
      break;
    case Layout::mxfp4:
    case Layout::mxfp4_blocks:
      break;
  }
  const auto same = as_mlx(source, path, tensor, out, in, stack);
  return dequantize(same->packed, same->format, dtype);
}

std::optional<InMlx> as_mlx(const Foreign& source, const std::string& path, const TensorOf& tensor, int out, int in, int stack) {
  const auto stored = headers(tensor);
  if (!check_shapes(source, path, stored, out, in, stack)) return std::nullopt;
  const Linear l{*packed_by(source, path, stored), path, stored, out, in, stack};
  const auto& s = l.scheme;
  const auto& names = names_of(s.layout);
  const auto words = [&](const mx::array& bytes, int count) {
    return mx::view(mx::reshape(mx::contiguous(bytes), l.shape({out, count})), mx::uint32);
  };
  const bool neighbours = mlx_group(s.group) && in % s.group == 0;
  switch (s.layout) {
    case Layout::mxfp4:
    case Layout::mxfp4_blocks:
      return InMlx{default_format(Mode::mxfp4), {words(get(tensor, names.codes), in / 2), get(tensor, names.scales), std::nullopt}};
    case Layout::fp8: {
      const auto& codes = get(tensor, names.codes);
      const auto& scales = get(tensor, names.scales);
      if (holds_e2m1(l)) return InMlx{default_format(Mode::mxfp4), {words(codes, in / 2), scales, std::nullopt}};
      if (codes.dtype() != mx::uint8 || scales.dtype() != mx::uint8 || in % 32 != 0) return std::nullopt;
      const auto blocks = blocks_of(l, l.need(names.scales));
      if (blocks.columns != 32 || blocks.grid.back() != in / 32) return std::nullopt;
      // A scale of several rows becomes one for each of them.
      auto rows = blocks.rows == 1 ? scales : mx::repeat(mx::reshape(scales, blocks.grid), blocks.rows, -2);
      if (rows.shape(-2) != out) rows = mx::slice(rows, mx::Shape(rows.ndim(), 0), l.shape({out, in / 32}));
      return InMlx{default_format(Mode::mxfp8), {words(codes, in), mx::contiguous(rows), std::nullopt}};
    }
    case Layout::awq:
    case Layout::gptq: {
      if (!neighbours || in % 32 != 0 || s.bits == 3) return std::nullopt;
      if (s.layout == Layout::gptq && (!s.symmetric || s.act_order || order_of(l, tensor, ".g_idx"))) return std::nullopt;
      const auto c = columns_of(l, tensor);
      return affine(c.codes, c.scales, bias_of(c, 1 << (s.bits - 1)), s.bits, s.group);
    }
    case Layout::packed_ints: {
      if (!neighbours || !s.symmetric || in % 32 != 0 || order_of(l, tensor, ".weight_g_idx")) return std::nullopt;
      check_stored_shape(l, tensor);
      const auto& scales = get(tensor, {".weight_scale"});
      if (scales.shape() != l.shape({out, in / s.group})) return std::nullopt;  // one scale for all
      const auto& codes = get(tensor, names.codes);
      const auto biases = mx::multiply(scales, mx::array(-static_cast<float>(1 << (s.bits - 1)), scales.dtype()));
      return InMlx{{Mode::affine, s.bits, s.group}, {codes.dtype() == mx::uint32 ? codes : mx::view(codes, mx::uint32), scales, biases}};
    }
    case Layout::ints:
    case Layout::nvfp4:
      break;
  }
  return std::nullopt;
}

}  // namespace lquant::codec
