// A plan is made from shapes before any tensor is read, so that a run can print what it will write and how large it gets.
#include "plan/plan.h"

#include <algorithm>
#include <tuple>

#include "base/error.h"
#include "base/json.h"
#include "base/shown.h"
#include "model/formats.h"

namespace lquant::plan {
namespace {

bool divides(const model::LinearSpec& linear, const codec::Format& format) { return linear.in % format.group_size == 0; }

nlohmann::json block_of(const codec::Format& format) {
  return {{"group_size", format.group_size}, {"bits", format.bits}, {"mode", codec::to_string(format.mode)}};
}

/// The format with what an entry of a plan says of it. Throws Error, naming `place`, when there is no such format.
codec::Format changed(codec::Format format, const JsonView& entry, const std::string& place) {
  const auto& keys = entry.value();
  if (keys.contains("mode")) {
    const auto name = entry.at("mode").text();
    const auto mode = with_place([&] { return place; }, [&] { return codec::parse_mode(name); });
    if (mode != format.mode) format = codec::default_format(mode);
  }
  // The ends of all modes; codec::check says which numbers each has.
  if (keys.contains("bits")) format.bits = static_cast<int>(entry.at("bits").whole(2, 8));
  if (keys.contains("group_size")) format.group_size = static_cast<int>(entry.at("group_size").whole(16, 128));
  with_place([&] { return place; }, [&] { codec::check(format); });
  return format;
}

/// Whether a path is the linear's, or one of those that outputs have in its place.
bool is_named(const model::ModelSpec& spec, const model::LinearSpec& linear, const std::string& path) {
  const auto* apart = model::paths_apart(spec.imports, linear.path);
  return linear.path == path || (apart && std::ranges::find(*apart, path) != apart->end());
}

}  // namespace

QuantPlan plan_by(const model::ModelSpec& spec, const codec::Format& base, const std::function<codec::Format(const model::LinearSpec&)>& wanted) {
  codec::check(base);
  QuantPlan plan;
  plan.base = base;
  for (const auto* linear : spec.linears()) {
    if (linear->must_stay_dense()) {
      plan.dense[linear->path] = linear->dense_why;
      continue;
    }
    const auto format = wanted(*linear);
    codec::check(format);
    if (divides(*linear, base) && divides(*linear, format))
      plan.formats[linear->path] = format;
    else
      plan.dense[linear->path] = fmt::format("its {} inputs are not a multiple of the group size {}", linear->in, base.group_size);
  }
  if (plan.formats.empty()) fail("plan", "no linear's width is a multiple of the group size {}; choose a smaller --group-size", base.group_size);
  return plan;
}

QuantPlan uniform_plan(const model::ModelSpec& spec, const codec::Format& format) {
  auto plan = plan_by(spec, format, [&](const auto& linear) { return linear.fixed_format.value_or(format); });
  for (const auto* linear : spec.linears()) {
    if (linear->dense_why.empty()) continue;
    plan.formats.erase(linear->path);
    plan.dense[linear->path] = linear->dense_why;
  }
  return plan;
}

QuantPlan fallback_plan(const model::ModelSpec& spec, const codec::Format& base, const codec::Format& fallback) {
  codec::check(base);
  codec::check(fallback);
  QuantPlan plan;
  plan.base = base;
  for (const auto* linear : spec.linears()) {
    if (!linear->dense_why.empty()) {
      plan.dense[linear->path] = linear->dense_why;
      continue;
    }
    const auto wanted = linear->role == model::Role::embed ? fallback : linear->fixed_format.value_or(base);
    if (divides(*linear, wanted))
      plan.formats[linear->path] = wanted;
    else if (divides(*linear, fallback))
      plan.formats[linear->path] = fallback;
    else
      plan.dense[linear->path] = fmt::format("its {} inputs are a multiple neither of the group size {} nor of the fallback's {}", linear->in,
                                             wanted.group_size, fallback.group_size);
  }
  if (plan.formats.empty()) fail("plan", "no linear's width is a multiple of the group size {}; choose a smaller --group-size", base.group_size);
  return plan;
}

void apply_overrides(QuantPlan& plan, const model::ModelSpec& spec, const nlohmann::json& overrides, const std::string& origin) {
  if (!overrides.is_object())
    fail("plan", "{}: a plan is a JSON object of paths and formats, such as {{\"model.layers.0.mlp.down_proj\": {{\"bits\": 8}}}}", origin);
  const JsonView entries("plan", origin, overrides, "mend the plan");
  std::map<std::string, nlohmann::json> of_linears;
  for (const auto& entry : overrides.items()) {
    const auto& name = entry.key();  // by name: a lambda may not hold part of a structured binding
    const auto& value = entry.value();
    if (name == "bits" || name == "group_size" || name == "mode") {  // of a whole quantization block
      if (value.is_structured()) entries.at(name).refuse("a number or a text");
      continue;
    }
    const auto linears = spec.linears();
    const auto it = std::find_if(linears.begin(), linears.end(), [&](const auto* linear) { return is_named(spec, *linear, entry.key()); });
    if (it == linears.end())
      fail("plan", "{}: names {}, and the model has no such linear; mend the path (such as {})", origin, shown(name), linears.back()->path);
    const auto& path = (*it)->path;
    if (const auto [said, is_new] = of_linears.emplace(path, value); !is_new && said->second != value)
      fail("plan", "{}: {}: matrices of one stack have one format; give all of {} the same", origin, shown(name), path);
    if (value.is_boolean() && !value.get<bool>()) {
      plan.formats.erase(path);
      plan.dense[path] = "the plan says so";
      continue;
    }
    const auto wanted = entries.at(name);
    if ((*it)->must_stay_dense()) fail("plan", "{}: {} must stay dense: {}", origin, path, (*it)->dense_why);
    if (!value.is_object()) wanted.refuse("an object with bits and group_size, or false");
    const auto format = changed(plan.formats.count(path) ? plan.formats.at(path) : plan.base, wanted, fmt::format("{}: {}", origin, path));
    if (!divides(**it, format))
      fail("plan", "{}: {}: its {} inputs are not a multiple of the plan's group size {}", origin, path, (*it)->in, format.group_size);
    plan.formats[path] = format;
    plan.dense.erase(path);
  }
}

QuantPlan plan_of(const model::ModelSpec& spec, const model::Formats& formats, const nlohmann::json& config) {
  QuantPlan plan;
  if (const auto common = model::common_format(config)) plan.base = *common;
  for (const auto* linear : spec.linears()) {
    if (const auto it = formats.find(linear->path); it != formats.end())
      plan.formats[linear->path] = it->second;
    else
      plan.dense[linear->path] = "dense in the checkpoint";
  }
  return plan;
}

nlohmann::json quantization_block(const model::ModelSpec& spec, const QuantPlan& plan, bool every_path) {
  auto block = block_of(plan.base);
  for (const auto* linear : spec.linears()) {
    const auto it = plan.formats.find(linear->path);
    const auto* apart = model::paths_apart(spec.imports, linear->path);
    const auto say = [&](const nlohmann::json& entry) {
      for (const auto& path : apart ? *apart : std::vector{linear->path}) block[path] = entry;
    };
    if (it == plan.formats.end()) {
      // mlx_lm decides by the presence of scales; naming the path keeps other readers from guessing. A router that must stay dense is no module of
      // its own there (a plain array), and has no entry.
      if (linear->role == model::Role::router && !linear->dense_why.empty()) continue;
      if (every_path || divides(*linear, plan.base)) say(false);
    } else if (every_path || plan.names_all || !(it->second == plan.base)) {
      say(block_of(it->second));
    }
  }
  return block;
}

std::vector<std::pair<codec::Format, int>> format_counts(const QuantPlan& plan) {
  std::vector<std::pair<codec::Format, int>> counts;
  for (const auto& [path, format] : plan.formats) {
    const auto found = std::find_if(counts.begin(), counts.end(), [&](const auto& entry) { return entry.first == format; });
    if (found == counts.end())
      counts.push_back({format, 1});
    else
      ++found->second;
  }
  // By their numbers, so that the order does not depend on which linear comes first.
  std::sort(counts.begin(), counts.end(), [](const auto& a, const auto& b) {
    const auto key = [](const auto& entry) { return std::tuple(-entry.second, entry.first.mode, entry.first.bits, entry.first.group_size); };
    return key(a) < key(b);
  });
  return counts;
}

std::int64_t linear_bytes(const model::LinearSpec& linear, const codec::Format& format, int scale_bytes) {
  const std::int64_t groups = linear.parameters() / format.group_size;
  const std::int64_t codes = linear.parameters() * format.bits / 8;
  return codes + groups * (format.mode == codec::Mode::affine ? 2 * scale_bytes : 1);
}

Size size_of(const model::ModelSpec& spec, const QuantPlan& plan, int dense_bytes) {
  Size size;
  const auto add_dense = [&](std::int64_t count) {
    size.parameters += count;
    size.bytes += count * dense_bytes;
  };
  for (const auto* linear : spec.linears()) {
    if (linear->bias) add_dense(std::int64_t{linear->out} * std::max(1, linear->experts));
    if (const auto it = plan.formats.find(linear->path); it != plan.formats.end()) {
      size.parameters += linear->parameters();
      size.bytes += linear_bytes(*linear, it->second, dense_bytes);
    } else {
      add_dense(linear->parameters());
    }
  }
  const auto add_norms = [&](const std::vector<const model::NormSpec*>& norms) {
    for (const auto* norm : norms) add_dense(norm->parameters());
  };
  for (const auto& block : spec.blocks) {
    const auto contents = block.contents();
    add_norms(contents.norms);
    for (const auto* parameter : contents.parameters) add_dense(parameter->parameters());
  }
  for (const auto* outer : {&spec.front, &spec.tail})
    if (*outer)
      for (const auto* parameter : (*outer)->parameters()) add_dense(parameter->parameters());
  add_norms(spec.outer_norms());
  return size;
}

}  // namespace lquant::plan
