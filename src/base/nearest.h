#pragma once

#include <string>
#include <vector>

namespace lquant {

/// The one of `names` (at least one) that fewest insertions, deletions and replacements of a character make `name` into; the first of equals. What a
/// complaint about an unknown name offers.
const std::string& nearest(const std::string& name, const std::vector<std::string>& names);

}  // namespace lquant
