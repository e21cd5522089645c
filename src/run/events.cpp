#include "run/events.h"

#include <fmt/format.h>

#include "base/figures.h"

namespace lquant::run {
using Clock = std::chrono::steady_clock;

Progress::Progress(Events& events, std::string what, std::int64_t total)
    : events_(events), what_(std::move(what)), total_(total), start_(Clock::now()) {}

double Progress::seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

double Progress::units_per_second() const {
  const double s = seconds();
  return s > 0 ? static_cast<double>(done_ - skipped_) / s : 0;
}

void Progress::advance(std::int64_t units, const std::string& detail) {
  done_ += units;
  Advance now{what_, done_, total_, std::nullopt, detail};
  if (const double rate = units_per_second(); rate > 0 && done_ < total_) now.seconds_left = static_cast<double>(total_ - done_) / rate;
  events_.advance(now);
}

void Progress::finish(const std::string& detail) {
  events_.line(fmt::format("{}: done in {}{}{}", what_, format_duration(seconds()), detail.empty() ? "" : ", ", detail));
}

}  // namespace lquant::run
