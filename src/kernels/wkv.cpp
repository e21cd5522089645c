// With W_i the product of w up to token i of a chunk, r̃_i = W_i r_i, ã_i = W_{i−1} a_i, k̃_j = k_j / W_j, b̃_j = b_j / W_j, and S the state in
// front: u_i = S_{i−1} a_i = S ã_i + Σ_{j<i} (v_j k̃_j + u_j b̃_j)·ã_i, y_i = S r̃_i + Σ_{j≤i} (v_j k̃_j + u_j b̃_j)·r̃_i, and the state behind is
// S′ = (S + Σ_j v_j k̃_jᵀ + u_j b̃_jᵀ) W_C.
#include "kernels/wkv.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/chunks.h"

namespace lquant::kernels {
namespace {

constexpr int kChunk = 16;

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(std::string("[kernels] wkv: ") + what);
}

void check(const Wkv& in) {
  require(in.r.ndim() == 4, "r must be [B, T, H, D]");
  for (const auto* x : {&in.r, &in.w, &in.k, &in.v, &in.a, &in.b})
    require(x->shape() == in.r.shape() && x->dtype() == mx::float32, "r, w, k, v, a and b must be f32 of one shape");
  const int batch = in.r.shape(0), tokens = in.r.shape(1), heads = in.r.shape(2), width = in.r.shape(3);
  if (in.segments) {
    require(in.segments->shape() == mx::Shape{batch, tokens}, "segments must be [B, T]");
    require(!in.state, "segments and a state exclude each other");
  }
  if (in.state)
    require(in.state->shape() == mx::Shape{batch, heads, width, width} && in.state->dtype() == mx::float32, "state must be f32 [B, H, D, D]");
}

mx::array turned(const mx::array& x) { return mx::swapaxes(x, -1, -2); }

/// (1 − A)⁻¹ of a strictly lower triangular A [..., C, C], C ≤ 16: Π (1 + A^(2ⁿ)).
mx::array inverse(const mx::array& a) {
  const auto one = mx::eye(a.shape(-1));
  auto power = a, result = mx::add(one, a);
  for (int covered = 2; covered < a.shape(-1); covered *= 2) {
    power = mx::matmul(power, power);
    result = mx::matmul(mx::add(one, power), result);
  }
  return result;
}

}  // namespace

std::pair<mx::array, mx::array> wkv(const Wkv& in) {
  check(in);
  const int batch = in.r.shape(0), tokens = in.r.shape(1), heads = in.r.shape(2), width = in.r.shape(3);
  const int length = std::min(tokens, kChunk), chunks = (tokens + length - 1) / length;
  const auto by_head = [&](const mx::array& x) { return mx::swapaxes(chunked(x, chunks, length), 2, 3); };  // [B, K, H, C, D]
  // What fills up the last chunk must not decay.
  const auto logs = by_head(mx::log(in.w)), sums = mx::cumsum(logs, 3);
  const auto products = mx::exp(sums), inverses = mx::exp(mx::negative(sums)), before = mx::exp(mx::subtract(sums, logs));
  const auto r = mx::multiply(by_head(in.r), products), a = mx::multiply(by_head(in.a), before);
  const auto k = mx::multiply(by_head(in.k), inverses), b = mx::multiply(by_head(in.b), inverses), v = by_head(in.v);

  const auto mask = chunk_masks(in.segments, chunks, length);
  const auto drop = [](const mx::array& x) { return mx::squeeze(x, 3); };  // heads are one axis here
  const auto within = in.segments ? drop(mask.within) : mask.within;
  const auto strictly = mx::logical_and(within, mx::tri(length, length, -1, mx::bool_));
  const auto none = mx::array(0.0f);
  const auto masked = [&](const mx::array& x, const mx::array& where) { return mx::where(where, x, none); };
  const auto solved = inverse(masked(mx::matmul(a, turned(b)), strictly));
  const auto of_values = mx::matmul(masked(mx::matmul(a, turned(k)), strictly), v);
  const auto read_k = masked(mx::matmul(r, turned(k)), within), read_b = masked(mx::matmul(r, turned(b)), within);
  auto read_state = r, state_to_u = a, give_k = k, give_b = b;
  auto stop = products.shape();
  auto start = mx::Shape(stop.size(), 0);
  start[3] = length - 1;
  const auto whole = mx::slice(products, start, stop);  // [B, K, H, 1, D]
  if (in.segments) {
    const auto by_token = [&](const mx::array& x) { return mx::expand_dims(drop(x), -1); };
    read_state = mx::multiply(r, by_token(*mask.carried));
    state_to_u = mx::multiply(a, by_token(*mask.carried));
    give_k = mx::multiply(k, by_token(*mask.gives));
    give_b = mx::multiply(b, by_token(*mask.gives));
  }

  auto state = in.state.value_or(mx::zeros({batch, heads, width, width}));
  std::vector<mx::array> all;
  for (int c = 0; c < chunks; ++c) {
    const auto at = [&](const mx::array& x) { return chunk_at(x, c); };
    const auto u = mx::matmul(at(solved), mx::add(mx::matmul(at(state_to_u), turned(state)), at(of_values)));
    all.push_back(mx::add(mx::add(mx::matmul(at(read_state), turned(state)), mx::matmul(at(read_k), at(v))), mx::matmul(at(read_b), u)));
    const auto given = mx::add(mx::matmul(turned(at(v)), at(give_k)), mx::matmul(turned(u), at(give_b)));
    if (in.segments) state = mx::multiply(state, at(drop(*mask.lives)));
    state = mx::multiply(mx::add(state, given), at(whole));
  }
  const auto y = mx::reshape(mx::swapaxes(mx::stack(all, 1), 2, 3), {batch, chunks * length, heads, width});
  return {mx::slice(y, {0, 0, 0, 0}, in.r.shape()), state};
}

}  // namespace lquant::kernels
