// From a problem and its plan to a launch, on the machine that this is compiled for.
#pragma once

#include "core/problem.h"
#include "forward/params.h"
#include "hopper/launch.h"
#include "plan/forward_plan.h"

namespace flash3::forward_kernels::inline FLASH3_MACHINE {

// Enqueues the forward pass. `counter` is in the machine's global memory. Throws DeviceError if the machine refuses.
void launch(const core::ForwardProblem& problem, const plan::ForwardPlan& plan, TileCounter* counter,
            hopper::Stream stream);

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE
