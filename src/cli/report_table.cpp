#include "cli/report_table.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/figures.h"
#include "run/context.h"

namespace lquant::cli {
namespace {

/// A folder's name may hold what moves a terminal's cursor.
std::string tame(std::string name) {
  for (char& c : name)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  return name;
}

/// The padding counts bytes where "±" has two.
std::string padded(const std::string& text, std::size_t width) {
  const auto shown = static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
  return text + std::string(width > shown ? width - shown : 0, ' ');
}

}  // namespace

void print_table(const evaluate::Report& report, bool terminal) {
  std::vector<std::vector<std::string>> rows{{"folder", "size", "bits", "perplexity", "KL", "KL p99", "same top-1"}};
  for (const auto& f : report.folders) {
    const auto& q = f.quality;
    rows.push_back({tame(f.name), format_bytes(static_cast<double>(f.bytes)), fmt::format("{:.3f}", f.bits_per_weight()),
                    fmt::format("{:.4f} ± {:.4f}", q.perplexity(), q.perplexity_se()), fmt::format("{:.5f} ± {:.5f}", q.kl, q.kl_se),
                    fmt::format("{:.4f}", q.kl_p99), fmt::format("{:.2f} %", 100 * q.top1)});
  }
  rows.push_back({tame(report.teacher), format_bytes(static_cast<double>(report.teacher_bytes)), "teacher",
                  fmt::format("{:.4f}", report.folders.front().quality.teacher_perplexity()), "", "", ""});
  std::vector<std::size_t> widths(rows[0].size());
  for (const auto& row : rows)
    for (std::size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
  for (std::size_t r = 0; r < rows.size(); ++r) {
    std::string line;
    for (std::size_t c = 0; c < rows[r].size(); ++c) line += padded(rows[r][c], widths[c] + 2);
    line.erase(line.find_last_not_of(' ') + 1);
    fmt::print("{}{}{}\n", terminal && r == 0 ? "\x1b[1m" : "", line, terminal && r == 0 ? "\x1b[0m" : "");
  }
}

void print_json(const evaluate::Report& report) {
  fmt::print("{}\n", report.to_json().dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
}

}  // namespace lquant::cli
