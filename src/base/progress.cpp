#include "base/progress.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>

namespace lquant {
using Clock = std::chrono::steady_clock;
namespace {

// A log that cannot be written (a full disk) is no reason to end a run of hours: failures are ignored, where fmt::print would throw.
void to_stderr(const std::string& text) {
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
}

}  // namespace

Log::Log() : style_(isatty(STDERR_FILENO) ? Style::terminal : Style::plain) {}

void Log::line(const std::string& text) {
  if (style_ == Style::quiet) return;
  to_stderr((status_shown_ ? "\r\033[K" : "") + text + "\n");
  status_shown_ = false;
}

void Log::warn(const std::string& text) { line("warning: " + text); }

void Log::status(const std::string& text, bool force) {
  if (style_ == Style::quiet) return;
  // A terminal is redrawn five times a second at most; a log file gets a line every ten seconds.
  const auto pause = style_ == Style::terminal ? std::chrono::milliseconds(200) : std::chrono::milliseconds(10000);
  const auto now = Clock::now();
  if (!force && now - last_ < pause) return;
  last_ = now;
  status_shown_ = style_ == Style::terminal;
  to_stderr(status_shown_ ? "\r\033[K" + text : text + "\n");
}

Progress::Progress(Log& log, std::string what, std::int64_t total) : log_(log), what_(std::move(what)), total_(total), start_(Clock::now()) {}

double Progress::seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

double Progress::units_per_second() const {
  const double s = seconds();
  return s > 0 ? static_cast<double>(done_ - skipped_) / s : 0;
}

void Progress::advance(std::int64_t units, const std::string& extra) {
  done_ += units;
  const double rate = units_per_second();
  const std::string left = rate > 0 && done_ < total_ ? ", " + format_duration(static_cast<double>(total_ - done_) / rate) + " left" : "";
  log_.status(fmt::format("{}: {}/{}{}{}{}", what_, done_, total_, left, extra.empty() ? "" : ", ", extra));
}

void Progress::finish(const std::string& extra) {
  log_.line(fmt::format("{}: done in {}{}{}", what_, format_duration(seconds()), extra.empty() ? "" : ", ", extra));
}

std::string format_duration(double seconds) {
  const auto s = std::int64_t{std::llround(seconds)};
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{} min {:02} s", s / 60, s % 60);
  return fmt::format("{} h {:02} min", s / 3600, s % 3600 / 60);
}

std::string format_bytes(double bytes) {
  const char* units[] = {"B", "kB", "MB", "GB", "TB"};
  int u = 0;
  while (bytes >= 1000 && u < 4) bytes /= 1000, ++u;
  return u == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.2f} {}", bytes, units[u]);
}

std::uint64_t peak_memory() {
#ifdef __linux__
  // Not getrusage's: that one starts from what the process that called us had.
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmHWM:")) return std::strtoull(line.c_str() + 6, nullptr, 10) * 1024;
#endif
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
  return static_cast<std::uint64_t>(usage.ru_maxrss);  // bytes there
#else
  return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
#endif
}

}  // namespace lquant
