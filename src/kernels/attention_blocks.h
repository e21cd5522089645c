#pragma once

#include <mlx/allocator.h>
#include <mlx/array.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <vector>

#include "kernels/attention.h"

// What the forward and the backward pass of the CPU's attention share: sizes, scratch memory, which keys a block of queries
// needs, and how tasks run on threads. Internal to this folder; built on x86-64 Linux only.
namespace lquant::kernels::blockwise {

/// Lengths of scratch rows and of padded query blocks are multiples of this: floats in the widest vector.
inline constexpr std::int64_t kLanes = 16;
/// Keys are skipped or taken in units of this many: fine enough for packed texts, coarse enough for few distinct product shapes.
inline constexpr std::int64_t kUnit = 64;

constexpr std::int64_t round_up(std::int64_t n, std::int64_t unit) { return (n + unit - 1) / unit * unit; }

struct Shape {
  std::int64_t batch, queries, keys, heads, kv_heads, dim, value_dim;
  std::int64_t group() const { return heads / kv_heads; }
};
Shape shape_of(const mx::array& q, const mx::array& k, const mx::array& v);

/// f32 scratch, taken from MLX's allocator so that MLX's memory counters see it.
class Scratch {
 public:
  explicit Scratch(std::int64_t floats);
  float* data() { return data_; }

 private:
  mx::allocator::Data memory_;
  float* data_;
};

/// A range of positions.
struct Range {
  std::int64_t begin, end;
  std::int64_t size() const { return std::max<std::int64_t>(0, end - begin); }
};

/// Which keys a query sees.
class Visibility {
 public:
  /// `segments` is [batch, keys] or nullptr.
  Visibility(const Shape& shape, const AttentionArgs& args, const std::int32_t* segments);

  /// Keys that query t may see by position; segments may hide some of them.
  Range keys_of(std::int64_t t) const {
    const std::int64_t position = args_.offset + t, end = args_.causal ? position + 1 : keys_;
    const Range seen{args_.window > 0 ? std::max<std::int64_t>(0, position - args_.window + 1) : 0, end};
    return args_.chunk > 0 ? common(seen, chunk_of(position)) : seen;
  }
  /// Queries that may see key s, by position.
  Range queries_of(std::int64_t s) const {
    const Range seeing{args_.causal ? std::max<std::int64_t>(0, s - args_.offset) : 0,
                       args_.window > 0 ? std::clamp<std::int64_t>(s - args_.offset + args_.window, 0, queries_) : queries_};
    if (args_.chunk == 0) return seeing;
    const Range chunk = chunk_of(s);
    return common(seeing, {chunk.begin - args_.offset, chunk.end - args_.offset});
  }
  /// The number of the segment that queries of segment `own` see besides their own: their trunk's, or `own` again.
  std::int32_t trunk(std::int32_t own) const { return own >> args_.branch_bits << args_.branch_bits; }
  /// Segment numbers of one text (with chunks: numbers of the chunks of its segments), readable for kLanes beyond its end, or nullptr when
  /// there are no segments.
  const std::int32_t* segments(std::int64_t b) const { return segments_.empty() ? nullptr : segments_.data() + b * (keys_ + kLanes); }
  /// Blocks of at most `most` keys (a multiple of kUnit) that together hold all that the queries [t.begin, t.end) of text b see;
  /// units of keys that none of them sees are left out.
  std::vector<Range> blocks(std::int64_t b, Range t, std::int64_t most) const;

 private:
  static Range common(Range a, Range b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }
  Range chunk_of(std::int64_t position) const {
    const std::int64_t begin = position / args_.chunk * args_.chunk;
    return {begin, begin + args_.chunk};
  }
  void number_chunks();
  Range segment_range(std::int64_t b, Range positions) const;

  AttentionArgs args_;
  std::int64_t queries_, keys_;
  std::vector<std::int32_t> segments_;  ///< [batch, keys + kLanes]
  std::vector<Range> units_;            ///< of each text and unit: the smallest segment number and the largest, plus one
};

/// Calls body(task, scratch) for every task in [0, count), in ascending order of start, with `scratch_floats` of scratch for each
/// thread, on the calling thread alone unless `shared`. The first exception of a task is thrown again once all threads have stopped.
template <class Body>
void run_tasks(std::int64_t count, std::int64_t scratch_floats, const Body& body, bool shared = true) {
  std::exception_ptr error;
  std::mutex guard;
  std::atomic<bool> failed{false};
  // Every thread takes part even when tasks are few: a team of one would let the products inside use threads of their own.
#pragma omp parallel if (shared)
  {
    try {
      Scratch scratch(scratch_floats);
#pragma omp for schedule(dynamic, 1)
      for (std::int64_t task = 0; task < count; ++task) {
        if (failed) continue;
        try {
          body(task, scratch.data());
        } catch (...) {
          const std::lock_guard lock(guard);
          if (!failed.exchange(true)) error = std::current_exception();
        }
      }
    } catch (...) {
      const std::lock_guard lock(guard);
      if (!failed.exchange(true)) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace lquant::kernels::blockwise
