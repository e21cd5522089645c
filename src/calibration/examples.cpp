// Data comes in as rows of JSON or as plain text and leaves as token ids. The rows keep the keys and the treatment that
// mlx_lm gives them, so that the same file trains both programs on the same tokens.
#include "calibration/examples.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/links.h"
#include "base/random.h"
#include "base/words.h"

namespace lquant::calibration {
namespace {

namespace fs = std::filesystem;
using json = nlohmann::ordered_json;  // templates print tools and calls with their keys in the row's order

/// The lines of a .jsonl file that hold something, with their numbers.
struct Line {
  std::size_t number;
  std::string text;
};

std::vector<Line> read_lines(const fs::path& file) {
  check_regular("calibration", file);
  std::ifstream in(file);
  if (!in) fail("calibration", "{}: cannot be read; check --data-path", file.string());
  std::vector<Line> lines;
  std::string text;
  for (std::size_t number = 1; std::getline(in, text); ++number)
    if (text.find_first_not_of(" \t\r") != std::string::npos) lines.push_back({number, text});
  if (lines.empty()) fail("calibration", "{}: holds no rows; give a .jsonl file with a JSON object on each line", file.string());
  return lines;
}

class RowReader {
 public:
  RowReader(const fs::path& file, const text::Tokenizer& tokenizer, const SourceOptions& options)
      : file_(std::make_shared<const std::string>(file.string())), tokenizer_(tokenizer), options_(options) {}

  Example read(const Line& line) const {
    const Origin origin{file_, line.number};
    auto example = encoded(line, origin);
    example.origin.file = origin.file;
    example.origin.row = origin.row;
    if (static_cast<int>(example.tokens.size()) > options_.max_tokens) example.tokens.resize(options_.max_tokens);
    if (options_.vocab > 0) tokenizer_.check_ids(example.tokens, options_.vocab, [&] { return origin.place(); });
    return example;
  }

  /// Throws Error for what read() would refuse before it asks the tokenizer.
  void check(const Line& line) const { static_cast<void>(parsed(line)); }

 private:
  /// The row, with keys of the right types.
  json parsed(const Line& line) const {
    json row;
    try {
      row = parse_json<json>(line.text);
    } catch (const JsonFault& fault) {
      std::string_view where = fault.what();
      if (constexpr std::string_view kFirst = "line 1, "; where.starts_with(kFirst)) where.remove_prefix(kFirst.size());  // a row is one line
      complain(line, fmt::format("is not JSON ({})", where));
    }
    if (!row.is_object()) complain(line, "is not a JSON object");
    const auto need_text = [&](const char* key) {
      if (!row.at(key).is_string()) complain(line, "has a text that is not a string");
    };
    if (is_pair(row)) {
      need_text("prompt");
      need_text("completion");
    } else if (row.contains("messages")) {
      if (!row.at("messages").is_array() || row.at("messages").empty()) complain(line, "has \"messages\" that is not a list of messages");
    } else if (row.contains("text")) {
      if (options_.mask_prompt) complain(line, "is plain text, which has no prompt to mask; drop --mask-prompt");
      need_text("text");
    } else if (row.contains("tokens")) {
      check_ids(line, row.at("tokens"));
    } else {
      complain(line, "has none of the keys \"text\", \"messages\", \"tokens\", or \"prompt\" with \"completion\"");
    }
    return row;
  }

  static bool is_pair(const json& row) { return row.contains("prompt") && row.contains("completion"); }

  Example encoded(const Line& line, const Origin& origin) const {
    const auto row = parsed(line);
    const auto place = [&] { return origin.place(); };
    try {
      if (is_pair(row)) {
        const json turns{{{"role", "user"}, {"content", row.at("prompt")}}, {{"role", "assistant"}, {"content", row.at("completion")}}};
        return with_place(place, [&] { return chat(turns, row); });
      }
      if (row.contains("messages")) return with_place(place, [&] { return chat(row.at("messages"), row); });
      if (row.contains("text")) return with_place(place, [&] { return plain(row.at("text").get<std::string>()); });
    } catch (const json::exception&) {
      complain(line, "has a text that is not a string");
    }
    Example example;
    for (const auto& id : row.at("tokens")) example.tokens.push_back(id.get<std::int32_t>());
    return example;
  }

