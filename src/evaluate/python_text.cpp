#include "evaluate/python_text.h"

#include <algorithm>
#include <array>

namespace lquant::evaluate {
namespace {

struct CodePoint {
  char32_t value;
  std::size_t bytes;
};

/// The code point at `at`; a byte that begins none stands for itself.
CodePoint decode(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(at);
  const std::size_t length = first < 0x80 ? 1 : first >> 5 == 6 ? 2 : first >> 4 == 14 ? 3 : first >> 3 == 30 ? 4 : 1;
  if (length == 1 || at + length > text.size()) return {first, 1};
  char32_t value = first & (0xFF >> (length + 1));
  for (std::size_t i = 1; i < length; ++i) {
    if (byte(at + i) >> 6 != 2) return {first, 1};
    value = value << 6 | (byte(at + i) & 0x3F);
  }
  return {value, length};
}

void append(std::string& text, char32_t c) {
  if (c < 0x80) {
    text += static_cast<char>(c);
  } else {  // only two-byte letters change their case here
    text += static_cast<char>(0xC0 | c >> 6);
    text += static_cast<char>(0x80 | (c & 0x3F));
  }
}

/// str.isspace() of one character.
bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
         c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

/// Lower case of the letters below U+0460, all of which are two bytes at most in either case.
char32_t lower(char32_t c) {
  const auto in = [&](char32_t first, char32_t last) { return c >= first && c <= last; };
  if (in('A', 'Z') || (in(0xC0, 0xDE) && c != 0xD7) || (in(0x391, 0x3A9) && c != 0x3A2) || in(0x410, 0x42F)) return c + 32;
  if (((in(0x100, 0x12F) || in(0x132, 0x137) || in(0x14A, 0x177)) && c % 2 == 0) || ((in(0x139, 0x148) || in(0x179, 0x17E)) && c % 2 == 1))
    return c + 1;
  if (c == 0x178) return 0xFF;
  if (in(0x400, 0x40F)) return c + 80;
  return c;
}

char32_t upper(char32_t c) {
  for (const char32_t candidate : {c - 32, c - 1, c - 80})
    if (candidate < c && lower(candidate) == c) return candidate;
  return c == 0xFF ? 0x178 : c;
}

}  // namespace

std::string_view lstrip(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const auto [c, bytes] = decode(text, at);
    if (!is_space(c)) break;
    at += bytes;
  }
  return text.substr(at);
}

std::string_view rstrip(std::string_view text) {
  std::size_t end = 0;
  for (std::size_t at = 0; at < text.size();) {
    const auto [c, bytes] = decode(text, at);
    at += bytes;
    if (!is_space(c)) end = at;
  }
  return text.substr(0, end);
}

std::string_view strip(std::string_view text) { return rstrip(lstrip(text)); }

std::size_t code_points(std::string_view text) {
  std::size_t count = 0;
  for (std::size_t at = 0; at < text.size(); ++count) at += decode(text, at).bytes;
  return count;
}

std::string capitalize(std::string_view text) {
  std::string result;
  for (std::size_t at = 0; at < text.size();) {
    const auto [c, bytes] = decode(text, at);
    if (bytes > 2 || (c >= 0x80 && bytes == 1))
      result += text.substr(at, bytes);
    else
      append(result, at == 0 ? upper(c) : lower(c));
    at += bytes;
  }
  return result;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string result;
  for (std::size_t at = 0;;) {
    const auto found = text.find(from, at);
    result += text.substr(at, found - at);
    if (found == std::string_view::npos) return result;
    result += to;
    at = found + from.size();
  }
}

std::string clean_wikihow(std::string_view text) {
  const std::string titled = replace_all(strip(text), " [title]", ". ");
  std::string bare;
  for (std::size_t at = 0; at < titled.size();) {
    if (titled[at] == '[') {
      const auto end = titled.find_first_of("]\n", at);
      if (end != std::string::npos && titled[end] == ']') {
        at = end + 1;
        continue;
      }
    }
    bare += titled[at++];
  }
  return replace_all(bare, "  ", " ");
}

}  // namespace lquant::evaluate
