#include "checkpoint/gguf/vocabulary.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <tuple>
#include <unordered_map>
#include <unordered_set>

#include "base/error.h"
#include "checkpoint/safetensors.h"

namespace lquant::checkpoint::gguf {
namespace {

constexpr std::string_view kBlank = "▁";  // U+2581, SentencePiece's space
// A token of more bytes is not cut into two: SentencePiece's own limit is 16 characters unless raised, Gemma's longest token has 31, and the
// cost of cutting grows with the square.
constexpr std::size_t kLongestCut = 256;

std::string with_blanks(std::string text) {
  std::string out;
  for (const char c : text) c == ' ' ? out.append(kBlank) : out.append(1, c);
  return out;
}

bool valid_utf8(const std::string& text) {
  try {
    (void)nlohmann::json(text).dump();
    return true;
  } catch (const nlohmann::json::exception&) {
    return false;
  }
}

TokenType type_of(double number) { return number >= 1 && number <= 6 ? static_cast<TokenType>(static_cast<int>(number)) : TokenType::normal; }

}  // namespace

Vocabulary::Vocabulary(const Metadata& metadata, bool sentencepiece) {
  const auto file = metadata.file().string();
  const auto* texts = metadata.texts("tokenizer.ggml.tokens");
  if (!texts || texts->empty()) fail("checkpoint", "{}: has no tokenizer.ggml.tokens; convert the original model with its tokenizer", file);
  const auto types = metadata.numbers("tokenizer.ggml.token_type");
  const auto scores = metadata.numbers("tokenizer.ggml.scores");
  if ((types && types->size() != texts->size()) || (scores && scores->size() != texts->size()))
    fail("checkpoint", "{}: its tokens, their types and their scores differ in number ({}, {}, {}); the file is damaged: download it again", file,
         texts->size(), types ? types->size() : texts->size(), scores ? scores->size() : texts->size());
  if (sentencepiece && !scores) fail("checkpoint", "{}: has a SentencePiece vocabulary without scores; convert the original model again", file);
  std::unordered_map<std::string_view, std::size_t> seen;
  tokens_.resize(texts->size());
  for (std::size_t i = 0; i < texts->size(); ++i) {
    auto& token = tokens_[i];
    token.text = texts->at(i);
    token.type = types ? type_of(types->at(i)) : TokenType::normal;
    token.score = scores ? static_cast<float>(scores->at(i)) : 0.0f;
    if (token.text.empty()) token.text = fmt::format("[EMPTY_{}]", i);  // as llama.cpp calls it
    token.filler = token.type == TokenType::unused && token.text == fmt::format("[PAD{}]", i);
    if (sentencepiece && token.type == TokenType::user_defined) token.text = with_blanks(token.text);
    if (!valid_utf8(token.text)) fail("checkpoint", "{}: token {} is no valid UTF-8; the file is damaged: download it again", file, i);
  }
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    const auto [other, is_new] = seen.emplace(tokens_[i].text, i);
    if (!is_new)
      fail("checkpoint", "{}: tokens {} and {} are both {}; the file is damaged: download it again", file, other->second, i,
           in_quotes(tokens_[i].text));
  }
  if (types) return;
  // Without types the special tokens are those that have a role.
  for (const char* role : {"bos", "eos", "unknown", "padding"})
    if (const auto special = id(metadata, role)) tokens_[static_cast<std::size_t>(*special)].type = TokenType::control;
}

std::optional<int> Vocabulary::id(const Metadata& metadata, const std::string& role) const {
  const auto found = metadata.number("tokenizer.ggml." + role + "_token_id");  // −1, or 2^32 − 1, is how some writers say: none
  if (!found || !(*found >= 0 && *found < static_cast<double>(tokens_.size()))) return std::nullopt;
  const auto place = static_cast<int>(*found);
  return tokens_[static_cast<std::size_t>(place)].filler ? std::nullopt : std::optional(place);
}

Merges listed_merges(const Metadata& metadata, const Vocabulary& vocabulary) {
  const auto file = metadata.file().string();
  const auto* list = metadata.texts("tokenizer.ggml.merges");
  if (!list) fail("checkpoint", "{}: has no tokenizer.ggml.merges; convert the original model again", file);
  std::unordered_set<std::string_view> texts;
  for (const auto& token : vocabulary.tokens())
    if (!token.filler) texts.insert(token.text);
  Merges merges;
  merges.reserve(list->size());
  for (const auto merge : *list) {
    const auto space = merge.find(' ', 1);
    const auto left = merge.substr(0, space), right = space == std::string_view::npos ? std::string_view{} : merge.substr(space + 1);
    if (!texts.contains(left) || !texts.contains(right) || !texts.contains(std::string(left) + std::string(right)))
      fail("checkpoint", "{}: merge {} ({}) names what is no token; the file is damaged: download it again", file, merges.size(), in_quotes(merge));
    merges.emplace_back(left, right);
  }
  return merges;
}

Merges scored_merges(const Vocabulary& vocabulary) {
  const auto& tokens = vocabulary.tokens();
  std::unordered_map<std::string_view, std::size_t> ids;
  const auto takes_part = [](const Token& token) {
    return !token.filler && (token.type == TokenType::normal || token.type == TokenType::user_defined || token.type == TokenType::unused);
  };
  for (std::size_t i = 0; i < tokens.size(); ++i)
    if (takes_part(tokens[i])) ids.emplace(tokens[i].text, i);

  struct Cut {
    float score;
    std::size_t left, right;
  };
  std::vector<Cut> cuts;
  for (const auto& token : tokens) {
    if (!takes_part(token) || token.text.size() > kLongestCut) continue;
    const std::string_view text = token.text;
    const auto first = cuts.size();
    // SentencePiece takes user-defined tokens before all others; their scores are lost in GGUF files (−1000 stands there).
    const float score = token.type == TokenType::user_defined ? 0 : token.score;
    for (std::size_t at = 1; at < text.size(); ++at) {
      if ((text[at] & 0xc0) == 0x80) continue;  // inside of a character
      const auto left = ids.find(text.substr(0, at));
      if (left == ids.end()) continue;
      if (const auto right = ids.find(text.substr(at)); right != ids.end()) cuts.push_back({score, left->second, right->second});
    }
    std::sort(cuts.begin() + static_cast<std::ptrdiff_t>(first), cuts.end(),
              [](const Cut& a, const Cut& b) { return std::tie(a.left, a.right) < std::tie(b.left, b.right); });
  }
  // Stable: of equal scores the token with the smaller id comes first.
  std::stable_sort(cuts.begin(), cuts.end(), [](const Cut& a, const Cut& b) { return a.score > b.score; });
  Merges merges;
  merges.reserve(cuts.size());
  for (const auto& cut : cuts) merges.emplace_back(tokens[cut.left].text, tokens[cut.right].text);
  return merges;
}

}  // namespace lquant::checkpoint::gguf
