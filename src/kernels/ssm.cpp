// Mamba-2 in chunks: within a chunk y = (C Bᵀ ⊙ L)(Δ x), with L_ij = exp(Σ a Δ over j < k ≤ i), and between chunks the state. The exponents are
// differences of a running sum inside one chunk, never above 0 where they count, so nothing overflows; what does not count is cut out before the
// exponential and behind it, for gradients' sake.
#include "kernels/ssm.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/chunks.h"
#include "kernels/ssm_cpu.h"

namespace lquant::kernels {
namespace {

/// Products within a chunk grow with its length, the work on states shrinks with it: they meet near the width of heads and states (64 to 128).
constexpr int kChunk = 64;

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(std::string("[kernels] ") + what);
}

void check(const StateSpace& in) {
  const auto& x = in.x;
  require(x.ndim() == 4 && in.b.ndim() == 4 && in.dt.ndim() == 3 && in.a.ndim() == 1, "state_space: x, b, c have 4 axes, dt 3, a 1");
  require(in.b.shape() == in.c.shape() && in.b.shape(0) == x.shape(0) && in.b.shape(1) == x.shape(1), "state_space: b and c must fit x");
  require(in.dt.shape() == mx::Shape(x.shape().begin(), x.shape().begin() + 3) && in.a.shape(0) == x.shape(2), "state_space: dt and a must fit x");
  require(x.shape(2) % in.b.shape(2) == 0, "state_space: heads must be a multiple of groups");
  require(mx::issubdtype(x.dtype(), mx::floating) && in.b.dtype() == x.dtype() && in.c.dtype() == x.dtype(), "state_space: x, b, c are of one dtype");
  require(in.dt.dtype() == mx::float32 && in.a.dtype() == mx::float32, "state_space: dt and a must be f32");
  if (in.segments) {
    require(in.segments->shape() == mx::Shape{x.shape(0), x.shape(1)}, "state_space: segments must be [B, T]");
    require(!in.state, "state_space: segments and a state exclude each other");
  }
  if (in.state)
    require(in.state->shape() == mx::Shape{x.shape(0), x.shape(2), x.shape(3), in.b.shape(3)} && in.state->dtype() == mx::float32,
            "state_space: state must be f32 [B, H, P, N]");
}

mx::array f32(const mx::array& x) { return mx::astype(x, mx::float32); }

}  // namespace

std::pair<mx::array, mx::array> state_space(const StateSpace& in) {
  check(in);
  const int batch = in.x.shape(0), tokens = in.x.shape(1), heads = in.x.shape(2), width = in.x.shape(3), groups = in.b.shape(2), size = in.b.shape(3);
  const int repeats = heads / groups, length = std::min(tokens, kChunk), chunks = (tokens + length - 1) / length;
  // [B, K, G, R, C, …] for heads, [B, K, G, 1, C, …] for groups.
  const auto by_head = [&](const mx::array& x) { return mx::unflatten(chunked(f32(x), chunks, length), 3, {groups, repeats}); };
  const auto by_group = [&](const mx::array& x) { return mx::expand_dims(mx::swapaxes(chunked(f32(x), chunks, length), 2, 3), 3); };
  const auto x = mx::transpose(by_head(in.x), {0, 1, 3, 4, 2, 5});
  const auto dt = mx::transpose(by_head(in.dt), {0, 1, 3, 4, 2});
  const auto b = by_group(in.b), c = by_group(in.c);
  const auto mask = chunk_masks(in.segments, chunks, length);

  const auto sums = mx::cumsum(mx::multiply(dt, mx::reshape(in.a, {groups, repeats, 1})), -1);  // ≤ 0, falling
  const auto none = mx::array(0.0f);
  const auto differences = mx::where(mask.within, mx::subtract(mx::expand_dims(sums, -1), mx::expand_dims(sums, -2)), none);
  const auto decays = mx::where(mask.within, mx::exp(differences), none);
  const auto inputs = mx::multiply(x, mx::expand_dims(dt, -1));
  auto y = mx::matmul(mx::multiply(mx::matmul(c, mx::swapaxes(b, -1, -2)), decays), inputs);

  auto all = sums.shape();
  auto start = mx::Shape(all.size(), 0);
  start.back() = length - 1;
  const auto last = mx::slice(sums, start, all);
  auto to_end = mx::exp(mx::subtract(last, sums)), kept = mx::expand_dims(mx::exp(last), -1), read = mx::exp(sums);
  if (mask.carried) {
    to_end = mx::multiply(to_end, *mask.gives);
    kept = mx::multiply(kept, *mask.lives);
    read = mx::multiply(read, *mask.carried);
  }
  const auto own = mx::matmul(mx::swapaxes(mx::multiply(inputs, mx::expand_dims(to_end, -1)), -1, -2), b);  // [B, K, G, R, P, N]
  std::optional<mx::array> state;
  if (in.state) state = mx::unflatten(*in.state, 1, {groups, repeats});
  std::vector<mx::array> before;
  for (int k = 0; k < chunks; ++k) {
    before.push_back(state ? *state : mx::zeros({batch, groups, repeats, width, size}));
    const auto given = chunk_at(own, k);
    state = state ? mx::add(mx::multiply(*state, chunk_at(kept, k)), given) : given;
  }
  if (chunks > 1 || in.state) {
    const auto states = mx::stack(before, 1);
    y = mx::add(y, mx::multiply(mx::expand_dims(read, -1), mx::matmul(c, mx::swapaxes(states, -1, -2))));
  }
  const auto in_order = mx::reshape(mx::transpose(y, {0, 1, 4, 2, 3, 5}), {batch, chunks * length, heads, width});
  return {mx::slice(in_order, {0, 0, 0, 0}, {batch, tokens, heads, width}), mx::flatten(*state, 1, 2)};
}

