#include "cli/terminal.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>

#include "cli/table.h"

namespace lquant::cli {
namespace {

/// What a TextEvents writes of what `tell` tells it.
std::string written(TextEvents::Style style, int columns, const std::function<void(TextEvents&)>& tell) {
  char* text = nullptr;
  std::size_t size = 0;
  std::FILE* out = open_memstream(&text, &size);
  {
    TextEvents events(style, out, columns);
    tell(events);
  }
  std::fclose(out);
  std::string all(text, size);
  std::free(text);
  return all;
}

const run::Advance kStep{"quantizing blocks", 3, 30, 61, "loss 0.0310 ± 0.0002"};

TEST(TextEvents, LinesAndWarningsAreLines) {
  for (const auto style : {TextEvents::Style::terminal, TextEvents::Style::plain}) {
    const auto text = written(style, 60, [](TextEvents& events) {
      events.line("saved to x");
      events.warning("few rows");
    });
    EXPECT_EQ(text, "saved to x\nwarning: few rows\n");
  }
}

TEST(TextEvents, ATerminalsProgressIsRedrawnAndCut) {
  const auto text = written(TextEvents::Style::terminal, 40, [](TextEvents& events) { events.advance(kStep); });
  ASSERT_TRUE(text.starts_with("\r\x1b[Kquantizing blocks: 3/30, ")) << text;
  ASSERT_TRUE(text.ends_with("…\n")) << text;  // the end of the run begins a line
  // The last column stays free.
  EXPECT_EQ(columns_of(text.substr(4, text.size() - 5)), 39);
}

TEST(TextEvents, ALineReplacesProgress) {
  const auto text = written(TextEvents::Style::terminal, 200, [](TextEvents& events) {
    events.advance(kStep);
    events.line("done");
    events.line("saved");
  });
  EXPECT_EQ(text.substr(text.rfind('\r')), "\r\x1b[Kdone\nsaved\n");
}

TEST(TextEvents, ProgressIsShownFiveTimesASecondAtMost) {
  const auto text = written(TextEvents::Style::terminal, 200, [](TextEvents& events) {
    for (int i = 0; i < 1000; ++i) events.advance(kStep);
    std::this_thread::sleep_for(std::chrono::milliseconds(210));
    events.advance(kStep);
  });
  EXPECT_EQ(std::count(text.begin(), text.end(), '\r'), 2);
}

TEST(TextEvents, ElsewhereProgressIsALineInTenSecondsAndWhole) {
  const auto text = written(TextEvents::Style::plain, 20, [](TextEvents& events) {
    for (int i = 0; i < 1000; ++i) events.advance(kStep);
  });
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1);
  EXPECT_TRUE(text.ends_with("loss 0.0310 ± 0.0002\n")) << text;
  EXPECT_EQ(text.find('\r'), std::string::npos);
}

}  // namespace
}  // namespace lquant::cli
