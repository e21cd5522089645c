#pragma once

// Loops that the compiler vectorises, compiled several times for one x86-64 binary: the loader picks the version that the
// processor has (AVX-512, AVX2 or the baseline). Put LQUANT_MULTIVERSION before the function that holds the loops and
// LQUANT_INLINE before everything it calls (after the parameters of a lambda: LQUANT_INLINE_LAMBDA), so that the calls are compiled
// with it. On other processors, whose baseline already has the vectors, it means nothing.
//
// A file whose results must equal MLX's bit for bit also opens with LQUANT_EXACT_ARITHMETIC: with AVX2 and above GCC would
// else fuse a product and the sum after it into one rounding where MLX rounds twice.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LQUANT_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define LQUANT_EXACT_ARITHMETIC _Pragma("GCC optimize(\"fp-contract=off\")")
#else
#define LQUANT_MULTIVERSION
#define LQUANT_EXACT_ARITHMETIC
#endif
#define LQUANT_INLINE inline __attribute__((always_inline))
#define LQUANT_INLINE_LAMBDA __attribute__((always_inline))
