#pragma once

#include <cstdint>
#include <string>

namespace lquant {

/// "1 h 02 min", "3 min 20 s", "12 s".
std::string format_duration(double seconds);
/// "1.23 GB", decimal units as file managers show.
std::string format_bytes(double bytes);
/// Peak resident set of this process in bytes.
std::uint64_t peak_memory();

}  // namespace lquant
