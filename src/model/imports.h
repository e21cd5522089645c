#pragma once

#include <mlx/array.h>

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

// Where each tensor of an architecture comes from in a checkpoint that has it under other names or in another form.
namespace lquant::model {

namespace mx = mlx::core;

/// A change of the tensors that were found, in order of a row's list.
struct Change {
  enum class Kind {
    stack,         ///< all sources become one tensor with a leading axis
    join,          ///< all sources become one tensor, the rows of the first one first
    flatten,       ///< to one axis
    transpose,     ///< the last two axes change places
    squeeze,       ///< axes of length 1 go
    entry,         ///< number `first` of `axis`, which goes (an expert of a stack)
    slice,         ///< `count` entries of `axis` (counted from the end when negative): first, first + stride, …
    unit_rows,     ///< each row is divided by its L2 norm + 1e-7, in f32 (Baichuan M1's head)
    unit_columns,  ///< each column is (Bailing's head)
    reshape,       ///< to `shape`, of as many entries
    add_one,       ///< to every number, in its own dtype (a norm's w, where 1 + w is the weight)
    add_one_bf16,  ///< in f32, and the sum is rounded to bf16 (Muse Spark's norms)
    interleave,    ///< of the first `first` rows, those of `count` (a head's) at a time: row i is followed by row i + count / 2, its partner
    /// Of a stored gate g in f32, with t = `factor` (Muse Spark): β = σ(g / t), and α = √max(σ(−g / t) (1 + β), `floor`).
    gate_beta,
    gate_alpha,
    multiply,  ///< rows of the first axis by `factor` and the factor of their part, each rounded to the tensor's dtype (Falcon H1)
    zeros,     ///< no source at all: zeros of `shape`, for what mlx_lm wants to be there and nothing reads
  };
  Kind kind;
  int axis = 0, first = 0, count = 0, stride = 1;
  mx::Shape shape = {};
  float factor = 1, floor = 0;
  std::vector<std::pair<int, float>> parts = {};  ///< how many rows each has, and their factor; none: `factor` alone
};

/// Tells the forms of a checkpoint apart: in one of them this axis of this tensor has this length.
struct Sign {
  std::string tensor;
  int axis = -1;
  int length = 0;
};

/// One row: the tensors of `target` come from those of `sources`. Both are whole names or paths of linears ("model.layers.0.mlp.switch_mlp.up_proj"),
/// whose tensors (".weight", ".scales", ".bias", …) are meant then. Without sources the row is for zeros. A checkpoint that has a target under its
/// own name needs no row, unless the row's first source is the target itself: such a row changes a tensor that keeps its name.
struct Import {
  std::string target;
  std::vector<std::string> sources;
  std::vector<Change> changes = {};
  std::string unless = {};                   ///< a tensor that, where it is there, says that the target needs no such change
  std::optional<Sign> where = std::nullopt;  ///< the row is for checkpoints of this form alone
  bool apart = false;                        ///< of a stack: outputs have the sources in its place, for mlx_lm's class has no stacks (DBRX)
};

/// Names that begin with `ours` stand in some checkpoints under `theirs` ("language_model.model." under "model.language_model.").
struct Rename {
  std::string ours, theirs;
};

/// Tensors that lquant does not run and that travel byte for byte: towers, projectors. '*' in `pattern` stands for any characters; the first row that
/// fits a name counts. A name that begins with `from` is written beginning with `to`.
struct Kept {
  std::string pattern;
  std::string what;  ///< "the vision tower"
  std::string from = {}, to = {};

  bool fits(const std::string& name) const;
  std::string written(const std::string& name) const;
};

struct Imports {
  std::vector<Import> rows;
  std::vector<Rename> renames;
  std::vector<Kept> kept;
};

/// The paths under which outputs have a stack's matrices one by one (Import::apart); null where this linear is written as it is.
const std::vector<std::string>* paths_apart(const Imports& imports, const std::string& path);

/// The names that a checkpoint's own `name` can stand for: itself, and what the renames make of it.
std::vector<std::string> our_names(const Imports& imports, const std::string& name);

/// Whether a name fits a pattern, in which '*' stands for any characters.
bool fits(const std::string& pattern, const std::string& name);

/// Forgets the rows that are for checkpoints of another form; `shape_of` a tensor's, none when it is not there.
void settle_form(Imports& imports, const std::function<std::optional<mx::Shape>(const std::string&)>& shape_of);

/// One tensor's sources in a checkpoint, and what is done with them.
struct Source {
  std::vector<std::string> names;
  std::vector<Change> changes;
};

/// The sources of `name`, if the checkpoint has it in any form; `has` tells whether it has a tensor. Sources of a row that are there in part are all
/// named, so that the missing one can be told.
std::optional<Source> find_source(const Imports& imports, const std::string& name, const std::function<bool(const std::string&)>& has);

/// The shape that each source must have for the changes to make `shape`, where they tell it: what people see of a wrong file is its own tensor's
/// name.
std::optional<mx::Shape> shape_of_each(const std::vector<Change>& changes, const mx::Shape& shape);

/// The shape that the changes make of the sources' shapes; none when they do not fit.
std::optional<mx::Shape> changed_shape(const std::vector<Change>& changes, std::vector<mx::Shape> shapes);

/// The tensor that the changes make. Lazy.
mx::array changed(const std::vector<Change>& changes, std::vector<mx::array> tensors);

}  // namespace lquant::model