  [[noreturn]] void complain(const Line& line, std::string_view what) const {
    fail("calibration", "{}: row {} {}; mend or remove that row", *file_, line.number, what);
  }

  Example plain(const std::string& text) const {
    Example example{tokenizer_.encode(text), 0};
    const auto& eos = tokenizer_.eos_ids();
    if (!eos.empty() && (example.tokens.empty() || std::find(eos.begin(), eos.end(), example.tokens.back()) == eos.end()))
      example.tokens.push_back(eos.front());
    return example;
  }

  void check_ids(const Line& line, const json& ids) const {
    if (options_.mask_prompt) complain(line, "is a list of token ids, which has no prompt to mask; drop --mask-prompt");
    // A model's table can be longer than its tokenizer's list.
    const auto limit = std::max<std::int64_t>(options_.vocab, static_cast<std::int64_t>(tokenizer_.vocab_size()));
    if (!ids.is_array()) complain(line, "has \"tokens\" that is not a list of token ids");
    for (const auto& id : ids)
      if (!id.is_number_integer() || id < 0 || id >= limit) complain(line, "has \"tokens\" that is not a list of ids of the model's vocabulary");
  }

  Example chat(const json& messages, const json& row) const {
    const json tools = row.contains("tools") ? row.at("tools") : json();
    // The template writes every special token itself; adding them again would double the first one.
    Example example{tokenizer_.encode(tokenizer_.apply_chat_template(messages, false, tools), false), 0};
    example.origin.chat = true;
    if (options_.mask_prompt) {
      const json prompt(messages.begin(), messages.end() - 1);
      const bool answer_last = messages.back().value("role", "") == "assistant";
      example.prompt = static_cast<int>(tokenizer_.encode(tokenizer_.apply_chat_template(prompt, answer_last, tools), false).size());
    }
    return example;
  }

