// Owns TMA: asynchronous copies between global and shared memory, of tensor boxes and of plain bytes. One thread
// issues.
#pragma once

#include "hopper/mbarrier.h"
#include "hopper/tensor_map.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// prefetch.tensormap [map];
FLASH3_DEVICE void prefetch_tensor_map(const TensorMap& map, Where = Where::current()) {
  asm volatile("prefetch.tensormap [%0];" : : "l"(&map) : "memory");
}

// cp.async.bulk.tensor.{dims}d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint
//   [target], [map, {coordinates}], [barrier], hint;
// Copies one box, zero outside the tensor, and completes its bytes (all of the box) on `barrier`.
template <int dims>
FLASH3_DEVICE void cp_async_bulk_tensor_load(SharedAddress target, const TensorMap& map, const int (&c)[dims],
                                             Barrier& barrier, CacheHint hint = CacheHint::evict_normal,
                                             Where = Where::current()) {
  static_assert(dims >= 2 && dims <= 5);
  const auto h = static_cast<unsigned long long>(hint);
  const SharedAddress b = shared_address(&barrier);
#define FLASH3_TMA_LOAD(DIMS, COORDINATES, BARRIER, HINT)                       \
  "cp.async.bulk.tensor." DIMS                                                  \
  "d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], " \
  "[%1, {" COORDINATES "}], [" BARRIER "], " HINT ";"
  if constexpr (dims == 2) {
    asm volatile(FLASH3_TMA_LOAD("2", "%2, %3", "%4", "%5")
                 :
                 : "r"(target), "l"(&map), "r"(c[0]), "r"(c[1]), "r"(b), "l"(h)
                 : "memory");
  } else if constexpr (dims == 3) {
    asm volatile(FLASH3_TMA_LOAD("3", "%2, %3, %4", "%5", "%6")
                 :
                 : "r"(target), "l"(&map), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(b), "l"(h)
                 : "memory");
  } else if constexpr (dims == 4) {
    asm volatile(FLASH3_TMA_LOAD("4", "%2, %3, %4, %5", "%6", "%7")
                 :
                 : "r"(target), "l"(&map), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]), "r"(b), "l"(h)
                 : "memory");
  } else {
    asm volatile(FLASH3_TMA_LOAD("5", "%2, %3, %4, %5, %6", "%7", "%8")
                 :
                 : "r"(target), "l"(&map), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]), "r"(c[4]), "r"(b), "l"(h)
                 : "memory");
  }
#undef FLASH3_TMA_LOAD
}

// The same with .multicast::cluster: the box and its bytes go to the same places in every block of `blocks` (one bit
// a rank).
template <int dims>
FLASH3_DEVICE void cp_async_bulk_tensor_load_multicast(SharedAddress target, const TensorMap& map, const int (&c)[dims],
                                                       Barrier& barrier, unsigned short blocks,
                                                       CacheHint hint = CacheHint::evict_normal,
                                                       Where = Where::current()) {
  static_assert(dims >= 2 && dims <= 4);
  const auto h = static_cast<unsigned long long>(hint);
  const SharedAddress b = shared_address(&barrier);
#define FLASH3_TMA_MULTICAST(DIMS, COORDINATES, BARRIER, BLOCKS, HINT)                                               \
  "cp.async.bulk.tensor." DIMS                                                                                       \
  "d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%0], [%1, {" COORDINATES \
  "}], [" BARRIER "], " BLOCKS ", " HINT ";"
  if constexpr (dims == 2) {
    asm volatile(FLASH3_TMA_MULTICAST("2", "%2, %3", "%4", "%5", "%6")
                 :
                 : "r"(target), "l"(&map), "r"(c[0]), "r"(c[1]), "r"(b), "h"(blocks), "l"(h)
                 : "memory");
  } else if constexpr (dims == 3) {
    asm volatile(FLASH3_TMA_MULTICAST("3", "%2, %3, %4", "%5", "%6", "%7")
                 :
                 : "r"(target), "l"(&map), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(b), "h"(blocks), "l"(h)
                 : "memory");
  } else {
    asm volatile(FLASH3_TMA_MULTICAST("4", "%2, %3, %4, %5", "%6", "%7", "%8")
                 :
                 : "r"(target), "l"(&map), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]), "r"(b), "h"(blocks), "l"(h)
                 : "memory");
  }
#undef FLASH3_TMA_MULTICAST
}

