#pragma once

#include <lquant_text.h>

#include <string>
#include <string_view>

namespace lquant::text {

/// Ownership across the C ABI: what the Rust crate hands out is freed here, on every path.

inline lquant_slice slice(std::string_view text) { return {text.data(), text.size()}; }

inline std::string take(lquant_string text) {
  struct Guard {
    lquant_string text;
    ~Guard() { lquant_string_free(text); }
  } guard{text};
  return {text.data, text.size};
}

class OwnedIds {
 public:
  explicit OwnedIds(lquant_ids ids) : ids_(ids) {}
  ~OwnedIds() { lquant_ids_free(ids_); }
  OwnedIds(const OwnedIds&) = delete;
  OwnedIds& operator=(const OwnedIds&) = delete;
  const int32_t* begin() const { return ids_.data; }

 private:
  lquant_ids ids_;
};

}  // namespace lquant::text
