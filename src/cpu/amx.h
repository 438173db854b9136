// Whether this process may use the processor's tile unit (Intel AMX) for bfloat16.
#pragma once

namespace flash3::cpu {

// The processor has it and the system grants it, which it is asked for once.
bool tiles_granted();

// For tests: whether the engine uses the unit where it is granted. It does at first. Returns what held before.
bool use_tiles(bool use);
bool tiles_in_use();

}  // namespace flash3::cpu