// cp.async.bulk.tensor.{dims}d.global.shared::cta.bulk_group [map, {coordinates}], [source];
// Part of this thread's next bulk group. Skips what lies outside the tensor.
template <int dims>
FLASH3_DEVICE void cp_async_bulk_tensor_store(const TensorMap& map, const int (&c)[dims], SharedAddress source,
                                              Where = Where::current()) {
  static_assert(dims >= 2 && dims <= 5);
#define FLASH3_TMA_STORE(DIMS, COORDINATES, SOURCE) \
  "cp.async.bulk.tensor." DIMS "d.global.shared::cta.bulk_group [%0, {" COORDINATES "}], [" SOURCE "];"
  if constexpr (dims == 2) {
    asm volatile(FLASH3_TMA_STORE("2", "%1, %2", "%3") : : "l"(&map), "r"(c[0]), "r"(c[1]), "r"(source) : "memory");
  } else if constexpr (dims == 3) {
    asm volatile(FLASH3_TMA_STORE("3", "%1, %2, %3", "%4")
                 :
                 : "l"(&map), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(source)
                 : "memory");
  } else if constexpr (dims == 4) {
    asm volatile(FLASH3_TMA_STORE("4", "%1, %2, %3, %4", "%5")
                 :
                 : "l"(&map), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]), "r"(source)
                 : "memory");
  } else {
    asm volatile(FLASH3_TMA_STORE("5", "%1, %2, %3, %4, %5", "%6")
                 :
                 : "l"(&map), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]), "r"(c[4]), "r"(source)
                 : "memory");
  }
#undef FLASH3_TMA_STORE
}

// cp.reduce.async.bulk.tensor.{dims}d.global.shared::cta.add.tile.bulk_group [map, {coordinates}], [source];
// Adds instead of storing, element by element, in any order.
template <int dims>
FLASH3_DEVICE void cp_reduce_async_bulk_tensor_add(const TensorMap& map, const int (&c)[dims], SharedAddress source,
                                                   Where = Where::current()) {
  static_assert(dims >= 2 && dims <= 4);
#define FLASH3_TMA_REDUCE(DIMS, COORDINATES, SOURCE)                                                               \
  "cp.reduce.async.bulk.tensor." DIMS "d.global.shared::cta.add.tile.bulk_group [%0, {" COORDINATES "}], [" SOURCE \
  "]"                                                                                                              \
  ";"
  if constexpr (dims == 2) {
    asm volatile(FLASH3_TMA_REDUCE("2", "%1, %2", "%3") : : "l"(&map), "r"(c[0]), "r"(c[1]), "r"(source) : "memory");
  } else if constexpr (dims == 3) {
    asm volatile(FLASH3_TMA_REDUCE("3", "%1, %2, %3", "%4")
                 :
                 : "l"(&map), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(source)
                 : "memory");
  } else {
    asm volatile(FLASH3_TMA_REDUCE("4", "%1, %2, %3, %4", "%5")
                 :
                 : "l"(&map), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]), "r"(source)
                 : "memory");
  }
#undef FLASH3_TMA_REDUCE
}

// cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [target], [source], bytes, [barrier];
// Plain bytes: addresses and size are multiples of 16.
FLASH3_DEVICE void cp_async_bulk_load(SharedAddress target, const void* source, unsigned bytes, Barrier& barrier,
                                      Where = Where::current()) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               :
               : "r"(target), "l"(source), "r"(bytes), "r"(shared_address(&barrier))
               : "memory");
}

// cp.async.bulk.global.shared::cta.bulk_group [target], [source], bytes;
FLASH3_DEVICE void cp_async_bulk_store(void* target, SharedAddress source, unsigned bytes, Where = Where::current()) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
               :
               : "l"(target), "r"(source), "r"(bytes)
               : "memory");
}

// cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [target], [source], bytes;
FLASH3_DEVICE void cp_reduce_async_bulk_add(float* target, SharedAddress source, unsigned bytes,
                                            Where = Where::current()) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;"
               :
               : "l"(target), "r"(source), "r"(bytes)
               : "memory");
}

// cp.async.bulk.commit_group;  Closes this thread's bulk group of stores and reductions.
FLASH3_DEVICE void bulk_commit_group(Where = Where::current()) {
  asm volatile("cp.async.bulk.commit_group;" : : : "memory");
}

// cp.async.bulk.wait_group pending;  All but the last `pending` groups have written global memory.
template <int pending>
FLASH3_DEVICE void bulk_wait_group(Where = Where::current()) {
  asm volatile("cp.async.bulk.wait_group %0;" : : "n"(pending) : "memory");
}

// cp.async.bulk.wait_group.read pending;  All but the last `pending` groups have read shared memory: it may be reused.
template <int pending>
FLASH3_DEVICE void bulk_wait_group_read(Where = Where::current()) {
  asm volatile("cp.async.bulk.wait_group.read %0;" : : "n"(pending) : "memory");
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
