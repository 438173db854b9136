// Owns the emulated instructions: what the headers in emulator/hopper call on behalf of the running thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "emulator/report.h"

namespace flash3::emulator {

// A launch: runs kernel() once a thread of the grid. An error text if the shape is impossible, else null.
struct GridShape {
  int size[3];
  int threads;
  int cluster;
  std::size_t shared_bytes;
  bool dependent;
};
const char* run_grid(const GridShape& shape, const std::function<void()>& kernel);

// Who is asking.
struct Place {
  int block_threads;
  int block[3], grid[3];
  unsigned cluster_rank, cluster_size;
};
int thread_index();
Place place();
[[noreturn]] void trap(const Where& where);
[[noreturn]] void index_out_of_range(int index, int count, const Where& where);
[[noreturn]] void misaligned_row(const Where& where);
void maybe_yield();  // a moment at which other threads may go first

// Shared memory.
void* shared_struct(std::size_t bytes, const Where& where);
std::uint32_t shared_address(const void* object);
enum class Window { block, cluster };  // whose memory an instruction reaches
void read_shared(std::uint32_t address, void* to, std::uint32_t bytes, const Where& where,
                 Window window = Window::block);
void write_shared(std::uint32_t address, const void* from, std::uint32_t bytes, const Where& where,
                  Window window = Window::block);
// The bytes, for an atomic update in place.
void* atomic_shared(std::uint32_t address, std::uint32_t bytes, const Where& where);

// mbarriers.
void mbarrier_init(std::uint32_t address, unsigned count, const Where& where);
void mbarrier_inval(std::uint32_t address, const Where& where);
void mbarrier_arrive(std::uint32_t address, std::int64_t expected_bytes, bool remote, const Where& where);
void mbarrier_expect_tx(std::uint32_t address, std::int64_t bytes, const Where& where);
bool mbarrier_test(std::uint32_t address, unsigned parity, const Where& where);
void mbarrier_wait(std::uint32_t address, unsigned parity, const Where& where);

// Fences.
void fence_mbarrier_init();
void fence_proxy_async();

// Warps. Exchange: every lane gives a word; the result is the 32 words by lane.
struct Words {
  std::uint64_t lane[32];
};
Words exchange(std::uint64_t word, const char* what, const Where& where);
bool elect(const Where& where);
void sync_warp(const Where& where);

// Blocks and clusters.
void named_barrier(int id, int threads, bool wait, const Where& where);
void set_registers(int count, bool increase, const Where& where);
void cluster_arrive(const Where& where);
void cluster_wait(const Where& where);
std::uint32_t map_to_block(std::uint32_t address, unsigned rank);
void grid_dependency_wait();

// wgmma_fence; the rest of wgmma is in product.h.
void wgmma_fence();

// Global memory. Each checks bounds.
void check_global_access(const void* at, std::size_t bytes, bool write, const Where& where);
// The value may depend on others: let them run.
void global_poll(const Where& where);
void global_written();

// Copies of plain bytes.
void small_copy(std::uint32_t target, const void* source, bool valid, const Where& where);
void small_copy_commit();
void small_copy_wait(int pending, const Where& where);
void bulk_load(std::uint32_t target, const void* source, std::uint32_t bytes, std::uint32_t barrier,
               const Where& where);
void bulk_store(void* target, std::uint32_t source, std::uint32_t bytes, bool add_floats, const Where& where);
void bulk_commit();
void bulk_wait(int pending, bool read_only, const Where& where);

// Copies of boxes. `map` is an encoded tensor map; `blocks` has a bit for each rank that the box goes to, 0: this
// block.
void box_load(std::uint32_t target, const void* map, const int* coordinates, int dims, std::uint32_t barrier,
              unsigned blocks, const Where& where);
void box_store(const void* map, const int* coordinates, int dims, std::uint32_t source, bool add, const Where& where);

}  // namespace flash3::emulator