  std::shared_ptr<const std::string> file_;
  const text::Tokenizer& tokenizer_;
  const SourceOptions& options_;
};

std::vector<Example> cut_text(const fs::path& file, const text::Tokenizer& tokenizer, const SourceOptions& options) {
  if (options.mask_prompt) fail("calibration", "{}: plain text has no prompt to mask; drop --mask-prompt", file.string());
  const auto ids = encode_file(file, tokenizer, options.vocab);
  const Origin origin{std::make_shared<const std::string>(file.string())};
  std::vector<Example> pieces;
  for (std::size_t begin = 0; begin < ids.size(); begin += options.max_tokens) {
    const auto end = std::min(ids.size(), begin + options.max_tokens);
    pieces.push_back({{ids.begin() + static_cast<std::ptrdiff_t>(begin), ids.begin() + static_cast<std::ptrdiff_t>(end)}, 0, origin});
  }
  if (pieces.empty()) fail("calibration", "{}: is empty; give a text of at least one token", file.string());
  return pieces;
}

bool is_text(const fs::path& file) {
  const auto extension = file.extension();
  if (extension == ".jsonl" || extension == ".json") return false;
  if (extension == ".txt" || extension == ".raw" || extension == ".md") return true;
  fail("calibration", "{}: unknown kind of data; give a .jsonl or a .txt file, a folder with train.jsonl, or 'self'", file.string());
}

/// A folder stands for its train.jsonl.
fs::path file_of(const fs::path& path) {
  std::error_code ignored;  // a name too long for the file system is no file
  if (!fs::exists(path, ignored)) fail("calibration", "{}: no such file or folder; check --data-path", path.string());
  if (!fs::is_directory(path)) return path;
  if (!fs::exists(path / "train.jsonl")) fail("calibration", "{}: holds no train.jsonl; put one there or name a file", path.string());
  return path / "train.jsonl";
}

void drop_empty(const fs::path& file, const text::Tokenizer& tokenizer, std::vector<Example>& list) {
  const auto chats = written_by(list, tokenizer);
  std::erase_if(list, [](const Example& e) { return e.tokens.empty(); });
  if (list.empty()) fail("calibration", "{}: every row drawn is empty{}; give rows with text", file.string(), chats);
}

}  // namespace

std::string written_by(const std::vector<Example>& examples, const text::Tokenizer& tokenizer) {
  const bool chats = std::any_of(examples.begin(), examples.end(), [](const Example& e) { return e.origin.chat; });
  return chats ? fmt::format(" (its chats as {} writes them)", tokenizer.chat_template_name()) : "";
}

std::string Origin::place() const {
  if (!file) return "a sampled text";
  return row > 0 ? fmt::format("{}: row {}", *file, row) : *file;
}

std::vector<std::int32_t> encode_file(const fs::path& file, const text::Tokenizer& tokenizer, int vocab, bool add_special_tokens) {
  const auto text = read_file("calibration", file);
  const auto name = std::make_shared<const std::string>(file.string());
  const auto encoded = [&](std::string_view part, bool special, std::size_t row) {
    const auto place = [origin = Origin{name, row}] { return origin.place(); };
    auto ids = with_place(place, [&] { return tokenizer.encode(part, special); });
    if (vocab > 0) tokenizer.check_ids(ids, vocab, place);
    return ids;
  };
  try {
    return encoded(text, add_special_tokens, 0);
  } catch (const Error&) {
    // Which line it is can be told when that line is refused by itself.
    std::size_t row = 1;
    for (std::size_t begin = 0; begin < text.size(); ++row) {
      const auto end = std::min(text.find('\n', begin), text.size());
      encoded(std::string_view(text).substr(begin, end - begin), false, row);
      begin = end + 1;
    }
    throw;
  }
}

std::vector<Example> read_examples(const fs::path& file, const text::Tokenizer& tokenizer, const SourceOptions& options,
                                   const std::vector<std::size_t>& wanted) {
  std::vector<Example> examples;
  auto select = [&](std::size_t count, const auto& get) {
    if (wanted.empty()) {
      for (std::size_t i = 0; i < count; ++i) examples.push_back(get(i));
    } else {
      for (const auto i : wanted) examples.push_back(get(i));
    }
  };
  if (is_text(file)) {
    const auto pieces = cut_text(file, tokenizer, options);
    select(pieces.size(), [&](std::size_t i) { return pieces.at(i); });
  } else {
    const auto lines = read_lines(file);
    const RowReader reader(file, tokenizer, options);
    select(lines.size(), [&](std::size_t i) { return reader.read(lines.at(i)); });
  }
  return examples;
}

std::vector<Example> read_until(const fs::path& file, const text::Tokenizer& tokenizer, const SourceOptions& options, std::uint64_t seed,
                                std::size_t tokens) {
  const auto lines = read_lines(file);
  const RowReader reader(file, tokenizer, options);
  std::vector<Example> examples;
  std::size_t total = 0;
  for (const auto i : permutation(lines.size(), seed)) {
    if (total >= tokens) {
      reader.check(lines[i]);
      continue;
    }
    examples.push_back(reader.read(lines[i]));
    total += examples.back().tokens.size();
  }
  return examples;
}

std::size_t count_examples(const fs::path& file, const text::Tokenizer& tokenizer, const SourceOptions& options) {
  return is_text(file) ? cut_text(file, tokenizer, options).size() : read_lines(file).size();
}

Drawn draw_examples(const std::vector<fs::path>& paths, const text::Tokenizer& tokenizer, const SourceOptions& options, int count, std::uint64_t seed,
                    std::size_t further) {
  Drawn drawn;
  struct File {
    fs::path path;
    std::vector<Example> pieces;  // of a text, which cannot be counted without cutting it
    std::size_t begin, end;
  };
  std::vector<File> files;
  std::size_t total = 0;
  for (const auto& path : paths) {
    File file{file_of(path), {}, total, total};
    if (is_text(file.path)) file.pieces = cut_text(file.path, tokenizer, options);
    total = file.end += file.pieces.empty() ? count_examples(file.path, tokenizer, options) : file.pieces.size();
    drawn.manifest["files"].push_back({{"file", utf8(file.path.filename())}, {"sha256", sha256_file(file.path)}});
    files.push_back(std::move(file));
  }
  const auto order = permutation(total, seed);
  const auto take = [&](std::size_t begin, std::size_t end, std::vector<Example>& examples) {
    for (auto& file : files) {
      std::vector<std::size_t> wanted;
      for (auto at = begin; at < end; ++at)
        if (const auto i = order[at]; i >= file.begin && i < file.end) wanted.push_back(i - file.begin);
      if (wanted.empty()) continue;
      if (file.pieces.empty()) {
        for (auto& example : read_examples(file.path, tokenizer, options, wanted)) examples.push_back(std::move(example));
      } else {
        for (const auto i : wanted) examples.push_back(std::move(file.pieces[i]));
      }
    }
  };
  const auto first = count < 0 ? total : std::min<std::size_t>(count, total);
  take(0, first, drawn.examples);
  drop_empty(files.front().path, tokenizer, drawn.examples);
  drawn.manifest["rows"] = drawn.examples.size();
  take(first, std::min(total, first + further), drawn.further);
  std::erase_if(drawn.further, [](const Example& e) { return e.tokens.empty(); });
  return drawn;
}

Split load_split(const fs::path& path, const text::Tokenizer& tokenizer, const SourceOptions& options, int num_train, int num_valid,
                 std::uint64_t seed) {
  const fs::path train = file_of(path), valid = fs::is_directory(path) && fs::exists(path / "valid.jsonl") ? path / "valid.jsonl" : fs::path();
  const auto draw = [&](const fs::path& file, std::size_t skip, std::size_t take) {
    const auto order = permutation(count_examples(file, tokenizer, options), seed);
    const auto begin = std::min(skip, order.size()), end = std::min(order.size(), skip + take);
    std::vector<std::size_t> chosen(order.begin() + static_cast<std::ptrdiff_t>(begin), order.begin() + static_cast<std::ptrdiff_t>(end));
    return chosen.empty() ? std::vector<Example>{} : read_examples(file, tokenizer, options, chosen);
  };
  Split split;
  split.manifest["train"] = {{"file", utf8(train.filename())}, {"sha256", sha256_file(train)}};
  if (!valid.empty()) {
    split.train = draw(train, 0, num_train);
    split.valid = draw(valid, 0, num_valid);
    split.manifest["valid"] = {{"file", utf8(valid.filename())}, {"sha256", sha256_file(valid)}};
  } else {
    const auto rows = count_examples(train, tokenizer, options);
    // Enough for both, or a tenth (at least one row) for validation; a single row must do for both.
    const auto held =
        std::min<std::size_t>(num_valid, rows >= static_cast<std::size_t>(num_train) + num_valid ? num_valid : std::max<std::size_t>(1, rows / 10));
    const auto used = std::min<std::size_t>(num_train, rows > held ? rows - held : 1);
    split.train = draw(train, 0, used);
    split.valid = rows > 1 ? draw(train, used, held) : split.train;
  }
  drop_empty(train, tokenizer, split.train);
  drop_empty(valid.empty() ? train : valid, tokenizer, split.valid);
  split.manifest["rows"] = {{"train", split.train.size()}, {"valid", split.valid.size()}};
  return split;
}

}  // namespace lquant::calibration
