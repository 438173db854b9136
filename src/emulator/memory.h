// Owns the tensors that kernels may touch in global memory: every access is checked against them.
#pragma once

#include <cstddef>
#include <string>

namespace flash3::emulator {

enum class Access { read, read_write };

// Lets kernels launched from this operating-system thread touch the bytes, until the end of the scope.
class Registered {
 public:
  Registered(const void* base, std::size_t bytes, std::string name, Access access = Access::read_write);
  ~Registered();
  Registered(const Registered&) = delete;
  Registered& operator=(const Registered&) = delete;

 private:
  const void* base_;
};

// Empty if the access is allowed; else what is wrong with it.
std::string check_global(const void* at, std::size_t bytes, bool write);

}  // namespace flash3::emulator
