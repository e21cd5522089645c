// What a log shows in each style, and the words for times and sizes.
#include "base/progress.h"

#include <gtest/gtest.h>

#include <regex>
#include <vector>

namespace lquant {
namespace {

template <class Run>
std::string stderr_of(Run run) {
  ::testing::internal::CaptureStderr();
  run();
  return ::testing::internal::GetCapturedStderr();
}

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

TEST(PeakMemory, CoversWhatWasTouched) {
  constexpr std::size_t kTouched = std::size_t{96} << 20;
  std::vector<char> memory(kTouched, 1);
  EXPECT_GE(peak_memory(), kTouched);
  EXPECT_EQ(memory[kTouched / 2], 1);
}

TEST(Log, IsPlainIntoAPipe) {
  const auto text = stderr_of([] {
    Log log;  // stderr is captured, so no terminal
    EXPECT_EQ(log.style(), Log::Style::plain);
    log.line("one");
    log.warn("two");
    log.status("three");
  });
  EXPECT_EQ(text, "one\nwarning: two\nthree\n");
}

TEST(Log, PlainHoldsBackAStatusThatFollowsAtOnce) {
  const auto text = stderr_of([] {
    Log log(Log::Style::plain);
    log.status("first");
    log.status("too soon");
    log.status("forced", true);
    log.status("too soon again");
    log.line("a line always comes");
  });
  EXPECT_EQ(text, "first\nforced\na line always comes\n");
}

TEST(Log, QuietSaysNothing) {
  const auto text = stderr_of([] {
    Log log(Log::Style::quiet);
    log.line("one");
    log.warn("two");
    log.status("three", true);
    Progress progress(log, "work", 2);
    progress.advance(2);
    progress.finish();
  });
  EXPECT_EQ(text, "");
}

TEST(Log, TerminalRedrawsTheStatusAndClearsItForALine) {
  const auto text = stderr_of([] {
    Log log(Log::Style::terminal);
    log.status("1/2", true);
    log.status("2/2", true);
    log.line("done");
    log.line("next");
  });
  EXPECT_EQ(text, "\r\033[K1/2\r\033[K2/2\r\033[Kdone\nnext\n");
}

TEST(Log, NothingGoesToStdout) {
  ::testing::internal::CaptureStdout();
  stderr_of([] {
    Log log(Log::Style::plain);
    log.line("one");
    log.warn("two");
    log.status("three");
  });
  EXPECT_EQ(::testing::internal::GetCapturedStdout(), "");
}

TEST(Progress, SaysHowFarHowLongAndWhatElse) {
  const auto text = stderr_of([] {
    Log log(Log::Style::plain);
    Progress progress(log, "training", 4);
    progress.advance(1, "loss 0.031");
    progress.finish("4 steps");
  });
  EXPECT_TRUE(std::regex_match(text, std::regex("training: 1/4, \\d+ s left, loss 0\\.031\ntraining: done in \\d+ s, 4 steps\n"))) << text;
}

TEST(Progress, SaysNoTimeLeftAtTheEnd) {
  const auto text = stderr_of([] {
    Log log(Log::Style::plain);
    Progress progress(log, "training", 4);
    progress.advance(4);
    progress.finish();
  });
  EXPECT_TRUE(std::regex_match(text, std::regex("training: 4/4\ntraining: done in \\d+ s\n"))) << text;
}

// Units that an earlier run finished count as done, and not as speed.
TEST(Progress, SkippedUnitsDoNotCountAsSpeed) {
  Log log(Log::Style::quiet);
  Progress progress(log, "training", 100);
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
}  // namespace lquant
