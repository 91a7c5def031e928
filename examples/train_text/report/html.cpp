#include "html.hpp"

#include <fmt/format.h>

#include <utility>

#include "style.hpp"

namespace report {

using svg::escape;
using svg::Picture;

bool any(const std::vector<Picture>& pictures) {
  for (const Picture& picture : pictures) {
    if (!picture.body.empty()) return true;
  }
  return false;
}

/// Pictures in a grid of the given class; a heading before them, and all of it only where there is a picture.
std::string gallery(const std::string& grid, const std::vector<Picture>& pictures, const std::string& heading,
                    const std::string& hint) {
  if (!any(pictures)) return "";
  std::string html;
  if (!heading.empty()) html += "<h3>" + heading + "</h3>\n";
  if (!hint.empty()) html += "<p class=\"hint\">" + hint + "</p>\n";
  html += "<div class=\"" + grid + "\">\n";
  for (const Picture& picture : pictures) {
    if (!picture.body.empty()) html += svg::inline_svg(picture);
  }
  return html + "</div>\n";
}

std::string swatch(int color) {
  return fmt::format(R"(<i class="s k{}"></i>)", color);
}

std::string footer(const json& comparison) {
  std::string html = "<footer>";
  for (const auto& [key, name] : {std::pair{"/machine", "Machine"}, {"/command", "Command"}, {"/date", "Date"}}) {
    const std::string value = escape(text(comparison, key));
    if (!value.empty())
      html += fmt::format("<p>{0}: {1}{2}{3}</p>\n", name, name[0] == 'C' ? "<code>" : "", value,
                          name[0] == 'C' ? "</code>" : "");
  }
  return html + "</footer>\n";
}

std::string document(const std::string& title, const std::string& body) {
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>{}</title>\n"
      "<style>\n{}{}</style>\n</head>\n<body>\n<main>\n{}</main>\n</body>\n</html>\n",
      escape(title), svg::style(), page_style, body);
}

}  // namespace report
