#include <memory>

#include "kernels/attention_blocks.h"

namespace lquant::kernels::blockwise {

Shape shape_of(const mx::array& q, const mx::array& k, const mx::array& v) {
  return {q.shape(0), q.shape(1), k.shape(1), q.shape(2), k.shape(2), q.shape(3), v.shape(3)};
}

// MLX aligns to 16 bytes; a cache line has 64.
Scratch::Scratch(std::int64_t floats) : memory_(mx::allocator::malloc(floats * sizeof(float) + 64)) {
  void* begin = memory_.buffer().raw_ptr();
  std::size_t room = floats * sizeof(float) + 64;
  data_ = static_cast<float*>(std::align(64, floats * sizeof(float), begin, room));
}

Visibility::Visibility(const Shape& shape, const AttentionArgs& args, const std::int32_t* segments)
    : args_(args), queries_(shape.queries), keys_(shape.keys) {
  if (!segments) return;
  segments_.resize(shape.batch * (keys_ + kLanes));
  for (std::int64_t b = 0; b < shape.batch; ++b) std::copy_n(segments + b * keys_, keys_, segments_.begin() + b * (keys_ + kLanes));
  if (args_.chunk > 0) number_chunks();
  const std::int64_t count = (keys_ + kUnit - 1) / kUnit;
  units_.reserve(shape.batch * count);
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t i = 0; i < count; ++i) units_.push_back(segment_range(b, {i * kUnit, std::min(keys_, (i + 1) * kUnit)}));
  }
}

/// A chunk of a segment is a segment: the same loops serve.
void Visibility::number_chunks() {
  for (std::int64_t b = 0; b < std::ssize(segments_) / (keys_ + kLanes); ++b) {
    std::int32_t* row = segments_.data() + b * (keys_ + kLanes);
    std::int32_t own = 0, number = -1;
    std::int64_t first = 0;
    for (std::int64_t s = 0; s < keys_; ++s) {
      const bool begins = s == 0 || row[s] != own;
      if (begins) first = s;
      if (begins || (s - first) % args_.chunk == 0) ++number;
      own = row[s];
      row[s] = number;
    }
  }
  args_.chunk = 0;
}

Range Visibility::segment_range(std::int64_t b, Range positions) const {
  const std::int32_t* row = segments(b);
  const auto [least, most] = std::minmax_element(row + positions.begin, row + positions.end);
  return {*least, std::int64_t{*most} + 1};
}

std::vector<Range> Visibility::blocks(std::int64_t b, Range t, std::int64_t most) const {
  const std::int64_t first = keys_of(t.begin).begin / kUnit, last = round_up(keys_of(t.end - 1).end, kUnit) / kUnit;
  const std::int64_t text = b * ((keys_ + kUnit - 1) / kUnit);
  Range own = !segments_.empty() ? segment_range(b, t) : Range{0, 1};
  own.begin = trunk(static_cast<std::int32_t>(own.begin));
  const auto needed = [&](std::int64_t unit) {
    if (segments_.empty()) return true;
    const Range& its = units_[text + unit];
    return its.begin < own.end && own.begin < its.end;
  };
  std::vector<Range> result;
  for (std::int64_t unit = first; unit < last; ++unit) {
    if (!needed(unit)) continue;
    const Range keys{unit * kUnit, std::min(keys_, (unit + 1) * kUnit)};
    if (!result.empty() && result.back().end == keys.begin && keys.end - result.back().begin <= most) {
      result.back().end = keys.end;
    } else {
      result.push_back(keys);
    }
  }
  return result;
}

}  // namespace lquant::kernels::blockwise
