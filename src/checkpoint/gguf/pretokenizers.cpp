// What the Hugging Face tokenizers of these models do, one row a kind, with the names that llama.cpp gives to tokenizers of the kind.
// llama.cpp writes no patterns into its files: it tells tokenizers apart by a hash of what they make of a test text, and so does its name say
// all there is.
#include "checkpoint/gguf/pretokenizers.h"

#include "base/error.h"
#include "checkpoint/safetensors.h"

namespace lquant::checkpoint::gguf {

using nlohmann::json;

namespace {

/// Each match of the pattern, and what lies between two, becomes a piece.
json split(const char* pattern) { return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}}; }
json digits(bool each) { return {{"type", "Digits"}, {"individual_digits", each}}; }
/// Bytes to the letters that stand for them; `words`: cut by GPT-2's pattern before.
json bytes(bool words) { return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", words}}; }
json sequence(std::vector<json> steps) { return {{"type", "Sequence"}, {"pretokenizers", std::move(steps)}}; }

constexpr const char* kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kTekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kGpt4o =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kDeepseekWords =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kDeepseekLetters =
    R"(\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+)";
constexpr const char* kDeepseekMarks = R"(\s?[!-/:-~！-／：-～‘-‟　-。]+)";
constexpr const char* kCjk = R"([一-龥ࠀ-一가-퟿]+)";
constexpr const char* kBloom = R"( ?[^(\s|[.,!?…。，、।۔،])]+)";
constexpr const char* kSeedCoder =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct Row {
  std::vector<std::string_view> names;
  json pre_tokenizer;
  bool nfc = false;  ///< Unicode's composed form first
  bool whole_words = false, add_bos = false;
};

const std::vector<Row>& rows() {
  static const std::vector<Row> table = {
      {{"default", "gpt-2", "gpt2", "phi-2", "jais", "trillion", "granite-docling", "exaone4", "gigachat", "a.x-4.0", "mellum", "roberta-bpe",
        "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "jina-v2-code", "jina-v1-en"},
       bytes(true)},
      {{"mpt", "olmo"}, bytes(true), /*nfc=*/true},
      {{"smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b"}, sequence({digits(true), bytes(true)})},
      {{"command-r"}, sequence({digits(true), bytes(true)}), /*nfc=*/true},
      {{"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"},
       sequence({split(kLlama3), bytes(false)}),
       false,
       /*whole_words=*/true,
       /*add_bos=*/true},
      {{"dbrx", "smaug-bpe", "glm4", "chatglm-bpe"}, sequence({split(kLlama3), bytes(false)})},
      {{"qwen2", "deepseek-r1-qwen", "megrez", "kormo", "hunyuan", "stablelm2"}, sequence({split(kQwen2), bytes(false)}), /*nfc=*/true},
      {{"grok-2"}, sequence({split(kQwen2), bytes(false)})},
      {{"tekken"}, sequence({split(kTekken), bytes(false)}), false, /*whole_words=*/true, /*add_bos=*/true},
      {{"gpt-4o", "llama4", "minimax-m2"}, sequence({split(kGpt4o), bytes(false)})},
      {{"deepseek-llm"},
       sequence({split(R"([\r\n])"), split(kDeepseekLetters), split(kDeepseekMarks), split(R"(\s+$)"), split(kCjk), digits(true), bytes(false)})},
      {{"deepseek-coder"},
       sequence({split(R"([\r\n])"), split(R"(\s?\p{L}+)"), split(R"(\s?\p{P}+)"), split(kCjk), digits(true), bytes(false)})},
      {{"deepseek-v3", "hunyuan-dense"}, sequence({split(R"(\p{N}{1,3})"), split(R"([一-龥぀-ゟ゠-ヿ]+)"), split(kDeepseekWords), bytes(false)})},
      {{"falcon"},
       sequence({{{"type", "Punctuation"}, {"behavior", "Contiguous"}}, bytes(true), digits(false), split(R"([0-9][0-9][0-9])")})},
      {{"bloom", "poro-chat", "gpt3-finnish"}, sequence({split(kBloom), bytes(false)})},
      {{"viking"}, sequence({split(kBloom), digits(true), bytes(false)})},
      {{"seed-coder"}, sequence({split(kSeedCoder), bytes(false)})},
  };
  return table;
}

}  // namespace

PreTokenizer pre_tokenizer(std::string_view name, const std::string& file) {
  std::string known;
  for (const auto& row : rows())
    for (const auto& other : row.names) {
      if (other == name) return {row.nfc ? json{{"type", "NFC"}} : json(), row.pre_tokenizer, row.whole_words, row.add_bos};
      known += (known.empty() ? "" : ", ") + std::string(other);
    }
  fail("checkpoint", "{}: its tokenizer.ggml.pre is {}, and lquant knows {}; use the original model's folder instead", file, in_quotes(name), known);
}

}  // namespace lquant::checkpoint::gguf
