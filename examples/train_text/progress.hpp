#pragma once
/// @file
/// Progress on standard error: one line that renews itself on a terminal, a line now and then elsewhere. And Ctrl-C.

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <moe/core/types.hpp>
#include <string>

namespace text {

inline volatile std::sig_atomic_t interrupt_flag = 0;

/// From here on Ctrl-C asks for an orderly end; a second one ends at once.
inline void catch_interrupts() {
  std::signal(SIGINT, [](int) {
    interrupt_flag = 1;
    std::signal(SIGINT, SIG_DFL);
  });
}
inline bool interrupted() {
  return interrupt_flag != 0;
}

class Progress {
 public:
  Progress(moe::Index steps, moe::Index done) : steps_(steps), first_(done), terminal_(isatty(STDERR_FILENO) != 0) {}

  void show(moe::Index step, double bits, double tokens_a_step, const std::string& remark = "") {
    const moe::Index every = std::max<moe::Index>(1, steps_ / 20);
    if (!terminal_ && step % every != 0 && step != steps_) return;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    const double rate = double(step - first_) / seconds;
    const int left = int(double(steps_ - step) / rate), filled = int(24 * step / steps_);
    fmt::print(stderr, "{}[{}{}] {:>5}/{}  {:.3f} bits per byte  {:>6.0f} tokens/s{}  {}:{:02} left{}",
               terminal_ ? "\r" : "", std::string(filled, '#'), std::string(24 - filled, '.'), step, steps_, bits,
               rate * tokens_a_step, remark, left / 60, left % 60, terminal_ ? "  " : "\n");
  }
  void finish() const {
    if (terminal_) fmt::print(stderr, "\n");
  }

 private:
  moe::Index steps_, first_;
  bool terminal_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace text
