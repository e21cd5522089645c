// The tokenizer itself is the Rust crate's; here its C face becomes values and exceptions, and the roles of tokens become ids.

#include "text/tokenizer.h"

#include <lquant_text.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/shown.h"
#include "text/shim.h"

namespace lquant::text {

Tokenizer Tokenizer::open(const FileSet& source) {
  auto files = read_tokenizer_folder(source);
  Tokenizer out;
  out.origin_ = source.label();

  lquant_tokenizer* raw = nullptr;
  lquant_string error{};
  const auto added = files.added_tokens.dump();
  if (!lquant_tokenizer_open(slice(files.tokenizer_json), slice(added), &raw, &error)) {
    fail("text", "{}: not a tokenizer that can be read ({}); download the file again", source.label("tokenizer.json"), shown(take(error), 300));
  }
  out.handle_ = {raw, [](lquant_tokenizer* tokenizer) { lquant_tokenizer_close(tokenizer); }};

  out.config_ = std::move(files.config);
  out.special_tokens_ = std::move(files.special_tokens);
  out.templates_ = std::move(files.templates);
  out.eos_ids_ = std::move(files.model_eos_ids);
  const auto id_of_role = [&](const char* role) {
    const auto found = out.special_tokens_.find(role);
    return found == out.special_tokens_.end() ? std::nullopt : out.token_id(found->second);
  };
  out.bos_id_ = id_of_role("bos_token");
  if (const auto eos = id_of_role("eos_token"); eos && std::ranges::find(out.eos_ids_, *eos) == out.eos_ids_.end()) {
    out.eos_ids_.push_back(*eos);
  }
  out.enable_thinking_ = out.has_thinking_tokens();
  return out;
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  const auto view = slice(text);
  lquant_ids ids{};
  lquant_string error{};
  std::size_t end = 0;
  if (!lquant_tokenizer_encode(handle_.get(), &view, 1, add_special_tokens, &ids, &end, &error)) {
    fail("text", "{}: the tokenizer cannot encode this text ({}); check its tokenizer.json", origin_, shown(take(error), 300));
  }
  const OwnedIds owned(ids);
  return {owned.begin(), owned.begin() + end};
}

std::vector<std::vector<std::int32_t>> Tokenizer::encode_batch(const std::vector<std::string>& texts, bool add_special_tokens) const {
  std::vector<lquant_slice> views;
  views.reserve(texts.size());
  for (const auto& text : texts) views.push_back(slice(text));
  std::vector<std::size_t> ends(texts.size());
  lquant_ids ids{};
  lquant_string error{};
  if (!lquant_tokenizer_encode(handle_.get(), views.data(), views.size(), add_special_tokens, &ids, ends.data(), &error)) {
    fail("text", "{}: the tokenizer cannot encode these texts ({}); check its tokenizer.json", origin_, shown(take(error), 300));
  }
  const OwnedIds owned(ids);
  std::vector<std::vector<std::int32_t>> rows;
  rows.reserve(texts.size());
  std::size_t begin = 0;
  for (const auto end : ends) {
    rows.emplace_back(owned.begin() + begin, owned.begin() + end);
    begin = end;
  }
  return rows;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special) const {
  lquant_string text{}, error{};
  if (!lquant_tokenizer_decode(handle_.get(), ids.data(), ids.size(), skip_special, &text, &error)) {
    fail("text", "{}: these ids cannot be decoded ({}); pass ids of this tokenizer", origin_, shown(take(error), 300));
  }
  return take(text);
}

std::optional<int> Tokenizer::token_id(std::string_view token) const {
  std::int32_t id = 0;
  if (!lquant_tokenizer_token_id(handle_.get(), slice(token), &id)) return std::nullopt;
  return id;
}

std::string Tokenizer::token(int id) const {
  lquant_string text{};
  if (!lquant_tokenizer_token(handle_.get(), id, &text)) {
    fail("text", "{}: the vocabulary has no token {}; its ids are below {}", origin_, id, vocab_size());
  }
  return take(text);
}

std::size_t Tokenizer::vocab_size() const { return lquant_tokenizer_vocab_size(handle_.get()); }

void Tokenizer::check_ids(std::span<const std::int32_t> ids, int rows, const std::function<std::string()>& place) const {
  const auto outside = std::ranges::find_if(ids, [&](std::int32_t id) { return id < 0 || id >= rows; });
  if (outside == ids.end()) return;
  lquant_string name{};
  const auto token = lquant_tokenizer_token(handle_.get(), *outside, &name) ? fmt::format(" (\"{}\")", shown(take(name))) : "";
  fail("text",
       "{}: token {}{} is outside the model's table of {} tokens, so the tokenizer of {} and the model do not belong together; use the model's own "
       "tokenizer.json, or take that token out of the text",
       place(), *outside, token, rows, origin_);
}

}  // namespace lquant::text
