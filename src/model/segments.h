#pragma once

#include <mlx/array.h>

#include <string>
#include <vector>

#include "model/forward.h"

// Where each token of a batch stands in its own text: rows may hold several texts (Context::segments), and texts with several endings (Branches).
namespace lquant::model {

/// int32 [B, T]: counted from the first token of the segment, of an ending from that of its text; behind what a cache holds, or from Context::offset.
mx::array positions(const Context& context, int batch, int length);

/// For taps over neighbouring tokens: x [B, T, …] moved by 0, 1, … `back` tokens, each of x's shape; the entry of a token is that of the token so
/// many places before it in its own text, and 0 before the text's first. With a cache the last `back` tokens are kept in it under `name`, block by
/// block.
std::vector<mx::array> preceding(const Context& context, int block, const std::string& name, const mx::array& x, int back);

}  // namespace lquant::model
