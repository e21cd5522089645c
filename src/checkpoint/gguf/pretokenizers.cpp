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
constexpr const char* kQwen2 = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kTekken = R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
                                R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|)"
                                R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kGpt4o = R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
                               R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
                               R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kDeepseekWords =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// Letters that have cases, as of Unicode 11 and without Georgian's, in numbers since some of these change when a text is normalized.
constexpr const char* kDeepseekLetters =
    R"(\s?[)"
    R"(A-Za-z\x{00B5}\x{00C0}-\x{00D6}\x{00D8}-\x{00F6}\x{00F8}-\x{01BA}\x{01BC}-\x{01BF}\x{01C4}-\x{0293}\x{0295}-\x{02AF})"
    R"(\x{0370}-\x{0373}\x{0376}-\x{0377}\x{037B}-\x{037D}\x{037F}\x{0386}\x{0388}-\x{038A}\x{038C}\x{038E}-\x{03A1})"
    R"(\x{03A3}-\x{03F5}\x{03F7}-\x{0481}\x{048A}-\x{052F}\x{0531}-\x{0556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD})"
    R"(\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D})"
    R"(\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4})"
    R"(\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC})"
    R"(\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128})"
    R"(\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}-\x{2184}\x{2C00}-\x{2C7B})"
    R"(\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}-\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787})"
    R"(\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A})"
    R"(\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF})"
    R"(\x{1E900}-\x{1E943})"
    R"(]+)";
constexpr const char* kDeepseekMarks = R"(\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+)";
constexpr const char* kCjk = R"([\x{4E00}-\x{9FA5}\x{0800}-\x{4E00}\x{AC00}-\x{D7FF}]+)";
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
      {{"deepseek-coder"}, sequence({split(R"([\r\n])"), split(R"(\s?\p{L}+)"), split(R"(\s?\p{P}+)"), split(kCjk), digits(true), bytes(false)})},
      {{"deepseek-v3", "hunyuan-dense"},
       sequence({split(R"(\p{N}{1,3})"), split(R"([一-龥぀-ゟ゠-ヿ]+)"), split(kDeepseekWords), bytes(false)})},
      {{"falcon"}, sequence({{{"type", "Punctuation"}, {"behavior", "Contiguous"}}, bytes(true), digits(false), split(R"([0-9][0-9][0-9])")})},
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
