#pragma once

#include <mlx/array.h>

#include <optional>

#include "codec/format.h"

// From the stored tensors of other tools to numbers, shapes being as stated (codec/foreign.cpp checks them). A leading axis of a stack may stand
// before all shapes but those of AWQ and GPTQ. All are lazy.
namespace lquant::codec::foreign {

/// e4m3 as bytes or as bfloat16, in `dtype`; exact in float32, bfloat16 and float16.
mx::array e4m3(const mx::array& numbers, mx::Dtype dtype);
/// Powers of two by their exponent + 127 (e8m0, u8) as float32; 255 is NaN.
mx::array e8m0(const mx::array& exponents);

/// numbers [..., out, in] times scales that repeat over blocks: [..., R, C] with blocks of `rows` × `columns`, R = ⌈out/rows⌉ or more, C likewise.
/// Computed and given in the wider of the two dtypes.
mx::array times_blocks(const mx::array& numbers, const mx::array& scales, int rows, int columns);

/// Little-endian codes of 2, 3, 4 or 8 bits without gaps: [..., words] i32 or u32 → u8 [..., count].
mx::array unpack(const mx::array& words, int bits, int count);
/// AutoAWQ's nibbles along the last axis, [rows, columns/8] i32 → u8 [rows, columns].
mx::array unpack_awq(const mx::array& words);
/// Two e2m1 numbers a byte, the first in the low half: [..., n/2] u8 → [..., n] of `dtype`.
mx::array unpack_e2m1(const mx::array& bytes, mx::Dtype dtype);
/// GPTQ's zero points with the 1 added that its first format took off: as GPTQModel does, word by word for 2, 4 and 8 bits, and code by code for 3
/// bits. [groups, words] → u8 [groups, count].
mx::array gptq_zeros(const mx::array& words, int bits, int count, bool less_one);

/// (codes − zeros) · scales, in the dtype of the scales. codes [..., out, in] u8 or i8; scales and zeros [..., out, G], with G groups of `group`
/// neighbouring inputs (the last may be short), or [..., 1, 1]; with `order` i32 [in], input i belongs to group order[i]. `zero` is the zero point
/// where there are none.
mx::array times_groups(const mx::array& codes, const std::optional<mx::array>& zeros, int zero, const mx::array& scales, int group,
                       const std::optional<mx::array>& order);

}  // namespace lquant::codec::foreign
