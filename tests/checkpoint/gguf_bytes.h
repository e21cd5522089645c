#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lquant::testing {

/// A GGUF file put together by hand, sound or not.
struct Gguf {
  template <class T>
  static std::string number(T value) {
    return {reinterpret_cast<const char*>(&value), sizeof value};
  }
  static std::string text(const std::string& text) { return number(std::uint64_t{text.size()}) + text; }
  static std::string u32(std::uint32_t value) { return number(std::uint32_t{4}) + number(value); }
  static std::string f32(float value) { return number(std::uint32_t{6}) + number(value); }
  static std::string string(const std::string& value) { return number(std::uint32_t{8}) + text(value); }
  static std::string strings(const std::vector<std::string>& values) {
    auto bytes = number(std::uint32_t{9}) + number(std::uint32_t{8}) + number(std::uint64_t{values.size()});
    for (const auto& value : values) bytes += text(value);
    return bytes;
  }
  static std::string i32s(const std::vector<std::int32_t>& values) { return numbers(5, values); }
  static std::string f32s(const std::vector<float>& values) { return numbers(6, values); }
  static std::string bools(const std::vector<std::uint8_t>& values) { return numbers(7, values); }

  template <class T>
  static std::string numbers(std::uint32_t type, const std::vector<T>& values) {
    auto bytes = number(std::uint32_t{9}) + number(type) + number(std::uint64_t{values.size()});
    for (const auto value : values) bytes += number(value);
    return bytes;
  }

  std::string magic = "GGUF";
  std::uint32_t version = 3;
  std::vector<std::string> values;                  ///< whole entries: key, type, value
  std::vector<std::string> tensors;                 ///< whole entries
  std::uint64_t more_values = 0, more_tensors = 0;  ///< claimed and not there
  std::string data;

  Gguf& value(const std::string& key, const std::string& typed) {
    values.push_back(text(key) + typed);
    return *this;
  }
  /// `shape` in the file's order, innermost first.
  Gguf& tensor(const std::string& name, std::vector<std::uint64_t> shape, std::uint32_t type, std::uint64_t offset) {
    auto bytes = text(name) + number(static_cast<std::uint32_t>(shape.size()));
    for (const auto size : shape) bytes += number(size);
    tensors.push_back(bytes + number(type) + number(offset));
    return *this;
  }
  /// A tensor behind what is there.
  Gguf& tensor_of(const std::string& name, std::vector<std::uint64_t> shape, std::uint32_t type, const std::string& bytes) {
    data.resize((data.size() + 31) / 32 * 32, '\0');
    tensor(name, shape, type, data.size());
    data += bytes;
    return *this;
  }
  /// An F32 tensor that counts: first, first + 1, …
  Gguf& counting(const std::string& name, std::vector<std::uint64_t> shape, float first = 0) {
    std::uint64_t n = 1;
    for (const auto size : shape) n *= size;
    std::string bytes;
    for (std::uint64_t i = 0; i < n; ++i) bytes += number(first + static_cast<float>(i));
    return tensor_of(name, shape, 0, bytes);
  }
  /// An F32 tensor of ones.
  Gguf& ones(const std::string& name, std::vector<std::uint64_t> shape) {
    std::uint64_t n = 1;
    for (const auto size : shape) n *= size;
    std::string bytes;
    for (std::uint64_t i = 0; i < n; ++i) bytes += number(1.0f);
    return tensor_of(name, shape, 0, bytes);
  }
  /// Without the entry of metadata, or with another in its place.
  Gguf& replace(const std::string& key, const std::string& typed = "") {
    std::erase_if(values, [&](const std::string& entry) { return entry.starts_with(text(key)); });
    return typed.empty() ? *this : value(key, typed);
  }
  std::string head() const {
    auto bytes = magic + number(version) + number(tensors.size() + more_tensors) + number(values.size() + more_values);
    for (const auto& entry : values) bytes += entry;
    for (const auto& entry : tensors) bytes += entry;
    return bytes;
  }
  std::string bytes(std::size_t alignment = 32) const {
    auto all = head();
    all.resize((all.size() + alignment - 1) / alignment * alignment, '\0');
    return all + data;
  }
};

/// A whole model of one block with two heads of four features and a byte-level vocabulary of three tokens.
inline Gguf small_model(const std::string& architecture) {
  Gguf file;
  const auto key = [&](const std::string& name) { return architecture + "." + name; };
  file.value("general.architecture", Gguf::string(architecture))
      .value(key("embedding_length"), Gguf::u32(8))
      .value(key("block_count"), Gguf::u32(1))
      .value(key("feed_forward_length"), Gguf::u32(8))
      .value(key("context_length"), Gguf::u32(64))
      .value(key("attention.head_count"), Gguf::u32(2))
      .value(key("attention.layer_norm_rms_epsilon"), Gguf::f32(1e-5f))
      .value("tokenizer.ggml.model", Gguf::string("gpt2"))
      .value("tokenizer.ggml.pre", Gguf::string("smollm"))
      .value("tokenizer.ggml.tokens", Gguf::strings({"a", "b", "ab"}))
      .value("tokenizer.ggml.merges", Gguf::strings({"a b"}));
  file.ones("token_embd.weight", {8, 3}).ones("output_norm.weight", {8});
  for (const char* name : {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"})
    file.ones(std::string("blk.0.") + name + ".weight", {8, 8});
  for (const char* name : {"attn_norm", "ffn_norm"}) file.ones(std::string("blk.0.") + name + ".weight", {8});
  return file;
}

}  // namespace lquant::testing
