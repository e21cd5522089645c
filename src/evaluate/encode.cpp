#include "evaluate/encode.h"

#include <algorithm>

#include "base/error.h"
#include "evaluate/python_text.h"

namespace lquant::evaluate {
namespace {

using Tokens = std::vector<std::int32_t>;

/// Collects texts, so that all of them are encoded at once on all cores.
class Encoder {
 public:
  Encoder(const text::Tokenizer& tokenizer, bool chat) : tokenizer_(tokenizer), chat_(chat) {
    if (const auto id = prefix_id()) prefix_ = tokenizer.decode(std::vector<std::int32_t>{*id});
  }

  std::optional<std::int32_t> prefix_id() const {
    if (tokenizer_.bos_id()) return *tokenizer_.bos_id();
    return tokenizer_.eos_ids().empty() ? std::nullopt : std::optional<std::int32_t>(tokenizer_.eos_ids().back());
  }

  /// The text's ticket. `question`: whose it is.
  std::size_t add(std::string text, std::size_t question, bool special = true) {
    if (chat_ || (!prefix_.empty() && text.starts_with(prefix_))) special = false;
    auto& list = special ? special_ : plain_;
    where_.push_back({special, list.size(), question});
    list.push_back(std::move(text));
    return where_.size() - 1;
  }
  void run(const std::vector<std::string>& places) {
    try {
      special_tokens_ = tokenizer_.encode_batch(special_, true);
      plain_tokens_ = tokenizer_.encode_batch(plain_, false);
    } catch (const Error&) {
      // Which of them it was is found by encoding each by itself.
      for (const auto& [special, i, question] : where_)
        with_place([&] { return places[question]; }, [&] { tokenizer_.encode((special ? special_ : plain_)[i], special); });
      throw;
    }
  }
  const Tokens& at(std::size_t ticket) const {
    const auto [special, i, question] = where_.at(ticket);
    return special ? special_tokens_[i] : plain_tokens_[i];
  }

 private:
  const text::Tokenizer& tokenizer_;
  bool chat_;
  std::string prefix_;
  struct Place {
    bool special;
    std::size_t i, question;
  };
  std::vector<Place> where_;
  std::vector<std::string> special_, plain_;
  std::vector<Tokens> special_tokens_, plain_tokens_;
};

struct Pair {
  Tokens context, continuation;
};

/// Cuts contexts so that the longest of `pairs` (all of one context) is max_tokens inputs and one token more.
void place(const std::vector<Pair>& pairs, std::size_t max_tokens, Encoded& encoded) {
  std::size_t longest = 0;
  for (const auto& p : pairs) longest = std::max(longest, p.context.size() + p.continuation.size());
  const std::size_t over = longest > max_tokens + 1 ? longest - max_tokens - 1 : 0;
  encoded.cut |= over > 0;
  for (const auto& p : pairs) {
    Sequence s;
    if (over < p.context.size()) {
      s.tokens.assign(p.context.begin() + static_cast<std::ptrdiff_t>(over), p.context.end());
      s.scored = s.tokens.size();
      s.tokens.insert(s.tokens.end(), p.continuation.begin(), p.continuation.end());
    }
    encoded.sequences.push_back(std::move(s));
  }
}

}  // namespace

std::vector<Encoded> encode(const text::Tokenizer& tokenizer, const std::vector<Prompt>& prompts, const std::vector<std::string>& places,
                            const EncodeOptions& options) {
  Encoder encoder(tokenizer, options.chat);
  struct Tickets {
    std::vector<std::size_t> contexts;  ///< of each context; none for an empty one
    std::vector<std::size_t> wholes;
  };
  constexpr std::size_t kNone = static_cast<std::size_t>(-1);
  std::vector<Tickets> tickets;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const auto& prompt = prompts[i];
    Tickets of;
    for (const auto& context : prompt.contexts) of.contexts.push_back(context.empty() ? kNone : encoder.add(std::string(rstrip(context)), i));
    for (std::size_t c = 0; c < prompt.continuations.size(); ++c)
      of.wholes.push_back(encoder.add(prompt.context(c) + prompt.continuations[c], i, !prompt.context(c).empty()));
    tickets.push_back(std::move(of));
  }
  encoder.run(places);

  std::vector<Encoded> result;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    std::vector<Pair> pairs;
    for (std::size_t c = 0; c < prompts[i].continuations.size(); ++c) {
      const auto ticket = tickets[i].contexts[prompts[i].contexts.size() == 1 ? 0 : c];
      auto whole = encoder.at(tickets[i].wholes[c]);
      Pair pair;
      if (ticket != kNone) {
        pair.context = encoder.at(ticket);
      } else if (!whole.empty()) {
        const auto prefix = encoder.prefix_id();
        if (!prefix)
          fail("evaluate", "{}: its prompt is empty and the tokenizer has no token that begins or ends a text; remove that row", places[i]);
        pair.context = {*prefix};
        if (whole[0] != *prefix) whole.insert(whole.begin(), *prefix);
      }
      if (whole.size() <= pair.context.size())
        fail("evaluate", "{}: choice {} adds no token to the prompt, so there is nothing to score; mend or remove that row", places[i], c + 1);
      pair.continuation.assign(whole.begin() + static_cast<std::ptrdiff_t>(pair.context.size()), whole.end());
      // A context of white space alone has no token: nothing predicts the first one.
      if (pair.context.empty()) fail("evaluate", "{}: its prompt has no token; mend or remove that row", places[i]);
      for (const auto* part : {&pair.context, &pair.continuation})
        if (options.vocab > 0) tokenizer.check_ids(*part, options.vocab, [&] { return places[i]; });
      pairs.push_back(std::move(pair));
    }
    Encoded encoded;
    if (prompts[i].contexts.size() == 1) {
      place(pairs, static_cast<std::size_t>(options.max_tokens), encoded);
    } else {
      for (const auto& pair : pairs) place({pair}, static_cast<std::size_t>(options.max_tokens), encoded);
    }
    result.push_back(std::move(encoded));
  }
  return result;
}

}  // namespace lquant::evaluate
