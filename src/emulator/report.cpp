// Owns the words of reports, and the schedule that launches run under.
#include "emulator/report.h"

namespace flash3::emulator {
namespace {
thread_local Schedule schedule;
}

std::string to_string(const Where& where) { return std::string(where.file) + ":" + std::to_string(where.line); }

const char* to_string(Policy policy) {
  switch (policy) {
    case Policy::random:
      return "random";
    case Policy::run_ahead:
      return "run_ahead";
    case Policy::earliest:
      return "earliest";
    case Policy::latest:
      return "latest";
    case Policy::priority:
      return "priority";
  }
  return "";
}

const char* to_string(FaultKind kind) {
  switch (kind) {
    case FaultKind::race:
      return "race on shared memory";
    case FaultKind::proxy:
      return "missing proxy fence";
    case FaultKind::uninitialised:
      return "shared memory read before it was written";
    case FaultKind::fragment:
      return "misuse of a register fragment";
    case FaultKind::barrier:
      return "misuse of a barrier";
    case FaultKind::divergence:
      return "divergence at a collective operation";
    case FaultKind::descriptor:
      return "wrong descriptor or address";
    case FaultKind::bounds:
      return "access out of bounds";
    case FaultKind::registers:
      return "misuse of setmaxnreg";
    case FaultKind::deadlock:
      return "deadlock";
    case FaultKind::trap:
      return "trap";
  }
  return "";
}

WithSchedule::WithSchedule(const Schedule& next) : previous_(schedule) { schedule = next; }
WithSchedule::~WithSchedule() { schedule = previous_; }
const Schedule& current_schedule() { return schedule; }

}  // namespace flash3::emulator
