#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

namespace lquant::run {

/// How far a step of a run has come.
struct Advance {
  std::string what;                      ///< "quantizing blocks"
  std::int64_t done = 0, total = 0;      ///< units of work
  std::optional<double> seconds_left{};  ///< nullopt until the rate is known, and at the end
  std::string detail;                    ///< "loss 0.031"; may be empty
};

/// What a run tells while it works, as data. Who shows it, and how, is the program's affair: a terminal, a log file, a notebook.
/// Results are return values, not events.
class Events {
 public:
  virtual ~Events() = default;
  /// One remark that stays.
  virtual void line(const std::string& text) = 0;
  /// Something the user should know of and may want to change.
  virtual void warning(const std::string& text) = 0;
  /// Comes often; a receiver shows as many as it likes.
  virtual void advance(const Advance& now) = 0;
};

/// Says nothing: ranks above 0, and programs that ask for results alone.
class NoEvents : public Events {
 public:
  void line(const std::string&) override {}
  void warning(const std::string&) override {}
  void advance(const Advance&) override {}
};

/// Counts units of work and says how long the rest will take.
class Progress {
 public:
  Progress(Events& events, std::string what, std::int64_t total);
  /// `detail` is appended, e.g. "loss 0.031".
  void advance(std::int64_t units, const std::string& detail = "");
  /// Units that an earlier process has finished: done, but no measure of the rate.
  void skip(std::int64_t units) {
    done_ += units;
    skipped_ += units;
  }
  void finish(const std::string& detail = "");
  double units_per_second() const;
  double seconds() const;

 private:
  Events& events_;
  std::string what_;
  std::int64_t total_, done_ = 0, skipped_ = 0;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace lquant::run
