// The words for times and sizes.
#include "base/figures.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace lquant {
namespace {

TEST(FormatDuration, RoundsToWholeSecondsBeforeItChoosesTheUnit) {
  EXPECT_EQ(format_duration(0), "0 s");
  EXPECT_EQ(format_duration(0.4), "0 s");
  EXPECT_EQ(format_duration(12.4), "12 s");
  EXPECT_EQ(format_duration(59.4), "59 s");
  EXPECT_EQ(format_duration(59.6), "1 min 00 s");
  EXPECT_EQ(format_duration(200), "3 min 20 s");
  EXPECT_EQ(format_duration(3599), "59 min 59 s");
  EXPECT_EQ(format_duration(3599.6), "1 h 00 min");
  EXPECT_EQ(format_duration(3720), "1 h 02 min");
  EXPECT_EQ(format_duration(100 * 3600.0 + 59 * 60), "100 h 59 min");
}

TEST(FormatBytes, UsesDecimalUnits) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(999), "999 B");
  EXPECT_EQ(format_bytes(1000), "1.00 kB");
  EXPECT_EQ(format_bytes(1234567), "1.23 MB");
  EXPECT_EQ(format_bytes(5e9), "5.00 GB");
  EXPECT_EQ(format_bytes(1.5e12), "1.50 TB");
  EXPECT_EQ(format_bytes(2e15), "2000.00 TB");
}

TEST(PlusMinus, LeavesOutAnErrorThatIsNotKnown) {
  EXPECT_EQ(plus_minus(0.12345, 0.00067, 4), "0.1235 ± 0.0007");
  EXPECT_EQ(plus_minus(8, 0, 2), "8.00 ± 0.00");
  EXPECT_EQ(plus_minus(8, NAN, 2), "8.00");
  EXPECT_EQ(plus_minus(-0.5, INFINITY, 1), "-0.5");
}

TEST(PeakMemory, CoversWhatWasTouched) {
  constexpr std::size_t kTouched = std::size_t{96} << 20;
  std::vector<char> memory(kTouched, 1);
  EXPECT_GE(peak_memory(), kTouched);
  EXPECT_EQ(memory[kTouched / 2], 1);
}

}  // namespace
}  // namespace lquant
