// Padding is wasted work and truncation is wasted data; packing avoids both. Segments keep attention inside an example, so a
// packed row gives each example the very numbers that it would have alone.
#include "calibration/batches.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "kernels/primitive.h"

namespace lquant::calibration {
namespace {

/// Best fit decreasing: each example goes to the fullest row that still takes it.
std::vector<std::vector<const Example*>> fill_rows(const std::vector<Example>& examples, int max_tokens) {
  std::vector<const Example*> longest_first;
  for (const auto& example : examples) longest_first.push_back(&example);
  std::stable_sort(longest_first.begin(), longest_first.end(), [](auto* a, auto* b) { return a->tokens.size() > b->tokens.size(); });
  std::vector<std::vector<const Example*>> rows;
  std::vector<int> used;
  for (const auto* example : longest_first) {
    const int size = std::min<int>(max_tokens, static_cast<int>(example->tokens.size()));
    int best = -1;
    for (int r = 0; r < static_cast<int>(rows.size()); ++r)
      if (used[r] + size <= max_tokens && (best < 0 || used[r] > used[best])) best = r;
    if (best < 0) {
      best = static_cast<int>(rows.size());
      rows.emplace_back();
      used.push_back(0);
    }
    rows[best].push_back(example);
    used[best] += size;
  }
  return rows;
}

}  // namespace

Batch pack(const std::vector<Example>& examples, int max_tokens, bool mask_prompt) {
  const auto rows = fill_rows(examples, max_tokens);
  int length = 1;
  for (const auto& row : rows) {
    int used = 0;
    for (const auto* e : row) used += std::min<int>(max_tokens, static_cast<int>(e->tokens.size()));
    length = std::max(length, used);
  }
  const int count = static_cast<int>(rows.size());
  const std::size_t cells = static_cast<std::size_t>(count) * length;
  std::vector<std::int32_t> ids(cells, 0), segments(cells, -1), targets(cells, 0);
  std::vector<float> mask(cells, 0), next_mask(cells, 0);
  double tokens = 0;
  for (int r = 0; r < count; ++r) {
    std::size_t at = static_cast<std::size_t>(r) * length;
    for (std::size_t s = 0; s < rows[r].size(); ++s) {
      const auto& example = *rows[r][s];
      const int size = std::min<int>(max_tokens, static_cast<int>(example.tokens.size()));
      for (int t = 0; t < size; ++t, ++at) {
        ids[at] = example.tokens[t];
        segments[at] = static_cast<std::int32_t>(s);
        // Position t predicts token t + 1; it counts when that token belongs to the answer.
        const bool counts = !mask_prompt || t + 1 >= example.prompt;
        mask[at] = counts ? 1.0f : 0.0f;
        tokens += counts;
        if (t + 1 < size) {
          targets[at] = example.tokens[t + 1];
          next_mask[at] = mask[at];
        }
      }
    }
  }
  const mx::Shape shape{count, length};
  return {mx::array(ids.begin(), shape, mx::int32),
          mx::array(segments.begin(), shape, mx::int32),
          mx::array(mask.begin(), shape, mx::float32),
          mx::array(targets.begin(), shape, mx::int32),
          mx::array(next_mask.begin(), shape, mx::float32),
          tokens,
          std::any_of(rows.begin(), rows.end(), [](const auto& row) { return row.size() > 1; })};
}

std::optional<mx::array> Batch::borders() const {
  if (several || kernels::cpu_kernels()) return segments;
  return std::nullopt;
}

std::vector<Batch> make_batches(const std::vector<Example>& examples, int batch_size, int max_tokens, bool mask_prompt) {
  std::vector<Batch> batches;
  for (std::size_t begin = 0; begin < examples.size(); begin += batch_size) {
    const auto end = std::min(examples.size(), begin + batch_size);
    batches.push_back(
        pack({examples.begin() + static_cast<std::ptrdiff_t>(begin), examples.begin() + static_cast<std::ptrdiff_t>(end)}, max_tokens, mask_prompt));
  }
  return batches;
}

Batch slice_rows(const Batch& batch, int begin, int end) {
  if (begin == 0 && end == batch.rows()) return batch;
  const auto part = [&](const mx::array& a) { return mx::contiguous(mx::slice(a, {begin, 0}, {end, a.shape(1)})); };
  Batch out{part(batch.ids), part(batch.segments), part(batch.mask), part(batch.targets), part(batch.next_mask), 0, batch.several};
  // The mask as pack() made it, on the host: a sum on a device would wait for all that the device has to do.
  mx::array mask = batch.mask;
  mask.eval();
  if (!mask.flags().row_contiguous) mask = mx::contiguous(mask);
  mask.eval();
  const auto* counts = mask.data<float>();
  const std::ptrdiff_t length = batch.length();
  out.tokens = std::accumulate(counts + begin * length, counts + end * length, 0.0);
  return out;
}

std::vector<Batch> text_rows(const std::vector<std::int32_t>& ids, int length, int batch_size, std::int64_t max_tokens) {
  const std::int64_t rows = std::min<std::int64_t>(max_tokens, static_cast<std::int64_t>(ids.size()) - 1) / length;
  if (rows < 1)
    fail("calibration", "the text has {} tokens, fewer than one row of {} and the token after it; give more text or a smaller --sequence-length",
         ids.size(), length);
  std::vector<Batch> batches;
  for (std::int64_t begin = 0; begin < rows; begin += batch_size) {
    const int count = static_cast<int>(std::min<std::int64_t>(batch_size, rows - begin));
    const mx::Shape shape{count, length};
    const auto at = ids.begin() + static_cast<std::ptrdiff_t>(begin * length);
    const auto ones = mx::ones(shape, mx::float32);
    batches.push_back({mx::array(at, shape, mx::int32), mx::zeros(shape, mx::int32), ones, mx::array(at + 1, shape, mx::int32), ones,
                       static_cast<double>(count) * length, false});
  }
  return batches;
}

}  // namespace lquant::calibration
