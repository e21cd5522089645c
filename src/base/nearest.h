#pragma once

#include <optional>
#include <string>
#include <vector>

namespace lquant {

/// The one of `names` that `name` was probably meant to be: the fewest slips make the one of the other (a character too many, missing or
/// replaced, or two neighbours exchanged; upper case is no slip), and no more than one in three characters, one at least. The first of equals;
/// nullopt when none is so close, since a suggestion that nobody meant is worse than none.
std::optional<std::string> nearest(const std::string& name, const std::vector<std::string>& names);

/// "; did you mean NAME?" for what a complaint about an unknown name says next, or nothing.
std::string did_you_mean(const std::string& name, const std::vector<std::string>& names);

}  // namespace lquant
