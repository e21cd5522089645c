// Only experts near the floor can change a shortage: a row moves an expert's tokens by no more than it sends there. They are listed once for each
// exchange, which makes looking at every pair of rows affordable.
#include "calibration/coverage.h"

#include <algorithm>
#include <cstdlib>

namespace lquant::calibration {
namespace {

Shortage shortage_of(const std::vector<std::int64_t>& tokens, std::int32_t floor) {
  Shortage all;
  for (const auto n : tokens)
    if (n < floor) ++all.experts, all.tokens += floor - n;
  return all;
}

class Exchange {
 public:
  Exchange(const Candidates& candidates, std::vector<std::size_t> rows, std::int32_t floor, std::int64_t tokens)
      : c_(candidates),
        rows_(std::move(rows)),
        floor_(floor),
        longest_(*std::max_element(c_.lengths.begin(), c_.lengths.end())),
        tokens_(c_.reached.front().size()),
        inside_(c_.lengths.size()),
        excess_(-tokens) {
    for (const auto& row : c_.reached) most_ = std::max(most_, *std::max_element(row.begin(), row.end()));
    for (const auto row : rows_) {
      inside_[row] = true;
      excess_ += c_.lengths[row];
      add(row, 1);
    }
  }

  const std::vector<std::size_t>& rows() const { return rows_; }
  Shortage shortage() const { return shortage_of(tokens_, floor_); }

  /// Whether there was a pair that helps.
  bool step() {
    find_near();
    const auto now = shortage();
    for (const auto in : helpful())
      if (const auto [lacking, place] = leaving_for(in); lacking < now) {
        const auto out = rows_[place];
        excess_ += c_.lengths[in] - c_.lengths[out];
        add(out, -1);
        add(in, 1);
        inside_[out] = false;
        inside_[in] = true;
        rows_[place] = in;
        return true;
      }
    return false;
  }

 private:
  void add(std::size_t row, int times) {
    for (std::size_t e = 0; e < tokens_.size(); ++e) tokens_[e] += times * c_.reached[row][e];
  }

  void find_near() {
    near_.clear();
    for (std::size_t e = 0; e < tokens_.size(); ++e)
      if (tokens_[e] < std::int64_t{floor_} + most_) near_.push_back(e);
  }

  /// Rows outside that bring missing tokens, those that bring most first. No other can be of help.
  std::vector<std::size_t> helpful() const {
    std::vector<std::int64_t> brings(inside_.size());
    std::vector<std::size_t> found;
    for (std::size_t row = 0; row < inside_.size(); ++row) {
      if (inside_[row]) continue;
      for (const auto e : near_) brings[row] += std::clamp<std::int64_t>(floor_ - tokens_[e], 0, c_.reached[row][e]);
      if (brings[row] > 0) found.push_back(row);
    }
    std::stable_sort(found.begin(), found.end(), [&](auto a, auto b) { return brings[a] > brings[b]; });
    return found;
  }

  struct Leaving {
    Shortage lacking;   ///< afterwards
    std::size_t place;  ///< in rows_
  };
  Leaving leaving_for(std::size_t in) const {
    Leaving best{shortage(), 0};
    for (std::size_t place = 0; place < rows_.size(); ++place) {
      const auto out = rows_[place];
      if (std::abs(excess_ + c_.lengths[in] - c_.lengths[out]) > longest_) continue;
      Shortage lacking;
      for (const auto e : near_)
        if (const auto n = tokens_[e] + c_.reached[in][e] - c_.reached[out][e]; n < floor_) ++lacking.experts, lacking.tokens += floor_ - n;
      if (lacking < best.lacking) best = {lacking, place};
    }
    return best;
  }

  const Candidates& c_;
  std::vector<std::size_t> rows_;
  std::int32_t floor_, longest_;
  std::int32_t most_ = 0;             // tokens of a row that go to one expert
  std::vector<std::int64_t> tokens_;  // of each expert
  std::vector<bool> inside_;
  std::vector<std::size_t> near_;
  std::int64_t excess_;  // of tokens
};

}  // namespace

Shortage shortage(const Candidates& candidates, const std::vector<std::size_t>& rows, std::int32_t floor) {
  std::vector<std::int64_t> tokens(candidates.reached.front().size());
  for (const auto row : rows)
    for (std::size_t e = 0; e < tokens.size(); ++e) tokens[e] += candidates.reached[row][e];
  return shortage_of(tokens, floor);
}

std::vector<std::size_t> exchange_rows(const Candidates& candidates, std::vector<std::size_t> rows, std::int32_t floor, std::int64_t tokens) {
  Exchange exchange(candidates, std::move(rows), floor, tokens);
  while (exchange.step()) {
  }
  return exchange.rows();
}

}  // namespace lquant::calibration
