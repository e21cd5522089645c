#pragma once

#include <mlx/array.h>

#include <string>
#include <vector>

#include "model/forward.h"

// Where each token of a batch stands in its own text: rows may hold several texts (Context::segments), and texts with several endings (Branches).
namespace lquant::model {

/// int32 [B, T]: counted from the first token of the segment, of an ending from that of its text; behind what a cache holds, or from Context::offset.
mx::array positions(const Context& context, int batch, int length);

/// Of each token, in a row of several texts (Context::segments), where in the row the first `count` tokens of its own text stand; of an ending's
/// those of the text and, behind them, its own. int32 [B, T, count]; behind the token itself what it says is of no meaning, and may lie outside the
/// row.
mx::array places_in_row(const Context& context, int batch, int length, int count);

/// For taps over neighbouring tokens: x [B, T, …] moved by 0, 1, … `back` tokens, each of x's shape; the entry of a token is that of the token so
/// many places before it in its own text, and 0 before the text's first. With a cache the last `back` tokens are kept in it under `name`, block by
/// block.
std::vector<mx::array> preceding(const Context& context, int block, const std::string& name, const mx::array& x, int back);

}  // namespace lquant::model
