#pragma once

#include <cstdint>
#include <string>

#include "plan/choose.h"

// Values of options that are more than a number or a path.
namespace lquant::cli {

/// "3.5GB", "800 MB", "2GiB", "123456" in bytes. Throws UsageError naming the flag.
std::int64_t parse_bytes(const std::string& flag, const std::string& text);

/// "PATTERN=BITS". Throws UsageError naming the flag.
plan::Limit parse_limit(const std::string& flag, const std::string& text);

}  // namespace lquant::cli
