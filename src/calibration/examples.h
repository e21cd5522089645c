#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace lquant::calibration {

/// Where a text of the data stands, for messages.
struct Origin {
  std::shared_ptr<const std::string> file;  ///< null: sampled from a model
  std::size_t row = 0;                      ///< its line, from 1; 0: the file as a whole
  bool chat = false;                        ///< the chat template wrote the text
  /// "rows.jsonl: row 23", "book.txt", "a sampled text".
  std::string place() const;
};

/// One text of the data as token ids. The first `prompt` tokens carry no loss when prompts are masked.
struct Example {
  std::vector<std::int32_t> tokens;
  int prompt = 0;
  Origin origin = {};
};

/// " (its chats as model/chat_template.jinja writes them)" where an example is a chat, else nothing: too few tokens may be the template's fault.
std::string written_by(const std::vector<Example>& examples, const text::Tokenizer& tokenizer);

struct SourceOptions {
  int max_tokens = 2048;     ///< longer examples are cut at the end; a .txt file is cut into pieces of this length
  bool mask_prompt = false;  ///< for prompt/completion and chat rows; refused for plain text
  int vocab = 0;  ///< rows of the table of the model that is to read the tokens (ModelSpec::vocab); 0: it is not known, ids are not checked
};

/// Reads a .jsonl file of rows {"text"}, {"prompt","completion"} or {"messages"} (optionally with "tools"), the last two
/// through the chat template, as mlx_lm's data sets do, or {"tokens"}: a list of token ids, taken as they are; or a .txt file, cut into pieces
/// of max_tokens. Rows are read in
/// order; only those whose index is in `wanted` (ascending) are tokenized, all of them when it is empty.
/// Throws Error with the file and the row's number (from 1) for a row that is not JSON, has no known key or the wrong type, that the chat template or
/// the tokenizer refuses or that has a token outside the model's table, and for a file with no rows.
std::vector<Example> read_examples(const std::filesystem::path& file, const text::Tokenizer& tokenizer, const SourceOptions& options,
                                   const std::vector<std::size_t>& wanted = {});

/// The rows of a .jsonl file in a seeded random order until they hold `tokens` tokens together, or all of them. Rows behind
/// are not tokenized; what is wrong with their JSON or keys is told all the same.
std::vector<Example> read_until(const std::filesystem::path& file, const text::Tokenizer& tokenizer, const SourceOptions& options, std::uint64_t seed,
                                std::size_t tokens);

/// All tokens of a text file. Throws Error with the file, and the line where it is known, when it cannot be read or encoded or has a token outside a
/// table of `vocab` tokens (0: not checked).
std::vector<std::int32_t> encode_file(const std::filesystem::path& file, const text::Tokenizer& tokenizer, int vocab, bool add_special_tokens = true);

/// How many rows (of a .jsonl file) or pieces (of a .txt file) there are.
std::size_t count_examples(const std::filesystem::path& file, const text::Tokenizer& tokenizer, const SourceOptions& options);

/// `count` examples (all of them when it is negative) drawn without replacement in a seeded random order from the rows and pieces of all
/// `paths` together, each a file as above or a folder with train.jsonl, and up to `further` that come next in that order. The manifest names each
/// file with its hash.
struct Drawn {
  std::vector<Example> examples;
  std::vector<Example> further = {};
  nlohmann::json manifest;
};
Drawn draw_examples(const std::vector<std::filesystem::path>& paths, const text::Tokenizer& tokenizer, const SourceOptions& options, int count,
                    std::uint64_t seed, std::size_t further = 0);

struct Split {
  std::vector<Example> train, valid;
  /// What was read, with hashes: for lquant.json and for keys of cached work.
  nlohmann::json manifest;
};

/// `train` and `valid` examples drawn without replacement in a seeded random order. `path` is a file as above, or a folder with
/// train.jsonl and, optionally, valid.jsonl (else both parts are drawn from train.jsonl). When there are fewer rows than asked
/// for, validation takes at most a tenth of them.
Split load_split(const std::filesystem::path& path, const text::Tokenizer& tokenizer, const SourceOptions& options, int num_train, int num_valid,
                 std::uint64_t seed);

}  // namespace lquant::calibration
