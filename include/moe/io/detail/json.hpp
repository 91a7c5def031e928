#pragma once
/// @file
/// The JSON that safetensors headers are made of: objects, arrays, strings and whole numbers. Bounded in depth and
/// size. JsonValues::all takes the rest of JSON, too.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <locale>
#include <map>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "moe/core/error.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// A value; `kind` says which member holds it.
struct Json {
  enum class Kind { null, number, real, boolean, string, array, object } kind = Kind::null;
  std::uint64_t number = 0;  ///< of a whole number; of any other number, `real` is its value
  double real = 0;
  bool boolean = false;
  std::string string;
  std::vector<Json> array;
  std::map<std::string, Json> object;
  std::vector<std::string> keys;  ///< of `object`, in the text's order; filled where all of JSON is taken
};

/// Which values a parser takes: those of safetensors headers, or all.
enum class JsonValues { of_headers, all };

/// Parses one value and nothing after it but spaces. Throws IoError with the position.
class JsonParser {
 public:
  explicit JsonParser(std::string_view text, JsonValues values = JsonValues::of_headers)
      : text_(text), all_(values == JsonValues::all) {}

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
    } else if ((c >= '0' && c <= '9') || (all_ && c == '-')) {
      const std::size_t end = std::min(text_.find_first_not_of("+-.0123456789eE", at_), text_.size());
      if (all_ && text_.substr(at_, end - at_).find_first_of("-.eE") != std::string_view::npos) {
        result.kind = Json::Kind::real;
        result.real = real(std::string(text_.substr(at_, end - at_)));
        at_ = end;
      } else {
        result.kind = Json::Kind::number;
        result.number = number();
      }
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
        if (all_) result.keys.push_back(key);
        expect(':');
        if (!result.object.emplace(std::move(key), value(depth + 1)).second) fail("a key is there twice");
      } while (take(','));
      expect('}');
    } else if (text_.substr(at_, 4) == "null") {
      at_ += 4;
    } else if (all_ && (text_.substr(at_, 4) == "true" || text_.substr(at_, 5) == "false")) {
      result.kind = Json::Kind::boolean;
      result.boolean = c == 't';
      at_ += c == 't' ? 4 : 5;
    } else {
      fail(all_ ? "not a value" : "a value that no safetensors header holds");
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

  /// Not by the C library, which reads numbers as the locale writes them.
  double real(const std::string& text) const {
    std::istringstream in(text);
    in.imbue(std::locale::classic());
    double result = 0;
    if (!(in >> result) || in.peek() != std::istringstream::traits_type::eof()) fail("not a number");
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
  bool all_;
  std::size_t at_ = 0;
};

/// A finite number as JSON, in as few digits as give it back.
inline std::string json_number(double value) {
  for (int digits = 6;; ++digits) {
    std::ostringstream out;
    out.imbue(std::locale::classic());
    out.precision(digits);
    out << value;
    std::istringstream in(out.str());
    in.imbue(std::locale::classic());
    double back = 0;
    if (digits == std::numeric_limits<double>::max_digits10 || (in >> back && back == value)) return out.str();
  }
}

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
