// The lanes of a team as coroutines of one thread: each runs to the next meeting of all, a shuffle or a sync, in turn.
// Every second team takes them backwards, so that what one lane reads without a meeting shows in some result.
#include <setjmp.h>
#include <ucontext.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <moe/core/team.hpp>
#include <vector>

namespace {

constexpr int lanes = moe::detail::device_lanes;
constexpr std::size_t stack_bytes = std::size_t(1) << 18;
enum class State { running, shuffle, sync, ended };

struct Lane {
  ucontext_t start;
  jmp_buf meeting;
  bool started = false;
  State state = State::ended;
  int meetings = 0;
};

struct Simulation {
  jmp_buf caller;
  std::array<Lane, lanes> all;
  std::vector<char> stacks = std::vector<char>(lanes * stack_bytes);
  // Two values of each lane: the next shuffle begins while some lanes still have to read the last one.
  std::array<std::array<std::array<char, 16>, lanes>, 2> values;
  int now = -1;
  bool backwards = false;
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
};

Simulation& simulation() {
  thread_local const auto own = std::make_unique<Simulation>();
  return *own;
}

void run_lane() {
  Simulation& s = simulation();
  s.body(s.argument);
  s.all[std::size_t(s.now)].state = State::ended;
  _longjmp(s.caller, 1);
}

/// Runs a lane to its next meeting. Jumps, since swapcontext would ask the system to set a mask of signals each time.
__attribute__((noinline)) void resume(Simulation& s, Lane& lane) {
  if (_setjmp(s.caller) != 0) return;
  if (lane.started) _longjmp(lane.meeting, 1);
  lane.started = true;
  setcontext(&lane.start);
}

void meet(State state) {
  Simulation& s = simulation();
  Lane& lane = s.all[std::size_t(s.now)];
  lane.state = state;
  ++lane.meetings;
  if (_setjmp(lane.meeting) == 0) _longjmp(s.caller, 1);
}

}  // namespace

MOE_NAMESPACE_BEGIN

namespace detail {

void simulate_lanes(void (*body)(void*), void* argument) {
  Simulation& s = simulation();
  s.body = body;
  s.argument = argument;
  s.backwards = !s.backwards;
  for (int l = 0; l < lanes; ++l) {
    Lane& lane = s.all[std::size_t(l)];
    lane.state = State::running;
    lane.meetings = 0;
    lane.started = false;
    getcontext(&lane.start);
    lane.start.uc_stack.ss_sp = s.stacks.data() + std::size_t(l) * stack_bytes;
    lane.start.uc_stack.ss_size = stack_bytes;
    lane.start.uc_link = nullptr;
    makecontext(&lane.start, run_lane, 0);
  }
  do {
    for (int i = 0; i < lanes; ++i) {
      s.now = s.backwards ? lanes - 1 - i : i;
      resume(s, s.all[std::size_t(s.now)]);
    }
    for (const Lane& lane : s.all) {
      if (lane.state == s.all[0].state) continue;
      std::fprintf(stderr, "the lanes of a team part: some end, shuffle or sync where others do not\n");
      std::abort();
    }
  } while (s.all[0].state != State::ended);
  s.now = -1;
}

int simulated_lane() {
  return simulation().now;
}

void simulated_shuffle(void* value, std::size_t size, int from) {
  Simulation& s = simulation();
  const int own = s.now;
  auto& values = s.values[std::size_t(s.all[std::size_t(own)].meetings % 2)];
  std::memcpy(values[std::size_t(own)].data(), value, size);
  meet(State::shuffle);
  std::memcpy(value, values[std::size_t(from)].data(), size);
}

void simulated_sync() {
  meet(State::sync);
}

}  // namespace detail

MOE_NAMESPACE_END
