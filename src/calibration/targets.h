#pragma once

#include <mlx/array.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "calibration/batches.h"
#include "model/model.h"

namespace lquant::calibration {

/// The teacher's word on some rows of a batch: its hidden states, from which its logits follow exactly, or its largest logits. Those of padding have
/// no meaning.
struct Target {
  std::optional<mx::array> hidden;  ///< [R·L, H], normed
  std::optional<mx::array> logits;  ///< [R·L, k]
  std::optional<mx::array> ids;     ///< int32 [R·L, k]
};

/// Where targets come from: the teacher at work, or a folder of cached ones.
class Targets {
 public:
  virtual ~Targets() = default;
  /// Rows begin … end of batch `index` of `split` ("train" or "valid").
  virtual Target rows(const std::string& split, std::size_t index, const Batch& batch, int begin, int end) = 0;
  /// The teacher's head; used with hidden targets.
  virtual const model::Head& head() const = 0;
};

/// Runs the teacher, all of it in memory, for every request.
std::unique_ptr<Targets> live_targets(const model::Model& teacher);

enum class TargetKind { hidden, topk };

/// What a cache was made of; it is refused when any of it differs. `key` names model, data and options.
struct TargetCache {
  std::filesystem::path folder;
  nlohmann::json key;
  TargetKind kind = TargetKind::hidden;
  int top_k = 1024;  ///< as mlx_lm keeps
};

/// True when the folder holds a complete cache with this key. Throws Error when it holds another one's.
bool has_targets(const TargetCache& cache);

/// Computes the targets of all batches and stores them, one sealed file (checkpoint/sealed.h) a batch, block by block with one block of the
/// teacher in memory. Unfinished folders are continued. `progress(done, total)` counts batches.
void compute_targets(const TargetCache& cache, const model::Model& teacher, const std::vector<Batch>& train, const std::vector<Batch>& valid,
                     const std::function<void(std::int64_t, std::int64_t)>& progress);

/// Reads the cache; of the teacher only the head is loaded (and for topk nothing). A file that is not as it was written is computed again by the
/// teacher, which outlives the result, and `tell` hears of it; without a teacher it is an Error that names the file.
std::unique_ptr<Targets> cached_targets(const TargetCache& cache, const model::Model* teacher, std::function<void(const std::string&)> tell);

}  // namespace lquant::calibration
