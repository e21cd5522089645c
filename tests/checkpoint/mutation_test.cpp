// The fuzz target on seeded mutations of a sound file, so that it runs wherever the tests do.
#include <random>

#include "fuzz/header_target.h"
#include "support.h"

namespace lquant::checkpoint {
namespace {

using lquant::fuzz::header_target;
using lquant::testing::safetensors;

std::string sound_header() {
  return R"({"__metadata__":{"format":"mlx"},"a.weight":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},)"
         R"("b":{"dtype":"F32","shape":[],"data_offsets":[12,16]},"c":{"dtype":"U8","shape":[0],"data_offsets":[16,16]}})";
}

// One small change: a byte flipped, dropped or doubled, a piece of JSON put in, a part repeated or cut out.
void mutate(std::string& text, std::mt19937& random) {
  static const std::vector<std::string> pieces = {"[",
                                                  "]",
                                                  "{",
                                                  "}",
                                                  ",",
                                                  ":",
                                                  "\"",
                                                  "-",
                                                  "0",
                                                  "1",
                                                  "16",
                                                  "null",
                                                  "true",
                                                  "1e999",
                                                  "18446744073709551615",
                                                  "9223372036854775808",
                                                  "2147483648",
                                                  "\"b\"",
                                                  "\"shape\"",
                                                  "\"F8_E4M3\"",
                                                  "[[[[[[[[[[",
                                                  " ",
                                                  "\\u0000",
                                                  "\xff",
                                                  "0.5",
                                                  "{\"dtype\":"};
  const auto at = [&] { return text.empty() ? 0 : random() % text.size(); };
  switch (random() % 6) {
    case 0:
      if (!text.empty()) text[at()] ^= static_cast<char>(1u << random() % 8);
      break;
    case 1:
      text.erase(at(), 1);
      break;
    case 2:
      text.insert(at(), 1, text.empty() ? '{' : text[at()]);
      break;
    case 3:
      text.insert(at(), pieces[random() % pieces.size()]);
      break;
    case 4:
      text.insert(at(), text.substr(at(), random() % 40));
      break;
    default:
      text.erase(at(), random() % 20);
      break;
  }
}

TEST(Mutation, NeverBreaksTheReader) {
  const std::string data(16, 'd');
  ASSERT_TRUE(header_target(safetensors(sound_header(), data)));
  std::mt19937 random(20240607);
  int accepted = 0;
  constexpr int kRuns = 20'000;  // about a second
  for (int run = 0; run < kRuns; ++run) {
    auto header = sound_header();
    for (auto changes = 1 + random() % 3; changes > 0; --changes) mutate(header, random);
    accepted += header_target(safetensors(header, data));
  }
  // Changed names and added spaces are sound; most else is not. Both paths were taken many times, or the mutations are no good.
  EXPECT_GT(accepted, kRuns / 100);
  EXPECT_LT(accepted, kRuns / 2);
}

TEST(Mutation, NeverBreaksOnTheWholeFile) {
  std::mt19937 random(7);
  int accepted = 0;
  for (int run = 0; run < 5000; ++run) {
    auto file = safetensors(sound_header(), std::string(16, 'd'));
    for (auto changes = 1 + random() % 2; changes > 0; --changes) mutate(file, random);
    accepted += header_target(file);
  }
  EXPECT_GT(accepted, 10);  // a flipped bit of the data
}

TEST(Mutation, EveryPrefixIsRefused) {
  const auto file = safetensors(sound_header(), std::string(16, 'd'));
  for (std::size_t size = 0; size < file.size(); ++size) EXPECT_FALSE(header_target(std::string_view(file).substr(0, size))) << size;
}

}  // namespace
}  // namespace lquant::checkpoint
