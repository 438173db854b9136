// Owns what a user of the emulator says and hears: the schedule to run under, and the fault that a kernel committed.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace flash3::emulator {

// A line of a kernel. As a defaulted last argument, Where::current() is the caller's line.
struct Where {
  const char* file = "";
  unsigned line = 0;

  static constexpr Where current(const char* file_ = __builtin_FILE(), unsigned line_ = __builtin_LINE()) {
    return {file_, line_};
  }
  bool operator==(const Where& other) const { return line == other.line && file == other.file; }
};

std::string to_string(const Where& where);

// Who runs next, and when an asynchronous operation lands.
enum class Policy {
  random,     // anything that may happen next is equally likely
  run_ahead,  // a warp runs until it must wait; operations land now and then
  earliest,   // operations land at their issue
  latest,     // operations land only when nothing else can happen
  priority,   // random fixed priorities with a few random changes (probabilistic concurrency testing)
};
inline constexpr Policy all_policies[] = {Policy::random, Policy::run_ahead, Policy::earliest, Policy::latest,
                                          Policy::priority};
const char* to_string(Policy policy);

struct Schedule {
  std::uint64_t seed = 1;
  Policy policy = Policy::random;
  int resident_clusters = 4;  // how many run at a time; the others start in order as these end
};

// The schedule of this operating-system thread's launches from here to the end of the scope.
class WithSchedule {
 public:
  explicit WithSchedule(const Schedule& schedule);
  ~WithSchedule();
  WithSchedule(const WithSchedule&) = delete;
  WithSchedule& operator=(const WithSchedule&) = delete;

 private:
  Schedule previous_;
};
const Schedule& current_schedule();

enum class FaultKind {
  race,           // two conflicting accesses with no edge between them
  proxy,          // an ordinary write that the async proxy reads without a fence
  uninitialised,  // shared memory that nothing has written
  fragment,       // a fragment touched while wgmma has it, or handed over without a fence
  barrier,        // misuse of an mbarrier or named barrier
  divergence,     // lanes that come to different warp-wide operations
  descriptor,     // a matrix descriptor, address or tensor map that the hardware would refuse or misread
  bounds,         // memory outside the shared struct or the tensors of the launch
  registers,      // setmaxnreg against its rules
  deadlock,       // nobody can go on
  trap,           // the kernel stopped itself
};
const char* to_string(FaultKind kind);

// What launch throws: what() names the lines, the seed and the policy.
class Fault : public std::runtime_error {
 public:
  Fault(FaultKind kind, const std::string& text) : std::runtime_error(text), kind_(kind) {}
  FaultKind kind() const { return kind_; }

 private:
  FaultKind kind_;
};

}  // namespace flash3::emulator
