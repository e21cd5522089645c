// Checks, and the same losses in MLX's own ops for devices without CPU kernels. Those follow the same plan: a loop over chunks
// of tokens in which each chunk's loss and gradients are made together, so that its logits die with it, and a custom vjp
// that only scales what the loop left. Each chunk is made to depend on the one before, else MLX might run all of them
// forward before any of them backward.
#include "kernels/head_loss.h"

#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "kernels/half.h"
#include "kernels/head_loss_cpu.h"
#include "kernels/head_rows.h"
#include "kernels/primitive.h"

namespace lquant::kernels {
namespace {

using Arrays = std::vector<mx::array>;

// Memory for one chunk's logits, of both models, in MLX's ops; several copies of this live at once.
constexpr std::int64_t kChunkBytes = std::int64_t{256} << 20;
// Where one kernel makes losses and slopes nothing is copied, and each chunk adds to the head's gradient once: larger ones read and write that less
// often.
constexpr std::int64_t kFusedChunkBytes = std::int64_t{1} << 30;

void require(bool condition, const char* sentence) {
  if (!condition) throw std::invalid_argument(std::string("[kernels] head loss: ") + sentence);
}

bool is_float(const mx::array& x) { return kernels::is_float(x.dtype()); }

void check_side(const mx::array& hidden, const mx::array& head, const std::optional<mx::array>& bias) {
  require(hidden.ndim() == 2 && head.ndim() == 2 && hidden.shape(1) == head.shape(1), "hidden must be [T, H] and the head [V, H]");
  require(head.shape(0) > 0, "the head has no rows");
  require(is_float(hidden) && is_float(head), "hidden and head must be float32, bfloat16 or float16");
  require(!bias || (bias->ndim() == 1 && bias->shape(0) == head.shape(0) && is_float(*bias)), "the bias must be [V] of float32, bfloat16 or float16");
}

void check_ids(const mx::array& ids, int tokens, const char* sentence) {
  require(ids.ndim() == 1 && ids.shape(0) == tokens && ids.dtype() == mx::int32, sentence);
}

void check(const HeadLossCall& call) {
  check_side(call.hidden, call.head, call.bias);
  const int tokens = call.hidden.shape(0);
  require(call.mask.ndim() == 1 && call.mask.shape(0) == tokens && call.mask.dtype() == mx::float32, "the mask must be float32 [T]");
  require(call.args.temperature > 0, "the temperature must be positive");
  if (const auto* full = std::get_if<TeacherHidden>(&call.against)) {
    check_side(full->hidden, full->head, full->bias);
    require(full->hidden.shape(0) == tokens && full->head.shape(0) == call.head.shape(0), "teacher and student must agree in tokens and vocabulary");
  } else if (const auto* top = std::get_if<TeacherTopK>(&call.against)) {
    require(top->ids.ndim() == 2 && top->ids.shape(0) == tokens && top->ids.shape(1) > 0 && top->ids.dtype() == mx::int32 &&
                top->logits.shape() == top->ids.shape() && is_float(top->logits),
            "top-k logits and int32 ids must both be [T, k]");
  } else {
    check_ids(std::get<mx::array>(call.against), tokens, "targets must be int32 [T]");
  }
}

mx::array rows(const mx::array& x, int begin, int end) {
  auto from = mx::Shape(x.ndim(), 0), to = x.shape();
  from[0] = begin;
  to[0] = end;
  return mx::slice(x, from, to);
}

/// Final logits over the temperature, f32.
mx::array finish(mx::array z, float multiplier, float softcap, float temperature) {
  z = mx::astype(z, mx::float32);
  if (multiplier != 1) z = mx::multiply(z, mx::array(multiplier));
  if (softcap != 0) z = mx::multiply(mx::tanh(mx::divide(z, mx::array(softcap))), mx::array(softcap));
  return temperature == 1 ? z : mx::divide(z, mx::array(temperature));
}

mx::array raw_logits(const mx::array& hidden, const mx::array& head, const mx::array* bias) {
  // 16 bits beside f32 are promoted by MLX.
  const auto z = mx::matmul(hidden, mx::transpose(head));
  return bias ? mx::add(mx::astype(z, mx::float32), *bias) : z;
}

/// The same logits in f32, of two f16 arrays and with gradients in f32. Over a large vocabulary most slopes of a softmax are too small for f16:
/// on their way to `hidden` they are multiplied by `scale`, and the product is divided by it. The head's gradient is a sum over tokens and may
/// be too large for f16: a product in f32.
mx::array f16_logits(const mx::array& hidden, const mx::array& head, const mx::array* bias, float scale) {
  const auto forward = [](const Arrays& in) { return Arrays{mx::astype(mx::matmul(in[0], mx::transpose(in[1])), mx::float32)}; };
  const auto backward = [scale](const Arrays& in, const Arrays& cotangents, const Arrays&) {
    const auto scaled = mx::astype(mx::multiply(cotangents[0], mx::array(scale)), mx::float16);
    const auto to_hidden = mx::multiply(mx::astype(mx::matmul(scaled, in[1]), mx::float32), mx::array(1 / scale));
    return Arrays{to_hidden, mx::matmul(mx::transpose(cotangents[0]), mx::astype(in[0], mx::float32))};
  };
  const auto z = mx::custom_vjp(forward, backward)({hidden, head})[0];
  return bias ? mx::add(z, widened(*bias)) : z;
}

mx::array student_logits(const Arrays& student, const HeadLossArgs& args) {
  const auto* bias = student.size() > 2 ? &student[2] : nullptr;
  if (student[0].dtype() != mx::float16 || student[1].dtype() != mx::float16) return raw_logits(student[0], student[1], bias);
  // A slope is at most multiplier / temperature times the mask: 2^8 leaves masks of up to 2^7 and resolves 2^-32 of the largest.
  return f16_logits(student[0], student[1], bias, power_of_two_below(256.0 * args.temperature / std::abs(args.multiplier)));
}

mx::array log_softmax(const mx::array& z) { return mx::subtract(z, mx::logsumexp(z, -1, true)); }

mx::array kl_of(const mx::array& student, const mx::array& teacher) {
  return mx::sum(mx::multiply(mx::exp(teacher), mx::subtract(teacher, student)), -1);
}

mx::array at_ids(const mx::array& z, const mx::array& ids) {
  // Masked tokens may carry any id.
  const auto inside = mx::clip(ids, mx::array(0), mx::array(z.shape(-1) - 1));
  return mx::take_along_axis(z, inside, -1);
}

mx::array teacher_logits(const TeacherHidden& teacher, const HeadLossArgs& args, int begin, int end) {
  const auto z = raw_logits(rows(teacher.hidden, begin, end), teacher.head, teacher.bias ? &*teacher.bias : nullptr);
  return finish(z, args.teacher_multiplier, args.teacher_softcap, args.temperature);
}

/// The loss of tokens begin … end; `student` is hidden of those tokens, the head, and the bias if any.
mx::array chunk_loss(const HeadLossCall& call, const Arrays& student, int begin, int end) {
  const auto& args = call.args;
  auto z = student_logits(student, args);
  if (const auto* top = std::get_if<TeacherTopK>(&call.against)) z = at_ids(z, rows(top->ids, begin, end));
  const auto log_p = log_softmax(finish(z, args.multiplier, args.softcap, args.temperature));
  auto loss = [&] {
    if (const auto* full = std::get_if<TeacherHidden>(&call.against)) return kl_of(log_p, log_softmax(teacher_logits(*full, args, begin, end)));
    if (const auto* top = std::get_if<TeacherTopK>(&call.against)) {
      return kl_of(log_p, log_softmax(finish(rows(top->logits, begin, end), 1, 0, args.temperature)));
    }
    const auto targets = mx::expand_dims(rows(std::get<mx::array>(call.against), begin, end), -1);
    return mx::negative(mx::squeeze(at_ids(log_p, targets), -1));
  }();
  return mx::sum(mx::multiply(loss, rows(call.mask, begin, end)));
}

/// Whether one kernel makes a chunk's losses and slopes of both models' products.
bool fused(const HeadLossCall& call, const Arrays& student) {
  return fused_head_rows() && std::holds_alternative<TeacherHidden>(call.against) && student[0].dtype() != mx::float16 &&
         student[1].dtype() != mx::float16;
}

/// {the loss of tokens begin … end, then the gradients of `student` as chunk_loss takes it, as far as asked for}.
Arrays fused_chunk(const HeadLossCall& call, const Arrays& student, int begin, int end, std::size_t wanted) {
  const auto& full = std::get<TeacherHidden>(call.against);
  const auto products = raw_logits(student[0], student[1], student.size() > 2 ? &student[2] : nullptr);
  // Like the student's rows, behind the chunk before.
  const auto taught_rows = mx::depends({rows(full.hidden, begin, end)}, {student[0]})[0];
  const auto taught = raw_logits(taught_rows, full.head, full.bias ? &*full.bias : nullptr);
  const auto made = head_rows(products, taught, rows(call.mask, begin, end), call.args, wanted > 0);
  Arrays out{mx::sum(made.loss)};
  if (wanted > 0) out.push_back(mx::astype(mx::matmul(made.slopes, student[1]), student[0].dtype()));
  if (wanted > 1) out.push_back(mx::matmul(mx::transpose(made.slopes), student[0]));
  if (wanted > 2) out.push_back(mx::sum(mx::astype(made.slopes, mx::float32), 0));
  return out;
}

int chunk_tokens(int vocabulary, const HeadLossArgs& args, std::int64_t usual = kChunkBytes) {
  const std::int64_t bytes = args.scratch_bytes > 0 ? args.scratch_bytes : usual;
  return static_cast<int>(std::max<std::int64_t>(64, bytes / (std::int64_t{vocabulary} * 2 * 4)));
}

/// {loss, hidden's gradient, head's, bias's}, the gradients as far as asked for.
Arrays loss_and_gradients(const HeadLossCall& call, const Arrays& student) {
  const bool in_one = fused(call, student);
  const int tokens = student[0].shape(0), chunk = chunk_tokens(student[1].shape(0), call.args, in_one ? kFusedChunkBytes : kChunkBytes);
  mx::array loss(0.0f);
  Arrays hidden_parts, shared;
  std::vector<int> wanted;
  if (call.needs_gradient) wanted.push_back(0);
  for (int i = 1; call.needs_gradient && call.head_gradient && i < static_cast<int>(student.size()); ++i) wanted.push_back(i);
  for (int begin = 0; begin < tokens; begin += chunk) {
    const int end = std::min(tokens, begin + chunk);
    Arrays before{loss};
    before.insert(before.end(), shared.begin(), shared.end());
    if (!hidden_parts.empty()) before.push_back(hidden_parts.back());
    Arrays part(student);
    part[0] = mx::depends({rows(student[0], begin, end)}, before)[0];
    mx::array value(0.0f);
    Arrays gradients;
    if (in_one) {
      gradients = fused_chunk(call, part, begin, end, wanted.size());
      value = gradients[0];
      gradients.erase(gradients.begin());
    } else {
      const auto function = [&](const Arrays& in) { return chunk_loss(call, in, begin, end); };
      if (wanted.empty())
        value = function(part);
      else
        std::tie(value, gradients) = mx::value_and_grad(function, wanted)(part);
    }
    loss = mx::add(loss, value);
    if (wanted.empty()) continue;
    hidden_parts.push_back(gradients[0]);
    for (std::size_t i = 1; i < gradients.size(); ++i) {
      const auto g = mx::astype(gradients[i], mx::float32);
      if (begin == 0) {
        shared.push_back(g);
      } else {
        shared[i - 1] = mx::add(shared[i - 1], g);
      }
    }
  }
  Arrays out{loss};
  if (!wanted.empty()) out.push_back(tokens > 0 ? mx::concatenate(hidden_parts, 0) : mx::zeros_like(student[0]));
  for (std::size_t i = 1; i < wanted.size(); ++i) {
    out.push_back(tokens > 0 ? shared[i - 1] : mx::zeros(student[i].shape(), mx::float32));
  }
  return out;
}

/// The array itself, for which nobody may ask a gradient.
mx::array declined(const mx::array& x) {
  auto identity = [](const Arrays& in) { return Arrays{mx::copy(in[0])}; };
  auto refuse = [](const Arrays&, const Arrays&, const Arrays&) -> Arrays {
    throw std::invalid_argument("[kernels] head loss: a gradient was asked for that the call declined");
  };
  return mx::custom_vjp(identity, refuse)({x})[0];
}

mx::array head_loss_mlx(const HeadLossCall& call) {
  const bool head_gradient = call.needs_gradient && call.head_gradient;
  Arrays student{call.needs_gradient ? call.hidden : declined(call.hidden), head_gradient ? call.head : declined(call.head)};
  if (call.bias) student.push_back(head_gradient ? *call.bias : declined(*call.bias));
  auto function = [call](const Arrays& in) { return loss_and_gradients(call, in); };
  auto vjp = [](const Arrays& in, const Arrays& cotangents, const Arrays& out) {
    Arrays gradients;
    for (std::size_t i = 0; i < in.size(); ++i) {
      if (i + 1 < out.size()) {
        const auto g = mx::multiply(out[i + 1], cotangents[0]);
        gradients.push_back(i == 0 ? mx::astype(g, in[0].dtype()) : g);
      } else {
        gradients.push_back(mx::zeros_like(in[i]));
      }
    }
    return gradients;
  };
  return mx::custom_vjp(function, vjp)(student)[0];
}

#ifdef LQUANT_ONEDNN
// The CPU's kernels know f32 and bf16; f16 is given to them as f32.
mx::array without_f16(const mx::array& x) { return x.dtype() == mx::float16 ? widened(x) : x; }
std::optional<mx::array> without_f16(const std::optional<mx::array>& x) { return x ? std::optional(without_f16(*x)) : std::nullopt; }
TeacherHidden without_f16(const TeacherHidden& x) { return {without_f16(x.hidden), without_f16(x.head), without_f16(x.bias)}; }
TeacherTopK without_f16(const TeacherTopK& x) { return {without_f16(x.logits), x.ids}; }

HeadLossCall without_f16(HeadLossCall call) {
  // The gradient of hidden is in its own dtype, those of head and bias in f32.
  if (call.hidden.dtype() == mx::float16) call.hidden = mx::astype(call.hidden, mx::float32);
  call.head = without_f16(call.head);
  call.bias = without_f16(call.bias);
  std::visit([](auto& against) { against = without_f16(against); }, call.against);
  return call;
}
#endif

mx::array head_loss(const HeadLossCall& call) {
  check(call);
#ifdef LQUANT_ONEDNN
  if (cpu_kernels()) return cpu::head_loss(without_f16(call));
#endif
  return head_loss_mlx(call);
}

TokenScores scores_mlx(const mx::array& hidden, const mx::array& head, const std::optional<mx::array>& bias, const mx::array& targets,
                       const std::optional<TeacherHidden>& teacher, const HeadLossArgs& args) {
  const int tokens = hidden.shape(0), chunk = chunk_tokens(head.shape(0), args);
  std::vector<Arrays> parts(4);
  for (int begin = 0; begin < tokens; begin += chunk) {
    const int end = std::min(tokens, begin + chunk);
    auto part = rows(hidden, begin, end);
    if (begin > 0) part = mx::depends({part}, {parts[0].back(), parts[2].back(), parts[3].back()})[0];
    const auto z = finish(raw_logits(part, head, bias ? &*bias : nullptr), args.multiplier, args.softcap, args.temperature);
    const auto log_p = log_softmax(z), ids = mx::expand_dims(rows(targets, begin, end), -1);
    auto nll_of = [&](const mx::array& p) { return mx::negative(mx::squeeze(at_ids(p, ids), -1)); };
    parts[0].push_back(nll_of(log_p));
    const auto none = mx::zeros({end - begin}, mx::float32);
    if (!teacher) {
      for (int i = 1; i < 4; ++i) parts[i].push_back(none);
      continue;
    }
    const auto other = teacher_logits(*teacher, args, begin, end), log_t = log_softmax(other);
    parts[1].push_back(nll_of(log_t));
    parts[2].push_back(kl_of(log_p, log_t));
    parts[3].push_back(mx::astype(mx::equal(mx::argmax(z, -1), mx::argmax(other, -1)), mx::float32));
  }
  auto whole = [&](int i) { return tokens > 0 ? mx::concatenate(parts[i], 0) : mx::zeros({0}, mx::float32); };
  return {whole(0), whole(1), whole(2), whole(3)};
}

}  // namespace

mx::array kl_loss(const mx::array& hidden, const mx::array& head, const std::optional<mx::array>& bias, const TeacherHidden& teacher,
                  const mx::array& mask, const HeadLossArgs& args, bool needs_gradient, bool head_gradient) {
  return head_loss({hidden, head, bias, teacher, mask, args, needs_gradient, head_gradient});
}

mx::array kl_loss(const mx::array& hidden, const mx::array& head, const std::optional<mx::array>& bias, const TeacherTopK& teacher,
                  const mx::array& mask, const HeadLossArgs& args, bool needs_gradient, bool head_gradient) {
  return head_loss({hidden, head, bias, teacher, mask, args, needs_gradient, head_gradient});
}

mx::array cross_entropy_loss(const mx::array& hidden, const mx::array& head, const std::optional<mx::array>& bias, const mx::array& targets,
                             const mx::array& mask, const HeadLossArgs& args, bool needs_gradient, bool head_gradient) {
  return head_loss({hidden, head, bias, targets, mask, args, needs_gradient, head_gradient});
}

TokenScores score_tokens(const mx::array& hidden, const mx::array& head, const std::optional<mx::array>& bias, const mx::array& targets,
                         const std::optional<TeacherHidden>& teacher, const HeadLossArgs& args) {
  check_side(hidden, head, bias);
  check_ids(targets, hidden.shape(0), "targets must be int32 [T]");
  require(args.temperature > 0, "the temperature must be positive");
  if (teacher) {
    check_side(teacher->hidden, teacher->head, teacher->bias);
    require(teacher->hidden.shape(0) == hidden.shape(0) && teacher->head.shape(0) == head.shape(0),
            "teacher and student must agree in tokens and vocabulary");
  }
#ifdef LQUANT_ONEDNN
  if (cpu_kernels()) {
    const auto told = teacher ? std::optional(without_f16(*teacher)) : std::nullopt;
    return cpu::score_tokens(without_f16(hidden), without_f16(head), without_f16(bias), targets, told, args);
  }
#endif
  return scores_mlx(hidden, head, bias, targets, teacher, args);
}

}  // namespace lquant::kernels
