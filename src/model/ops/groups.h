#pragma once

#include <mlx/array.h>

#include <optional>
#include <string>

#include "model/forward.h"

namespace lquant::model {

/// Neighbouring tokens of a text, `ratio` at a time from its first token on, of which layers make one entry each (DeepSeek-V4.1's compressed keys and
/// values). A group that its text's end cuts short makes none. What is made of a group stands, as rows by token, at the group's last token, and is 0
/// at all others: so it can pass from block to block. A query sees the entries of its text that end at or before it.
class Groups {
 public:
  Groups(const Context& context, int batch, int length, int ratio);

  /// Entries that the queries of this call may see: with a cache all so far.
  int count() const { return count_; }
  /// int32 [B, T]: of a token that ends a group the place in its text of the group's first token.
  mx::array places() const;
  /// int32 [B or 1, entries], counted in their text, and bool [B, T, entries]. There must be entries.
  mx::array numbers() const;
  mx::array visible() const;
  /// int32 [B, T]: how many entries of its text a query sees.
  mx::array ended() const;

  /// Σ softmax(logits) · values over each group, feature by feature: f32 [B, T, D] twice → rows by token. A cache keeps the last tokens' of both.
  mx::array pooled(const mx::array& values, const mx::array& logits, int block) const;
  /// What of rows by token [B, T, n] belongs to no group's end is 0 from here on.
  mx::array at_ends(const mx::array& rows) const;
  /// Adds the entries of rows by token to those that the cache has of this block under this name; without a cache nothing.
  void keep(int block, const std::string& name, const mx::array& rows) const;
  /// All entries [B, entries, n], of rows by token or from the cache. There must be entries.
  mx::array collected(int block, const std::string& name, const mx::array& rows) const;

 private:
  const Context& context_;
  int ratio_, before_, fresh_, count_;  ///< tokens before this call, entries that end in it, all
  mx::array ends_;                      ///< bool [B, T]
  mx::array within_;                    ///< int32 [B, T]: tokens of the text so far
  std::optional<mx::array> order_;      ///< int32 [B, fresh]: where the groups end; what follows the last of them is to be ignored
};

}  // namespace lquant::model
