// Logits are far larger than anything else in a model (tokens × vocabulary), so they exist for a chunk of tokens only, in
// f32 scratch. Per chunk: the products that make them, one pass that turns the student's logits into their gradient in
// place (head_loss_rows.h), and the products that carry it on to the hidden states and the head. The products are nearly
// all of the cost. Gradients are made with the loss, hidden outputs of one op; the vjp only scales them.
#include "kernels/head_loss_cpu.h"

#include <mlx/ops.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <stdexcept>

#include "kernels/gemm.h"
#include "kernels/head_loss_rows.h"
#include "kernels/parallel.h"
#include "kernels/primitive.h"

namespace lquant::kernels::cpu {
namespace {

using Arrays = std::vector<mx::array>;

// Scratch for logits: at a vocabulary of 49,152 it holds 341 tokens of student and teacher, where the repeated conversion of the
// head costs some 7 % of its products; smaller chunks cost more, larger ones win little.
constexpr std::int64_t kScratchBytes = std::int64_t{128} << 20;
// Fewer tokens than this a chunk would convert the head more than multiply with it (see gemm_cpu.cpp).
constexpr std::int64_t kFewestTokens = 64;

const char* row_pointer(const mx::array& x, std::int64_t row) { return x.data<char>() + row * x.shape(-1) * x.itemsize(); }

/// How many of `tokens` a chunk takes: equal chunks of about the scratch's size.
std::int64_t chunk_tokens(std::int64_t tokens, std::int64_t vocabulary, int models, const HeadLossArgs& args) {
  const std::int64_t bytes = args.scratch_bytes > 0 ? args.scratch_bytes : kScratchBytes;
  const std::int64_t most = std::max(kFewestTokens, bytes / (vocabulary * models * 4));
  const std::int64_t chunks = std::max<std::int64_t>(1, (tokens + most / 2) / most);
  return (tokens + chunks - 1) / chunks;
}

/// Rows whose mask is not 0.
std::vector<std::int32_t> live_rows(const mx::array& mask) {
  std::vector<std::int32_t> rows;
  for (std::int32_t t = 0; t < static_cast<std::int32_t>(mask.size()); ++t) {
    if (mask.data<float>()[t] != 0) rows.push_back(t);
  }
  return rows;
}

/// The hidden states of the live rows, one after the other: the array's own memory when all are live.
class Rows {
 public:
  Rows(const mx::array& x, const std::vector<std::int32_t>& live) : x_(x), bytes_(x.shape(-1) * x.itemsize()) {
    if (live.size() == static_cast<std::size_t>(x.shape(0))) return;
    copy_ = std::make_unique_for_overwrite<char[]>(live.size() * bytes_);
    for (std::size_t i = 0; i < live.size(); ++i) std::memcpy(copy_.get() + i * bytes_, row_pointer(x, live[i]), bytes_);
  }
  Matrix from(std::int64_t row) const { return {(copy_ ? copy_.get() : x_.data<char>()) + row * bytes_, x_.dtype(), x_.shape(-1)}; }

 private:
  const mx::array& x_;
  std::int64_t bytes_;
  std::unique_ptr<char[]> copy_;
};

/// One model's end: what makes its logits.
struct Side {
  Rows hidden;
  const mx::array& head;
  const mx::array* bias;
  float multiplier, softcap;

  /// Raw logits (before multiplier and softcap) of `count` live rows from `first` on.
  void logits(std::int64_t first, std::int64_t count, float* out) const {
    const std::int64_t v = head.shape(0), h = head.shape(1);
    gemm(count, v, h, 1, hidden.from(first), {head.data<char>(), head.dtype(), h, true}, 0, out, mx::float32, v, bias ? bias->data<char>() : nullptr,
         bias ? bias->dtype() : mx::float32);
  }
};

void require_ids(const mx::array& ids, const std::vector<std::int32_t>& live, std::int64_t vocabulary) {
  const std::int64_t width = ids.ndim() == 2 ? ids.shape(1) : 1;
  for (auto row : live) {
    const auto* at = ids.data<std::int32_t>() + row * width;
    if (std::any_of(at, at + width, [&](std::int32_t id) { return id < 0 || id >= vocabulary; })) {
      throw std::invalid_argument("[kernels] head loss: a token id lies outside the head");
    }
  }
}

/// The inputs of the op in one order, by name.
struct Inputs {
  explicit Inputs(const Arrays& in, bool with_bias) : in(in), bias(with_bias ? &in[3] : nullptr), rest(with_bias ? 4 : 3) {}
  const Arrays& in;
  const mx::array &hidden = in[0], &head = in[1], &mask = in[2];
  const mx::array* bias;
  std::size_t rest;  ///< from here on: what the student is held against
};

struct Settings {
  HeadLossArgs args;
  std::size_t kind;  ///< index of HeadLossCall::against
  bool bias, gradient, head_gradient;
};

/// The elementwise pass over one chunk, by kind; each call returns the row's loss and leaves its gradient in `s`.
class RowLoss {
 public:
  RowLoss(const Settings& settings, const Inputs& x) : settings_(settings), x_(x), v_(x.head.shape(0)) {}

