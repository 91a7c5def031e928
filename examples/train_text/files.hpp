#pragma once
/// @file
/// Small files of a run, and where its text lies.

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <moe/io/detail/file.hpp>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

/// Replaces a file whole or not at all. Throws moe::IoError.
inline void write_whole(const std::string& path, std::string_view text) {
  moe::detail::AtomicFile file(path);
  file.write(std::as_bytes(std::span(text)));
  file.commit();
}
inline void write_json(const std::string& path, const nlohmann::json& json) {
  write_whole(path, json.dump(1) + "\n");
}

/// Refuses an output folder before any work is done for it.
inline void prepare_folder(const std::string& program, const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  const std::string probe = folder + "/.probe";
  const bool writable = !error && std::ofstream(probe).good();
  std::filesystem::remove(probe, error);
  if (!writable) throw moe::IoError(program + ": cannot write to '" + folder + "'. Choose another --out.");
}

/// The texts that the build prepared in `folder`, one a domain. Throws moe::IoError where there are none; `option` says
/// how to give others.
inline std::vector<std::string> default_text(const std::string& program, const std::string& folder,
                                             const std::string& option) {
  std::vector<std::string> files;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    if (entry.path().extension() == ".txt") files.push_back(entry.path().string());
  }
  std::sort(files.begin(), files.end());
  if (files.empty()) throw moe::IoError(program + ": the default text is gone. Give your own: " + option);
  return files;
}
