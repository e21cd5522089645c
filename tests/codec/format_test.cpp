#include "codec/format.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "base/error.h"

namespace lquant::codec {
namespace {

TEST(Format, NamesGoBothWays) {
  for (auto mode : {Mode::affine, Mode::mxfp4, Mode::mxfp8, Mode::nvfp4}) EXPECT_EQ(parse_mode(to_string(mode)), mode);
  EXPECT_THROW(parse_mode("int4"), Error);
  EXPECT_THROW(parse_mode(""), Error);
}

// MLX's own defaults: the shapes that it makes without being told a group size or bits.
TEST(Format, DefaultsAreThoseOfMlx) {
  for (auto mode : {Mode::affine, Mode::mxfp4, Mode::mxfp8, Mode::nvfp4}) {
    const auto made = mx::quantize(mx::ones({2, 128}), std::nullopt, std::nullopt, to_string(mode));
    const auto f = default_format(mode);
    EXPECT_EQ(made[0].shape(1), 128 * f.bits / 32);
    EXPECT_EQ(made[1].shape(1), 128 / f.group_size);
  }
}

TEST(Format, CheckAgreesWithMlx) {
  for (auto mode : {Mode::affine, Mode::mxfp4, Mode::mxfp8, Mode::nvfp4}) {
    for (int bits = 2; bits <= 9; ++bits) {  // MLX has 1 bit too, which no method of ours serves
      for (int group : {8, 16, 32, 48, 64, 128, 256}) {
        bool possible = true;
        try {
          mx::quantize(mx::zeros({2, 768}), group, bits, to_string(mode));
        } catch (const std::exception&) {
          possible = false;
        }
        SCOPED_TRACE(testing::Message() << to_string(mode) << " " << bits << " " << group);
        if (possible) {
          EXPECT_NO_THROW(check({mode, bits, group}));
        } else {
          EXPECT_THROW(check({mode, bits, group}), Error);
        }
      }
    }
  }
}

TEST(Format, BitsPerWeightCountTheBytesOfMlx) {
  const auto w = mx::zeros({4, 256}, mx::bfloat16);
  for (const auto& f : {Format{Mode::affine, 4, 64}, Format{Mode::affine, 3, 32}, Format{Mode::affine, 8, 128}, default_format(Mode::mxfp4),
                        default_format(Mode::mxfp8), default_format(Mode::nvfp4)}) {
    std::size_t bytes = 0;
    for (const auto& part : mx::quantize(w, f.group_size, f.bits, to_string(f.mode))) bytes += part.nbytes();
    EXPECT_EQ(bits_per_weight(f), 8.0 * static_cast<double>(bytes) / static_cast<double>(w.size()));
  }
  EXPECT_EQ(bits_per_weight({Mode::affine, 4, 64}, 4), 5.0);
}

}  // namespace
}  // namespace lquant::codec
