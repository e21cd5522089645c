// The gradient has the same form as what it is the gradient of, from the last chunk to the first: with D_n for that of S_n and E_n for what other
// uses of S_n give it,
//   dwritten_n = dcorrected_n + told_n · D_{n+1},   D_n = E_n + kept_n ⊙ D_{n+1} − read_nᵀ · dwritten_n,
// and what is left are products of all chunks at once. So one function makes both, as a kernel on CUDA, where it is one launch instead of some ten a
// chunk.
#include "kernels/chunk_carry.h"

#include <mlx/mlx.h>

#include <optional>
#include <string>
#include <vector>

#include "kernels/cuda_module.h"
#include "kernels/cuda_text.h"
#include "kernels/primitive.h"

namespace lquant::kernels {
namespace {

using Arrays = std::vector<mx::array>;

// As in chunk_carry.cu.
constexpr int kColumns = 16;
constexpr int kThreads = 256;
constexpr int kPadding = 4;
// What a block may have: devices of compute capability 8.0 and up have at least 99 KB.
constexpr int kSharedBytes = 96 * 1024;
constexpr int kCapability = 80;

/// Both directions. Forward: c = first − x · S, then S ← kept ⊙ S + yᵀ · c. Backward (`added` is given): c = first + x · S, then
/// S ← added + kept ⊙ S − yᵀ · c, from the last chunk to the first. Gives c, S in front of each step, and the last S.
struct Steps {
  mx::array x, y;  // [G, N, C, K]
  mx::array kept, first;
  std::optional<mx::array> added;
  mx::array start;
};

Arrays on_mlx(const Steps& s) {
  const int chunks = s.first.shape(1);
  // As parts of one split: a slice for each would have gradients of the size of the whole.
  const auto parts = [&](const mx::array& all) {
    auto one = mx::split(all, chunks, 1);
    for (auto& x : one) x = mx::squeeze(x, 1);
    return one;
  };
  const auto x = parts(s.x), y = parts(s.y), kept = parts(s.kept), first = parts(s.first), added = s.added ? parts(*s.added) : Arrays{};
  Arrays corrected(chunks, s.start), states(chunks, s.start);
  auto state = s.start;
  for (int i = 0; i < chunks; ++i) {
    const int n = s.added ? chunks - 1 - i : i;
    states[n] = state;
    const auto read = mx::matmul(x[n], state);
    corrected[n] = s.added ? mx::add(first[n], read) : mx::subtract(first[n], read);
    const auto given = mx::matmul(mx::swapaxes(y[n], -1, -2), corrected[n]), stays = mx::multiply(kept[n], state);
    state = s.added ? mx::subtract(mx::add(added[n], stays), given) : mx::add(stays, given);
  }
  return {mx::stack(corrected, 1), mx::stack(states, 1), state};
}

int shared_bytes(int length, int keys) { return 4 * (2 * length * (keys + kPadding) + (keys + length) * kColumns); }

bool serves(const Steps& s) {
  const int length = s.x.shape(2), keys = s.x.shape(3), values = s.first.shape(3);
  return cuda_kernels() && s.first.size() > 0 && keys % 4 == 0 && values % 4 == 0 && shared_bytes(length, keys) <= kSharedBytes &&
         compute_capability() >= kCapability;
}

Arrays on_cuda(const Steps& s) {
  const int groups = s.x.shape(0), chunks = s.x.shape(1), length = s.x.shape(2), keys = s.x.shape(3), values = s.first.shape(3);
  std::vector<CudaInput> inputs{{"x", s.x}, {"y", s.y}, {"kept", s.kept}, {"first", s.first}, {"start", s.start}};
  if (s.added) inputs.push_back({"added", *s.added});
  const std::string body = std::string("extern __shared__ float4 shared[];\nlquant::carry<") + (s.added ? "true" : "false") +
                           ">(reinterpret_cast<float*>(shared), x, y, kept, first, " + (s.added ? "added" : "nullptr") +
                           ", start, chunks, length, keys, values, each_key, corrected, states, last);";
  return call({s.added ? "lquant_carry_back" : "lquant_carry",
               chunk_carry_cu(),
               body,
               inputs,
               {{"corrected", {groups, chunks, length, values}, mx::float32},
                {"states", {groups, chunks, keys, values}, mx::float32},
                {"last", {groups, keys, values}, mx::float32}},
               {{"chunks", chunks}, {"length", length}, {"keys", keys}, {"values", values}, {"each_key", s.kept.shape(2) > 1}},
               groups * ((values + kColumns - 1) / kColumns),
               kThreads,
               shared_bytes(length, keys)});
}

Arrays run(const Steps& s) { return serves(s) ? on_cuda(s) : on_mlx(s); }

}  // namespace

Carried carry_chunks(const mx::array& written, const mx::array& read, const mx::array& told, const mx::array& kept, const mx::array& memory) {
  const auto forward = [](const Arrays& in) { return run({in[1], in[2], in[3], in[0], std::nullopt, in[4]}); };
  const auto backward = [](const Arrays& in, const Arrays& cotangents, const Arrays& out) {
    const auto &read = in[1], &told = in[2], &kept = in[3], &corrected = out[0], &states = out[1];
    const auto back = run({told, read, kept, cotangents[0], cotangents[1], cotangents[2]});
    const auto &dwritten = back[0], &behind = back[1];  // behind: the gradient of the state behind each chunk
    auto dkept = mx::sum(mx::multiply(behind, states), -1, /*keepdims=*/true);
    if (kept.shape(2) == 1) dkept = mx::sum(dkept, 2, /*keepdims=*/true);
    return Arrays{dwritten, mx::negative(mx::matmul(dwritten, mx::swapaxes(states, -1, -2))), mx::matmul(corrected, mx::swapaxes(behind, -1, -2)),
                  dkept, back[2]};
  };
  const auto made = mx::custom_vjp(forward, backward)({written, read, told, kept, memory});
  return {made[0], made[1], made[2]};
}

}  // namespace lquant::kernels
