#pragma once

#include <compare>
#include <cstdint>
#include <vector>

// Which rows to calibrate on so that few experts of a mixture see too few tokens.
namespace lquant::calibration {

/// Rows that may be calibrated on.
struct Candidates {
  std::vector<std::int32_t> lengths;               ///< tokens of each row
  std::vector<std::vector<std::int32_t>> reached;  ///< [rows][experts of all layers]: tokens of a row that go to an expert
};

/// What a choice of rows lacks, the less the better: experts with fewer tokens than the floor, and the tokens that they lack together.
struct Shortage {
  std::int64_t experts = 0, tokens = 0;
  auto operator<=>(const Shortage&) const = default;
};

/// Of the rows with these numbers. A floor of at least 1.
Shortage shortage(const Candidates& candidates, const std::vector<std::size_t>& rows, std::int32_t floor);

/// Exchanges rows (numbers of candidates, all different) for candidates that are not among them, one pair at a time, while that makes the shortage
/// less. The row that brings most of the missing tokens goes in first, in the place of the one whose leaving costs least; ties go to the first. The
/// number of rows stays; together they have `tokens` tokens, to within the longest candidate's length. When it ends, no exchange of one pair within
/// these bounds helps; the best set of all may be better, for finding it is a set-multicover problem, which is NP-hard.
std::vector<std::size_t> exchange_rows(const Candidates& candidates, std::vector<std::size_t> rows, std::int32_t floor, std::int64_t tokens);

}  // namespace lquant::calibration
