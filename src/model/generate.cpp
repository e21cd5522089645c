// Decoding. All rows stand at the same position: while a longer prompt still has tokens of its own, its row is fed those, and
// shorter ones are already fed what they sampled. So unequal prompts need neither padding nor masks. Drawing is done here,
// on the host, in double: filters are prefix cuts of the tokens in descending order, which a heap yields only as far as needed.
#include "model/generate.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "base/error.h"
#include "kernels/parallel.h"

namespace lquant::model {
namespace {

/// A thread is worth waking for some milliseconds of work: about this many exponentials.
constexpr int kTokensPerThread = 1 << 20;

struct Row {
  int index;  ///< among the prompts
  std::mt19937_64 random;
  std::vector<int> made;
  bool done = false;
};

/// The generator's words are fixed by the C++ standard, its distributions are not: 53 bits of a word make the double.
double uniform(std::mt19937_64& random) { return static_cast<double>(random() >> 11) * 0x1p-53; }

std::mt19937_64 generator(std::uint64_t seed, int row) {
  std::seed_seq words{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32), static_cast<std::uint32_t>(row)};
  return std::mt19937_64(words);
}

/// The tokens that the filters keep, each with its logit.
std::vector<int> kept_tokens(const float* logits, int vocab, const SampleOptions& options, float top) {
  std::vector<int> tokens;
  const float floor = options.min_p > 0 ? top + std::log(options.min_p) : -std::numeric_limits<float>::infinity();
  for (int t = 0; t < vocab; ++t)
    if (logits[t] >= floor) tokens.push_back(t);
  const bool nucleus = options.top_p > 0 && options.top_p < 1;
  const std::size_t most = options.top_k > 0 ? options.top_k : vocab;
  if (!nucleus && most >= tokens.size()) return tokens;

  double mass = std::numeric_limits<double>::infinity();
  if (nucleus) {
    mass = 0;
    for (int t = 0; t < vocab; ++t) mass += std::exp(double(logits[t]) - top);
    mass *= options.top_p;
  }
  const auto below = [&](int a, int b) { return logits[a] != logits[b] ? logits[a] < logits[b] : a > b; };
  std::make_heap(tokens.begin(), tokens.end(), below);
  std::vector<int> kept;
  double above = 0;  // a token stays while those above it hold less than top_p of the mass
  for (auto end = tokens.end(); end != tokens.begin() && kept.size() < most && above < mass; --end) {
    std::pop_heap(tokens.begin(), end, below);
    kept.push_back(*(end - 1));
    above += std::exp(double(logits[kept.back()]) - top);
  }
  return kept;
}

/// Token fed to a row at a position: its prompt's, then what it made.
int token_at(const std::vector<int>& prompt, const Row& row, int position) {
  const int length = static_cast<int>(prompt.size());
  return position < length ? prompt[position] : row.made[position - length];
}

void check(const ModelSpec& spec, const std::vector<std::vector<int>>& prompts, const SampleOptions& options) {
  for (const auto& prompt : prompts) {
    if (prompt.empty()) fail("model", "the prompt holds no token; give at least one character, or a tokenizer that adds a first token");
    for (const int id : prompt)
      if (id < 0 || id >= spec.vocab)
        fail("model", "token {} of the prompt is outside the model's vocabulary of {}; tokenizer and model do not belong together", id, spec.vocab);
  }
  if (const int positions = spec.positions(); positions > 0)
    for (const auto& prompt : prompts)
      if (prompt.size() + static_cast<std::size_t>(std::max(0, options.max_tokens)) > static_cast<std::size_t>(positions))
        fail(
            "model",
            "a prompt of {} tokens and {} to generate are more than the {} positions that the model knows; give a shorter prompt, or --max-tokens {}",
            prompt.size(), options.max_tokens, positions, std::max<std::int64_t>(1, positions - static_cast<std::int64_t>(prompt.size())));
  if (options.temperature < 0 || options.top_p < 0 || options.top_p > 1 || options.min_p < 0 || options.min_p > 1 || options.top_k < 0)
    fail("model", "sampling needs temperature >= 0, top-p and min-p between 0 and 1, and top-k >= 0");
}

/// Logits of the last position, one host row a batch row.
mx::array last_logits(const ModelSpec& spec, const Tensors& tensors, const Formats& formats, const Head& head, const mx::array& hidden) {
  const int batch = hidden.shape(0), length = hidden.shape(1);
  const auto last = mx::reshape(mx::slice(hidden, {0, length - 1, 0}, {batch, length, spec.hidden}), {batch, spec.hidden});
  auto rows = mx::contiguous(mx::astype(logits(head, last), mx::float32));
  rows.eval();
  return rows;
}

/// Gives a row its token (−1: it is still reading its prompt) and finds out whether it goes on.
void take(Row& row, int token, const SampleOptions& options, const TokenCallback& callback, std::vector<std::vector<int>>& results) {
  if (row.done) {
    row.made.push_back(0);  // fed anything until the batch is thinned
    return;
  }
  if (token < 0) return;
  row.made.push_back(token);
  const bool stop = std::count(options.stop.begin(), options.stop.end(), token) > 0;
  const bool more = !callback || callback(row.index, token);
  row.done = stop || !more || static_cast<int>(row.made.size()) >= options.max_tokens;
  if (row.done) results[row.index] = row.made;
}

/// Drops finished rows once they are half of the batch: moving the cache costs about as much as a step of decoding.
void thin(std::vector<Row>& rows, Cache& cache) {
  std::vector<std::int32_t> staying;
  for (std::size_t r = 0; r < rows.size(); ++r)
    if (!rows[r].done) staying.push_back(static_cast<std::int32_t>(r));
  if (2 * staying.size() > rows.size()) return;
  if (!staying.empty()) cache.select(mx::array(staying.data(), {static_cast<int>(staying.size())}, mx::int32));
  rows.erase(std::remove_if(rows.begin(), rows.end(), [](const Row& row) { return row.done; }), rows.end());
}

}  // namespace

