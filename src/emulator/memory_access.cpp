// Owns a thread's plain accesses: who it is, its shared memory, and global memory.
#include <algorithm>

#include "emulator/instructions.h"
#include "emulator/machine.h"
#include "emulator/memory.h"

namespace flash3::emulator {
namespace {

// The block whose memory a plain access of the calling thread reaches.
Block& reached(std::uint32_t address, Window window, const Where& where) {
  Block& mine = *Machine::instance().self().warp.block;
  Block& block = block_at(mine, address, where);
  if (&block != &mine && window == Window::block) {
    Machine::instance().fail(FaultKind::bounds,
                             "an address of block " + block.name() +
                                 "'s shared memory is given to an instruction that reaches its own block's only",
                             where);
  }
  note_access(block, where);
  return block;
}

}  // namespace

int thread_index() { return Machine::instance().self().index; }

Place place() {
  Machine& machine = Machine::instance();
  const Block& block = *machine.self().warp.block;
  const GridShape& grid = machine.grid();
  return {grid.threads,
          {block.x, block.y, block.z},
          {grid.size[0], grid.size[1], grid.size[2]},
          static_cast<unsigned>(block.rank),
          static_cast<unsigned>(grid.cluster)};
}

void maybe_yield() { Machine::instance().maybe_yield(); }

void trap(const Where& where) { Machine::instance().fail(FaultKind::trap, "the kernel gave up", where); }

void index_out_of_range(int index, int count, const Where& where) {
  Machine::instance().fail(
      FaultKind::bounds, "element " + std::to_string(index) + " of an array that has " + std::to_string(count), where);
}

void misaligned_row(const Where& where) {
  Machine::instance().fail(FaultKind::bounds, "the address of a matrix row is not a multiple of 16 bytes", where);
}

Block& block_at(Block& from, std::uint32_t address, const Where& where) {
  const auto rank = static_cast<std::size_t>(address >> rank_shift);
  if (rank >= from.cluster->blocks.size()) {
    Machine::instance().fail(FaultKind::bounds,
                             "the address names block " + std::to_string(rank) + " of a cluster of " +
                                 std::to_string(from.cluster->blocks.size()),
                             where);
  }
  return *from.cluster->blocks[rank];
}

void note_access(Block& block, const Where& where) {
  Machine& machine = Machine::instance();
  Thread& me = machine.self();
  if (&block == me.warp.block) return;
  const bool started = std::any_of(block.threads.begin(), block.threads.end(),
                                   [&](const auto& thread) { return me.known.at(thread->agent) > 0; });
  if (!started) {
    machine.fail(FaultKind::race,
                 "nothing says that block " + block.name() + ", whose shared memory is used, has started", where);
  }
  block.remote_accesses[me.agent] = {me.now(), where};
}

std::uint32_t shared_offset(Block& block, std::uint32_t address, std::uint32_t bytes, const Where& where) {
  const std::uint32_t in_window = address & ((1u << rank_shift) - 1);
  if (in_window < shared_start || in_window - shared_start + bytes > block.shared_bytes) {
    Machine::instance().fail(FaultKind::bounds,
                             std::to_string(bytes) + " bytes at offset " +
                                 std::to_string(static_cast<std::int64_t>(in_window) - shared_start) +
                                 " of shared memory, of which the block has " + std::to_string(block.shared_bytes),
                             where);
  }
  return in_window - shared_start;
}

Toucher toucher(Thread& thread, const Where& where) {
  return {where, thread.agent, thread.now(), Actor::thread, &thread.known, &thread.fenced};
}

void touch_shared(Block& block, std::uint32_t offset, std::uint32_t bytes, Manner manner, const Toucher& by,
                  std::uint8_t swizzle) {
  Machine& machine = Machine::instance();
  const bool of_barrier = block.barrier_at[offset / 8] != nullptr && block.barrier_at[offset / 8]->live;
  if (of_barrier ||
      (bytes > 8 && block.barrier_at[offset / 8 + 1] != nullptr && block.barrier_at[offset / 8 + 1]->live)) {
    const BarrierState& b = *block.barrier_at[offset / 8 + (of_barrier ? 0 : 1)];
    machine.fail(FaultKind::barrier,
                 "ordinary access to the bytes of the mbarrier made at " + to_string(b.made) + ", which is in use",
                 by.where);
  }
  if (auto conflict = block.shadow->touch(offset, bytes, manner, by, swizzle)) {
    machine.fail(conflict->kind,
                 conflict->text + "\n  offset " + std::to_string(offset) + " of shared memory, block " + block.name(),
                 by.where);
  }
}

void* shared_struct(std::size_t bytes, const Where& where) {
  Machine& machine = Machine::instance();
  Block& block = *machine.self().warp.block;
  if (bytes > block.shared_bytes) {
    machine.fail(FaultKind::bounds,
                 "the shared struct has " + std::to_string(bytes) + " bytes; the launch asked for " +
                     std::to_string(block.shared_bytes),
                 where);
  }
  return block.shared;
}

std::uint32_t shared_address(const void* object) {
  const Block& block = *Machine::instance().self().warp.block;
  const auto offset = static_cast<const unsigned char*>(object) - block.shared;
  if (offset < 0 || offset > static_cast<std::ptrdiff_t>(block.shared_bytes)) {
    Machine::instance().fail(FaultKind::bounds, "the address of an object that is not in shared memory is taken", {});
  }
  return static_cast<std::uint32_t>(offset) + shared_start + (static_cast<std::uint32_t>(block.rank) << rank_shift);
}

void read_shared(std::uint32_t address, void* to, std::uint32_t bytes, const Where& where, Window window) {
  Thread& me = Machine::instance().self();
  Block& block = reached(address, window, where);
  const std::uint32_t offset = shared_offset(block, address, bytes, where);
  if (offset % bytes != 0) Machine::instance().fail(FaultKind::bounds, "misaligned access to shared memory", where);
  touch_shared(block, offset, bytes, Manner::read, toucher(me, where));
  __builtin_memcpy(to, block.shared + offset, bytes);
}

void write_shared(std::uint32_t address, const void* from, std::uint32_t bytes, const Where& where, Window window) {
  Machine& machine = Machine::instance();
  Thread& me = machine.self();
  Block& block = reached(address, window, where);
  const std::uint32_t offset = shared_offset(block, address, bytes, where);
  if (offset % bytes != 0) machine.fail(FaultKind::bounds, "misaligned access to shared memory", where);
  touch_shared(block, offset, bytes, Manner::write, toucher(me, where));
  __builtin_memcpy(block.shared + offset, from, bytes);
  machine.progress();
}

void* atomic_shared(std::uint32_t address, std::uint32_t bytes, const Where& where) {
  Machine& machine = Machine::instance();
  Thread& me = machine.self();
  Block& block = reached(address, Window::block, where);
  const std::uint32_t offset = shared_offset(block, address, bytes, where);
  if (offset % bytes != 0) machine.fail(FaultKind::bounds, "misaligned access to shared memory", where);
  touch_shared(block, offset, bytes, Manner::atomic, toucher(me, where));
  machine.progress();
  return block.shared + offset;
}

std::uint32_t map_to_block(std::uint32_t address, unsigned rank) {
  return (address & ((1u << rank_shift) - 1)) | (rank << rank_shift);
}

void grid_dependency_wait() { Machine::instance().self().warp.block->dependency_waited = true; }

void wgmma_fence() { ++Machine::instance().self().wgmma_fences; }

void check_global_access(const void* at, std::size_t bytes, bool write, const Where& where) {
  Machine& machine = Machine::instance();
  if (machine.grid().dependent && machine.in_thread() && !machine.self().warp.block->dependency_waited) {
    machine.fail(FaultKind::race, "a dependent launch touches global memory before grid_dependency_wait", where);
  }
  const std::string wrong = check_global(at, bytes, write);
  if (!wrong.empty()) machine.fail(FaultKind::bounds, std::string(write ? "write: " : "read: ") + wrong, where);
  if (bytes <= 16 && reinterpret_cast<std::uintptr_t>(at) % bytes != 0) {
    machine.fail(FaultKind::bounds, "misaligned access to global memory", where);
  }
}

void global_poll(const Where& where) { Machine::instance().poll_failed(where); }
void global_written() { Machine::instance().progress(); }

}  // namespace flash3::emulator
