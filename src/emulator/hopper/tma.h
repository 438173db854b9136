// Owns TMA on the emulator: copies that land at a moment of the scheduler's choice.
#pragma once

#include "hopper/mbarrier.h"
#include "hopper/tensor_map.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

inline void prefetch_tensor_map(const TensorMap&, Where = Where::current()) {}

template <int dims>
void cp_async_bulk_tensor_load(SharedAddress target, const TensorMap& map, const int (&c)[dims], Barrier& barrier,
                               CacheHint = CacheHint::evict_normal, Where where = Where::current()) {
  static_assert(dims >= 2 && dims <= 5);
  emulator::box_load(target, &map, c, dims, shared_address(&barrier), 0, where);
}

template <int dims>
void cp_async_bulk_tensor_load_multicast(SharedAddress target, const TensorMap& map, const int (&c)[dims],
                                         Barrier& barrier, unsigned short blocks, CacheHint = CacheHint::evict_normal,
                                         Where where = Where::current()) {
  static_assert(dims >= 2 && dims <= 4);
  emulator::box_load(target, &map, c, dims, shared_address(&barrier), blocks, where);
}

template <int dims>
void cp_async_bulk_tensor_store(const TensorMap& map, const int (&c)[dims], SharedAddress source,
                                Where where = Where::current()) {
  static_assert(dims >= 2 && dims <= 5);
  emulator::box_store(&map, c, dims, source, false, where);
}

template <int dims>
void cp_reduce_async_bulk_tensor_add(const TensorMap& map, const int (&c)[dims], SharedAddress source,
                                     Where where = Where::current()) {
  static_assert(dims >= 2 && dims <= 4);
  emulator::box_store(&map, c, dims, source, true, where);
}

inline void cp_async_bulk_load(SharedAddress target, const void* source, unsigned bytes, Barrier& barrier,
                               Where where = Where::current()) {
  emulator::bulk_load(target, source, bytes, shared_address(&barrier), where);
}
inline void cp_async_bulk_store(void* target, SharedAddress source, unsigned bytes, Where where = Where::current()) {
  emulator::bulk_store(target, source, bytes, false, where);
}
inline void cp_reduce_async_bulk_add(float* target, SharedAddress source, unsigned bytes,
                                     Where where = Where::current()) {
  emulator::bulk_store(target, source, bytes, true, where);
}

inline void bulk_commit_group(Where = Where::current()) { emulator::bulk_commit(); }
template <int pending>
void bulk_wait_group(Where where = Where::current()) {
  emulator::bulk_wait(pending, false, where);
}
template <int pending>
void bulk_wait_group_read(Where where = Where::current()) {
  emulator::bulk_wait(pending, true, where);
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
