#include "plan/choose.h"

#include <fnmatch.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "base/error.h"

namespace lquant::plan {
namespace {

bool matches(const Limit& limit, const std::string& path) { return fnmatch(limit.pattern.c_str(), path.c_str(), 0) == 0; }

void check_limits(const model::ModelSpec& spec, const std::vector<Limit>& limits, const char* flag) {
  for (const auto& limit : limits) {
    const auto linears = spec.linears();
    if (std::none_of(linears.begin(), linears.end(), [&](const auto* linear) { return matches(limit, linear->path); }))
      fail("plan", "{} {}={}: no linear of the model has such a path; mend the pattern (a path is {})", flag, limit.pattern, limit.bits,
           linears.back()->path);
  }
}

bool allowed(const ChooserOptions& o, const std::string& path, const codec::Format& format) {
  return std::all_of(o.floors.begin(), o.floors.end(), [&](const auto& f) { return !matches(f, path) || format.bits >= f.bits; }) &&
         std::all_of(o.ceilings.begin(), o.ceilings.end(), [&](const auto& c) { return !matches(c, path) || format.bits <= c.bits; });
}

}  // namespace

FormatChooser::FormatChooser(const model::ModelSpec& spec, const ChooserOptions& o,
                             const std::function<double(const std::string&, const codec::Format&)>& cost, int dense_bytes) {
  check_limits(spec, o.floors, "--floor");
  check_limits(spec, o.ceilings, "--ceiling");
  fixed_.base = *std::min_element(o.formats.begin(), o.formats.end(), [](const auto& a, const auto& b) {
    return std::pair(codec::bits_per_weight(a), a.group_size) < std::pair(codec::bits_per_weight(b), b.group_size);
  });
  std::map<std::string, std::vector<const model::LinearSpec*>> groups;
  std::vector<std::string> order;
  // Linears that read one input do one thing in several parts: they are tied.
  std::map<std::string, std::string> first_of;
  for (const auto& tied : spec.shared_inputs())
    for (const auto* linear : tied) first_of[linear->path] = tied.front()->path;
  for (const auto* linear : spec.linears()) {
    if (!linear->dense_why.empty()) {
      fixed_.dense[linear->path] = linear->dense_why;
      continue;
    }
    if (linear->fixed_format && !linear->only_advised) {
      if (linear->in % linear->fixed_format->group_size == 0)
        fixed_.formats[linear->path] = *linear->fixed_format;
      else
        fixed_.dense[linear->path] =
            fmt::format("its {} inputs are not a multiple of the group size {}", linear->in, linear->fixed_format->group_size);
      continue;
    }
    if (linear->only_chooses) {
      // No gradient tells what it needs, and by its gradient it would get the fewest bits.
      const int group = fixed_.base.group_size;
      if (linear->in % group == 0)
        fixed_.formats[linear->path] = {codec::Mode::affine, 8, group};
      else
        fixed_.dense[linear->path] = fmt::format("its {} inputs are not a multiple of the group size {}", linear->in, group);
      continue;
    }
    if (std::none_of(o.formats.begin(), o.formats.end(), [&](const auto& f) { return linear->in % f.group_size == 0; })) {
      fixed_.dense[linear->path] = fmt::format("its {} inputs are a multiple of no group size", linear->in);
      continue;
    }
    const auto key = o.tie ? first_of.at(linear->path) : linear->path;
    auto& group = groups[key];
    if (group.empty()) order.push_back(key);
    group.push_back(linear);
  }

  std::vector<Item> items;
  for (const auto& key : order) {
    Item item{key, {}};
    Tied tied;
    for (const auto* linear : groups.at(key)) tied.paths.push_back(linear->path);
    for (const auto& format : o.formats) {
      Choice choice;
      bool possible = true;
      for (const auto* linear : groups.at(key)) {
        possible = possible && linear->in % format.group_size == 0 && allowed(o, linear->path, format);
        if (!possible) break;
        choice.bytes += linear_bytes(*linear, format, dense_bytes);
        choice.loss += cost(linear->path, format);
      }
      if (!possible) continue;
      item.choices.push_back(choice);
      tied.formats.push_back(format);
    }
    if (item.choices.empty()) fail("plan", "{}: --floor and --ceiling leave it no format; loosen one of them", groups.at(key).front()->path);
    items.push_back(std::move(item));
    items_.push_back(std::move(tied));
  }
  if (items.empty()) fail("plan", "no linear's width is a multiple of a group size; choose smaller groups");

  // All that is not chosen, by the size of a plan in which everything else is.
  auto any = fixed_;
  std::int64_t chosen = 0;
  for (std::size_t i = 0; i < items_.size(); ++i) {
    for (const auto& path : items_[i].paths) any.formats[path] = items_[i].formats.front();
    chosen += items[i].choices.front().bytes;
  }
  const auto size = size_of(spec, any, dense_bytes);
  parameters_ = size.parameters;
  fixed_bytes_ = size.bytes - chosen;
  choices_ = std::move(items);
}

const Allocator& FormatChooser::allocator() const {
  if (!allocator_) allocator_.emplace(choices_);
  return *allocator_;
}

FormatChooser::Range FormatChooser::range() const {
  Range range{fixed_bytes_, fixed_bytes_};
  for (const auto& item : choices_) {
    const auto smaller = [](const Choice& a, const Choice& b) { return a.bytes < b.bytes; };
    const auto [least, most] = std::minmax_element(item.choices.begin(), item.choices.end(), smaller);
    range.least += least->bytes;
    range.most += most->bytes;
  }
  return range;
}

QuantPlan FormatChooser::plan(const Allocation& allocation) const {
  auto plan = fixed_;
  for (std::size_t i = 0; i < items_.size(); ++i)
    for (const auto& path : items_[i].paths) plan.formats[path] = items_[i].formats[allocation.chosen[i]];
  return plan;
}

double FormatChooser::bits_per_weight(std::int64_t allocated_bytes) const { return whole_bits_per_weight(total_bytes(allocated_bytes)); }

std::int64_t FormatChooser::budget_for_bits(double bits) const {
  // To the nearest byte: bits that came from bytes give these bytes back.
  return std::llround(bits * static_cast<double>(parameters_) / 8) - fixed_bytes_;
}

}  // namespace lquant::plan
