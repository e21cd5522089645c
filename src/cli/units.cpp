#include "cli/units.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <map>

#include "base/error.h"

namespace lquant::cli {

std::int64_t parse_bytes(const std::string& flag, const std::string& text) {
  static const std::map<std::string, double> units{{"b", 1},           {"kb", 1e3},           {"mb", 1e6}, {"gb", 1e9}, {"tb", 1e12}, {"kib", 1024.0},
                                                   {"mib", 1048576.0}, {"gib", 1073741824.0}, {"k", 1e3},  {"m", 1e6},  {"g", 1e9}};
  auto value = text;
  std::string problem;
  try {
    problem = CLI::AsNumberWithUnit(units, CLI::AsNumberWithUnit::CASE_INSENSITIVE)(value);
  } catch (const CLI::Error& e) {
    problem = e.what();
  }
  double bytes = 0;
  if (!problem.empty() || !CLI::detail::lexical_cast(value, bytes) || !(bytes >= 1) || bytes > 1e18)
    throw UsageError(fmt::format("{} {} is no size; give one such as 3.5GB or 800MB", flag, text));
  return static_cast<std::int64_t>(std::floor(bytes));
}

plan::Limit parse_limit(const std::string& flag, const std::string& text) {
  const auto at = text.rfind('=');
  plan::Limit limit;
  if (at == std::string::npos || at == 0 || !CLI::detail::lexical_cast(text.substr(at + 1), limit.bits) || limit.bits < 2 || limit.bits > 8)
    throw UsageError(fmt::format("{} {} is not PATTERN=BITS with 2 to 8 bits, such as '*.down_proj=4'", flag, text));
  limit.pattern = text.substr(0, at);
  return limit;
}

}  // namespace lquant::cli
