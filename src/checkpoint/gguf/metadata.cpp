#include "checkpoint/gguf/metadata.h"

#include <cmath>

#include "base/error.h"
#include "checkpoint/safetensors.h"

namespace lquant::checkpoint::gguf {

Metadata::Metadata(Header header, std::filesystem::path file) : header_(std::move(header)), file_(std::move(file)) {
  const auto architecture = text("general.architecture");
  if (!architecture)
    fail("checkpoint", "{}: has no general.architecture; it is no language model, or a later piece of a split one: give the first piece",
         file_.string());
  architecture_ = *architecture;
}

const Value* Metadata::find(std::string_view key) const {
  const auto found = header_.metadata.find(key);
  return found == header_.metadata.end() ? nullptr : &found->second;
}

void Metadata::wrong(std::string_view key, const Value& value, const char* needed) const {
  fail("checkpoint", "{}: its metadata {} are of type {} where {} is needed; convert the original model again", file_.string(), in_quotes(key),
       describe(value.type), needed);
}

std::optional<int> Metadata::count(std::string_view key) const {
  const auto* value = find(key);
  if (!value) return std::nullopt;
  if (!value->numeric() || value->count == 0) wrong(key, *value, "a whole number");
  const double first = value->number();
  for (std::uint64_t i = 1; i < value->count; ++i)
    if (value->number(i) != first)
      fail("checkpoint", "{}: its {} differs between layers ({} and {}), which lquant's models do not; such a model cannot be used", file_.string(),
           in_quotes(key), first, value->number(i));
  if (!(first >= 0 && first <= INT32_MAX) || first != std::floor(first)) wrong(key, *value, "a whole number from 0 to 2^31 − 1");
  return static_cast<int>(first);
}

int Metadata::needed_count(std::string_view key) const {
  const auto value = count(key);
  if (!value) fail("checkpoint", "{}: lacks the metadata {}; convert the original model again", file_.string(), in_quotes(key));
  return *value;
}

std::optional<double> Metadata::number(std::string_view key) const {
  const auto* value = find(key);
  if (!value) return std::nullopt;
  if (!value->numeric() || value->type == ValueType::array || !std::isfinite(value->number())) wrong(key, *value, "a number");
  if (value->type != ValueType::f32) return value->number();
  // Written as a float: 1e-5 is meant, not 9.99999974737875e-06.
  return std::stod(fmt::format("{}", static_cast<float>(value->number())));
}

std::optional<bool> Metadata::flag(std::string_view key) const {
  const auto* value = find(key);
  if (!value) return std::nullopt;
  if (value->type != ValueType::boolean) wrong(key, *value, "true or false");
  return value->number() != 0;
}

std::optional<std::string> Metadata::text(std::string_view key) const {
  const auto* value = find(key);
  if (!value) return std::nullopt;
  if (value->type != ValueType::string) wrong(key, *value, "a text");
  return std::string(value->bytes);
}

const std::vector<std::string_view>* Metadata::texts(std::string_view key) const {
  const auto* value = find(key);
  if (!value) return nullptr;
  if (value->type != ValueType::array || (value->element != ValueType::string && value->count > 0)) wrong(key, *value, "a list of texts");
  return &value->strings;
}

std::optional<std::vector<double>> Metadata::numbers(std::string_view key) const {
  const auto* value = find(key);
  if (!value) return std::nullopt;
  if (value->type != ValueType::array || !value->numeric()) wrong(key, *value, "a list of numbers");
  std::vector<double> all(static_cast<std::size_t>(value->count));
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = value->number(i);
  return all;
}

}  // namespace lquant::checkpoint::gguf
