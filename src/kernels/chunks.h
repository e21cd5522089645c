#pragma once

#include <mlx/array.h>

#include <optional>

// Sequences in chunks of equal length, as recurrences take them: products within a chunk, a state from chunk to chunk. Internal to this folder.
namespace lquant::kernels {

namespace mx = mlx::core;

/// x [B, T, …] with zeros behind, in chunks: [B, chunks, length, …].
mx::array chunked(const mx::array& x, int chunks, int length);

/// Chunk k of x [B, chunks, …]: [B, …].
mx::array chunk_at(const mx::array& x, int k);

/// Who counts in front of whom. Shapes [B, chunks, 1, 1, …], for axes of heads and groups; without segments only `within` is there, [length, length].
struct ChunkMasks {
  mx::array within;                                 ///< bool […, length, length]: j is not behind i, and of its text
  std::optional<mx::array> carried = std::nullopt;  ///< f32 […, length]: token i reads the state in front of the chunk
  std::optional<mx::array> gives = std::nullopt;    ///< f32 […, length]: token j goes into the state behind it
  std::optional<mx::array> lives = std::nullopt;    ///< f32 […, 1, 1]: the state in front of the chunk goes on behind it
};

/// segments int32 [B, T]: a text begins where the number differs from the one before it.
ChunkMasks chunk_masks(const std::optional<mx::array>& segments, int chunks, int length);

}  // namespace lquant::kernels
