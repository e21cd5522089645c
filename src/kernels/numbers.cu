// What stands before every kernel's text (cuda_module.cpp): 16-bit floats without CUDA's headers, whose reading takes
// the compiler over a second, and loads and stores of several elements at once.
namespace lquant {

struct bf16 {
  unsigned short bits;
  bf16() = default;
  // To nearest, ties to even; NaN stays NaN.
  __device__ explicit bf16(float x) {
    const unsigned int u = __float_as_uint(x);
    bits = (u & 0x7fffffffu) > 0x7f800000u ? 0x7fff : static_cast<unsigned short>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  __device__ explicit operator float() const { return __uint_as_float(static_cast<unsigned int>(bits) << 16); }
};

struct f16 {
  unsigned short bits;
  f16() = default;
  __device__ explicit f16(float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x)); }
  __device__ explicit operator float() const {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
  }
};

template <class T, int n>
struct __align__(sizeof(T) * n < 16 ? sizeof(T) * n : 16) Several {
  T at[n];
};

// Element group i of n elements each, by loads of up to 16 bytes.
template <int n, class T>
__device__ Several<T, n> load(const T* from, long i) {
  using S = Several<T, n>;
  if constexpr (sizeof(S) % 16 == 0) {
    union {
      S several;
      uint4 words[sizeof(S) / 16];
    } x;
#pragma unroll
    for (int k = 0; k < sizeof(S) / 16; ++k) x.words[k] = reinterpret_cast<const uint4*>(from + i * n)[k];
    return x.several;
  } else {
    return reinterpret_cast<const S*>(from)[i];
  }
}

template <int n, class T>
__device__ void store(const Several<T, n>& x, T* to, long i) {
  using S = Several<T, n>;
  if constexpr (sizeof(S) % 16 == 0) {
    union {
      S several;
      uint4 words[sizeof(S) / 16];
    } y;
    y.several = x;
#pragma unroll
    for (int k = 0; k < sizeof(S) / 16; ++k) reinterpret_cast<uint4*>(to + i * n)[k] = y.words[k];
  } else {
    reinterpret_cast<S*>(to)[i] = x;
  }
}

__device__ long thread_index() { return static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x; }

}  // namespace lquant
