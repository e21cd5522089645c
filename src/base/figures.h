#pragma once

#include <cstdint>
#include <string>

namespace lquant {

/// "1 h 02 min", "3 min 20 s", "12 s".
std::string format_duration(double seconds);
/// "1.23 GB", decimal units as file managers show.
std::string format_bytes(double bytes);
/// "0.0123 ± 0.0004", both with so many digits behind the point; the value alone where its error is not known (not finite).
std::string plus_minus(double value, double error, int digits);
/// Peak resident set of this process in bytes.
std::uint64_t peak_memory();

}  // namespace lquant
