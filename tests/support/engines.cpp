// The list of engines: the place to add one.
#include "support/engines.h"

#include <fmt/format.h>

#include <cstdlib>
#include <string>

namespace flash3::test {

const std::vector<TestedEngine>& engines_present() {
  static const std::vector<TestedEngine> engines = [] {
    // The reference is among them: its handling of strides, lengths and roundings is judged as any engine's.
    std::vector<TestedEngine> all{
        {Engine::reference, nullptr, 0.25, false},
        {Engine::cpu, nullptr, 1, true},
    };
    if (cpu::tiles_granted()) all.push_back({Engine::cpu, nullptr, 0.5, true, false});
    const char* wanted = std::getenv("FLASH3_ENGINES");
    if (wanted == nullptr) return all;
    std::vector<TestedEngine> some;
    const std::string names = fmt::format(",{},", wanted);
    for (const TestedEngine& e : all) {
      if (names.find(fmt::format(",{},", name_of(e.engine))) != std::string::npos) some.push_back(e);
    }
    return some;
  }();
  return engines;
}

}  // namespace flash3::test
