#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file_set.h"
#include "text/folder.h"

struct lquant_tokenizer;  // of the Rust crate

namespace lquant::text {

/// A model's tokenizer and chat template. Ids are those of the Python package `tokenizers`, chats those of transformers'
/// apply_chat_template as mlx_lm calls it. Cheap to copy; safe to read from many threads at once.
///
/// Every failure is an Error with the tag [text].
class Tokenizer {
 public:
  /// Reads tokenizer.json, tokenizer_config.json, special_tokens_map.json, the chat template and the ids that end a text
  /// (see text/folder.h). Only tokenizer.json must exist. Whether a beginning-of-text token is put before a text is what its
  /// post-processor says; its truncation and padding are ignored.
  static Tokenizer open(const FileSet& files);
  static Tokenizer open(const std::filesystem::path& folder) { return open(FileSet::of_folder(folder)); }

  /// Text is UTF-8; an invalid byte sequence is read as U+FFFD.
  std::vector<std::int32_t> encode(std::string_view text, bool add_special_tokens = true) const;
  /// The same for many texts, on all cores (RAYON_NUM_THREADS bounds them).
  std::vector<std::vector<std::int32_t>> encode_batch(const std::vector<std::string>& texts, bool add_special_tokens = true) const;
  /// Always valid UTF-8: bytes that make no character become U+FFFD. Ids beyond the vocabulary (models pad theirs) are left out.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special = false) const;

  std::optional<int> token_id(std::string_view token) const;
  /// The token as the vocabulary writes it, e.g. "Ġthe". Throws when there is none of this id.
  std::string token(int id) const;
  /// Number of tokens, added ones included.
  std::size_t vocab_size() const;
  /// Throws for the first of `ids` that a model with a table of `rows` tokens has no row for (a tokenizer can have more tokens than the model that it
  /// came with), naming `place()`, where the text stands, the id and its token.
  void check_ids(std::span<const std::int32_t> ids, int rows, const std::function<std::string()>& place) const;

  std::optional<int> bos_id() const { return bos_id_; }
  /// Ids that end a text: the model's (generation_config.json, else config.json), then the tokenizer's own eos_token.
  const std::vector<int>& eos_ids() const { return eos_ids_; }

  bool has_chat_template() const { return !templates_.empty(); }
  /// The template of chats without tools, for messages: "model/chat_template.jinja". Throws when there is none.
  const std::string& chat_template_name() const { return choose_template(false).name; }

  /// A chat as the text that the model was trained to see. `messages` is an array of {"role", "content", …}; `tools` an array
  /// of JSON schemas or null; `extra` an object of further variables, which win over the special tokens and over
  /// enable_thinking (true, as in mlx_lm, when the vocabulary has tokens for thinking). Keys keep the order that they have in
  /// the argument: pass nlohmann::ordered_json where a template may print an object; nlohmann::json, which sorts, converts by itself.
  /// Encode the result with add_special_tokens = false: the template writes the special tokens.
  /// Throws when there is no template, when the template refuses the messages, or fails (with its file and line).
  std::string apply_chat_template(const nlohmann::ordered_json& messages, bool add_generation_prompt, const nlohmann::ordered_json& tools = nullptr,
                                  const nlohmann::ordered_json& extra = nullptr) const;

  /// tokenizer_config.json; an empty object when there is none.
  const nlohmann::json& config() const { return config_; }

 private:
  Tokenizer() = default;
  const ChatTemplate& choose_template(bool with_tools) const;
  bool has_thinking_tokens() const;

  std::shared_ptr<const lquant_tokenizer> handle_;
  std::string origin_;  // the folder or file that it came from, for messages
  nlohmann::json config_;
  std::map<std::string, std::string> special_tokens_;
  std::map<std::string, ChatTemplate> templates_;
  std::optional<int> bos_id_;
  std::vector<int> eos_ids_;
  bool enable_thinking_ = false;
};

}  // namespace lquant::text
