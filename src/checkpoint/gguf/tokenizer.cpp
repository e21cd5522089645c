// tokenizer.json again from its parts. Two kinds of vocabularies are known. Byte-level ones ("gpt2") list their merges. SentencePiece's
// ("llama") have scores, from which transformers makes merges, and so do we; its normalizer writes a "▁" for each blank and, unless the
// file says no, one in front of a text.
#include "checkpoint/gguf/tokenizer.h"

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "checkpoint/gguf/pretokenizers.h"
#include "checkpoint/gguf/vocabulary.h"
#include "checkpoint/safetensors.h"

namespace lquant::checkpoint::gguf {

using Json = nlohmann::ordered_json;  // small objects in the order in which they are written; never the vocabulary, of which it would be slow

namespace {

enum class Kind { bytes, sentencepiece };

/// What a text may end with beside eos: tokens by which chat models end their turn, where they are special ones of the vocabulary. GGUF files name
/// eos alone as a rule, and a model's generation_config.json the others.
constexpr std::string_view kTurnEnds[] = {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>"};

/// All that the files are made from.
struct Parts {
  std::shared_ptr<const Metadata> metadata;
  Kind kind = Kind::bytes;
  std::optional<PreTokenizer> pre;  ///< of byte-level ones
  nlohmann::json config;
  bool (*takes_blanks)(std::string_view token) = nullptr;  ///< see Architecture

  Vocabulary vocabulary() const { return Vocabulary(*metadata, kind == Kind::sentencepiece); }
  bool add_bos() const { return metadata->flag("tokenizer.ggml.add_bos_token").value_or(pre ? pre->add_bos : true); }
  bool add_eos() const { return metadata->flag("tokenizer.ggml.add_eos_token").value_or(false); }
  bool blank_in_front() const { return metadata->flag("tokenizer.ggml.add_space_prefix").value_or(true); }
};

Json or_null(const nlohmann::json& value) { return value.is_null() ? Json() : Json(value); }

Json added_tokens(const Parts& parts, const Vocabulary& vocabulary) {
  Json all = Json::array();
  for (std::size_t i = 0; i < vocabulary.tokens().size(); ++i) {
    const auto& token = vocabulary.tokens()[i];
    const bool special = token.type == TokenType::control || token.type == TokenType::unknown;
    if (!special && token.type != TokenType::user_defined) continue;
    const bool takes_blanks = parts.kind == Kind::sentencepiece && parts.takes_blanks && parts.takes_blanks(token.text);
    all.push_back({{"id", i},
                   {"content", token.text},
                   {"single_word", false},
                   {"lstrip", false},
                   {"rstrip", takes_blanks},
                   {"normalized", false},
                   {"special", special}});
  }
  return all;
}

Json post_processor(const Parts& parts, const Vocabulary& vocabulary) {
  const auto bos = parts.add_bos() ? vocabulary.id(*parts.metadata, "bos") : std::nullopt;
  const auto eos = parts.add_eos() ? vocabulary.id(*parts.metadata, "eos") : std::nullopt;
  if (!bos && !eos) return nullptr;
  const auto text = [&](int id) { return vocabulary.tokens()[static_cast<std::size_t>(id)].text; };
  Json single = Json::array(), pair = Json::array(), special = Json::object();
  for (const auto& [sequence, type] : {std::pair("A", 0), std::pair("B", 1)}) {
    Json part = Json::array();
    if (bos) part.push_back({{"SpecialToken", {{"id", text(*bos)}, {"type_id", type}}}});
    part.push_back({{"Sequence", {{"id", sequence}, {"type_id", type}}}});
    if (eos) part.push_back({{"SpecialToken", {{"id", text(*eos)}, {"type_id", type}}}});
    if (type == 0) single = part;
    for (const auto& piece : part) pair.push_back(piece);
  }
  for (const auto& id : {bos, eos})
    if (id) special[text(*id)] = {{"id", text(*id)}, {"ids", Json::array({*id})}, {"tokens", Json::array({text(*id)})}};
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", special}};
}

Json replace(const char* from, const char* to) { return {{"type", "Replace"}, {"pattern", {{"String", from}}}, {"content", to}}; }

Json sentencepiece_normalizer(bool blank_in_front) {
  if (!blank_in_front) return replace(" ", "▁");
  return {{"type", "Sequence"}, {"normalizers", Json::array({{{"type", "Prepend"}, {"prepend", "▁"}}, replace(" ", "▁")})}};
}

Json sentencepiece_decoder(bool blank_in_front) {
  auto steps = Json::array({replace("▁", " "), {{"type", "ByteFallback"}}, {{"type", "Fuse"}}});
  if (blank_in_front) steps.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  return {{"type", "Sequence"}, {"decoders", steps}};
}

std::string json_text(std::string_view text) { return nlohmann::json(std::string(text)).dump(); }

std::string model(const Parts& parts, const Vocabulary& vocabulary) {
  const bool sentencepiece = parts.kind == Kind::sentencepiece;
  const auto unknown = vocabulary.id(*parts.metadata, "unknown");
  Json head = {{"type", "BPE"},
               {"dropout", nullptr},
               {"unk_token", sentencepiece && unknown ? Json(vocabulary.tokens()[static_cast<std::size_t>(*unknown)].text) : Json()},
               {"continuing_subword_prefix", nullptr},
               {"end_of_word_suffix", nullptr},
               {"fuse_unk", sentencepiece},
               {"byte_fallback", sentencepiece},
               {"ignore_merges", parts.pre && parts.pre->whole_words}};
  auto text = head.dump();
  text.pop_back();
  text += ",\"vocab\":{";
  bool first = true;
  for (std::size_t i = 0; i < vocabulary.tokens().size(); ++i) {
    if (vocabulary.tokens()[i].filler) continue;
    text += fmt::format("{}{}:{}", first ? "" : ",", json_text(vocabulary.tokens()[i].text), i);
    first = false;
  }
  text += "},\"merges\":[";
  first = true;
  for (const auto& [left, right] : sentencepiece ? scored_merges(vocabulary) : listed_merges(*parts.metadata, vocabulary)) {
    text += fmt::format("{}[{},{}]", first ? "" : ",", json_text(left), json_text(right));
    first = false;
  }
  return text + "]}";
}

std::string tokenizer_json(const Parts& parts) {
  if (auto original = parts.metadata->text("tokenizer.huggingface.json")) return *original;
  const auto vocabulary = parts.vocabulary();
  Json json = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}, {"added_tokens", added_tokens(parts, vocabulary)}};
  if (parts.kind == Kind::bytes) {
    json["normalizer"] = or_null(parts.pre->normalizer);
    json["pre_tokenizer"] = or_null(parts.pre->pre_tokenizer);
    json["decoder"] = {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
  } else {
    json["normalizer"] = sentencepiece_normalizer(parts.blank_in_front());
    json["pre_tokenizer"] = nullptr;
    json["decoder"] = sentencepiece_decoder(parts.blank_in_front());
  }
  json["post_processor"] = post_processor(parts, vocabulary);
  auto text = json.dump();
  text.pop_back();
  return text + ",\"model\":" + model(parts, vocabulary) + "}";
}

/// The file's template, or templates by name.
Json chat_template(const Metadata& metadata) {
  const auto main = metadata.text("tokenizer.chat_template");
  const auto* names = metadata.texts("tokenizer.chat_templates");
  if (!names || names->empty()) return main ? Json(*main) : Json();
  Json all = Json::array();
  if (main) all.push_back({{"name", "default"}, {"template", *main}});
  for (const auto name : *names)
    if (const auto text = metadata.text("tokenizer.chat_template." + std::string(name))) all.push_back({{"name", name}, {"template", *text}});
  return all;
}

std::string tokenizer_config(const Parts& parts) {
  const auto vocabulary = parts.vocabulary();
  Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"}};
  for (const auto& [field, role] : {std::pair("bos_token", "bos"), std::pair("eos_token", "eos"), std::pair("unk_token", "unknown"),
                                    std::pair("pad_token", "padding"), std::pair("mask_token", "mask")})
    if (const auto id = vocabulary.id(*parts.metadata, role)) config[field] = vocabulary.tokens()[static_cast<std::size_t>(*id)].text;
  config["add_bos_token"] = parts.add_bos() && config.contains("bos_token");
  config["add_eos_token"] = parts.add_eos() && config.contains("eos_token");
  config["clean_up_tokenization_spaces"] = false;
  config["model_max_length"] = parts.config.value("max_position_embeddings", 0);
  if (auto chat = chat_template(*parts.metadata); !chat.is_null()) config["chat_template"] = std::move(chat);
  return config.dump(2);
}

/// Adds the ids of special tokens; "eos_token_id" is a list when there are several.
Json token_ids(const Parts& parts) {
  const auto vocabulary = parts.vocabulary();
  Json ids = Json::object();
  if (const auto bos = vocabulary.id(*parts.metadata, "bos")) ids["bos_token_id"] = *bos;
  std::vector<int> ends;
  const auto add = [&](int id) {
    if (std::find(ends.begin(), ends.end(), id) == ends.end()) ends.push_back(id);
  };
  for (const char* role : {"eos", "eot", "eom"})
    if (const auto id = vocabulary.id(*parts.metadata, role)) add(*id);
  for (const auto end : kTurnEnds)
    for (std::size_t i = 0; i < vocabulary.tokens().size(); ++i)
      if (vocabulary.tokens()[i].type == TokenType::control && vocabulary.tokens()[i].text == end) add(static_cast<int>(i));
  if (ends.size() == 1) ids["eos_token_id"] = ends[0];
  if (ends.size() > 1) ids["eos_token_id"] = ends;
  if (const auto pad = vocabulary.id(*parts.metadata, "padding")) ids["pad_token_id"] = *pad;
  return ids;
}

Kind kind_of(const Metadata& metadata) {
  const auto model = metadata.text("tokenizer.ggml.model");
  if (model == "gpt2") return Kind::bytes;
  if (model == "llama") return Kind::sentencepiece;
  fail("checkpoint",
       "{}: its tokenizer.ggml.model is {}; lquant rebuilds \"gpt2\" (byte-level BPE) and \"llama\" (SentencePiece): use the original model's folder",
       metadata.file().string(), model ? in_quotes(*model) : "missing");
}

}  // namespace

FileSet tokenizer_files(std::shared_ptr<const Metadata> metadata, const nlohmann::json& config, bool (*takes_blanks)(std::string_view token)) {
  Parts parts{metadata, kind_of(*metadata), std::nullopt, config, takes_blanks};
  if (parts.kind == Kind::bytes) parts.pre = pre_tokenizer(metadata->text("tokenizer.ggml.pre").value_or("default"), metadata->file().string());
  if (const auto* tokens = metadata->texts("tokenizer.ggml.tokens"); !tokens || tokens->empty())
    fail("checkpoint", "{}: has no tokenizer.ggml.tokens; convert the original model with its tokenizer", metadata->file().string());
  return FileSet::of_memory(metadata->file(), {{"config.json", [parts] { return parts.config.dump(4); }},
                                               {"generation_config.json", [parts] { return token_ids(parts).dump(4); }},
                                               {"tokenizer.json", [parts] { return tokenizer_json(parts); }},
                                               {"tokenizer_config.json", [parts] { return tokenizer_config(parts); }}});
}

}  // namespace lquant::checkpoint::gguf
