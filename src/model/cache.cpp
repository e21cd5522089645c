// Keys and values of decoding: one buffer a block, written in place while nobody else holds it (MLX donates it to the update). What else is kept is
// replaced as a whole.
#include <mlx/mlx.h>

#include <stdexcept>

#include "model/forward.h"

namespace lquant::model {
namespace {

// As mlx_lm: a longer step wastes memory on short texts, a shorter one copies the buffer more often.
constexpr int kStep = 256;

mx::array with_room(const std::optional<mx::array>& buffer, const mx::array& fresh, int length, int needed) {
  if (buffer && buffer->shape(1) >= needed) return *buffer;
  auto shape = fresh.shape();
  shape[1] = (needed + kStep - 1) / kStep * kStep - length;
  auto room = mx::zeros(shape, fresh.dtype());
  if (length == 0) return room;
  auto stop = buffer->shape();
  stop[1] = length;
  return mx::concatenate({mx::slice(*buffer, {0, 0, 0, 0}, stop), room}, 1);
}

mx::array write(std::optional<mx::array>& buffer, const mx::array& fresh, int length) {
  const int needed = length + fresh.shape(1);
  auto room = with_room(buffer, fresh, length, needed);
  buffer.reset();
  auto stop = room.shape();
  stop[1] = needed;
  buffer = mx::slice_update(room, fresh, {0, length, 0, 0}, stop);
  return mx::slice(*buffer, {0, 0, 0, 0}, stop);
}

}  // namespace

std::pair<mx::array, mx::array> Cache::append(int block, const mx::array& k, const mx::array& v) {
  auto& layer = layers_.at(block);
  if (layer.k && layer.k->shape(0) != k.shape(0)) throw std::invalid_argument("[model] the cache holds another number of rows than the batch");
  auto keys = write(layer.k, k, length_);
  return {std::move(keys), write(layer.v, v, length_)};
}

void Cache::keep(int block, const std::string& name, const mx::array& value) { layers_.at(block).kept.insert_or_assign(name, value); }

std::optional<mx::array> Cache::kept(int block, const std::string& name) const {
  const auto& all = layers_.at(block).kept;
  const auto found = all.find(name);
  return found == all.end() ? std::nullopt : std::optional(found->second);
}

std::pair<mx::array, mx::array> Cache::appended(int block, int positions) const {
  const auto& layer = layers_.at(block);
  if (!layer.k) throw std::invalid_argument("[model] a block reads keys and values of one that has none yet");
  const auto seen = [&](const mx::array& buffer) {
    auto stop = buffer.shape();
    stop[1] = length_ + positions;
    return mx::slice(buffer, {0, 0, 0, 0}, stop);
  };
  return {seen(*layer.k), seen(*layer.v)};
}

void Cache::select(const mx::array& rows) {
  for (auto& layer : layers_) {
    for (auto& [name, value] : layer.kept) value = mx::take(value, rows, 0);
    if (!layer.k) continue;
    layer.k = mx::take(*layer.k, rows, 0);
    layer.v = mx::take(*layer.v, rows, 0);
  }
}

std::vector<mx::array> Cache::arrays() const {
  std::vector<mx::array> all;
  for (const auto& layer : layers_) {
    for (const auto& [name, value] : layer.kept) all.push_back(value);
    if (!layer.k) continue;
    all.push_back(*layer.k);
    all.push_back(*layer.v);
  }
  return all;
}

}  // namespace lquant::model
