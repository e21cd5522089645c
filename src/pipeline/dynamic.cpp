// What each format would cost is known before anything is quantized; the plan is the cheapest choice of formats that fits; the rest is a
// range search with that plan, and a judgement on rows that nothing was fitted to.
#include "pipeline/dynamic.h"
#include "pipeline/memory.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/error.h"
#include "base/figures.h"
#include "base/files.h"
#include "base/hash.h"
#include "base/json.h"
#include "evaluate/streamed.h"
#include "pipeline/block_run.h"
#include "pipeline/measured.h"
#include "pipeline/output.h"
#include "pipeline/sensitivity_files.h"
#include "pipeline/start.h"
#include "plan/threshold.h"
#include "quantize/sensitivity.h"
#include "run/run_folder.h"

namespace lquant::pipeline {
using json = nlohmann::json;
using Clock = std::chrono::steady_clock;

namespace {

// mlx_lm's default, which is half-way between its two widths: 4 and 5 bits with groups of 64 and 16-bit scales and biases are 4.5 and 5.5 per weight.
// With the scales of a float32 model the same formats have 5 and 6, of which 5.5 are half-way.
constexpr DefaultTarget kDefault{5, 0.5};
// Points of a curve: one each tenth of a bit and finer between 2 and 8 bits.
constexpr std::size_t kCurvePoints = 128;
// What is measured: coarse enough for single linears' divergence to stand out from the noise of bf16 activations, which flips of roundings anywhere
// bring (some 1e-4), and fine enough for second order to hold.
constexpr codec::Format kMeasured{codec::Mode::affine, 3, 64};

json show(const codec::Format& f) { return {{"bits", f.bits}, {"group_size", f.group_size}}; }

/// The formats that may be chosen.
std::vector<codec::Format> choices_of(const DynamicRun& o) {
  return o.widths.empty() ? std::vector<codec::Format>{o.low, o.high} : formats_of(o.widths, o.groups);
}

/// Those that sensitivities are found for: all there are, so that one measurement serves every later choice.
std::vector<codec::Format> judged_formats(const DynamicRun& o) {
  auto formats = affine_formats();
  for (const auto& f : choices_of(o))
    if (std::find(formats.begin(), formats.end(), f) == formats.end()) formats.push_back(f);
  return formats;
}

json options_of(const DynamicRun& o) {
  json options{{"rule", o.rule == Rule::exact ? "exact" : "threshold"},
               {"tie", o.tie},
               {"measure", o.measure},
               {"num_samples", o.rows.num_samples},
               {"seed", o.rows.seed},
               {"sequence_length", o.rows.sequence_length},
               {"sensitivity_tokens", o.sensitivity_tokens}};
  if (o.widths.empty())
    options.update({{"low", show(o.low)}, {"high", show(o.high)}});
  else
    options.update({{"widths", o.widths}, {"groups", o.groups}});
  record_budget(options, o.target, o.floors, o.ceilings);
  return options;
}

/// What the sensitivities depend on. What is decided by them is not part of it: an interrupted run goes on with another target.
json evidence_of(const DynamicRun& o) {
  json evidence{{"measure", o.measure},
                {"num_samples", o.rows.num_samples},
                {"seed", o.rows.seed},
                {"sequence_length", o.rows.sequence_length},
                {"sensitivity_tokens", o.sensitivity_tokens}};
  for (const auto& format : judged_formats(o)) evidence["formats"].push_back(show(format));
  return evidence;
}

/// A plan and what is thought of it.
struct Decision {
  plan::QuantPlan plan;
  plan::Size size;
  double predicted = 0, gap = 0;
};

// Bits are printed with three decimals: who gives back what was printed shall have it.
constexpr double kPrinted = 0.0005;
// Above what the formats can use by more than this, bits are taken for a slip.
constexpr double kSlip = 0.005;

plan::Allocation best(const DynamicRun& o, const plan::FormatChooser& chooser) {
  const auto& allocator = chooser.allocator();
  if (o.target.kl) return allocator.below(*o.target.kl);
  const auto budget = o.target.bytes ? chooser.budget_for_bytes(*o.target.bytes) : chooser.budget_for_bits(*o.target.bits + kPrinted);
  const auto exact = o.target.bytes ? budget : chooser.budget_for_bits(*o.target.bits);
  return allocator.within(exact >= allocator.least_bytes() ? exact : std::min(budget, allocator.least_bytes()));
}

void write_curve(const std::filesystem::path& file, const plan::FormatChooser& chooser) {
  auto points = json::array();
  for (const auto& a : chooser.allocator().curve(kCurvePoints))
    points.push_back({{"bits_per_weight", chooser.bits_per_weight(a.bytes)}, {"bytes", chooser.total_bytes(a.bytes)}, {"predicted_kl", a.loss}});
  write_file_atomically("pipeline", file, points.dump(1) + "\n");
}

Decision decide(const DynamicRun& o, const model::Model& model, const Sensitivities& s, const run::Context& context) {
  const auto& spec = model.spec();
  const int dense_bytes = static_cast<int>(mx::size_of(model.stored_dtype()));
  plan::ChooserOptions options{choices_of(o), o.tie, o.floors, o.ceilings};
  const auto cost = [&](const std::string& path, const codec::Format& f) {
    return s.of(path, f) * (o.followed ? 1 : quantize::beyond_second_order(f));
  };
  const plan::FormatChooser chooser(spec, options, cost, dense_bytes);
  const auto& allocator = chooser.allocator();
  context.line(fmt::format("with these widths the model has {:.3f} to {:.3f} bits per weight", chooser.bits_per_weight(allocator.least_bytes()),
                           chooser.bits_per_weight(allocator.most_bytes())));
  if (o.pareto) write_curve(*o.pareto, chooser);
  Decision d;
  if (o.rule == Rule::threshold) {
    d.plan = plan::threshold_plan(spec, o.low, o.high, as_mlx_lm(spec, s, o.low, o.high), *o.target.bits, dense_bytes);
    for (const auto& [path, format] : d.plan.formats)
      if (const double kl = cost(path, format); std::isfinite(kl)) d.predicted += kl;
  } else {
    const auto allocation = best(o, chooser);
    d.plan = chooser.plan(allocation);
    d.predicted = allocation.loss, d.gap = allocation.loss - allocation.bound;
  }
  d.size = plan::size_of(spec, d.plan, dense_bytes);
  return d;
}

/// "3 bits: 12 linears, 4 bits: 30 linears".
std::string histogram(const plan::QuantPlan& plan) {
  std::map<std::pair<int, int>, int> counts;
  for (const auto& [path, format] : plan.formats) ++counts[{format.bits, format.group_size}];
  std::string text;
  for (const auto& [format, count] : counts)
    text += fmt::format("{}{} at {} bits (groups of {})", text.empty() ? "" : ", ", count, format.first, format.second);
  return text;
}

const char* widths_of(const DynamicRun& o) { return o.widths.empty() ? "--low-bits and --high-bits" : "--widths"; }

/// The sizes that the formats to choose from give the model, by shapes alone: no cost is asked. Throws Error as plan::FormatChooser does.
class Reach {
 public:
  Reach(const DynamicRun& o, const model::ModelSpec& spec, int dense_bytes)
      : chooser_(spec, {choices_of(o), o.tie, o.floors, o.ceilings}, [](auto&&...) { return 0.0; }, dense_bytes), range_(chooser_.range()) {}
  double bits_of(std::int64_t bytes) const { return chooser_.whole_bits_per_weight(bytes); }
  double least() const { return bits_of(range_.least); }
  double most() const { return bits_of(range_.most); }
  double least_bytes() const { return static_cast<double>(range_.least); }
  double most_bytes() const { return static_cast<double>(range_.most); }
  bool is_below(double bits) const { return bits + kPrinted < least(); }
  bool is_above(double bits) const { return bits > most() + kSlip; }

