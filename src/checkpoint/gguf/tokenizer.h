#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/file_set.h"
#include "checkpoint/gguf/metadata.h"

namespace lquant::checkpoint::gguf {

/// tokenizer.json, tokenizer_config.json, generation_config.json and config.json as transformers and mlx_lm read them, rebuilt from tokenizer.ggml.*
/// when they are first asked for. Throws Error now, naming the file, when there is no vocabulary, its kind or its pre-tokenizer is not one that
/// lquant knows, or lists that belong together differ in length; and later, when a token or a merge is damaged.
/// `takes_blanks` is the architecture's (names.h).
FileSet tokenizer_files(std::shared_ptr<const Metadata> metadata, const nlohmann::json& config, bool (*takes_blanks)(std::string_view token));

}  // namespace lquant::checkpoint::gguf
