#pragma once
/// @file
/// What a report says of where it comes from: command, date and machine.

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <thread>

/// The command as it was given, but for --out: where it went is nobody's business.
inline std::string command_line(std::string command, int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--out")
      ++i;
    else if (!argument.starts_with("--out="))
      command += std::string(" ") + argv[i];
  }
  return command;
}

/// The processor's name, its cores and the widest instructions this program was compiled for.
inline std::string machine() {
  std::ifstream file("/proc/cpuinfo");
  std::string name = "unknown processor";
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) {
      name = line.substr(line.find(':') + 2);
      break;
    }
  }
#if defined(__AVX512F__)
  const char* instructions = "AVX-512";
#elif defined(__AVX2__)
  const char* instructions = "AVX2";
#else
  const char* instructions = "baseline instructions";
#endif
  return fmt::format("{}, {} cores, {}", name, std::thread::hardware_concurrency(), instructions);
}

/// A report of no runs yet.
inline nlohmann::json report_frame(const std::string& command) {
  return {{"command", command},
          {"date", fmt::format("{:%Y-%m-%d}", fmt::localtime(std::time(nullptr)))},
          {"machine", machine()},
          {"runs", nlohmann::json::array()}};
}
