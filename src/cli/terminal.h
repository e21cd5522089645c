#pragma once

#include <cstdio>
#include <memory>
#include <string>

#include "run/events.h"

namespace lquant::cli {

/// Shows events as lines of text on `out`, stderr for the program: results alone go to stdout. On a terminal the line of a running step is
/// redrawn five times a second at most, and cut where the terminal ends; elsewhere each report is a line of its own, one in ten seconds at most.
/// What cannot be written (a full disk) is dropped: it is no reason to end a run of hours.
class TextEvents : public run::Events {
 public:
  enum class Style { terminal, plain };
  /// `columns`: of the terminal; 0 asks the terminal each time.
  explicit TextEvents(Style style, std::FILE* out = stderr, int columns = 0) : style_(style), out_(out), columns_(columns) {}
  ~TextEvents() override;
  void line(const std::string& text) override;
  void warning(const std::string& text) override { line("warning: " + text); }
  void advance(const run::Advance& now) override;

 private:
  int columns() const;

  Style style_;
  std::FILE* out_;
  int columns_;
  bool status_shown_ = false;
  double last_ = -1e9;  ///< seconds of a steady clock
};

/// In the style that stderr asks for; `quiet` says nothing.
std::unique_ptr<run::Events> events_on_stderr(bool quiet = false);

/// One line on stderr, in commands too whose events are quiet.
void remark(const std::string& text);

}  // namespace lquant::cli
