#pragma once

#include <mlx/array.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/figures.h"
#include "calibration/batches.h"
#include "calibration/examples.h"
#include "model/model.h"
#include "run/context.h"
#include "run/run_folder.h"

namespace lquant::pipeline {

namespace mx = mlx::core;

/// What the methods that walk block by block calibrate on.
struct RowOptions {
  std::vector<std::string> data = {"self"};  ///< files and folders, or "self": sampled from the model
  int num_samples = -1;                      ///< rows; −1: all of the data (128 of "self")
  int sequence_length = 512;
  std::uint64_t seed = 123;
  /// Of mixtures: rows are exchanged for further ones of the data so that as many experts as possible see so many tokens; 0: none are. Default:
  /// reach_experts' own.
  std::optional<int> expert_tokens = std::nullopt;
  /// What RowSource::choose gave an earlier step whose other options are the same: experts' tokens are not counted again.
  std::optional<nlohmann::json> chosen = std::nullopt;
};

/// So many times the rows are looked at for experts that see too few tokens: each time costs a forward pass.
inline constexpr int kExpertPool = 4;

/// Throws Error, naming the flag, when rows of so many tokens are longer than the positions that the model knows.
void check_positions(const model::ModelSpec& spec, int tokens, const char* flag = "--sequence-length");

/// Batches of eight packed rows.
struct Rows {
  std::vector<calibration::Batch> batches;
  std::vector<mx::array> ids, segments;           ///< int32 [R, L]
  std::vector<std::optional<mx::array>> counted;  ///< of each batch the tokens that are no padding, int32; nullopt: all of them
  double tokens = 0;                              ///< that count
  nlohmann::json manifest;
  int passes = 1;  ///< how often each batch is there (in_passes)

  /// One batch in so many judges and is not fitted to: the last of each eight, of fewer the last of all.
  std::size_t held_every() const;
  /// Those that judge, and the others. A single batch is both.
  std::pair<Rows, Rows> hold_out() const;
  /// The first batches that together have at least so many tokens, or all.
  Rows first(double least) const;
  /// The batches as often as a model's blocks run (ModelSpec::passes), pass after pass; tokens count once.
  Rows in_passes(int passes) const;
};

/// The tokens of a batch that are no padding, int32; nullopt: all of them.
std::optional<mx::array> counted_tokens(const calibration::Batch& batch);

/// Rows are drawn from files before a run folder is opened, for their hashes are part of its identity; they are sampled from the
/// model itself after, for samples are kept in it.
class RowSource {
 public:
  /// Reads the files, for a model that knows so many tokens and positions. Throws Error naming the file, and the row where there is one, when it
  /// cannot be read, holds no text or has a token outside the table; and as check_positions does.
  RowSource(const RowOptions& options, const text::Tokenizer& tokenizer, const model::ModelSpec& spec);
  /// Adds what the rows depend on.
  void identify(nlohmann::json& identity) const;
  /// Whether rows may be exchanged for further ones: of mixtures, where the data has more than are taken.
  bool exchanges() const { return drawn_ && !drawn_->further.empty(); }
  /// The texts themselves, exchanged where that helps, and their manifest.
  const calibration::Drawn& draw(const model::Model& model, run::RunFolder& run, const run::Context& context);
  /// What draw() exchanges, for RowOptions::chosen of the steps of a run; nullopt where nothing can be exchanged. The run keeps it.
  std::optional<nlohmann::json> choose(const model::Model& model, run::RunFolder& run, const run::Context& context);
  /// draw() in batches.
  Rows read(const model::Model& model, run::RunFolder& run, const run::Context& context);

 private:
  RowOptions options_;
  const text::Tokenizer& tokenizer_;
  std::optional<calibration::Drawn> drawn_;
};

}  // namespace lquant::pipeline
