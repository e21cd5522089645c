#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

namespace lquant {

/// Where a command says what it does. On a terminal the line of a running step is redrawn; into a pipe each
/// report is a line of its own, at most one a few seconds; quiet says nothing (ranks above 0, --json).
class Log {
 public:
  enum class Style { terminal, plain, quiet };
  /// Picks terminal or plain by what stderr is; all output goes to stderr, results alone to stdout.
  Log();
  explicit Log(Style style) : style_(style) {}

  void line(const std::string& text);
  void warn(const std::string& text);
  /// A transient status ("step 12/128 …"). `force` prints it even when one was printed a moment ago.
  void status(const std::string& text, bool force = false);
  Style style() const { return style_; }

 private:
  Style style_;
  bool status_shown_ = false;
  std::chrono::steady_clock::time_point last_{};
};

/// Counts units of work and says how long the rest will take.
class Progress {
 public:
  Progress(Log& log, std::string what, std::int64_t total);
  /// `extra` is appended, e.g. "loss 0.031". Already finished units of a resumed run are passed as `skipped`.
  void advance(std::int64_t units, const std::string& extra = "");
  void skip(std::int64_t units) {
    done_ += units;
    skipped_ += units;
  }
  void finish(const std::string& extra = "");
  double units_per_second() const;
  double seconds() const;

 private:
  Log& log_;
  std::string what_;
  std::int64_t total_, done_ = 0, skipped_ = 0;
  std::chrono::steady_clock::time_point start_;
};

/// "1 h 02 min", "3 min 20 s", "12 s".
std::string format_duration(double seconds);
/// "1.23 GB", decimal units as file managers show.
std::string format_bytes(double bytes);
/// Peak resident set of this process in bytes.
std::uint64_t peak_memory();

}  // namespace lquant
