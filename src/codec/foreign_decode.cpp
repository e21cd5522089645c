// These run once for each weight when a teacher is loaded, so MLX's own ops are fast enough; what matters is that they round where the originals
// round.
#include "codec/foreign_decode.h"

#include <mlx/mlx.h>

#include <array>

#include "codec/small_floats.h"
#include "kernels/dequantize.h"

namespace lquant::codec::foreign {
namespace {

int blocks(int size, int block) { return size / block + (size % block != 0 ? 1 : 0); }

mx::array words_of(const mx::array& words) { return words.dtype() == mx::uint32 ? words : mx::view(words, mx::uint32); }

/// Shape with its last axis replaced.
mx::Shape with_last(const mx::array& x, std::initializer_list<int> last) {
  mx::Shape shape(x.shape().begin(), x.shape().end() - 1);
  shape.insert(shape.end(), last.begin(), last.end());
  return shape;
}

/// Each entry of `axis` repeated `times` times and cut to `size` entries.
mx::array stretch(const mx::array& x, int axis, int times, int size) {
  const int needed = blocks(size, times);
  auto start = mx::Shape(x.ndim(), 0), stop = x.shape();
  const int at = axis < 0 ? static_cast<int>(x.ndim()) + axis : axis;
  stop[at] = needed;
  auto cut = x.shape(at) == needed ? x : mx::slice(x, start, stop);
  if (needed == 1) return cut;  // one block: the scale broadcasts
  if (times == 1) return cut;
  auto repeated = mx::repeat(cut, times, at);
  if (repeated.shape(at) == size) return repeated;
  stop[at] = size;
  return mx::slice(repeated, start, stop);
}

}  // namespace

mx::array e4m3(const mx::array& numbers, mx::Dtype dtype) {
  return numbers.dtype() == mx::uint8 ? mx::from_fp8(numbers, dtype) : mx::astype(numbers, dtype);
}

mx::array e8m0(const mx::array& exponents) {
  const auto wide = mx::astype(exponents, mx::uint32);
  const auto normal = mx::left_shift(wide, mx::array(23u));
  const auto small = mx::where(mx::equal(wide, mx::array(0u)), mx::array(1u << 22), normal);  // 2^−127 is below the normal numbers
  return mx::view(mx::where(mx::equal(wide, mx::array(255u)), mx::array(0x7fc00000u), small), mx::float32);
}

mx::array times_blocks(const mx::array& numbers, const mx::array& scales, int rows, int columns) {
  const auto by_column = stretch(scales, -1, columns, numbers.shape(-1));
  return mx::multiply(numbers, stretch(by_column, -2, rows, numbers.shape(-2)));
}

mx::array unpack(const mx::array& words, int bits, int count) {
  auto whole = words_of(words);
  // unpack_codes takes whole runs of 32 codes, which `bits` words hold.
  if (const int rest = whole.shape(-1) % bits; rest != 0) {
    std::vector<std::pair<int, int>> padding(whole.ndim(), {0, 0});
    padding.back().second = bits - rest;
    whole = mx::pad(whole, padding);
  }
  auto codes = kernels::unpack_codes(mx::contiguous(whole), bits);
  if (codes.shape(-1) == count) return codes;
  auto stop = codes.shape();
  stop.back() = count;
  return mx::slice(codes, mx::Shape(codes.ndim(), 0), stop);
}

mx::array unpack_awq(const mx::array& words) {
  const int count = words.shape(-1) * 8;
  const auto lanes = mx::reshape(unpack(words, 4, count), with_last(words, {words.shape(-1), 8}));
  const auto order = mx::array({0, 4, 1, 5, 2, 6, 3, 7});  // output i of eight lies in nibble order[i]
  return mx::reshape(mx::take(lanes, order, -1), with_last(words, {count}));
}

mx::array unpack_e2m1(const mx::array& bytes, mx::Dtype dtype) {
  const auto low = mx::bitwise_and(bytes, mx::array(15, mx::uint8)), high = mx::right_shift(bytes, mx::array(4, mx::uint8));
  const auto codes = mx::reshape(mx::stack({low, high}, -1), with_last(bytes, {bytes.shape(-1) * 2}));
  const auto values = mx::astype(mx::array(kE2m1, mx::Shape{16}, mx::float32), dtype);
  return mx::take(values, codes);
}

mx::array gptq_zeros(const mx::array& words, int bits, int count, bool less_one) {
  if (!less_one) return unpack(words, bits, count);
  if (bits == 3) return mx::bitwise_and(mx::add(unpack(words, bits, count), mx::array(1, mx::uint8)), mx::array(7, mx::uint8));
  const auto ones = bits == 2 ? 0x55555555u : bits == 4 ? 0x11111111u : 0x01010101u;
  return unpack(mx::add(words_of(words), mx::array(ones)), bits, count);
}

mx::array times_groups(const mx::array& codes, const std::optional<mx::array>& zeros, int zero, const mx::array& scales, int group,
                       const std::optional<mx::array>& order) {
  const int in = codes.shape(-1);
  const auto spread = [&](const mx::array& x) {
    if (x.shape(-1) == 1) return x;
    if (order) return mx::take(x, *order, -1);
    return stretch(x, -1, group, in);
  };
  const auto wide = mx::astype(codes, mx::int16);
  const auto centred = zeros ? mx::subtract(wide, spread(mx::astype(*zeros, mx::int16))) : mx::subtract(wide, mx::array(zero, mx::int16));
  return mx::multiply(mx::astype(centred, scales.dtype()), spread(scales));
}

}  // namespace lquant::codec::foreign