int sample_token(const float* logits, int vocab, const SampleOptions& options, double uniform) {
  const int best = static_cast<int>(std::max_element(logits, logits + vocab) - logits);
  if (options.temperature == 0) return best;
  const auto tokens = kept_tokens(logits, vocab, options, logits[best]);
  if (tokens.empty()) return best;  // logits that are not numbers
  std::vector<double> upto(tokens.size());
  double total = 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) upto[i] = total += std::exp((double(logits[tokens[i]]) - logits[best]) / options.temperature);
  const auto at = std::upper_bound(upto.begin(), upto.end(), uniform * total) - upto.begin();
  return tokens[std::min<std::size_t>(at, tokens.size() - 1)];
}

std::vector<std::vector<int>> sample(const ModelSpec& spec, const Tensors& tensors, const Formats& formats, mx::Dtype dtype,
                                     const std::vector<std::vector<int>>& prompts, const SampleOptions& options, const TokenCallback& callback) {
  check(spec, prompts, options);
  std::vector<std::vector<int>> results(prompts.size());
  if (prompts.empty() || options.max_tokens <= 0) return results;

  std::vector<Row> rows;
  std::size_t shortest = prompts[0].size();
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    rows.push_back({static_cast<int>(i), generator(options.seed, static_cast<int>(i)), {}});
    shortest = std::min(shortest, prompts[i].size());
  }
  Cache cache(static_cast<int>(spec.visits().size()));
  Context context;
  context.cache = &cache;
  const Head output = head(spec, tensors, formats, dtype);

  while (!rows.empty()) {
    const int start = cache.length(), batch = static_cast<int>(rows.size());
    const int count = std::clamp(static_cast<int>(shortest) - start, 1, std::max(1, options.prefill_step)), end = start + count;
    std::vector<std::int32_t> fed;
    for (const auto& row : rows)
      for (int position = start; position < end; ++position) fed.push_back(token_at(prompts[row.index], row, position));
    const auto hidden = hidden_states(spec, tensors, formats, mx::array(fed.data(), {batch, count}, mx::int32), dtype, context);
    if (end < static_cast<int>(shortest)) {
      mx::eval(cache.arrays());
      continue;
    }
    const auto scores = last_logits(spec, tensors, formats, output, hidden);
    const float* values = scores.data<float>();
    std::vector<int> drawn(batch, -1);
    kernels::parallel_for(batch, std::max(1, kTokensPerThread / spec.vocab), [&](std::int64_t first, std::int64_t last) {
      for (auto r = first; r < last; ++r)
        if (!rows[r].done && static_cast<int>(prompts[rows[r].index].size()) <= end)
          drawn[r] = sample_token(values + r * spec.vocab, spec.vocab, options, uniform(rows[r].random));
    });

    for (int r = 0; r < batch; ++r) take(rows[r], drawn[r], options, callback, results);
    thin(rows, cache);
  }
  return results;
}

}  // namespace lquant::model
