// Runs a broken toy kernel: the emulator must report it on the first seed under every policy, as one of the kinds that
// FLASH3_EXPECTED lists.
#include <cstdio>
#include <set>

#include "emulator/report.h"
#include "hopper/toy_harness.h"

int main() {
  using namespace flash3;
  using enum emulator::FaultKind;
  const std::set<emulator::FaultKind> expected = {FLASH3_EXPECTED};
  int missed = 0;
  for (const emulator::Policy policy : emulator::all_policies) {
    try {
      const emulator::WithSchedule with({1, policy});
      const std::string wrong = toy::FLASH3_RUN();
      std::printf("%s: not reported; the result is %s\n", to_string(policy), wrong.empty() ? "right" : wrong.c_str());
      ++missed;
    } catch (const emulator::Fault& fault) {
      const bool fine = expected.count(fault.kind()) > 0;
      std::printf("%s%s\n", fine ? "" : "not the expected kind: ", fault.what());
      missed += !fine;
    }
  }
  return missed == 0 ? 0 : 1;
}
