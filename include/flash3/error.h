/// \file
/// The errors that flash3 throws, all derived from flash3::Error.
#pragma once

#include <stdexcept>
#include <string>

#include "flash3/export.h"

namespace flash3 {

/// Base of every error thrown by the library. `what()` is a sentence for the user.
class FLASH3_EXPORT Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
  ~Error() override;
};

/// An argument cannot be accepted. Thrown before anything is read or written; the text names the argument, what was
/// given and what is accepted.
class FLASH3_EXPORT InvalidArgument : public Error {
 public:
  InvalidArgument(std::string argument, const std::string& message);
  ~InvalidArgument() override;

  /// Name of the argument at fault, for example "cu_seqlens_q".
  const std::string& argument() const noexcept { return argument_; }

 private:
  std::string argument_;
};

/// The arguments are sound, but the engine that was asked for cannot do this (yet). Thrown before anything is written.
class FLASH3_EXPORT Unsupported : public Error {
 public:
  using Error::Error;
  ~Unsupported() override;
};

/// The CUDA driver or a device reported a failure.
class FLASH3_EXPORT DeviceError : public Error {
 public:
  using Error::Error;
  ~DeviceError() override;
};

}  // namespace flash3
