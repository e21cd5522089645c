#pragma once

#include <algorithm>
#include <barrier>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

// CUDA's words on a CPU, as far as the kernels' text uses them, so that the text itself is tested where there is no GPU: include this, then the .cu
// files inside a namespace. A thread of a block is a thread here; shuffles and __syncthreads wait at barriers.
#define __device__ inline
#define __noinline__
#define __shared__ static  // blocks run one after the other
#define __align__(bytes) alignas(bytes)
// f16 is converted by instructions of the device alone; tests of the text take f32 and bf16.
#define asm(...)

struct uint4 {
  unsigned int x, y, z, w;
};
struct int2 {
  int x, y;
};
struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

namespace cuda_on_host {

constexpr int kWarp = 32;

struct Index {
  unsigned int x = 0;
};

struct Block {
  explicit Block(int threads) : all(threads) {
    for (int w = 0; w < threads / kWarp; ++w) warps.push_back(std::make_unique<std::barrier<>>(kWarp)), exchanged.emplace_back(kWarp);
  }
  std::barrier<> all;
  std::vector<std::unique_ptr<std::barrier<>>> warps;
  std::vector<std::vector<double>> exchanged;  // holds every float and every int
};

inline thread_local Index thread_of, block_of, size_of_block, size_of_grid;
inline thread_local Block* block = nullptr;

/// Runs `kernel` in `blocks` blocks of `threads` threads, a multiple of a warp.
inline void launch(int blocks, int threads, const std::function<void()>& kernel) {
  for (int b = 0; b < blocks; ++b) {
    Block own(threads);
    std::vector<std::thread> running;
    for (int t = 0; t < threads; ++t)
      running.emplace_back([&, t] {
        thread_of.x = t, block_of.x = b, size_of_block.x = threads, size_of_grid.x = blocks, block = &own;
        kernel();
      });
    for (auto& thread : running) thread.join();
  }
}

template <class T>
T from_lane(T x, int lane) {
  const int warp = thread_of.x / kWarp, own = thread_of.x % kWarp;
  block->exchanged[warp][own] = x;
  block->warps[warp]->arrive_and_wait();
  const T got = static_cast<T>(block->exchanged[warp][lane]);
  block->warps[warp]->arrive_and_wait();
  return got;
}

}  // namespace cuda_on_host

#define threadIdx cuda_on_host::thread_of
#define blockIdx cuda_on_host::block_of
#define blockDim cuda_on_host::size_of_block
#define gridDim cuda_on_host::size_of_grid

template <class T>
T __shfl_xor_sync(unsigned int, T x, int other, int = cuda_on_host::kWarp) {
  return cuda_on_host::from_lane(x, static_cast<int>(threadIdx.x % cuda_on_host::kWarp) ^ other);
}
template <class T>
T __shfl_sync(unsigned int, T x, int lane, int width) {
  return cuda_on_host::from_lane(x, static_cast<int>(threadIdx.x % cuda_on_host::kWarp) / width * width + lane % width);
}
inline bool __any_sync(unsigned int, bool x) {
  int any = x;
  for (int other = cuda_on_host::kWarp / 2; other > 0; other /= 2) any |= __shfl_xor_sync(0u, any, other);
  return any != 0;
}
inline unsigned int __ballot_sync(unsigned int, bool x) {
  unsigned int all = static_cast<unsigned int>(x) << threadIdx.x % cuda_on_host::kWarp;
  for (int other = cuda_on_host::kWarp / 2; other > 0; other /= 2) all |= __shfl_xor_sync(0u, all, other);
  return all;
}
inline int __popc(unsigned int x) { return std::popcount(x); }
inline void __syncwarp() { cuda_on_host::block->warps[threadIdx.x / cuda_on_host::kWarp]->arrive_and_wait(); }
inline void __syncthreads() { cuda_on_host::block->all.arrive_and_wait(); }

using std::max, std::min;

// Each rounded by itself: a volatile result is never joined with the next operation.
inline float __fmul_rn(float a, float b) {
  volatile float product = a * b;
  return product;
}
inline float __fadd_rn(float a, float b) {
  volatile float sum = a + b;
  return sum;
}
inline float __fsub_rn(float a, float b) { return __fadd_rn(a, -b); }
inline float __fdiv_rn(float a, float b) {
  volatile float quotient = a / b;
  return quotient;
}
inline unsigned int __float_as_uint(float x) {
  unsigned int u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}
inline float __uint_as_float(unsigned int u) {
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}
