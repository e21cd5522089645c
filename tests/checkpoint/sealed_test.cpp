// Files that lquant writes for itself and must be able to trust later.
#include "checkpoint/sealed.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <fstream>

#include "base/files.h"
#include "base/hash.h"
#include "base/temp.h"

namespace lquant::checkpoint {
namespace {

namespace fs = std::filesystem;

class SealedTest : public ::testing::Test {
 protected:
  lquant::testing::TempFolder temp;
  fs::path file = temp / "a.safetensors";
};

TEST_F(SealedTest, ComesBackAsItWas) {
  const auto rows = mx::reshape(mx::arange(6, mx::float32), {2, 3});
  write_sealed(file,
               {{"scalar", mx::array(-0.0f)},
                {"half", mx::astype(mx::array({0.1f}), mx::bfloat16)},
                {"codes", mx::array({0, 65535}, mx::uint16)},
                {"none", mx::zeros({0, 4})},
                {"turned", mx::transpose(rows)}},
               {{"step", 3}, {"tiny", 1e-300}});
  const auto found = read_sealed(file);
  EXPECT_EQ(found.meta, (nlohmann::json{{"step", 3}, {"tiny", 1e-300}}));
  ASSERT_EQ(found.tensors.size(), 5u);
  EXPECT_TRUE(std::signbit(found.tensors.at("scalar").item<float>()));
  EXPECT_EQ(found.tensors.at("scalar").ndim(), 0u);
  EXPECT_EQ(found.tensors.at("half").dtype(), mx::bfloat16);
  EXPECT_EQ(found.tensors.at("none").shape(), (mx::Shape{0, 4}));
  EXPECT_TRUE(mx::array_equal(found.tensors.at("codes"), mx::array({0, 65535}, mx::uint16)).item<bool>());
  EXPECT_TRUE(mx::array_equal(found.tensors.at("turned"), mx::transpose(rows)).item<bool>());
}

// By another program: MLX reads it as safetensors, and the seal is the SHA-256 of what stands before it.
TEST_F(SealedTest, IsASafetensorsFileThatEndsInItsOwnHash) {
  write_sealed(file, {{"x", mx::array({1.0f, 2.0f})}}, {{"a", "b"}});
  auto [tensors, metadata] = mx::load_safetensors(file.string());
  EXPECT_EQ(metadata.at("lquant"), R"({"a":"b"})");
  auto seal = tensors.at("lquant.sha256");
  seal.eval();
  const auto bytes = read_file("test", file);
  std::string hex;
  for (int i = 0; i < 32; ++i) hex += fmt::format("{:02x}", seal.data<std::uint8_t>()[i]);
  EXPECT_EQ(sha256(bytes.substr(0, bytes.size() - 32)), hex);
  EXPECT_EQ(tensors.size(), 2u);
}

TEST_F(SealedTest, SameContentSameBytes) {
  write_sealed(file, {{"x", mx::array({1.0f})}, {"a", mx::array({2.0f})}, {"m", mx::array({3.0f})}}, {});
  const auto once = read_file("test", file);
  write_sealed(file, {{"m", mx::array({3.0f})}, {"x", mx::array({1.0f})}, {"a", mx::array({2.0f})}}, {});
  EXPECT_EQ(read_file("test", file), once);
}

TEST_F(SealedTest, OtherBytesAreDamage) {
  for (const auto& text : {std::string(), std::string(31, 'x'), std::string(32, '\0'), std::string(200, 'x')}) {
    write_file_atomically("test", file, text);
    EXPECT_FALSE(is_intact(file));
    EXPECT_THROW(read_sealed(file), Damaged);
  }
  // Sealed, but no file of ours: 32 bytes that happen to be the hash of nothing.
  std::string empty_hash;
  const auto hex = sha256("");
  for (std::size_t i = 0; i < hex.size(); i += 2) empty_hash += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  write_file_atomically("test", file, empty_hash);
  EXPECT_THROW(read_sealed(file), Error);
}

TEST_F(SealedTest, ASealOverJsonThatIsNoneOrTooDeepIsDamageToo) {
  const std::string good = "\\\"x\\\"", deep = std::string(100'000, '[') + std::string(100'000, ']');
  write_sealed(file, {}, "x");
  const auto whole = read_file("test", file);
  const auto at = whole.find(good);
  ASSERT_NE(at, std::string::npos);
  for (const auto& meta : {std::string("{"), deep}) {
    auto header = whole.substr(8, whole.size() - 8 - 32).replace(at - 8, good.size(), meta);
    header.resize((header.size() + 7) / 8 * 8, ' ');
    std::string length(8, '\0');
    for (int i = 0; i < 8; ++i) length[i] = static_cast<char>(header.size() >> (8 * i) & 0xff);
    auto bytes = length + header;
    const auto hex = sha256(bytes);
    for (std::size_t i = 0; i < hex.size(); i += 2) bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    write_file_atomically("test", file, bytes);
    EXPECT_TRUE(is_intact(file));
    EXPECT_THROW(read_sealed(file), Damaged);
  }
}

TEST_F(SealedTest, AWriteThatFailsLeavesWhatWasThere) {
  write_sealed(file, {{"x", mx::array({1.0f})}}, {});
  const auto before = read_file("test", file);
  fs::create_directories(file.string() + ".partial/occupied");  // stands where the new file would grow
  EXPECT_THROW(write_sealed(file, {{"x", mx::array({2.0f})}}, {}), Error);
  EXPECT_EQ(read_file("test", file), before);
  EXPECT_THROW(write_sealed(temp / "missing" / "a.safetensors", {}, {}), Error);
  EXPECT_THROW(read_sealed(temp / "missing.safetensors"), Error);
}

}  // namespace
}  // namespace lquant::checkpoint
