#pragma once

#include <filesystem>
#include <vector>

#include "checkpoint/file.h"
#include "checkpoint/gguf/header.h"

namespace lquant::checkpoint::gguf {

struct Piece {
  File file;
  Header header;
};

/// Whether a path is meant as a GGUF file: its name ends in ".gguf".
bool is_gguf(const std::filesystem::path& path);

/// The file, or all pieces of a split model (NAME-00001-of-0000N.gguf, as llama.cpp's gguf-split writes them) of which any one is
/// given, in order; the first has the metadata. Throws Error naming the piece that is missing, that belongs to another split, or
/// whose name and content disagree; and when the pieces do not hold the number of tensors that they should.
std::vector<Piece> open_pieces(const std::filesystem::path& path);

/// The name of the whole: the file's without ".gguf" and without "-00001-of-0000N".
std::string model_name(const std::filesystem::path& path);

}  // namespace lquant::checkpoint::gguf
