// What a tensor's bytes become, compared with MLX's own conversions.
#include "checkpoint/tensor.h"

#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "support.h"

namespace lquant::checkpoint {
namespace {

using lquant::testing::error_of;
using lquant::testing::expect_sentence;
using lquant::testing::Folder;
using lquant::testing::safetensors;

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

// Writes `data` as the tensor "w" behind `before` bytes of another one, so that it lies unaligned, and reads it.
mx::array through_file(const std::string& dtype, const std::string& shape, const std::string& data, std::size_t before = 0) {
  const Folder folder;
  const auto header =
      fmt::format(R"({{"a":{{"dtype":"U8","shape":[{0}],"data_offsets":[0,{0}]}},"w":{{"dtype":"{1}","shape":{2},"data_offsets":[{0},{3}]}}}})",
                  before, dtype, shape, before + data.size());
  folder.put("x.safetensors", safetensors(header, std::string(before, 'a') + data));
  const auto file = File::open(folder / "x.safetensors");
  return read_tensor(file, read_header(file).tensors.at("w"));
}

template <class T>
void expect_kept(const std::string& name, mx::Dtype dtype, const std::vector<T>& values) {
  SCOPED_TRACE(name);
  for (const std::size_t before : {0, 1, 3}) {
    const mx::array loaded = through_file(name, fmt::format("[2,{}]", values.size() / 2), bytes_of(values), before);
    ASSERT_EQ(loaded.dtype(), dtype);
    ASSERT_EQ(loaded.shape(), (mx::Shape{2, static_cast<int>(values.size() / 2)}));
    EXPECT_EQ(std::memcmp(loaded.data<char>(), values.data(), values.size() * sizeof(T)), 0);
  }
}

TEST(ReadTensor, KeepsEveryBitOfPlainDtypes) {
  expect_kept<std::uint8_t>("U8", mx::uint8, {0, 1, 128, 255});
  expect_kept<std::int8_t>("I8", mx::int8, {-128, -1, 0, 127});
  expect_kept<std::uint16_t>("U16", mx::uint16, {0, 1, 32768, 65535});
  expect_kept<std::int16_t>("I16", mx::int16, {-32768, -1, 0, 32767});
  expect_kept<std::uint32_t>("U32", mx::uint32, {0, 1, 1u << 31, ~0u});
  expect_kept<std::int32_t>("I32", mx::int32, {-2147483647 - 1, -1, 0, 2147483647});
  expect_kept<std::uint64_t>("U64", mx::uint64, {0, 1, 1ull << 63, ~0ull});
  expect_kept<std::int64_t>("I64", mx::int64, {-1ll, 0, 1, 1ll << 62});
  expect_kept<std::uint16_t>("F16", mx::float16, {0x0001, 0x8000, 0x7bff, 0x7e01});
  expect_kept<std::uint16_t>("BF16", mx::bfloat16, {0x0001, 0x8000, 0x7f7f, 0x7fc1});
  expect_kept<float>("F32", mx::float32, {-0.0f, 1e-45f, 3.4e38f, INFINITY});
  expect_kept<std::uint8_t>("BOOL", mx::bool_, {0, 1, 1, 0});
  expect_kept<std::uint8_t>("F8_E8M0", mx::uint8, {0, 127, 254, 255});
}

TEST(ReadTensor, MakesOnesOfOtherTruths) {
  const auto loaded = through_file("BOOL", "[4]", bytes_of<std::uint8_t>({0, 1, 2, 255}));
  EXPECT_EQ(std::string(loaded.data<char>(), 4), std::string("\0\1\1\1", 4));
}

TEST(ReadTensor, ReadsScalarsAndEmptyTensors) {
  EXPECT_EQ(through_file("F32", "[]", bytes_of<float>({2.5f})).item<float>(), 2.5f);
  const auto empty = through_file("F64", "[3,0]", "");
  EXPECT_EQ(empty.shape(), (mx::Shape{3, 0}));
  EXPECT_EQ(empty.dtype(), mx::float32);
}

// More than a block of the conversion, and no multiple of one.
TEST(ReadTensor, RoundsF64AsTheCompilerDoes) {
  std::vector<double> values;
  for (int i = 0; i < 200'001; ++i) values.push_back(std::sin(i) * std::pow(10.0, i % 70 - 35));
  const auto loaded = through_file("F64", fmt::format("[{}]", values.size()), bytes_of(values), 5);
  ASSERT_EQ(loaded.dtype(), mx::float32);
  for (std::size_t i = 0; i < values.size(); ++i) ASSERT_EQ(loaded.data<float>()[i], static_cast<float>(values[i])) << i;
}

std::string all_codes() {
  std::string codes;
  for (int i = 0; i < 256; ++i) codes += static_cast<char>(i);
  return codes;
}

void expect_same_values(const mx::array& got, const mx::array& expected) {
  ASSERT_EQ(got.dtype(), mx::bfloat16);
  auto g = mx::astype(got, mx::float32), e = mx::astype(expected, mx::float32);
  mx::eval(g, e);
  for (int i = 0; i < 256; ++i) {
    const float a = g.data<float>()[i], b = e.data<float>()[i];
    EXPECT_EQ(std::isnan(a), std::isnan(b)) << i;
    if (!std::isnan(b)) EXPECT_EQ(a, b) << i;
    EXPECT_EQ(std::signbit(a), std::signbit(b)) << i;
  }
}

TEST(ReadTensor, DecodesE4M3AsMlxDoes) {
  const auto codes = mx::astype(mx::arange(256), mx::uint8);
  expect_same_values(through_file("F8_E4M3", "[256]", all_codes()), mx::from_fp8(codes, mx::float32));
}

// An E5M2 number is the upper byte of the float16 of the same value.
TEST(ReadTensor, DecodesE5M2AsTheUpperHalfOfFloat16) {
  const auto halves = mx::view(mx::astype(mx::multiply(mx::arange(256), mx::array(256)), mx::uint16), mx::float16);
  expect_same_values(through_file("F8_E5M2", "[256]", all_codes()), halves);
}

TEST(CheckFinite, CountsNanAndInfinity) {
  std::vector<float> values(9001, 1.0f);
  values[0] = NAN;
  values[4095] = INFINITY;
  values[4096] = -INFINITY;
  values[9000] = -NAN;
  const mx::array array(values.begin(), {9001});
  for (const auto dtype : {mx::float16, mx::bfloat16, mx::float32, mx::float64}) {
    const auto message = error_of([&] { check_finite(mx::astype(array, dtype, mx::Device::cpu), "model.norm.weight", "model.safetensors"); });
    expect_sentence(message, {"model.safetensors: tensor \"model.norm.weight\" holds 4 values of 9001 that are not finite", "download it again"});
  }
}

TEST(CheckFinite, PassesTheLargestAndTheSmallest) {
  check_finite(mx::array({3.4028235e38f, -3.4028235e38f, 1e-45f, -0.0f}), "w", "model.safetensors");
  check_finite(mx::array({65504.0f, 6e-8f}, mx::float16), "w", "model.safetensors");
  check_finite(mx::array({3.38e38f, 1e-40f}, mx::bfloat16), "w", "model.safetensors");
  check_finite(mx::array({0x7f80'0000u, ~0u}, mx::uint32), "codes", "model.safetensors");  // bits of an infinity, but no float
  check_finite(mx::zeros({0}), "empty", "model.safetensors");
}

// Reads the values that the array stands for, not the buffer below it.
TEST(CheckFinite, FollowsStrides) {
  const auto array = mx::array({1.0f, NAN, 2.0f, NAN}, {2, 2});
  check_finite(mx::slice(array, {0, 0}, {2, 1}), "w", "model.safetensors");
  EXPECT_THROW(check_finite(mx::slice(array, {0, 1}, {2, 2}), "w", "model.safetensors"), Error);
}

}  // namespace
}  // namespace lquant::checkpoint
