#pragma once
/// @file
/// The JSON that safetensors headers are made of: objects, arrays, strings and whole numbers. Bounded in depth and
/// size.

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "moe/core/error.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// A value; `kind` says which member holds it.
struct Json {
  enum class Kind { null, number, string, array, object } kind = Kind::null;
  std::uint64_t number = 0;
  std::string string;
  std::vector<Json> array;
  std::map<std::string, Json> object;
};

/// Parses one value and nothing after it but spaces. Throws IoError with the position.
class JsonParser {
 public:
  explicit JsonParser(std::string_view text) : text_(text) {}

  Json parse() {
    Json result = value(0);
    spaces();
    if (at_ != text_.size()) fail("something after the end");
    return result;
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw IoError(sentence("malformed JSON at byte ", at_, ": ", what));
  }
  void spaces() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
  }
  char peek() {
    spaces();
    if (at_ >= text_.size()) fail("unexpected end");
    return text_[at_];
  }
  void expect(char c) {
    if (peek() != c) fail("unexpected character");
    ++at_;
  }
  bool take(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }

  Json value(int depth) {
    if (depth > 16) fail("nested too deeply");
    Json result;
    const char c = peek();
    if (c == '"') {
      result.kind = Json::Kind::string;
      result.string = string();
    } else if (c >= '0' && c <= '9') {
      result.kind = Json::Kind::number;
      result.number = number();
    } else if (take('[')) {
      result.kind = Json::Kind::array;
      if (take(']')) return result;
      do result.array.push_back(value(depth + 1));
      while (take(','));
      expect(']');
    } else if (take('{')) {
      result.kind = Json::Kind::object;
      if (take('}')) return result;
      do {
        if (peek() != '"') fail("a key must be a string");
        std::string key = string();
        expect(':');
        if (!result.object.emplace(std::move(key), value(depth + 1)).second) fail("a key is there twice");
      } while (take(','));
      expect('}');
    } else if (text_.substr(at_, 4) == "null") {
      at_ += 4;
    } else {
      fail("a value that no safetensors header holds");
    }
    return result;
  }

  std::uint64_t number() {
    std::uint64_t result = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      const std::uint64_t digit = std::uint64_t(text_[at_] - '0');
      if (result > (UINT64_MAX - digit) / 10) fail("a number beyond 64 bits");
      result = result * 10 + digit;
    }
    if (at_ < text_.size() && (text_[at_] == '.' || text_[at_] == 'e' || text_[at_] == 'E')) fail("not a whole number");
    return result;
  }

  unsigned hex4() {
    if (at_ + 4 > text_.size()) fail("unexpected end");
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = text_[at_++];
      const std::size_t digit = std::string_view("0123456789abcdef").find(char(c >= 'A' && c <= 'F' ? c + 32 : c));
      if (digit == std::string_view::npos) fail("not a hexadecimal digit");
      result = result * 16 + unsigned(digit);
    }
    return result;
  }

  void append_utf8(std::string& out, unsigned code) const {
    if (code < 0x80) {
      out += char(code);
    } else if (code < 0x800) {
      out += {char(0xC0 | code >> 6), char(0x80 | (code & 63))};
    } else if (code < 0x10000) {
      out += {char(0xE0 | code >> 12), char(0x80 | (code >> 6 & 63)), char(0x80 | (code & 63))};
    } else {
      out += {char(0xF0 | code >> 18), char(0x80 | (code >> 12 & 63)), char(0x80 | (code >> 6 & 63)),
              char(0x80 | (code & 63))};
    }
  }

  std::string string() {
    std::string result;
    for (++at_; at_ < text_.size() && text_[at_] != '"';) {
      if (text_[at_] != '\\') {
        result += text_[at_++];
        continue;
      }
      if (++at_ >= text_.size()) fail("unexpected end");
      const char c = text_[at_++];
      if (c == 'u') {
        unsigned code = hex4();
        if (code >= 0xD800 && code < 0xDC00) {
          if (text_.substr(at_, 2) != "\\u") fail("half a surrogate pair");
          at_ += 2;
          const unsigned low = hex4();
          if (low < 0xDC00 || low > 0xDFFF) fail("half a surrogate pair");
          code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        }
        append_utf8(result, code);
        continue;
      }
      const std::size_t which = std::string_view("\"\\/bfnrt").find(c);
      if (which == std::string_view::npos) fail("an unknown escape");
      result += "\"\\/\b\f\n\r\t"[which];
    }
    if (at_ >= text_.size()) fail("a string without end");
    ++at_;
    return result;
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

/// `text` as a JSON string, quotes included.
inline std::string json_quote(std::string_view text) {
  std::string result = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') {
      result += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20) {
      const char* digits = "0123456789abcdef";
      result += std::string("\\u00") + digits[c >> 4] + digits[c & 15];
    } else {
      result += c;
    }
  }
  return result + '"';
}

}  // namespace detail

MOE_NAMESPACE_END
