// Most of a question's tokens are its context, and all its choices follow the same one: the context is computed once and the choices grow
// from it as branches. Since the linears do not care where a row's tokens belong, questions of any lengths share one row; only the
// attention looks at whose token is whose.
#include "evaluate/score.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <limits>

#include "kernels/head_loss.h"
#include "model/block.h"
#include "model/forward.h"
#include "model/op.h"

namespace lquant::evaluate {
namespace {

constexpr std::size_t kMostBranches = (std::size_t{1} << model::Branches::kBits) - 1;
constexpr std::size_t kMostQuestions = std::size_t{1} << (30 - model::Branches::kBits);

std::size_t inputs(const Sequence& s) { return s.tokens.empty() ? 0 : s.tokens.size() - 1; }

/// Tokens that all choices begin with, as far as they are inputs.
std::size_t common(const Encoded& question) {
  const Sequence* first = nullptr;
  std::size_t length = 0;
  for (const auto& s : question.sequences) {
    if (s.tokens.empty()) continue;
    if (!first) {
      first = &s, length = inputs(s);
      continue;
    }
    length = std::min(length, inputs(s));
    length = static_cast<std::size_t>(
        std::mismatch(s.tokens.begin(), s.tokens.begin() + static_cast<std::ptrdiff_t>(length), first->tokens.begin()).first - s.tokens.begin());
  }
  return length;
}

std::size_t longest(const Encoded& question) {
  std::size_t most = 0;
  for (const auto& s : question.sequences) most = std::max(most, inputs(s));
  return most;
}

/// The row and what is asked of it.
struct Row {
  std::vector<std::int32_t> ids, segments, positions;
  std::vector<std::int32_t> at, targets;                   ///< of each scored token: the place that predicts it, and its id
  std::vector<std::pair<std::size_t, std::size_t>> owner;  ///< of each scored token: question and choice
  int longest = 0;

