// What a run tells of its progress.
#include "run/events.h"

#include <gtest/gtest.h>

#include <regex>
#include <vector>

namespace lquant::run {
namespace {

struct Kept : NoEvents {
  void line(const std::string& text) override { lines.push_back(text); }
  void advance(const Advance& now) override { advances.push_back(now); }
  std::vector<std::string> lines;
  std::vector<Advance> advances;
};

TEST(Progress, SaysHowFarHowLongAndWhatElse) {
  Kept kept;
  Progress progress(kept, "training", 4);
  progress.advance(1, "loss 0.031");
  progress.advance(3);
  progress.finish("4 steps");
  ASSERT_EQ(kept.advances.size(), 2u);
  EXPECT_EQ(kept.advances[0].what, "training");
  EXPECT_EQ(kept.advances[0].done, 1);
  EXPECT_EQ(kept.advances[0].total, 4);
  EXPECT_EQ(kept.advances[0].detail, "loss 0.031");
  EXPECT_TRUE(kept.advances[0].seconds_left.has_value());
  EXPECT_FALSE(kept.advances[1].seconds_left.has_value());  // nothing is left
  ASSERT_EQ(kept.lines.size(), 1u);
  EXPECT_TRUE(std::regex_match(kept.lines[0], std::regex("training: done in \\d+ s, 4 steps"))) << kept.lines[0];
}

// Units that an earlier run finished count as done, and not as speed.
TEST(Progress, SkippedUnitsDoNotCountAsSpeed) {
  NoEvents none;
  Progress progress(none, "training", 100);
  progress.skip(90);
  EXPECT_EQ(progress.units_per_second(), 0.0);
  progress.advance(5);
  const double before = progress.seconds();
  const double rate = progress.units_per_second();
  const double after = progress.seconds();
  EXPECT_LE(rate, 5 / before);
  EXPECT_GE(rate, 5 / after);
}

}  // namespace
}  // namespace lquant::run
