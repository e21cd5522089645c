// Training never differentiates through the rounding: the model sees dense weights as leaves, and this file carries their
// gradient on to scales, biases and latents by hand, one pass over each matrix.
#include "quantize/student.h"

#include <mlx/mlx.h>

#include <cmath>

#include "base/error.h"
#include "codec/quantize.h"
#include "kernels/elementwise.h"
#include "kernels/latent.h"
#include "kernels/primitive.h"

namespace lquant::quantize {
namespace {

using kernels::kBeta1, kernels::kBeta2;
// Below every gradient that matters: the loss is a mean over tokens of nats, its gradients lie far above 1e-20.
constexpr float kAdamTiny = 1e-20f;

mx::array scalar(double value) { return mx::array(static_cast<float>(value)); }
mx::array f32(const mx::array& a) { return mx::astype(a, mx::float32); }

struct Adam {
  mx::array value, m, v;
};

Adam adam_step(const Adam& now, const mx::array& gradient, float rate, int step) {
  const auto m = mx::add(mx::multiply(now.m, scalar(kBeta1)), mx::multiply(gradient, scalar(1 - kBeta1)));
  const auto v = mx::add(mx::multiply(now.v, scalar(kBeta2)), mx::multiply(mx::square(gradient), scalar(1 - kBeta2)));
  const auto root = mx::add(mx::sqrt(mx::divide(v, scalar(1 - std::pow(kBeta2, step)))), scalar(kAdamTiny));
  const auto delta = mx::divide(mx::multiply(m, scalar(rate / (1 - std::pow(kBeta1, step)))), root);
  return {mx::subtract(now.value, delta), m, v};
}

/// Where in its code's cell each weight shall start. A start that rounds to nearest has every weight in the cell of its code (or beyond the
/// outermost one). GPTQ's codes answer for other weights' errors too: there a weight d codes away starts as far inside the border as it
/// lies outside of it (at 1 − d), and from a whole code on in the middle. On the border itself, the first step would flip it.
mx::array placed(const mx::array& weight, const mx::array& codes, const mx::array& scales, const mx::array& biases, const codec::Format& format) {
  auto shape = codes.shape();
  shape.back() /= format.group_size;
  shape.push_back(format.group_size);
  const auto s = mx::expand_dims(scales, -1), b = mx::expand_dims(biases, -1), q = f32(mx::reshape(codes, shape));
  const auto usable = mx::where(mx::equal(s, scalar(0)), mx::ones_like(s), s);
  const auto away = mx::subtract(mx::divide(mx::subtract(f32(mx::reshape(weight, shape)), b), usable), q);
  const auto distance = mx::abs(away), top = scalar((1 << format.bits) - 1);
  const auto beyond_all = mx::logical_or(mx::logical_and(mx::equal(q, scalar(0)), mx::less(away, scalar(0))),
                                         mx::logical_and(mx::equal(q, top), mx::greater(away, scalar(0))));
  const auto mirrored = mx::multiply(mx::sign(away), mx::maximum(mx::subtract(scalar(1), distance), scalar(0)));
  const auto kept = mx::logical_or(mx::less_equal(distance, scalar(0.5)), beyond_all);
  return mx::reshape(mx::add(b, mx::multiply(s, mx::add(q, mx::where(kept, away, mirrored)))), codes.shape());
}

}  // namespace

TrainedLinear::TrainedLinear(const codec::Packed& packed, const codec::Format& format, const mx::array* teacher, bool move_codes)
    : format_(format),
      dtype_(packed.scales.dtype()),
      move_codes_(move_codes),
      latents_(mx::array(0)),
      s0_(f32(packed.scales)),
      b0_(f32(packed.biases.value())),
      pivot_(mx::array(0)),
      spread_(1),
      a_(mx::zeros_like(s0_)),
      c_(a_),
      ma_(a_),
      va_(a_),
      mc_(a_),
      vc_(a_),
      v_(a_) {
  const auto codes = codec::unpack_codes(packed.codes, format.bits);
  const auto known = teacher ? placed(*teacher, codes, s0_, b0_, format) : f32(codec::dequantize(packed, format, dtype_));
  latents_ = kernels::make_latents(known, codes, s0_, b0_, format.bits, format.group_size);
  auto shape = codes.shape();
  shape.back() /= format.group_size;
  shape.push_back(format.group_size);
  const auto q = f32(mx::reshape(codes, shape));
  pivot_ = mx::mean(q, -1);
  auto spread = mx::sqrt(mx::mean(mx::square(mx::subtract(q, mx::expand_dims(pivot_, -1)))));
  mx::eval(latents_, s0_, b0_, pivot_, spread, a_);
  // A matrix whose groups are all constant has no spread; its scales then have no gradient either.
  spread_ = std::max(spread.item<float>(), 1e-3f);
  if (!fused()) return;
  // As the kernels read them: row by row.
  for (auto* x : {&s0_, &b0_, &pivot_, &a_, &latents_}) *x = mx::contiguous(*x);
  c_ = ma_ = va_ = mc_ = vc_ = v_ = a_;
  mx::eval(s0_, b0_, pivot_, a_, latents_);
}

bool TrainedLinear::fused() const { return kernels::fused_descent(format_.group_size); }

kernels::TrainedMatrix TrainedLinear::matrix() const {
  return {latents_, s0_, b0_, pivot_, a_, c_, ma_, va_, mc_, vc_, v_, spread_, format_.bits, format_.group_size};
}

mx::array TrainedLinear::scales_f32() const { return mx::multiply(s0_, mx::add(mx::multiply(a_, scalar(1 / spread_)), scalar(1))); }
mx::array TrainedLinear::stored_scales() const { return mx::astype(scales_f32(), dtype_); }
mx::array TrainedLinear::stored_biases() const {
  const auto shift = mx::subtract(c_, mx::multiply(mx::multiply(pivot_, a_), scalar(1 / spread_)));
  return mx::astype(mx::add(b0_, mx::multiply(s0_, shift)), dtype_);
}

mx::array TrainedLinear::weight() const {
  if (fused()) return kernels::descent_weight(matrix(), dtype_);
  return kernels::latent_weight(latents_, stored_scales(), stored_biases(), format_.bits, format_.group_size);
}

void TrainedLinear::accumulate(const mx::array& dw) {
  if (fused() && gradient_.empty()) {  // a step of one part takes it as it is
    gradient_ = {dw};
    return;
  }
  reduce_to_sums();
  std::vector<mx::array> part;
  if (fused() && move_codes_) {
    part = {f32(dw)};
  } else {
    const auto [ds, db] = kernels::latent_gradients(dw, latents_, format_.bits, format_.group_size);
    part = {ds, db};
    if (move_codes_) part.push_back(f32(dw));
  }
  if (gradient_.empty()) {
    gradient_ = std::move(part);
  } else {
    for (std::size_t i = 0; i < part.size(); ++i)
      gradient_[i] = part[i].shape() == latents_.shape() ? kernels::add(f32(gradient_[i]), part[i]) : mx::add(gradient_[i], part[i]);
  }
  if (kernels::cpu_kernels()) mx::eval(gradient_);
}

bool TrainedLinear::holds_unreduced() const { return !move_codes_ && gradient_.size() == 1; }

void TrainedLinear::reduce_to_sums() {
  if (!holds_unreduced()) return;
  const auto [ds, db] = kernels::latent_gradients(gradient_[0], latents_, format_.bits, format_.group_size);
  gradient_ = {ds, db};
}

std::vector<mx::array*> TrainedLinear::gradient() {
  reduce_to_sums();
  if (gradient_.empty()) {  // this rank had no rows: it adds nothing, but takes part in the sum
    if (!fused() || !move_codes_) gradient_ = {mx::zeros_like(s0_), mx::zeros_like(s0_)};
    if (move_codes_) gradient_.push_back(mx::zeros(latents_.shape(), mx::float32));
  }
  std::vector<mx::array*> parts;
  for (auto& part : gradient_) parts.push_back(&part);
  return parts;
}

/// Fewer bits bear larger steps: measured optima are .003, .004 and .005 codes at 4, 3 and 2 bits (docs/methods/dwq.md).
float TrainedLinear::code_rate(const StepRates& rates) const { return rates.codes * std::exp2(static_cast<float>(4 - format_.bits) / 3); }

void TrainedLinear::step_fused(const StepRates& rates) {
  const kernels::DescentRates own{rates.scales, code_rate(rates), rates.step};
  const auto next = move_codes_         ? kernels::descend(matrix(), gradient_[0], own)
                    : holds_unreduced() ? kernels::descend_scales(matrix(), gradient_[0], own)
                                        : kernels::descend_scales(matrix(), gradient_[0], gradient_[1], own);
  latents_ = next.latents;
  a_ = next.a;
  c_ = next.c;
  ma_ = next.ma;
  va_ = next.va;
  mc_ = next.mc;
  vc_ = next.vc;
  v_ = next.v;
  gradient_.clear();
}

void TrainedLinear::step(const StepRates& rates) {
  if (gradient_.empty()) return;
  if (fused()) return step_fused(rates);
  const auto &ds = gradient_[0], &db = gradient_[1];
  const auto scales_before = scales_f32();
  const auto ga = mx::multiply(mx::multiply(s0_, scalar(1 / spread_)), mx::subtract(ds, mx::multiply(pivot_, db)));
  const auto a = adam_step({a_, ma_, va_}, ga, rates.scales, rates.step),
             c = adam_step({c_, mc_, vc_}, mx::multiply(s0_, db), rates.scales, rates.step);
  if (move_codes_) {
    const kernels::LatentStep step{code_rate(rates), kBeta2, static_cast<float>(1 - std::pow(kBeta2, rates.step))};
    const auto [latents, v] = kernels::latent_step(latents_, gradient_[2], scales_before, v_, step, format_.bits, format_.group_size);
    latents_ = latents;
    v_ = v;
  }
  a_ = a.value, ma_ = a.m, va_ = a.v;
  c_ = c.value, mc_ = c.m, vc_ = c.v;
  gradient_.clear();
  if (kernels::cpu_kernels()) mx::eval(stepped());
}

std::vector<mx::array> TrainedLinear::stepped() const { return {a_, ma_, va_, c_, mc_, vc_, latents_, v_}; }

codec::Packed TrainedLinear::pack() const {
  return {codec::pack_codes(kernels::latent_codes(latents_, format_.bits), format_.bits), stored_scales(), stored_biases()};
}

std::map<std::string, mx::array> TrainedLinear::state() const {
  std::map<std::string, mx::array> state{{"a", a_}, {"c", c_}, {"ma", ma_}, {"va", va_}, {"mc", mc_}, {"vc", vc_}};
  if (move_codes_) {
    state.insert({"u", latents_});
    state.insert({"v", v_});
  }
  return state;
}

void TrainedLinear::restore(const std::map<std::string, mx::array>& state) {
  a_ = state.at("a"), c_ = state.at("c"), ma_ = state.at("ma"), va_ = state.at("va"), mc_ = state.at("mc"), vc_ = state.at("vc");
  if (move_codes_) latents_ = state.at("u"), v_ = state.at("v");
}

Student::Student(const model::ModelSpec& spec, const model::Formats& formats, model::Tensors tensors, const model::Tensors& teacher, bool move_codes)
    : fixed_(std::move(tensors)), fixed_formats_(formats) {
  for (const auto* linear : spec.linears()) {
    const auto it = formats.find(linear->path);
    if (it == formats.end() || it->second.mode != codec::Mode::affine || it->second.bits >= 8) continue;
    const auto take = [&](const char* suffix) {
      const auto found = fixed_.find(linear->path + suffix);
      if (found == fixed_.end())
        fail("quantize", "{}{} is missing from the quantized model; make it again with lquant convert -q", linear->path, suffix);
      mx::array tensor = found->second;
      fixed_.erase(found);
      return tensor;
    };
    const codec::Packed packed{take(".weight"), take(".scales"), take(".biases")};
    const auto dense = teacher.find(linear->path + ".weight");
    const bool known =
        dense != teacher.end() && dense->second.dtype() != mx::uint32 && dense->second.size() == packed.scales.size() * it->second.group_size;
    linears_.emplace_back(packed, it->second, known ? &dense->second : nullptr, move_codes);
    paths_.push_back(linear->path);
    fixed_formats_.erase(linear->path);
  }
  if (linears_.empty())
    fail("quantize", "the quantized model has no affine linear of fewer than 8 bits, so there is nothing to train; quantize with --bits 2 … 6");
}

std::int64_t Student::trained_parameters() const {
  std::int64_t count = 0;
  for (const auto& linear : linears_)
    for (const auto& [name, tensor] : linear.state())
      if (name == "a" || name == "c" || name == "u") count += static_cast<std::int64_t>(tensor.size());
  return count;
}

std::vector<mx::array> Student::weights() const {
  std::vector<mx::array> weights;
  for (const auto& linear : linears_) weights.push_back(linear.weight());
  return weights;
}

void Student::accumulate(std::vector<mx::array> gradients) {
  for (std::size_t i = linears_.size(); i-- > 0;) {
    linears_[i].accumulate(gradients[i]);
    gradients.pop_back();
  }
}

std::vector<mx::array> Student::accumulated() {
  std::vector<mx::array> all;
  if (kernels::cpu_kernels()) return all;
  // As the backward pass makes them: what comes first is evaluated first, and its gradient is gone before the next one's is there.
  for (std::size_t i = linears_.size(); i-- > 0;)
    for (auto* part : linears_[i].gradient()) all.push_back(*part);
  return all;
}

std::vector<mx::array> Student::stepped() const {
  std::vector<mx::array> all;
  if (kernels::cpu_kernels()) return all;
  for (std::size_t i = linears_.size(); i-- > 0;)
    for (auto& part : linears_[i].stepped()) all.push_back(std::move(part));
  return all;
}

void Student::step(const StepRates& rates) {
  for (auto& linear : linears_) linear.step(rates);
}

model::Tensors Student::with(const std::vector<mx::array>& weights) const {
  auto tensors = fixed_;
  for (std::size_t i = 0; i < paths_.size(); ++i) tensors.insert({paths_[i] + ".weight", weights[i]});
  return tensors;
}

model::Tensors Student::pack() const {
  auto tensors = fixed_;
  for (std::size_t i = 0; i < paths_.size(); ++i) {
    const auto packed = linears_[i].pack();
    tensors.insert({paths_[i] + ".weight", packed.codes});
    tensors.insert({paths_[i] + ".scales", packed.scales});
    tensors.insert({paths_[i] + ".biases", *packed.biases});
  }
  return tensors;
}

model::Tensors Student::state() const {
  model::Tensors state;
  for (std::size_t i = 0; i < paths_.size(); ++i)
    for (const auto& [name, tensor] : linears_[i].state()) state.insert({paths_[i] + "." + name, tensor});
  return state;
}

void Student::restore(const model::Tensors& state) {
  for (std::size_t i = 0; i < paths_.size(); ++i) {
    std::map<std::string, mx::array> own;
    for (const char* name : {"a", "c", "ma", "va", "mc", "vc", "u", "v"})
      if (const auto it = state.find(paths_[i] + "." + name); it != state.end()) own.insert({name, it->second});
    linears_[i].restore(own);
  }
}

}  // namespace lquant::quantize
