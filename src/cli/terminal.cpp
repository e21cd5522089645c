#include "cli/terminal.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <chrono>

#include "base/figures.h"
#include "cli/table.h"

namespace lquant::cli {

namespace {

// A terminal that does not tell its width (a serial line, a test) is taken for the usual one.
constexpr int kUsualColumns = 80;
constexpr double kRedrawPause = 0.2, kLinePause = 10;

double now_seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void put(std::FILE* out, const std::string& text) {
  std::fputs(text.c_str(), out);
  std::fflush(out);
}

std::string text_of(const run::Advance& now) {
  return fmt::format("{}: {}/{}{}{}{}", now.what, now.done, now.total, now.seconds_left ? ", " + format_duration(*now.seconds_left) + " left" : "",
                     now.detail.empty() ? "" : ", ", now.detail);
}

}  // namespace

int TextEvents::columns() const {
  if (columns_ > 0) return columns_;
  winsize size{};
  const int descriptor = fileno(out_);
  return descriptor >= 0 && ::ioctl(descriptor, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : kUsualColumns;
}

TextEvents::~TextEvents() {
  if (status_shown_) put(out_, "\n");  // an error's sentence starts a line of its own
}

void TextEvents::line(const std::string& text) {
  put(out_, (status_shown_ ? "\r\033[K" : "") + text + "\n");
  status_shown_ = false;
}

void TextEvents::advance(const run::Advance& now) {
  const bool terminal = style_ == Style::terminal;
  const double at = now_seconds();
  if (at - last_ < (terminal ? kRedrawPause : kLinePause)) return;
  last_ = at;
  status_shown_ = terminal;
  // The last column stays free: a cursor behind it would have wrapped already on some terminals.
  put(out_, terminal ? "\r\033[K" + fit_columns(text_of(now), columns() - 1) : text_of(now) + "\n");
}

void remark(const std::string& text) { events_on_stderr()->line(text); }

std::unique_ptr<run::Events> events_on_stderr(bool quiet) {
  if (quiet) return std::make_unique<run::NoEvents>();
  return std::make_unique<TextEvents>(isatty(STDERR_FILENO) ? TextEvents::Style::terminal : TextEvents::Style::plain);
}

}  // namespace lquant::cli
