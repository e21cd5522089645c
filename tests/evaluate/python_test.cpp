#include <gtest/gtest.h>

#include "evaluate/python_random.h"
#include "evaluate/python_text.h"

namespace lquant::evaluate {
namespace {

using Indices = std::vector<std::size_t>;

// The constants are CPython 3.11's: [random.Random(seed).getrandbits(32) for _ in range(3)].
TEST(PythonRandom, GivesCPythonsWords) {
  const std::pair<std::int64_t, std::vector<std::uint32_t>> words[] = {{0, {3626764237u, 1654615998u, 3255389356u}},
                                                                       {1, {577090037u, 2444712010u, 3639700191u}},
                                                                       {123, {224899942u, 1149664691u, 374463918u}},
                                                                       {1234, {4150886329u, 3342196574u, 1892932127u}},
                                                                       {(std::int64_t{1} << 40) + 7, {2635837658u, 3209733218u, 3500038837u}}};
  for (const auto& [seed, wanted] : words) {
    PythonRandom random(seed);
    for (const auto word : wanted) EXPECT_EQ(random.next(), word) << seed;
  }
}

// One generator, call after call: sample(range(50), 2) twice, (range(50), 6), (range(20), 5), (range(40428), 6), (range(100), 30).
// Small populations are drawn from a pool, large ones by a set; the bound between depends on the count.
TEST(PythonRandom, SamplesAsCPython) {
  PythonRandom random(1234);
  EXPECT_EQ(random.sample(50, 2), (Indices{49, 28}));
  EXPECT_EQ(random.sample(50, 2), (Indices{7, 0}));
  EXPECT_EQ(random.sample(50, 6), (Indices{5, 37, 2, 42, 44, 49}));
  EXPECT_EQ(random.sample(20, 5), (Indices{3, 11, 7, 0, 16}));
  EXPECT_EQ(random.sample(40428, 6), (Indices{1038, 22681, 31735, 40358, 30379, 9735}));
  EXPECT_EQ(random.sample(100, 30),
            (Indices{11, 23, 91, 14, 1, 64, 62, 31, 8, 85, 69, 59, 97, 76, 99, 65, 74, 5, 34, 71, 87, 38, 61, 45, 81, 92, 25, 58, 67, 2}));
  EXPECT_EQ(PythonRandom(-5).sample(1000, 3), (Indices{637, 261, 759}));  // as of 5
  EXPECT_THROW(random.sample(3, 4), std::invalid_argument);
}

TEST(PythonText, StripsUnicodesWhiteSpace) {
  EXPECT_EQ(strip(" \t\u00a0\u3000a b\u2003\n"), "a b");
  EXPECT_EQ(rstrip(" a\r\n "), " a");
  EXPECT_EQ(strip("\u200b"), "\u200b");  // ZERO WIDTH SPACE is none of Python's
  EXPECT_EQ(strip(" \n"), "");
  EXPECT_EQ(code_points("na\u00efve \U0001f600"), 7u);
}

TEST(PythonText, Capitalizes) {
  EXPECT_EQ(capitalize("the MAN"), "The man");
  EXPECT_EQ(capitalize("\u00e9T\u00c9 \u0160\u010c \u0414\u0410"), "\u00c9t\u00e9 \u0161\u010d \u0434\u0430");
  EXPECT_EQ(capitalize("\u65e5X"), "\u65e5x");
  EXPECT_EQ(capitalize(""), "");
}

// re.sub("\\[.*?\\]", "", …): up to the nearest bracket, not over the end of a line; then pairs of spaces, each once.
TEST(PythonText, CleansWikiHow) {
  EXPECT_EQ(clean_wikihow(" [header] How [title] Heat [substeps] it "), " How. Heat it");
  EXPECT_EQ(clean_wikihow("a [b [c] d] e"), "a d] e");
  EXPECT_EQ(clean_wikihow("a [b\nc] [d"), "a [b\nc] [d");
  EXPECT_EQ(clean_wikihow("a   b"), "a  b");
}

}  // namespace
}  // namespace lquant::evaluate
