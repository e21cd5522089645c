#include "text/front_matter.h"

#include "base/error.h"
#include "text/shim.h"

namespace lquant::text {

nlohmann::json front_matter(std::string_view card) {
  lquant_string out{}, error{};
  if (!lquant_front_matter(slice(card), &out, &error)) fail("text", "{}", take(error));
  return nlohmann::json::parse(take(out));
}

}  // namespace lquant::text
