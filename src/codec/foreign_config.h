#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <string>
#include <vector>

// How other tools say in config.json that they have quantized a checkpoint: fp8 (DeepSeek, Qwen, Mistral, FBGEMM), compressed-tensors, AWQ, GPTQ,
// the mxfp4 blocks of gpt-oss, NVIDIA ModelOpt. codec/foreign.h decodes the tensors that belong to these descriptions.
namespace lquant::codec {

/// How one weight lies in the file. codec/foreign.cpp has the tensors and shapes of each.
enum class Layout {
  fp8,           ///< e4m3 numbers with scales of the tensor, of rows, or of blocks
  ints,          ///< 8-bit integers, one a byte (compressed-tensors "int-quantized")
  packed_ints,   ///< 2, 4 or 8-bit integers in 32-bit words along the inputs (compressed-tensors "pack-quantized")
  nvfp4,         ///< e2m1 numbers, an e4m3 scale for 16, a scale of the tensor
  mxfp4,         ///< e2m1 numbers, a power of two for 32
  awq,           ///< 4-bit integers along the outputs in AutoAWQ's order ("gemm")
  gptq,          ///< 2, 3, 4 or 8-bit integers along the inputs
  mxfp4_blocks,  ///< mxfp4 with an axis of blocks (gpt-oss)
};

struct Scheme {
  Layout layout = Layout::fp8;
  int bits = 8;
  int group = 0;                          ///< inputs that share a scale; 0: the scale is of a whole row or of the tensor
  int block_rows = 0, block_columns = 0;  ///< of a matrix of scales; 0: there is none unless it has the usual blocks of 128 × 128
  bool symmetric = true;
  bool act_order = false;                 ///< groups are not neighbours: the tensor g_idx says which input is in which
  bool zeros_less_one = false;            ///< GPTQ's first format stores each zero point less 1
  std::vector<std::string> targets = {};  ///< as in the file: a path, "re:" and a pattern, or a class; empty: every linear
};

/// A name, a pattern or a part of a name among those that `ignore` and `targets` list.
struct NamePattern {
  enum class Kind { exact, regex, part } kind = Kind::exact;
  std::string text;
  std::shared_ptr<const std::regex> regex;
  /// Patterns match from the start of the name and need not reach its end, as Python's re.match.
  bool matches(const std::string& name) const;
};

/// A checkpoint quantized by another tool.
struct Foreign {
  std::string method;                             ///< quant_method
  std::vector<Scheme> schemes;                    ///< at least one
  std::vector<std::vector<NamePattern>> targets;  ///< of each scheme; none: every linear
  std::vector<NamePattern> ignore;                ///< linears that were left dense
};

/// Reads quantization_config (of text_config where the outer config has none, as mlx_lm does). None when there is no such block, or when it describes
/// MLX's own tensors. MLX's are also written with the methods mxfp4 and mxfp8: a linear that has path.scales is MLX's, which the caller looks for
/// first. Throws Error, one sentence that names the field, for methods and formats that cannot be decoded (bitsandbytes among them) and for values of
/// the wrong type or out of range.
std::optional<Foreign> foreign_of(const nlohmann::json& config);

/// What the description says of one linear: null when it lists it among those that it left alone, or no scheme is meant for it. An exact name goes
/// before a pattern, a pattern before a class. These lists are known to be inexact; which tensors exist has the last word (check_shapes).
const Scheme* scheme_of(const Foreign& foreign, const std::string& path);

}  // namespace lquant::codec