  double row(std::int32_t token, float* s, float* t) const {
    const auto& args = settings_.args;
    const float factor = x_.mask.data<float>()[token] * args.multiplier / args.temperature;
    if (settings_.kind == 1) return top_k(token, s, factor);
    const float top = finish_logits(s, v_, args.multiplier, args.softcap, args.temperature);
    if (settings_.kind == 2) return target(token, s, top, factor);
    return kl(s, t, v_, top, finish_logits(t, v_, args.teacher_multiplier, args.teacher_softcap, args.temperature), factor);
  }

 private:
  double kl(float* s, const float* t, std::int64_t n, float top_s, float top_t, float factor) const {
    const auto row = kl_row(s, t, n, top_s, top_t);
    if (settings_.gradient) loss_gradient_row(s, t, n, row.student_lse, row.teacher_lse, factor, slope_cap());
    return row.kl;
  }
  double target(std::int32_t token, float* s, float top, float factor) const {
    const auto id = x_.in[x_.rest].data<std::int32_t>()[token];
    const double lse = log_sum_exp(s, v_, top), loss = lse - s[id];
    if (settings_.gradient) {
      const float tangent = slope_cap() == 0 ? 0 : s[id] / slope_cap();
      loss_gradient_row(s, nullptr, v_, lse, 0, factor, slope_cap());
      s[id] -= factor * (1 - tangent * tangent);
    }
    return loss;
  }
  double top_k(std::int32_t token, float* s, float factor) const {
    const auto &logits = x_.in[x_.rest], &ids = x_.in[x_.rest + 1];
    const std::int64_t k = ids.shape(1);
    const auto* id = ids.data<std::int32_t>() + token * k;
    std::vector<float> kept(k), teacher(k);
    for (std::int64_t i = 0; i < k; ++i) {
      kept[i] = s[id[i]];
      teacher[i] = logits.dtype() == mx::float32 ? logits.data<float>()[token * k + i] : float(logits.data<mx::bfloat16_t>()[token * k + i]);
    }
    const auto& args = settings_.args;
    const float top_s = finish_logits(kept.data(), k, args.multiplier, args.softcap, args.temperature);
    const float top_t = finish_logits(teacher.data(), k, 1, 0, args.temperature);
    const double loss = kl(kept.data(), teacher.data(), k, top_s, top_t, factor);
    if (settings_.gradient) {
      std::fill_n(s, v_, 0.0f);
      for (std::int64_t i = 0; i < k; ++i) s[id[i]] += kept[i];
    }
    return loss;
  }
  float slope_cap() const { return settings_.args.softcap / settings_.args.temperature; }

  const Settings& settings_;
  const Inputs& x_;
  std::int64_t v_;
};

void add_column_sums(const float* y, std::int64_t rows, std::int64_t columns, float* sums) {
  // Column stripes a thread: each sum has one owner and one order.
  parallel_for(columns, 1024, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t j = begin; j < end; ++j) sums[j] += y[r * columns + j];
    }
  });
}

/// Carries a chunk's logit gradient on. Outputs: loss, then hidden's gradient [T, H], head's [V, H], bias's [V], as asked for.
void carry_gradient(const Settings& settings, const Inputs& x, const Side& student, const std::vector<std::int32_t>& live, std::int64_t first,
                    std::int64_t count, const float* dlogits, Arrays& out) {
  const std::int64_t v = x.head.shape(0), h = x.head.shape(1);
  const bool all_live = live.size() == static_cast<std::size_t>(x.hidden.shape(0));
  auto* d_hidden = out[1].data<float>();
  const auto rows = all_live ? nullptr : std::make_unique_for_overwrite<float[]>(count * h);
  gemm(count, h, v, 1, {dlogits, mx::float32, v}, {x.head.data<char>(), x.head.dtype(), h}, 0, rows ? rows.get() : d_hidden + first * h, mx::float32,
       h);
  if (rows) {
    for (std::int64_t i = 0; i < count; ++i) std::copy_n(rows.get() + i * h, h, d_hidden + live[first + i] * h);
  }
  if (!settings.head_gradient) return;
  gemm(v, h, count, 1, {dlogits, mx::float32, v, true}, student.hidden.from(first), first == 0 ? 0.0f : 1.0f, out[2].data<float>(), mx::float32, h);
  if (settings.bias) add_column_sums(dlogits, count, v, out[3].data<float>());
}

