#include "text/front_matter.h"

#include "base/error.h"
#include "base/json.h"
#include "base/shown.h"
#include "text/shim.h"

namespace lquant::text {

nlohmann::json front_matter(std::string_view card) {
  lquant_string out{}, error{};
  if (!lquant_front_matter(slice(card), &out, &error)) fail("text", "{}", shown(take(error), 300));
  return parse_json(take(out));
}

}  // namespace lquant::text
