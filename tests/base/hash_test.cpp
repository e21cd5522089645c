// SHA-256 against the examples of FIPS 180-4 and NIST's test vectors.
#include "base/hash.h"

#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "base/temp.h"

namespace lquant {
namespace {

struct Example {
  std::string text;
  std::string digest;
};

const std::vector<Example>& examples() {
  static const std::vector<Example> all = {
      {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
      {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
      {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
      {std::string(1'000'000, 'a'), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"},
  };
  return all;
}

TEST(Sha256, MatchesTheStandard) {
  for (const auto& example : examples()) EXPECT_EQ(sha256(example.text), example.digest);
}

TEST(Sha256, TakesTheTextInAnyParts) {
  for (const auto& example : examples()) {
    for (const std::size_t step : {1, 7, 64, 4096}) {
      if (step == 1 && example.text.size() > 1000) continue;
      Sha256 hash;
      for (std::size_t i = 0; i < example.text.size(); i += step) hash.update(std::string_view(example.text).substr(i, step));
      EXPECT_EQ(hash.hex(), example.digest) << example.text.size() << " by " << step;
    }
  }
}

// The million 'a' are nearly one block of the reader; three of them are more than two, and end in the middle of one.
TEST(Sha256, OfAFileIsThatOfItsBytes) {
  const testing::TempFolder folder;
  for (const auto& example : examples()) {
    std::ofstream(folder / "f", std::ios::binary) << example.text;
    EXPECT_EQ(sha256_file(folder / "f"), example.digest);
  }
  const std::string three(3'000'000, 'a');
  std::ofstream(folder / "f", std::ios::binary) << three;
  EXPECT_EQ(sha256_file(folder / "f"), sha256(three));
}

TEST(Sha256, SaysWhichFileIsMissing) {
  try {
    sha256_file("/no/such/file");
    FAIL() << "no Error";
  } catch (const Error& e) {
    EXPECT_EQ(std::string(e.what()), "[base] /no/such/file: cannot be read; check the path and its permissions");
  }
}

}  // namespace
}  // namespace lquant
