// A token's text depends on its neighbours: a leading blank is dropped at the start of a text, and a character may be spread over
// several byte tokens. So each step decodes a short window, the tokens of the last piece followed by the new ones, and
// hands out what the new ones added. Text that ends in U+FFFD may be a character in the making: it waits.

#include "text/stream.h"

#include <span>

namespace lquant::text {

std::string StreamDecoder::add(std::int32_t id) {
  window_.push_back(id);
  const auto text = tokenizer_.decode(window_, skip_special_);
  if (text.ends_with("\uFFFD")) return {};
  return advance(text);
}

std::string StreamDecoder::advance(const std::string& text) {
  // A decoder may read bytes that make no character differently in longer runs, and so take back what was handed out. Then the
  // new ids are decoded by themselves.
  auto piece =
      text.starts_with(context_text_) ? text.substr(context_text_.size()) : tokenizer_.decode(std::span(window_).subspan(context_), skip_special_);
  if (piece.empty()) return piece;
  window_.erase(window_.begin(), window_.begin() + static_cast<std::ptrdiff_t>(context_));
  context_ = window_.size();
  context_text_ = tokenizer_.decode(window_, skip_special_);
  return piece;
}

std::string StreamDecoder::finish() {
  auto piece = context_ < window_.size() ? advance(tokenizer_.decode(window_, skip_special_)) : std::string();
  window_.clear();
  context_ = 0;
  context_text_.clear();
  return piece;
}

}  // namespace lquant::text
