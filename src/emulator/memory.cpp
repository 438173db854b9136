// Owns the registry of tensors.
#include "emulator/memory.h"

#include <cstdint>
#include <iterator>
#include <map>
#include <stdexcept>
#include <utility>

namespace flash3::emulator {
namespace {

struct Region {
  std::size_t bytes;
  std::string name;
  Access access;
};

// By first byte. Regions do not overlap.
thread_local std::map<std::uintptr_t, Region> regions;

}  // namespace

Registered::Registered(const void* base, std::size_t bytes, std::string name, Access access) : base_(base) {
  const auto first = reinterpret_cast<std::uintptr_t>(base);
  const auto next = regions.lower_bound(first);
  const bool hits_next = next != regions.end() && next->first < first + bytes;
  const bool hits_previous = next != regions.begin() && std::prev(next)->first + std::prev(next)->second.bytes > first;
  if (hits_next || hits_previous) {
    throw std::invalid_argument("emulator: " + name + " overlaps " + (hits_next ? next : std::prev(next))->second.name);
  }
  if (bytes > 0) regions.emplace(first, Region{bytes, std::move(name), access});
}

Registered::~Registered() { regions.erase(reinterpret_cast<std::uintptr_t>(base_)); }

std::string check_global(const void* at, std::size_t bytes, bool write) {
  const auto first = reinterpret_cast<std::uintptr_t>(at);
  const auto after = regions.upper_bound(first);
  if (after == regions.begin()) return "address is in no tensor of the launch";
  const auto& [base, region] = *std::prev(after);
  const std::uintptr_t offset = first - base;
  if (offset + bytes > region.bytes) {
    if (offset >= region.bytes + 4096) return "address is in no tensor of the launch";
    return "bytes " + std::to_string(offset) + " to " + std::to_string(offset + bytes - 1) + " of " + region.name +
           ", which has " + std::to_string(region.bytes);
  }
  if (write && region.access == Access::read) return region.name + " is read-only";
  return {};
}

}  // namespace flash3::emulator
