// Names and sizes of data types, devices and engines; the error classes; conversions that are too long for a header.
#include <fmt/format.h>

#include <cmath>

#include "core/half.h"
#include "flash3/plan.h"
#include "flash3/tensor.h"

namespace flash3 {

Error::~Error() = default;
InvalidArgument::InvalidArgument(std::string argument, const std::string& message)
    : Error(argument + ": " + message), argument_(std::move(argument)) {}
InvalidArgument::~InvalidArgument() = default;
Unsupported::~Unsupported() = default;
DeviceError::~DeviceError() = default;

std::size_t size_of(DType dtype) noexcept {
  switch (dtype) {
    case DType::float32:
    case DType::int32:
      return 4;
    case DType::float16:
    case DType::bfloat16:
      return 2;
    case DType::float8_e4m3:
      return 1;
    case DType::float64:
      return 8;
  }
  return 0;
}

std::string_view name_of(DType dtype) noexcept {
  switch (dtype) {
    case DType::float32:
      return "float32";
    case DType::float16:
      return "float16";
    case DType::bfloat16:
      return "bfloat16";
    case DType::float8_e4m3:
      return "float8_e4m3";
    case DType::float64:
      return "float64";
    case DType::int32:
      return "int32";
  }
  return "unknown dtype";
}

std::string name_of(Device device) {
  switch (device.type) {
    case DeviceType::cpu:
      return "cpu";
    case DeviceType::cuda:
      return fmt::format("cuda:{}", device.index);
  }
  return "unknown device";
}

std::string_view name_of(Engine engine) noexcept {
  switch (engine) {
    case Engine::automatic:
      return "automatic";
    case Engine::cuda:
      return "cuda";
    case Engine::cpu:
      return "cpu";
    case Engine::reference:
      return "reference";
    case Engine::emulator:
      return "emulator";
  }
  return "unknown engine";
}

namespace core {
namespace {

// Rounds to odd: a float that keeps "inexact" in its last bit, so that the next rounding is as if from the double.
float round_to_odd(double x) {
  const auto nearest = static_cast<float>(x);
  if (std::isnan(x) || static_cast<double>(nearest) == x || std::isinf(nearest)) return nearest;
  auto bits = std::bit_cast<std::uint32_t>(nearest);
  const bool away_from_zero = std::abs(static_cast<double>(nearest)) > std::abs(x);
  if (away_from_zero) --bits;
  return std::bit_cast<float>(bits | 1u);
}

}  // namespace

bfloat16 to_bfloat16(double x) { return to_bfloat16(round_to_odd(x)); }
float16 to_float16(double x) { return to_float16(round_to_odd(x)); }

}  // namespace core
}  // namespace flash3