void forward(const Settings& settings, const Arrays& in, Arrays& out) {
  const Inputs x(in, settings.bias);
  const auto& args = settings.args;
  const std::int64_t v = x.head.shape(0);
  const auto live = live_rows(x.mask);
  const auto tokens = static_cast<std::int64_t>(live.size());
  if (settings.kind != 0) require_ids(in[x.rest + (settings.kind == 1)], live, v);
  // Rows that no chunk writes: the dead ones of hidden; of head and bias all, should nothing be live.
  for (std::size_t i = 1; i < out.size(); ++i) {
    if (i != 2 || tokens == 0) std::fill_n(out[i].data<float>(), out[i].size(), 0.0f);
  }
  const Side student{Rows(x.hidden, live), x.head, x.bias, args.multiplier, args.softcap};
  std::optional<Side> teacher;
  if (settings.kind == 0) {
    const auto* bias = in.size() > x.rest + 2 ? &in[x.rest + 2] : nullptr;
    teacher.emplace(Side{Rows(in[x.rest], live), in[x.rest + 1], bias, args.teacher_multiplier, args.teacher_softcap});
  }
  const std::int64_t chunk = chunk_tokens(tokens, v, teacher ? 2 : 1, args);
  const auto s = std::make_unique_for_overwrite<float[]>(chunk * v), t = std::make_unique_for_overwrite<float[]>(teacher ? chunk * v : 0);
  std::vector<double> losses(tokens);
  const RowLoss loss(settings, x);
  for (std::int64_t first = 0; first < tokens; first += chunk) {
    const std::int64_t count = std::min(chunk, tokens - first);
    student.logits(first, count, s.get());
    if (teacher) teacher->logits(first, count, t.get());
    parallel_for(count, 1 + (1 << 14) / v, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) losses[first + i] = loss.row(live[first + i], s.get() + i * v, t.get() + (teacher ? i * v : 0));
    });
    if (settings.gradient) carry_gradient(settings, x, student, live, first, count, s.get(), out);
  }
  double total = 0;
  for (std::int64_t i = 0; i < tokens; ++i) total += losses[i] * x.mask.data<float>()[live[i]];
  out[0].data<float>()[0] = static_cast<float>(total);
}

/// gradient · cotangent (a scalar), in the dtype asked for.
mx::array scaled(const mx::array& gradient, const mx::array& cotangent, mx::Dtype dtype) {
  auto compute = [](const Arrays& in, Arrays& out) {
    const float* g = in[0].data<float>();
    const float factor = in[1].data<float>()[0];
    auto write = [&](auto* to) {
      using Value = std::remove_pointer_t<decltype(to)>;
      parallel_for(out[0].size(), 1 << 14, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) to[i] = static_cast<Value>(g[i] * factor);
      });
    };
    out[0].dtype() == mx::float32 ? write(out[0].data<float>()) : write(out[0].data<mx::bfloat16_t>());
  };
  return make_op("head_loss_gradient", {gradient, mx::astype(cotangent, mx::float32)}, {{gradient.shape(), dtype}}, compute)[0];
}

Arrays vjp(const Settings& settings, const Arrays& in, const Arrays& cotangents, const std::vector<int>& argnums, const Arrays& outputs) {
  Arrays gradients;
  for (int arg : argnums) {
    if (arg == 0) {
      gradients.push_back(scaled(outputs[1], cotangents[0], in[0].dtype()));
    } else if (arg == 1 || (arg == 3 && settings.bias)) {
      if (!settings.head_gradient) throw std::invalid_argument("[kernels] head loss: the head's gradient was declined (head_gradient = false)");
      gradients.push_back(scaled(outputs[arg == 1 ? 2 : 3], cotangents[0], mx::float32));
    } else {
      gradients.push_back(mx::zeros_like(in[arg]));
    }
  }
  return gradients;
}

/// The figures of one token, written to the op's four outputs; `t` is null without a teacher.
void score_row(const HeadLossArgs& args, std::int64_t v, std::int64_t token, std::int32_t target, float* s, float* t, Arrays& out) {
  float &nll = out[0].data<float>()[token], &teacher_nll = out[1].data<float>()[token], &kl = out[2].data<float>()[token],
        &agree = out[3].data<float>()[token];
  const float top = finish_logits(s, v, args.multiplier, args.softcap, args.temperature);
  if (!t) {
    nll = static_cast<float>(log_sum_exp(s, v, top) - s[target]);
    teacher_nll = kl = agree = 0;
    return;
  }
  const float teacher_top = finish_logits(t, v, args.teacher_multiplier, args.teacher_softcap, args.temperature);
  const auto row = kl_row(s, t, v, top, teacher_top);
  nll = static_cast<float>(row.student_lse - s[target]);
  teacher_nll = static_cast<float>(row.teacher_lse - t[target]);
  kl = static_cast<float>(row.kl);
  agree = std::find(s, s + v, top) - s == std::find(t, t + v, teacher_top) - t ? 1.0f : 0.0f;
}

