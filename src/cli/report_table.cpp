#include "cli/report_table.h"

#include <fmt/format.h>

#include "base/figures.h"
#include "cli/print.h"
#include "cli/table.h"

namespace lquant::cli {
namespace {

/// A folder's name may hold what moves a terminal's cursor.
std::string tame(std::string name) {
  for (char& c : name)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  return name;
}

}  // namespace

void print_table(const evaluate::Report& report, bool terminal) {
  Table table(std::vector<Align>(7, Align::left));
  table.add({"folder", "size", "bits", "perplexity", "KL", "KL p99", "same top-1"});
  for (const auto& f : report.folders) {
    const auto& q = f.quality;
    table.add({tame(f.name), format_bytes(static_cast<double>(f.bytes)), fmt::format("{:.3f}", f.bits_per_weight()),
               plus_minus(q.perplexity(), q.perplexity_se(), 4), plus_minus(q.kl, q.kl_se, 5),
               fmt::format("{:.4f}", q.kl_p99), fmt::format("{:.2f} %", 100 * q.top1)});
  }
  table.add({tame(report.teacher), format_bytes(static_cast<double>(report.teacher_bytes)), "teacher",
             fmt::format("{:.4f}", report.folders.front().quality.teacher_perplexity())});
  const auto lines = table.lines();
  for (std::size_t r = 0; r < lines.size(); ++r) put((terminal && r == 0 ? "\x1b[1m" + lines[r] + "\x1b[0m" : lines[r]) + "\n");
}

}  // namespace lquant::cli
