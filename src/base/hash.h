#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

namespace lquant {

/// SHA-256 (FIPS 180-4), by libcrypto.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256& update(const void* data, std::size_t size);
  Sha256& update(std::string_view text) { return update(text.data(), text.size()); }
  /// Lower-case hexadecimal, 64 characters. The object cannot be updated afterwards.
  std::string hex();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string sha256(std::string_view text);
/// Throws Error when the file cannot be read.
std::string sha256_file(const std::filesystem::path& path);

}  // namespace lquant
