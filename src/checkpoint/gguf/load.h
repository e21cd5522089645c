#pragma once

#include <mlx/array.h>

#include <functional>

#include "checkpoint/file.h"
#include "checkpoint/gguf/header.h"
#include "checkpoint/gguf/names.h"

namespace lquant::checkpoint::gguf {

/// A tensor of a GGUF file, and what of it is wanted.
struct Wanted {
  const Tensor* tensor = nullptr;
  Change change = Change::none;
  int heads = 1;  ///< of the kind that `change` names
};

/// Throws Error, naming `name`, when the change cannot be undone on a tensor of this shape and type.
void check(const Wanted& wanted, const std::string& name, const std::filesystem::path& file);
/// Shape of what read() gives for it.
mx::Shape shape_of(const Wanted& wanted);
/// Reads the tensor's bytes now, turns them into floats on all cores, undoes the change in f32, and rounds once to `dtype` (f32, f16 or bf16;
/// nearest, ties to even). Integers keep their type and values; `dtype` is theirs then. Evaluated, row-major.
mx::array read(const File& file, const Wanted& wanted, mx::Dtype dtype);
/// The dtype of an integer type's array.
mx::Dtype integer_dtype(const BlockType& type);

}  // namespace lquant::checkpoint::gguf