/// Inputs as of the losses, with the targets in the mask's place.
void score(const HeadLossArgs& args, bool with_bias, bool with_teacher, const Arrays& in, Arrays& out) {
  const Inputs x(in, with_bias);
  const std::int64_t v = x.head.shape(0), tokens = x.hidden.shape(0);
  std::vector<std::int32_t> all(tokens);
  std::iota(all.begin(), all.end(), 0);
  require_ids(in[2], all, v);
  const Side student{Rows(x.hidden, all), x.head, x.bias, args.multiplier, args.softcap};
  std::optional<Side> teacher;
  if (with_teacher) {
    const auto* bias = in.size() > x.rest + 2 ? &in[x.rest + 2] : nullptr;
    teacher.emplace(Side{Rows(in[x.rest], all), in[x.rest + 1], bias, args.teacher_multiplier, args.teacher_softcap});
  }
  const std::int64_t chunk = chunk_tokens(tokens, v, teacher ? 2 : 1, args);
  const auto s = std::make_unique_for_overwrite<float[]>(chunk * v), t = std::make_unique_for_overwrite<float[]>(teacher ? chunk * v : 0);
  for (std::int64_t first = 0; first < tokens; first += chunk) {
    const std::int64_t count = std::min(chunk, tokens - first);
    student.logits(first, count, s.get());
    if (teacher) teacher->logits(first, count, t.get());
    parallel_for(count, 1 + (1 << 14) / v, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        score_row(args, v, first + i, in[2].data<std::int32_t>()[first + i], s.get() + i * v, teacher ? t.get() + i * v : nullptr, out);
      }
    });
  }
}

}  // namespace

mx::array head_loss(const HeadLossCall& call) {
  Arrays inputs{call.hidden, call.head, call.mask};
  if (call.bias) inputs.push_back(*call.bias);
  if (const auto* full = std::get_if<TeacherHidden>(&call.against)) {
    inputs.insert(inputs.end(), {full->hidden, full->head});
    if (full->bias) inputs.push_back(*full->bias);
  } else if (const auto* top = std::get_if<TeacherTopK>(&call.against)) {
    inputs.insert(inputs.end(), {top->logits, top->ids});
  } else {
    inputs.push_back(std::get<mx::array>(call.against));
  }
  const bool head_gradient = call.needs_gradient && call.head_gradient;
  const Settings settings{call.args, call.against.index(), call.bias.has_value(), call.needs_gradient, head_gradient};
  std::vector<Output> outputs{{{}, mx::float32}};
  if (call.needs_gradient) outputs.push_back({call.hidden.shape(), mx::float32});
  if (head_gradient) outputs.push_back({call.head.shape(), mx::float32});
  if (head_gradient && call.bias) outputs.push_back({call.bias->shape(), mx::float32});
  Vjp gradient;
  if (call.needs_gradient) {
    gradient = [settings](const Arrays& in, const Arrays& cotangents, const std::vector<int>& argnums, const Arrays& made) {
      return vjp(settings, in, cotangents, argnums, made);
    };
  }
  auto compute = [settings](const Arrays& in, Arrays& out) { forward(settings, in, out); };
  return make_op("head_loss", inputs, outputs, compute, gradient)[0];
}

TokenScores score_tokens(const mx::array& hidden, const mx::array& head, const std::optional<mx::array>& bias, const mx::array& targets,
                         const std::optional<TeacherHidden>& teacher, const HeadLossArgs& args) {
  Arrays inputs{hidden, head, targets};
  if (bias) inputs.push_back(*bias);
  if (teacher) {
    inputs.insert(inputs.end(), {teacher->hidden, teacher->head});
    if (teacher->bias) inputs.push_back(*teacher->bias);
  }
  auto compute = [args, with_bias = bias.has_value(), with_teacher = teacher.has_value()](const Arrays& in, Arrays& out) {
    score(args, with_bias, with_teacher, in, out);
  };
  const Output figure{{hidden.shape(0)}, mx::float32};
  auto out = make_op("score_tokens", inputs, {figure, figure, figure, figure}, compute);
  return {out[0], out[1], out[2], out[3]};
}

}  // namespace lquant::kernels::cpu