  void feed(const std::vector<std::int32_t>& tokens, std::size_t begin, std::size_t end, std::int32_t segment) {
    for (std::size_t i = begin; i < end; ++i) {
      ids.push_back(tokens[i]);
      segments.push_back(segment);
      positions.push_back(static_cast<std::int32_t>(i));
    }
  }
  void add(const Encoded& question, std::size_t number) {
    const std::size_t shared = common(question), trunk = ids.size();
    const auto segment = static_cast<std::int32_t>(number << model::Branches::kBits);
    bool fed = false;
    for (std::size_t c = 0; c < question.sequences.size(); ++c) {
      const auto& s = question.sequences[c];
      if (s.tokens.empty()) continue;
      if (!fed) feed(s.tokens, 0, shared, segment), fed = true;
      const std::size_t branch = ids.size();
      feed(s.tokens, shared, inputs(s), segment + 1 + static_cast<std::int32_t>(c));
      for (std::size_t t = s.scored; t < s.tokens.size(); ++t) {
        const std::size_t before = t - 1;
        at.push_back(static_cast<std::int32_t>(before < shared ? trunk + before : branch + before - shared));
        targets.push_back(s.tokens[t]);
        owner.push_back({number, c});
      }
    }
    longest = std::max(longest, static_cast<int>(evaluate::longest(question)));
  }
};

mx::array ints(const std::vector<std::int32_t>& values, mx::Shape shape) { return mx::array(values.data(), std::move(shape), mx::int32); }

/// Final hidden states [M, H] at the places `at`, int32 [M]. Behind the last block's attention no token looks at another, so there only these
/// places go on: of most questions a small part, and of the last block nearly all products.
mx::array hidden_at(const LoadedModel& m, const mx::array& ids, const mx::array& at, const model::Context& context) {
  auto x = model::embed(m.spec, m.tensors, m.formats, ids, m.dtype, context);
  auto before = m.spec.visits();
  const auto last = before.back();
  before.pop_back();
  for (const auto& visit : before) x = model::block(m.spec, visit, m.tensors, m.formats, x, context);
  const auto& block = m.spec.blocks[last.block];
  const int mixed = model::mixed_by(block), stages = model::stages(block);
  model::Halted halted{x};
  for (int stage = 0; stage <= std::min(mixed, stages - 1); ++stage)
    halted = model::advance(m.spec, last, stage, m.tensors, m.formats, halted, context);
  const bool narrowed = model::narrow(halted, at);
  for (int stage = mixed + 1; stage < stages; ++stage)
    halted = model::advance(m.spec, last, stage, m.tensors, m.formats, halted, narrowed ? model::Context{} : context);
  x = model::leave(m.spec, last, m.tensors, m.formats, halted);
  const auto hidden = model::final_norm(m.spec, m.tensors, narrowed ? x : mx::take(x, at, 1), m.formats);
  return mx::reshape(hidden, {static_cast<int>(at.size()), hidden.shape(-1)});
}

/// −log p of each scored token.
mx::array negative_logs(const LoadedModel& m, const model::Head& head, const Row& row, bool alone) {
  const int length = static_cast<int>(row.ids.size()), count = static_cast<int>(row.at.size());
  model::Context context;
  if (!alone) {
    context.segments = ints(row.segments, {1, length});
    context.branches = model::Branches{ints(row.positions, {1, length}), row.longest};
  }
  const auto asked = hidden_at(m, ints(row.ids, {1, length}), ints(row.at, {count}), context);
  kernels::HeadLossArgs args;
  args.softcap = head.softcap;
  args.multiplier = head.multiplier;
  auto scores = kernels::score_tokens(asked, head.weight, head.bias, ints(row.targets, {count}), std::nullopt, args).nll;
  scores.eval();
  return scores;
}

void run(const LoadedModel& model, const model::Head& head, const Row& row, bool alone, std::vector<Likelihoods>& result) {
  if (row.at.empty()) return;
  const auto negative = negative_logs(model, head, row, alone);
  for (std::size_t i = 0; i < row.owner.size(); ++i) result[row.owner[i].first][row.owner[i].second] -= negative.data<float>()[i];
}

/// Tokens of the longest sequence whose beginning can be shared: the smallest window, or none at all where some op cannot go on from a text computed
/// once.
int longest_shared(const model::ModelSpec& spec) {
  int longest = std::numeric_limits<int>::max();
  for (const auto& block : spec.blocks)
    for (const auto& step : block.steps)
      for (const auto& branch : step.branches) {
        const auto traits = branch.op->traits();
        if (!traits.branches) return 0;
        if (traits.window > 0) longest = std::min(longest, traits.window);
      }
  return longest;
}

}  // namespace

std::size_t cost(const Encoded& question) {
  const std::size_t shared = common(question);
  std::size_t tokens = shared;
  for (const auto& s : question.sequences)
    if (!s.tokens.empty()) tokens += inputs(s) - shared;
  return tokens;
}

std::vector<std::pair<std::size_t, std::size_t>> batches(std::span<const Encoded> questions, std::size_t budget) {
  std::vector<std::pair<std::size_t, std::size_t>> result;
  std::size_t begin = 0, tokens = 0;
  for (std::size_t i = 0; i < questions.size(); ++i) {
    const std::size_t its = cost(questions[i]);
    if (i > begin && (tokens + its > budget || i - begin >= kMostQuestions)) {
      result.push_back({begin, i});
      begin = i, tokens = 0;
    }
    tokens += its;
  }
  if (begin < questions.size()) result.push_back({begin, questions.size()});
  return result;
}

std::vector<Likelihoods> score(const LoadedModel& model, const model::Head& head, std::span<const Encoded> questions) {
  std::vector<Likelihoods> result;
  Row packed;
  const auto shared = static_cast<std::size_t>(longest_shared(model.spec));
  for (const auto& question : questions) {
    Likelihoods none;
    for (const auto& s : question.sequences) none.push_back(s.tokens.empty() ? -std::numeric_limits<double>::infinity() : 0);
    result.push_back(std::move(none));
    const std::size_t number = result.size() - 1;
    if (longest(question) <= shared && question.sequences.size() <= kMostBranches) {
      packed.add(question, number);
      continue;
    }
    for (std::size_t c = 0; c < question.sequences.size(); ++c) {
      Encoded single{std::vector<Sequence>(question.sequences.size()), false};
      single.sequences[c] = question.sequences[c];
      Row row;
      row.add(single, number);
      run(model, head, row, /*alone=*/true, result);
    }
  }
  run(model, head, packed, /*alone=*/false, result);
  return result;
}

}  // namespace lquant::evaluate