namespace {

void check(const SelectiveScan& in) {
  const auto &x = in.x, &b = in.b;
  require(x.ndim() == 3 && b.ndim() == 3 && in.a.ndim() == 2, "selective_scan: x, dt, b, c have 3 axes, a 2");
  require(in.dt.shape() == x.shape() && in.c.shape() == b.shape(), "selective_scan: dt must be as x, c as b");
  require(b.shape(0) == x.shape(0) && b.shape(1) == x.shape(1) && in.a.shape() == mx::Shape{x.shape(2), b.shape(2)},
          "selective_scan: b and a must fit x");
  for (const auto* one : {&x, &in.dt, &in.a, &b, &in.c}) require(one->dtype() == mx::float32, "selective_scan: x, dt, a, b and c must be f32");
  if (in.segments) {
    require(in.segments->shape() == mx::Shape{x.shape(0), x.shape(1)}, "selective_scan: segments must be [B, T]");
    require(!in.state, "selective_scan: segments and a state exclude each other");
  }
  if (in.state)
    require(in.state->shape() == mx::Shape{x.shape(0), x.shape(2), b.shape(2)} && in.state->dtype() == mx::float32,
            "selective_scan: state must be f32 [B, C, N]");
}

/// f32 [B, T]: 0 where a text begins, else 1.
mx::array goes_on(const mx::array& segments) {
  const int batch = segments.shape(0), tokens = segments.shape(1);
  const auto before = mx::slice(segments, {0, 0}, {batch, tokens - 1}), after = mx::slice(segments, {0, 1}, segments.shape());
  return mx::concatenate({mx::ones({batch, 1}), f32(mx::equal(before, after))}, 1);
}

}  // namespace

std::pair<mx::array, mx::array> selective_scan(const SelectiveScan& in) {
  check(in);
  if constexpr (cpu::built) {
    if (cpu::serves(mx::float32)) {
      const int batch = in.x.shape(0), tokens = in.x.shape(1), channels = in.x.shape(2), size = in.b.shape(2);
      const auto keeps = in.segments ? goes_on(*in.segments) : mx::ones({batch, tokens});
      const auto first = in.state ? mx::swapaxes(*in.state, 1, 2) : mx::zeros({batch, size, channels});
      const auto [y, last] = cpu::selective_scan(in.x, in.dt, mx::transpose(in.a), in.b, in.c, keeps, first);
      return {y, mx::swapaxes(last, 1, 2)};
    }
  }
  auto decays = mx::exp(mx::multiply(mx::expand_dims(in.dt, -1), in.a));
  if (in.segments) decays = mx::multiply(decays, mx::expand_dims(goes_on(*in.segments), {-2, -1}));
  const auto terms = mx::multiply(mx::expand_dims(mx::multiply(in.dt, in.x), -1), mx::expand_dims(in.b, -2));
  const auto h = linear_scan(decays, terms, in.state);
  const int tokens = h.shape(1);
  const auto last = mx::squeeze(mx::slice(h, {0, tokens - 1, 0, 0}, h.shape()), 1);
  return {mx::squeeze(mx::matmul(h, mx::expand_dims(in.c, -1)), -1), last};
}

mx::array linear_scan(const mx::array& a, const mx::array& u, const std::optional<mx::array>& first) {
  require(a.shape() == u.shape() && u.ndim() >= 2, "linear_scan: a and u must be of one shape [B, T, …]");
  require(a.dtype() == mx::float32 && u.dtype() == mx::float32, "linear_scan: a and u must be f32");
  if (first) {
    auto shape = u.shape();
    shape.erase(shape.begin() + 1);
    require(first->shape() == shape && first->dtype() == mx::float32, "linear_scan: first must be f32 [B, …]");
  }
  // All chunks side by side, then their ends one after the other: 2 √T operations in a row instead of T.
  const int tokens = u.shape(1), length = static_cast<int>(std::ceil(std::sqrt(static_cast<double>(tokens)))),
            chunks = (tokens + length - 1) / length;
  const auto factors = chunked(a, chunks, length), terms = chunked(u, chunks, length);
  const auto token = [](const mx::array& x, int t) {
    auto start = mx::Shape(x.ndim(), 0), stop = x.shape();
    start[2] = t;
    stop[2] = t + 1;
    return mx::squeeze(mx::slice(x, start, stop), 2);
  };
  std::vector<mx::array> sums{token(terms, 0)}, products{token(factors, 0)};
  for (int t = 1; t < length; ++t) {
    const auto factor = token(factors, t);
    sums.push_back(mx::add(mx::multiply(factor, sums.back()), token(terms, t)));
    products.push_back(mx::multiply(factor, products.back()));
  }
  auto state = first;
  std::vector<mx::array> before;
  for (int k = 0; k < chunks; ++k) {
    const auto end = chunk_at(sums.back(), k);
    before.push_back(state ? *state : mx::zeros(end.shape()));
    state = state ? mx::add(mx::multiply(chunk_at(products.back(), k), *state), end) : end;
  }
  const auto states = mx::expand_dims(mx::stack(before, 1), 2);
  const auto h = mx::flatten(mx::add(mx::stack(sums, 2), mx::multiply(mx::stack(products, 2), states)), 1, 2);
  auto stop = h.shape();
  stop[1] = tokens;
  return mx::slice(h, mx::Shape(h.ndim(), 0), stop);
}

}  // namespace lquant::kernels
