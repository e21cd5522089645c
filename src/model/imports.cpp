// A row names what a checkpoint calls a tensor and what has to be done to it. Shapes go through the same changes as values, so that a wrong file is
// refused from its headers alone.
#include "model/imports.h"

#include <fnmatch.h>
#include <mlx/mlx.h>

#include <algorithm>

namespace lquant::model {
namespace {

using Kind = Change::Kind;

/// The axis from the front; −1 when there is none such.
int axis_of(int axis, std::size_t dims) {
  const int n = static_cast<int>(dims), from_front = axis < 0 ? axis + n : axis;
  return from_front >= 0 && from_front < n ? from_front : -1;
}

/// The checkpoint's own name for `name`: itself, or under a prefix that some checkpoints have.
std::optional<std::string> located(const Imports& imports, const std::string& name, const std::function<bool(const std::string&)>& has) {
  if (has(name)) return name;
  for (const auto& rename : imports.renames) {
    if (!name.starts_with(rename.ours)) continue;
    auto other = rename.theirs + name.substr(rename.ours.size());
    if (has(other)) return other;
  }
  return std::nullopt;
}

std::size_t entries(const mx::Shape& shape) {
  std::size_t n = 1;
  for (const auto length : shape) n *= length;
  return n;
}

std::optional<mx::Shape> shape_after(const Change& change, mx::Shape shape) {
  const int axis = axis_of(change.axis, shape.size());
  switch (change.kind) {
    case Kind::transpose:
      if (shape.size() < 2) return std::nullopt;
      std::swap(shape[shape.size() - 1], shape[shape.size() - 2]);
      return shape;
    case Kind::squeeze:
      shape.erase(std::remove(shape.begin(), shape.end(), 1), shape.end());
      return shape;
    case Kind::entry:
      if (axis < 0 || change.first < 0 || change.first >= shape[axis]) return std::nullopt;
      shape.erase(shape.begin() + axis);
      return shape;
    case Kind::slice:
      if (axis < 0 || change.first < 0 || shape[axis] < change.first + (change.count - 1) * change.stride + 1) return std::nullopt;
      shape[axis] = change.count;
      return shape;
    case Kind::multiply: {
      int rows = 0;
      for (const auto& [count, factor] : change.parts) rows += count;
      if (!change.parts.empty() && (shape.empty() || shape[0] != rows)) return std::nullopt;
      return shape;
    }
    case Kind::flatten:
      return mx::Shape{static_cast<int>(entries(shape))};
    case Kind::reshape:
      if (entries(shape) != entries(change.shape)) return std::nullopt;
      return change.shape;
    case Kind::interleave:
      if (shape.empty() || shape[0] < change.first || change.first % change.count != 0 || change.count % 2 != 0) return std::nullopt;
      return shape;
    case Kind::unit_rows:
    case Kind::unit_columns:
      if (shape.size() < 2) return std::nullopt;
      return shape;
    default:
      return shape;
  }
}

mx::array interleaved(const mx::array& x, int rows, int head) {
  const auto at = mx::Shape{rows};
  auto turned = mx::unflatten(mx::split(x, at, 0)[0], 0, {rows / head, 2, head / 2});
  turned = mx::flatten(mx::swapaxes(turned, 1, 2), 0, 2);
  return rows == x.shape(0) ? turned : mx::concatenate({turned, mx::split(x, at, 0)[1]}, 0);
}

mx::array value_after(const Change& change, const mx::array& x) {
  switch (change.kind) {
    case Kind::transpose:
      return mx::swapaxes(x, -1, -2);
    case Kind::squeeze:
      return mx::squeeze(x);
    case Kind::entry:
      return mx::take(x, change.first, axis_of(change.axis, x.ndim()));
    case Kind::slice: {
      auto start = mx::Shape(x.ndim(), 0), stop = x.shape();
      const int axis = axis_of(change.axis, x.ndim());
      start[axis] = change.first;
      stop[axis] = change.first + (change.count - 1) * change.stride + 1;
      auto strides = mx::Shape(x.ndim(), 1);
      strides[axis] = change.stride;
      return mx::slice(x, start, stop, strides);
    }
    case Kind::flatten:
      return mx::flatten(x);
    case Kind::reshape:
      return mx::reshape(x, change.shape);
    case Kind::add_one:
      return mx::add(x, mx::array(1.0f, x.dtype()));
    case Kind::add_one_bf16:
      return mx::astype(mx::add(mx::array(1.0f), mx::astype(x, mx::float32)), mx::bfloat16);
    case Kind::interleave:
      return interleaved(x, change.first, change.count);
    case Kind::gate_beta:
    case Kind::gate_alpha: {
      const auto w = mx::divide(mx::astype(x, mx::float32), mx::array(change.factor));
      const auto beta = mx::sigmoid(w);
      if (change.kind == Kind::gate_beta) return beta;
      const auto square = mx::multiply(mx::sigmoid(mx::negative(w)), mx::add(mx::array(1.0f), beta));
      return mx::sqrt(mx::maximum(square, mx::array(change.floor)));
    }
    case Kind::multiply: {
      auto factor = mx::array(change.factor, x.dtype());
      if (change.parts.empty()) return mx::multiply(x, factor);
      std::vector<mx::array> rows;
      for (const auto& [count, own] : change.parts) rows.push_back(mx::full({count}, own, x.dtype()));
      auto column = mx::Shape(x.ndim(), 1);
      column[0] = x.shape(0);
      return mx::multiply(x, mx::reshape(mx::multiply(factor, mx::concatenate(rows)), column));
    }
    case Kind::unit_rows:
    case Kind::unit_columns: {
      const auto wide = mx::astype(x, mx::float32);
      const auto length = mx::sqrt(mx::sum(mx::square(wide), change.kind == Kind::unit_rows ? -1 : -2, /*keepdims=*/true));
      return mx::astype(mx::divide(wide, mx::add(length, mx::array(1e-7f))), x.dtype());
    }
    default:
      return x;
  }
}

}  // namespace

bool fits(const std::string& pattern, const std::string& name) { return ::fnmatch(pattern.c_str(), name.c_str(), FNM_NOESCAPE) == 0; }

bool Kept::fits(const std::string& name) const { return model::fits(pattern, name); }

std::string Kept::written(const std::string& name) const { return name.starts_with(from) ? to + name.substr(from.size()) : name; }

const std::vector<std::string>* paths_apart(const Imports& imports, const std::string& path) {
  const auto row = std::ranges::find_if(imports.rows, [&](const auto& r) { return r.apart && r.target == path; });
  return row == imports.rows.end() ? nullptr : &row->sources;
}

std::vector<std::string> our_names(const Imports& imports, const std::string& name) {
  std::vector<std::string> names = {name};
  for (const auto& rename : imports.renames)
    if (name.starts_with(rename.theirs)) names.push_back(rename.ours + name.substr(rename.theirs.size()));
  return names;
}

void settle_form(Imports& imports, const std::function<std::optional<mx::Shape>(const std::string&)>& shape_of) {
  const auto has = [&](const std::string& name) { return shape_of(name).has_value(); };
  std::erase_if(imports.rows, [&](const Import& row) {
    if (!row.where) return false;
    const auto name = located(imports, row.where->tensor, has);
    if (!name) return true;
    const auto shape = *shape_of(*name);
    const int axis = axis_of(row.where->axis, shape.size());
    return axis < 0 || shape[axis] != row.where->length;
  });
}

std::optional<Source> find_source(const Imports& imports, const std::string& name, const std::function<bool(const std::string&)>& has) {
  const auto own = located(imports, name, has);
  for (const auto& row : imports.rows) {
    if (!name.starts_with(row.target)) continue;
    const auto rest = name.substr(row.target.size());
    if (!rest.empty() && rest.front() != '.') continue;
    if (own && (row.sources.empty() || row.sources.front() != row.target)) continue;
    if (!row.unless.empty() && located(imports, row.unless, has)) continue;
    if (row.sources.empty()) return Source{{}, row.changes};
    const auto first = located(imports, row.sources.front() + rest, has);
    if (!first) continue;
    Source source{{*first}, row.changes};
    for (std::size_t i = 1; i < row.sources.size(); ++i) {
      const auto other = row.sources[i] + rest;
      source.names.push_back(located(imports, other, has).value_or(other));
    }
    return source;
  }
  if (own) return Source{{*own}, {}};
  return std::nullopt;
}

std::optional<mx::Shape> shape_of_each(const std::vector<Change>& changes, const mx::Shape& shape) {
  if (changes.empty()) return shape;
  if (changes.size() == 1 && changes[0].kind == Kind::stack && !shape.empty()) return mx::Shape(shape.begin() + 1, shape.end());
  return std::nullopt;
}

std::optional<mx::Shape> changed_shape(const std::vector<Change>& changes, std::vector<mx::Shape> shapes) {
  for (const auto& change : changes) {
    if (change.kind == Kind::zeros) {
      shapes = {change.shape};
      continue;
    }
    if (change.kind == Kind::stack) {
      auto joined = shapes.front();
      if (!std::all_of(shapes.begin(), shapes.end(), [&](const auto& s) { return s == joined; })) return std::nullopt;
      joined.insert(joined.begin(), static_cast<int>(shapes.size()));
      shapes = {joined};
      continue;
    }
    if (change.kind == Kind::join) {
      auto joined = shapes.front();
      if (joined.empty()) return std::nullopt;
      joined[0] = 0;
      for (const auto& shape : shapes) {
        if (shape.size() != joined.size() || !std::equal(shape.begin() + 1, shape.end(), joined.begin() + 1)) return std::nullopt;
        joined[0] += shape[0];
      }
      shapes = {joined};
      continue;
    }
    for (auto& shape : shapes) {
      auto after = shape_after(change, shape);
      if (!after) return std::nullopt;
      shape = std::move(*after);
    }
  }
  if (shapes.size() != 1) return std::nullopt;
  return shapes.front();
}

mx::array changed(const std::vector<Change>& changes, std::vector<mx::array> tensors) {
  for (const auto& change : changes) {
    if (change.kind == Kind::zeros) {
      tensors = {mx::zeros(change.shape)};
    } else if (change.kind == Kind::stack) {
      tensors = {mx::stack(tensors)};
    } else if (change.kind == Kind::join) {
      tensors = {mx::concatenate(tensors, 0)};
    } else {
      for (auto& x : tensors) x = value_after(change, x);
    }
  }
  return tensors.front();
}

}  // namespace lquant::model
