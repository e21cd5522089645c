#include "text/front_matter.h"

#include "base/error.h"
#include "base/json.h"
#include "base/shown.h"
#include "text/shim.h"

namespace lquant::text {
namespace {

// The parser's complaint may hold what it complains of.
constexpr std::size_t kLongestComplaint = 300;

}  // namespace

nlohmann::json front_matter(std::string_view card) {
  lquant_string out{}, error{};
  if (!lquant_front_matter(slice(card), &out, &error)) fail("text", "{}", shown(take(error), kLongestComplaint));
  return parse_json(take(out));
}

}  // namespace lquant::text
