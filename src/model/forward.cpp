// From ids to the first residual, through the blocks (block.cpp), and from the last residual to logits.
#include "model/forward.h"

#include <mlx/mlx.h>

#include <stdexcept>

#include "kernels/elementwise.h"
#include "kernels/linear.h"
#include "model/norm.h"
#include "model/op.h"
#include "model/segments.h"
#include "model/weights.h"

namespace lquant::model {
namespace {

mx::array rows_of(const LinearSpec& table, const Tensors& tensors, const Formats& formats, const mx::array& ids, mx::Dtype dtype, float multiplier) {
  const auto packed = formats.find(table.path);
  if (packed != formats.end() && packed->second.mode == codec::Mode::affine) {
    return kernels::embedding_affine(ids, tensor(tensors, table.path + ".weight"), tensor(tensors, table.path + ".scales"),
                                     tensor(tensors, table.path + ".biases"), packed->second.bits, packed->second.group_size, dtype, multiplier);
  }
  return kernels::embedding(ids, dense_weight(tensors, formats, table.path, dtype), multiplier);
}

}  // namespace

const mx::array& Scope::tensor(const std::string& name) const { return model::tensor(tensors, name); }

kernels::LinearWeight Scope::weight(const LinearSpec& linear) const { return linear_weight(tensors, formats, linear.path, dtype); }

kernels::LinearWeight Scope::weight(const LinearSpec& linear, const Part& part) const {
  return linear_weight(tensors, formats, linear.path, dtype, {part.first, part.rows});
}

mx::array Scope::lookup(const LinearSpec& table, const mx::array& ids, float multiplier) const {
  return rows_of(table, tensors, formats, ids, dtype, multiplier);
}

void Scope::observe(const LinearSpec& linear, const mx::array& input) const {
  if (observed()) (*context.observer)(linear.path, input, nullptr);
}

void Scope::observe_experts(const std::vector<const LinearSpec*>& linears, const mx::array& input, const kernels::Routing& routing, int top_k,
                            const std::optional<mx::array>& source) const {
  if (!observed()) return;
  const ExpertRows rows{routing.offsets, mx::floor_divide(routing.order, mx::array(top_k, mx::int32)), source};
  for (const auto* linear : linears) (*context.observer)(linear->path, input, &rows);
}

void Scope::observe_slices(const LinearSpec& linear, const mx::array& input) const {
  if (!observed()) return;
  const int tokens = input.shape(0) * input.shape(1), slices = input.shape(2);
  const auto rows = mx::reshape(mx::swapaxes(mx::reshape(input, {tokens, slices, -1}), 0, 1), {slices * tokens, -1});
  const auto count = mx::array(tokens, mx::int32);
  const ExpertRows whose{mx::multiply(mx::arange(0, slices + 1, mx::int32), count), mx::remainder(mx::arange(0, slices * tokens, mx::int32), count)};
  (*context.observer)(linear.path, rows, &whose);
}

Observer of_batch(const BatchObserver* observer, std::size_t batch) {
  if (!observer || !*observer) return nullptr;
  return [observer, batch](const std::string& path, const mx::array& input, const ExpertRows* experts) { (*observer)(batch, path, input, experts); };
}

mx::array embed(const ModelSpec& spec, const Tensors& tensors, const Formats& formats, const mx::array& ids, mx::Dtype dtype,
                const Context& context) {
  // A Python scalar meets an array in the array's dtype in MLX; rounding it so keeps our embeddings equal to mlx_lm's.
  const float multiplier = spec.embedding_multiplier == 1 ? 1 : mx::astype(mx::array(spec.embedding_multiplier, dtype), mx::float32).item<float>();
  auto x = rows_of(spec.embedding, tensors, formats, ids, dtype, multiplier);
  if (const auto& table = spec.position_embedding) {
    // Texts fit, but padding may go on behind the last row of the table.
    const auto positions = mx::minimum(model::positions(context, ids.shape(0), ids.shape(1)), mx::array(table->out - 1, mx::int32));
    x = kernels::add(x, rows_of(*table, tensors, formats, positions, dtype, 1));
  }
  if (spec.embedding_norm) x = normed(tensors, *spec.embedding_norm, x);
  if (!spec.front) return x;
  auto with_ids = context;
  with_ids.ids = &ids;
  return block(spec, -1, tensors, formats, x, with_ids);
}

mx::array residual_of(const ModelSpec& spec, const mx::array& x) {
  auto stop = x.shape();
  stop.back() = spec.streams * spec.hidden;
  return stop == x.shape() ? x : mx::slice(x, mx::Shape(x.ndim(), 0), stop);
}

mx::array final_norm(const ModelSpec& spec, const Tensors& tensors, const mx::array& x, const Formats& formats, const Context& context) {
  auto state = x;
  if (spec.tail)
    state = block(spec, static_cast<int>(spec.blocks.size()), tensors, formats, x, context);
  else if (!spec.final_norm.reads_f32)
    state = residual_of(spec, x);
  auto h = normed(tensors, spec.final_norm, state);
  return spec.head_input_divisor == 1 ? h : mx::divide(h, mx::array(spec.head_input_divisor, h.dtype()));
}

Head head(const ModelSpec& spec, const Tensors& tensors, const Formats& formats, mx::Dtype dtype) {
  auto linear = linear_weight(tensors, formats, spec.head ? spec.head->path : spec.embedding.path, dtype);
  return {std::move(linear.weight), std::move(linear.bias), spec.logit_softcap, spec.logit_multiplier};
}

mx::array logits(const Head& head, const mx::array& h) {
  auto out = kernels::linear(h, {head.weight, head.bias});
  // As in the losses: the factor is not rounded to 16 bits, which would be felt where it stands for a division.
  if (head.multiplier != 1) out = mx::astype(mx::multiply(mx::astype(out, mx::float32), mx::array(head.multiplier)), out.dtype());
  if (head.softcap != 0) {
    const mx::array cap(head.softcap, out.dtype());
    out = mx::multiply(mx::tanh(mx::divide(out, cap)), cap);
  }
  return out;
}

mx::array logits(const ModelSpec& spec, const Tensors& tensors, const Formats& formats, const mx::array& h, const Context& context) {
  if (spec.head && context.observer && *context.observer) (*context.observer)(spec.head->path, h, nullptr);
  return logits(head(spec, tensors, formats, h.dtype()), h);
}

mx::array hidden_states(const ModelSpec& spec, const Tensors& tensors, const Formats& formats, const mx::array& ids, mx::Dtype dtype,
                        const Context& context) {
  auto x = embed(spec, tensors, formats, ids, dtype, context);
  for (const auto& visit : spec.visits()) x = block(spec, visit, tensors, formats, x, context);
  if (context.cache) context.cache->advance(ids.shape(1));
  return final_norm(spec, tensors, x, formats, context);
}

mx::array forward(const ModelSpec& spec, const Tensors& tensors, const Formats& formats, const mx::array& ids, mx::Dtype dtype,
                  const Context& context) {
  return logits(spec, tensors, formats, hidden_states(spec, tensors, formats, ids, dtype, context), context);
}

}  // namespace lquant::model
