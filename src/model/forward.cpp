// One block builder for every family. The residual stream x is read once for both its uses (residual_norm), linears that share an
// input are one product, and the residual is added inside the closing product: what is left between products are
// the kernels' fused ops, so no pass over tokens × width is spent on MLX's single-threaded element-wise loops.
#include "model/forward.h"

#include <mlx/mlx.h>

#include <stdexcept>
#include <tuple>

#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/linear.h"
#include "kernels/moe.h"
#include "model/weights.h"

namespace lquant::model {
namespace {

/// What every part of a block reads.
struct Scope {
  const Tensors& tensors;
  const Formats& formats;
  const Context& context;
  mx::Dtype dtype;
  int block;

  const mx::array& norm(const NormSpec& norm) const { return tensor(tensors, norm.path + ".weight"); }
  kernels::LinearWeight weight(const LinearSpec& linear, Rows rows = {}) const { return linear_weight(tensors, formats, linear.path, dtype, rows); }
  bool observed() const { return context.observer && *context.observer; }
  void observe(const LinearSpec& linear, const mx::array& input) const {
    if (observed()) (*context.observer)(linear.path, input, nullptr);
  }
  void observe_experts(std::initializer_list<const LinearSpec*> linears, const mx::array& input, const kernels::Routing& routing, int top_k) const {
    if (!observed()) return;
    const ExpertRows rows{routing.offsets, mx::floor_divide(routing.order, mx::array(top_k, mx::int32))};
    for (const auto* linear : linears) (*context.observer)(linear->path, input, &rows);
  }
};

mx::array normed(const Scope& scope, const NormSpec& norm, const mx::array& x) {
  return kernels::rms_norm(x, scope.norm(norm), norm.eps, norm.offset);
}

/// residual + [post norm of] y.
mx::array close(const Scope& scope, const std::optional<NormSpec>& post, const mx::array& residual, const mx::array& y) {
  return post ? kernels::add_norm(residual, y, scope.norm(*post), post->eps, post->offset) : kernels::add(residual, y);
}

/// The linear that ends a sub-layer, with the residual inside its product when no norm stands between.
mx::array close(const Scope& scope, const std::optional<NormSpec>& post, const mx::array& residual, const mx::array& y, const LinearSpec& linear) {
  if (!post) return kernels::linear(y, scope.weight(linear), residual);
  return close(scope, post, residual, kernels::linear(y, scope.weight(linear)));
}

/// q, k, v [B, T, heads · head_dim]; a fused linear is read as three cuts of its rows.
std::vector<mx::array> project(const Scope& scope, const AttentionSpec& attention, const mx::array& h) {
  std::vector<kernels::LinearWeight> weights;
  if (attention.inputs.size() == 1) {
    const int q = attention.heads * attention.head_dim, kv = attention.kv_heads * attention.head_dim;
    for (const Rows rows : {Rows{0, q}, Rows{q, kv}, Rows{q + kv, kv}}) weights.push_back(scope.weight(attention.inputs[0], rows));
  } else {
    for (const auto& linear : attention.inputs) weights.push_back(scope.weight(linear));
  }
  return kernels::linears(h, weights);
}

/// The heads' outputs side by side [B, T, heads · head_dim], before the output linear.
mx::array attend(const Scope& scope, const AttentionSpec& attention, const mx::array& h) {
  const auto& context = scope.context;
  if (context.cache && context.segments) throw std::invalid_argument("[model] segments and a cache exclude each other");
  const auto* branches = context.branches ? &*context.branches : nullptr;
  if (branches && !context.segments) throw std::invalid_argument("[model] branches need segments");
  if (branches && attention.window > 0 && branches->longest > attention.window)
    throw std::invalid_argument("[model] a text with its ending is longer than the window; give it without branches");
  const int batch = h.shape(0), length = h.shape(1);
  const auto projected = project(scope, attention, h);
  const auto split = [&](const mx::array& x, int heads) { return mx::reshape(x, {batch, length, heads, attention.head_dim}); };
  auto q = split(projected[0], attention.heads), k = split(projected[1], attention.kv_heads), v = split(projected[2], attention.kv_heads);
  if (attention.q_norm) q = normed(scope, *attention.q_norm, q);
  if (attention.k_norm) k = normed(scope, *attention.k_norm, k);

  const int offset = context.cache ? context.cache->length() : context.offset;
  if (attention.rope) {
    const auto& rope = *attention.rope;
    const auto inv_freq = inverse_frequencies(rope, branches ? branches->longest : offset + length);
    const auto positions = branches ? std::optional(branches->positions) : std::nullopt;
    q = kernels::rope(q, inv_freq, offset, rope.magnitude, rope.interleaved, positions);
    k = kernels::rope(k, inv_freq, offset, rope.magnitude, rope.interleaved, positions);
  }
  kernels::AttentionArgs args;
  args.scale = attention.scale;
  args.window = branches ? 0 : attention.window;
  args.softcap = attention.softcap;
  if (branches) args.branch_bits = Branches::kBits;
  if (context.cache) {
    args.offset = offset;
    std::tie(k, v) = context.cache->append(scope.block, k, v);
  }
  const auto out = kernels::attention(q, k, v, args, context.segments);
  return mx::reshape(out, {batch, length, attention.heads * attention.head_dim});
}

mx::array activate(const Scope& scope, const DenseMlp& mlp, const mx::array& h) {
  if (mlp.inputs.size() == 1) return kernels::gated_fused(kernels::linear(h, scope.weight(mlp.inputs[0])), mlp.activation);
  const auto both = kernels::linears(h, {scope.weight(mlp.inputs[0]), scope.weight(mlp.inputs[1])});
  return kernels::gated(both[0], both[1], mlp.activation);
}

/// Which experts each token goes to, and the tokens sorted by expert so that an expert's rows meet its weights in one product.
struct Mixture {
  mx::array rows;     ///< [T·k, H]
  mx::array weights;  ///< [T, k]
  kernels::Routing routing;
};

Mixture route(const Scope& scope, const ExpertMlp& mlp, const mx::array& h) {
  const auto tokens = mx::reshape(h, {-1, h.shape(-1)});
  const auto gates = mx::softmax(kernels::linear(tokens, scope.weight(mlp.router)), -1, /*precise=*/true);
  const int first = mlp.experts - mlp.top_k;
  const auto ranked = mx::argpartition(mx::stop_gradient(gates), first, -1);
  const auto chosen = mx::slice(ranked, {0, first}, {ranked.shape(0), mlp.experts});
  auto weights = mx::take_along_axis(gates, chosen, -1);
  if (mlp.normalize) weights = mx::divide(weights, mx::sum(weights, -1, /*keepdims=*/true));
  auto routing = kernels::sort_by_expert(mx::astype(chosen, mx::int32), mlp.experts);
  auto rows = kernels::gather_rows(tokens, routing, mlp.top_k);
  return {std::move(rows), std::move(weights), std::move(routing)};
}

Cut enter(const Scope& scope, const NormSpec& norm, const mx::array& x) {
  auto [residual, h] = kernels::residual_norm(x, scope.norm(norm), norm.eps, norm.offset);
  return {std::move(residual), std::move(h)};
}

mx::array expert_product(const Scope& scope, const LinearSpec& linear, const mx::array& x, const kernels::Routing& routing) {
  const auto weight = scope.weight(linear);
  return kernels::grouped_linear(x, weight.weight, weight.bias, routing.offsets);
}

}  // namespace

Observer of_batch(const BatchObserver* observer, std::size_t batch) {
  if (!observer || !*observer) return nullptr;
  return [observer, batch](const std::string& path, const mx::array& input, const ExpertRows* experts) { (*observer)(batch, path, input, experts); };
}

mx::array embed(const ModelSpec& spec, const Tensors& tensors, const Formats& formats, const mx::array& ids, mx::Dtype dtype) {
  const auto& path = spec.embedding.path;
  // A Python scalar meets an array in the array's dtype in MLX; rounding it so keeps our embeddings equal to mlx_lm's.
  const float multiplier = spec.embedding_multiplier == 1 ? 1 : mx::astype(mx::array(spec.embedding_multiplier, dtype), mx::float32).item<float>();
  const auto packed = formats.find(path);
  if (packed != formats.end() && packed->second.mode == codec::Mode::affine) {
    return kernels::embedding_affine(ids, tensor(tensors, path + ".weight"), tensor(tensors, path + ".scales"), tensor(tensors, path + ".biases"),
                                     packed->second.bits, packed->second.group_size, dtype, multiplier);
  }
  return kernels::embedding(ids, dense_weight(tensors, formats, path, dtype), multiplier);
}

Cut attention_input(const ModelSpec& spec, int i, const Tensors& tensors, const Formats& formats, const mx::array& x, const Context& context) {
  const auto& block = spec.blocks.at(i);
  const Scope scope{tensors, formats, context, x.dtype(), i};
  auto cut = enter(scope, block.attention_norm, x);
  for (const auto& linear : block.attention.inputs) scope.observe(linear, cut.input);
  return cut;
}

Cut attention_output(const ModelSpec& spec, int i, const Tensors& tensors, const Formats& formats, const Cut& at, const Context& context) {
  const auto& attention = spec.blocks.at(i).attention;
  const Scope scope{tensors, formats, context, at.residual.dtype(), i};
  Cut cut{at.residual, attend(scope, attention, at.input)};
  scope.observe(attention.output, cut.input);
  return cut;
}

Cut mlp_input(const ModelSpec& spec, int i, const Tensors& tensors, const Formats& formats, const Cut& at, const Context& context) {
  const auto& block = spec.blocks.at(i);
  const Scope scope{tensors, formats, context, at.residual.dtype(), i};
  auto cut = enter(scope, block.mlp_norm, close(scope, block.attention_post_norm, at.residual, at.input, block.attention.output));
  if (const auto* dense = std::get_if<DenseMlp>(&block.mlp)) {
    for (const auto& linear : dense->inputs) scope.observe(linear, cut.input);
  } else if (scope.observed()) {
    const auto& experts = std::get<ExpertMlp>(block.mlp);
    scope.observe(experts.router, cut.input);
    const auto mixture = route(scope, experts, cut.input);
    scope.observe_experts({&experts.gate, &experts.up}, mixture.rows, mixture.routing, experts.top_k);
  }
  return cut;
}

Cut mlp_output(const ModelSpec& spec, int i, const Tensors& tensors, const Formats& formats, const Cut& at, const Context& context) {
  const auto& block = spec.blocks.at(i);
  const Scope scope{tensors, formats, context, at.residual.dtype(), i};
  if (const auto* dense = std::get_if<DenseMlp>(&block.mlp)) {
    Cut cut{at.residual, activate(scope, *dense, at.input)};
    scope.observe(dense->down, cut.input);
    return cut;
  }
  const auto& experts = std::get<ExpertMlp>(block.mlp);
  auto mixture = route(scope, experts, at.input);
  const auto gate = expert_product(scope, experts.gate, mixture.rows, mixture.routing);
  Cut cut{at.residual, kernels::gated(gate, expert_product(scope, experts.up, mixture.rows, mixture.routing), experts.activation),
          std::move(mixture.routing), std::move(mixture.weights)};
  scope.observe_experts({&experts.down}, cut.input, *cut.routing, experts.top_k);
  return cut;
}

mx::array block_output(const ModelSpec& spec, int i, const Tensors& tensors, const Formats& formats, const Cut& at) {
  const auto& block = spec.blocks.at(i);
  const Context context;
  const Scope scope{tensors, formats, context, at.residual.dtype(), i};
  if (const auto* dense = std::get_if<DenseMlp>(&block.mlp)) return close(scope, block.mlp_post_norm, at.residual, at.input, dense->down);
  const auto& experts = std::get<ExpertMlp>(block.mlp);
  const auto out = kernels::combine_rows(expert_product(scope, experts.down, at.input, *at.routing), *at.weights, *at.routing, experts.top_k);
  return close(scope, block.mlp_post_norm, at.residual, mx::reshape(out, at.residual.shape()));
}

mx::array block(const ModelSpec& spec, int i, const Tensors& tensors, const Formats& formats, const mx::array& x, const Context& context) {
  auto cut = attention_input(spec, i, tensors, formats, x, context);
  cut = attention_output(spec, i, tensors, formats, cut, context);
  cut = mlp_input(spec, i, tensors, formats, cut, context);
  cut = mlp_output(spec, i, tensors, formats, cut, context);
  return block_output(spec, i, tensors, formats, cut);
}

mx::array final_norm(const ModelSpec& spec, const Tensors& tensors, const mx::array& x) {
  return kernels::rms_norm(x, tensor(tensors, spec.final_norm.path + ".weight"), spec.final_norm.eps, spec.final_norm.offset);
}

Head head(const ModelSpec& spec, const Tensors& tensors, const Formats& formats, mx::Dtype dtype) {
  auto linear = linear_weight(tensors, formats, spec.head ? spec.head->path : spec.embedding.path, dtype);
  return {std::move(linear.weight), std::move(linear.bias), spec.logit_softcap, spec.logit_multiplier};
}

mx::array logits(const Head& head, const mx::array& h) {
  auto out = kernels::linear(h, {head.weight, head.bias});
  if (head.multiplier != 1) out = mx::multiply(out, mx::array(head.multiplier, out.dtype()));
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
  auto x = embed(spec, tensors, formats, ids, dtype);
  for (int i = 0; i < static_cast<int>(spec.blocks.size()); ++i) x = block(spec, i, tensors, formats, x, context);
  if (context.cache) context.cache->advance(ids.shape(1));
  return final_norm(spec, tensors, x);
}

mx::array forward(const ModelSpec& spec, const Tensors& tensors, const Formats& formats, const mx::array& ids, mx::Dtype dtype,
                  const Context& context) {
  return logits(spec, tensors, formats, hidden_states(spec, tensors, formats, ids, dtype, context), context);
}

}  // namespace lquant::model
