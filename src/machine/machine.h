// Questions to the hardware that the report is made of.
#pragma once

#include "flash3/check.h"

namespace flash3::machine {

// Asks the CUDA driver, loaded at run time; and NVML, if it is there, for what the driver does not tell.
CudaInfo ask_cuda();

// Asks the CPU, the kernel and the control group.
CpuInfo ask_cpu();

}  // namespace flash3::machine