 private:
  plan::FormatChooser chooser_;
  plan::FormatChooser::Range range_;
};

}  // namespace

Target target_or_default(const DynamicRun& o, const DefaultTarget& usual, const model::ModelSpec& spec, int dense_bytes,
                         const run::Context& context) {
  auto target = o.target;
  if (target.bits || target.bytes || target.kl) return target;
  const Reach reach(o, spec, dense_bytes);
  target.bits = usual.bits;
  if (reach.is_below(usual.bits) || reach.is_above(usual.bits)) {
    const double bits = reach.least() + usual.share * (reach.most() - reach.least());
    target.bits = std::round(1000 * bits) / 1000;  // as it is printed: who gives that gets the same
    context.line(
        fmt::format("the usual target of {} bits per weight is out of reach: with these {} the model has {:.3f} to {:.3f}; the target is {:.3f}",
                    usual.bits, widths_of(o), reach.least(), reach.most(), *target.bits));
  }
  return target;
}

void check_target(const DynamicRun& o, const model::ModelSpec& spec, int dense_bytes) {
  const Reach reach(o, spec, dense_bytes);
  if (o.target.kl) return;
  const double least = reach.least(), most = reach.most();
  const double bits = o.target.bytes ? reach.bits_of(*o.target.bytes) : *o.target.bits;
  if (o.target.bytes ? bits < least : reach.is_below(bits))
    fail("plan", "{} is too little: with these {} the model has {:.3f} to {:.3f} bits per weight ({} to {}); raise the target or lower the widths",
         o.target.bytes ? format_bytes(static_cast<double>(*o.target.bytes)) : fmt::format("a target of {} bits per weight", bits), widths_of(o),
         least, most, format_bytes(reach.least_bytes()), format_bytes(reach.most_bytes()));
  // More than everything can use is a slip when bits were named, and a wish granted when it was room on a disk.
  if (!o.target.bytes && reach.is_above(bits))
    fail("plan", "a target of {} bits per weight is out of reach: with these {} the model has {:.3f} to {:.3f}; lower the target or raise the widths",
         bits, widths_of(o), least, most);
}

void check_options(const DynamicRun& o) {
  if ((o.target.bits ? 1 : 0) + (o.target.bytes ? 1 : 0) + (o.target.kl ? 1 : 0) > 1)
    throw UsageError("--target-bpw, --target-size and --max-kl exclude each other; give one of them");
  if (o.rule == Rule::threshold && (!o.widths.empty() || o.target.bytes || o.target.kl || o.tie || !o.floors.empty() || !o.ceilings.empty()))
    throw UsageError("--rule threshold chooses between --low-bits and --high-bits by --target-bpw alone");
  for (const auto& format : choices_of(o)) codec::check(format);
  if (o.widths.empty() && codec::bits_per_weight(o.high) <= codec::bits_per_weight(o.low))
    throw UsageError(fmt::format("--high-bits {} --high-group-size {} is no more precise than --low-bits {} --low-group-size {}", o.high.bits,
                                 o.high.group_size, o.low.bits, o.low.group_size));
  if (!o.plan_only) check_output(o.output);
}

void record_budget(json& options, const Target& target, const std::vector<plan::Limit>& floors, const std::vector<plan::Limit>& ceilings) {
  for (const auto& [name, limits] : {std::pair("floors", &floors), std::pair("ceilings", &ceilings)})
    for (const auto& limit : *limits) options[name].push_back({limit.pattern, limit.bits});
  if (target.bytes)
    options["target_bytes"] = *target.bytes;
  else if (target.kl)
    options["max_kl"] = *target.kl;
  else
    options["target_bpw"] = *target.bits;
}

json DynamicResult::to_json() const {
  json out{{"bits_per_weight", bits_per_weight},      {"bytes", bytes},           {"predicted_kl", predicted_kl},
           {"predicted_gap", predicted_gap},          {"seconds", total_time},    {"tokens", tokens},
           {"sensitivity_seconds", sensitivity_time}, {"peak_memory", peak_use()}};
  if (kl) out.update({{"kl", *kl}, {"kl_se", or_null(*kl_se)}, {"perplexity", *perplexity}, {"teacher_perplexity", *teacher_perplexity}});
  return out;
}

DynamicResult dynamic_quant(const DynamicRun& given_run, const run::Context& context) {
  const auto began = Clock::now();
  check_options(given_run);
  const auto checkpoint = model::open_checkpoint(given_run.model);
  const auto model = model::Model::open(checkpoint);
  check_source(model, context);
  const int dense_bytes = static_cast<int>(mx::size_of(model.stored_dtype()));
  auto o = given_run;
  o.target = target_or_default(o, kDefault, model.spec(), dense_bytes, context);
  check_target(o, model.spec(), dense_bytes);
  if (!o.sensitivities && !o.sensitivities_name.empty()) check_sensitivity_files(o.sensitivities_name, model);
  const auto tokenizer = text::Tokenizer::open(checkpoint.files());
  const auto options = options_of(o);
  json identity{{"command", "dynamic_quant"},
                {"options", evidence_of(o)},
                {"model", checkpoint.fingerprint()},
                {"device", mx::default_device() == mx::Device::gpu ? "gpu" : "cpu"}};
  RowSource source(o.rows, tokenizer, model.spec());
  source.identify(identity);
  std::optional<Sensitivities> given;
  if (o.sensitivities) {
    given = read_sensitivities(*o.sensitivities, model, identity.value("data", json()), choices_of(o), o.low, o.high);
    identity["sensitivities"] = given->to_json();
    if (o.measure && given->measured) context.line("--measure changes nothing: the sensitivities that were given are measured ones");
  }
  run::RunFolder run(o.plan_only ? *o.plan_only : o.output, identity, o.fresh, context);
  const run::Stop::Heeding heeding(context.stop());
  const auto rows = source.read(model, run, context);
  const auto [held, used] = rows.hold_out();

  DynamicResult result;
  const auto start = Clock::now();
  auto s = given ? *given : compute_sensitivities(model, used.first(o.sensitivity_tokens), judged_formats(o), run, context);
  result.tokens = s.tokens;
  if (o.measure && !s.measured) s = measure_sensitivities(model, held, s, kMeasured, run, context);
  result.sensitivity_time = seconds_since(start);
  s.data = identity.value("data", rows.manifest);
  if (!given && !o.sensitivities_name.empty()) write_sensitivities(o.sensitivities_name, model.spec(), s, o.low, o.high, context);

  const auto decision = decide(o, model, s, context);
  result.bits_per_weight = decision.size.bits_per_weight(), result.bytes = decision.size.bytes;
  result.predicted_kl = decision.predicted, result.predicted_gap = decision.gap;
  context.line(fmt::format("{}: {:.3f} bits per weight, predicted KL {:.4f}{}", histogram(decision.plan), result.bits_per_weight, result.predicted_kl,
                           decision.gap > 0 ? fmt::format(" (at most {:.2g} above the best)", decision.gap) : ""));
  const auto plan_json = plan::quantization_block(model.spec(), decision.plan, true);
  if (o.plan_only) {
    write_file_atomically("pipeline", *o.plan_only, plan_json.dump(1) + "\n");
    run.remove();
    result.total_time = seconds_since(began);
    return result;
  }

  // Blocks that were packed for another plan, before the target was changed, are not this one's.
  const auto packed = "start-" + sha256(plan_json.dump()).substr(0, 8);
  const auto units = search_units(model, decision.plan, used.batches, run, context, packed);
  json quality{{"predicted_kl", result.predicted_kl}};
  ModelWriter writer(o.output, model);
  write_tensors(writer, run, units);
  writer.add_plan(plan_json);
  writer.finish(&decision.plan, model.stored_dtype(), {"dynamic_quant", options, rows.manifest, quality});
  run.remove();

  const auto student_files = checkpoint::Checkpoint::open(o.output);
  const auto teacher = evaluate::stream_answers(model, held.batches);
  const auto judged = evaluate::measure(evaluate::stream_answers(model::Model::open(student_files), held.batches), &teacher, held.batches);
  result.kl = judged.kl, result.kl_se = judged.kl_se, result.perplexity = judged.perplexity(),
  result.teacher_perplexity = judged.teacher_perplexity();
  result.total_time = seconds_since(began);
  context.line(fmt::format("KL on {} tokens held out {} (predicted {:.4f}); perplexity {:.3f} (original {:.3f})", judged.tokens,
                           plus_minus(judged.kl, judged.kl_se, 4), result.predicted_kl, judged.perplexity(), judged.teacher_perplexity()));
  return result;
}

}  // namespace lquant::pipeline
