// Owns asynchronous copies: boxes and plain bytes into and out of shared memory, and cp.async.
#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "core/half.h"
#include "emulator/box.h"
#include "emulator/instructions.h"
#include "emulator/machine.h"
#include "emulator/memory.h"

namespace flash3::emulator {
namespace {

// What every copy carries: who issued it, knowing what, and its own component of the clocks.
struct Copy : Operation {
  Copy(Block& block_, Actor actor_, const Where& where_) : block(&block_), actor(actor_), where(where_) {
    Thread& me = Machine::instance().self();
    known = me.known;
    fenced = me.fenced;
    std::tie(agent, time) = Machine::instance().lend(block_, me.known, where);
    cluster = me.warp.block->cluster;
    known.set(agent, time);
    me.tick();
  }

  Toucher toucher() const { return {where, agent, time, actor, &known, &fenced}; }

  // Shared memory, 16 bytes at a time, as the copy's swizzle places them.
  void touch(std::uint32_t address, std::uint32_t bytes, Manner manner, std::uint8_t swizzle,
             const std::function<void(std::byte*, std::uint32_t at)>& move) {
    for (std::uint32_t at = 0; at < bytes; at += 16) {
      std::uint32_t chunk = address + at;
      if (swizzle > 16) chunk ^= chunk >> 3 & (swizzle - 16u);
      const std::uint32_t offset = shared_offset(*block, chunk, 16, where);
      touch_shared(*block, offset, 16, manner, toucher(), swizzle);
      move(reinterpret_cast<std::byte*>(block->shared + offset), at);
    }
  }

  void over() { Machine::instance().give_back(*cluster, agent); }

  Block* block;
  Cluster* cluster;
  Actor actor;
  Where where;
  Clock known, fenced;
  std::uint32_t agent = 0, time = 0;
};

void demand(bool fine, FaultKind kind, const char* text, const Where& where) {
  if (!fine) Machine::instance().fail(kind, text, where);
}

// A load that ends with its bytes on an mbarrier.
struct Load : Copy {
  using Copy::Copy;

  void expect(std::uint32_t barrier_address_) {
    barrier_address = barrier_address_;
    const BarrierState& b = barrier_at(*block, barrier_address, where);
    demand(known.at(b.maker) >= b.made_time, FaultKind::race, "nothing orders the mbarrier's init before this copy",
           where);
    demand(b.fenced && known.at(b.maker) >= b.fenced_time, FaultKind::proxy,
           "the copy uses an mbarrier whose init was not followed by fence_mbarrier_init", where);
  }

  void deliver(const std::vector<std::byte>& bytes, std::uint8_t swizzle) {
    touch(target, static_cast<std::uint32_t>(bytes.size()), Manner::write, swizzle,
          [&](std::byte* to, std::uint32_t at) { std::memcpy(to, bytes.data() + at, 16); });
    over();
    complete_bytes(barrier_at(*block, barrier_address, where), static_cast<std::int64_t>(bytes.size()), known, fenced,
                   where);
  }

  std::uint32_t target = 0, barrier_address = 0;
};

struct BoxLoad final : Load {
  using Load::Load;
  bool land() override {
    std::vector<std::byte> bytes(static_cast<std::size_t>(map.box_bytes()));
    const int row_bytes = map.box[0] * map.element_bytes;
    walk_box(map, coordinates, [&](int number, const std::byte* from, int skipped, int valid) {
      if (valid == 0) return;
      const auto n = static_cast<std::size_t>(valid) * map.element_bytes;
      const std::string wrong = check_global(from, n, false);
      if (!wrong.empty()) Machine::instance().fail(FaultKind::bounds, "a box reads outside: " + wrong, where);
      std::memcpy(bytes.data() + number * row_bytes + skipped * map.element_bytes, from, n);
    });
    deliver(bytes, map.swizzle);
    return true;
  }
  BoxMap map;
  int coordinates[5] = {};
};

struct BulkLoad final : Load {
  using Load::Load;
  bool land() override {
    check_global_access(source, count, false, where);
    std::vector<std::byte> bytes(count);
    std::memcpy(bytes.data(), source, count);
    deliver(bytes, 16);
    return true;
  }
  const void* source = nullptr;
  std::uint32_t count = 0;
};

// A store first reads shared memory, later writes global memory; a bulk group waits for either.
struct Store : Copy {
  using Copy::Copy;

  void join_group(Thread& me) {
    group = me.bulk_groups.back();
    ++group->unread;
    ++group->unfinished;
    group->operations.emplace_back(agent, time);
  }

  bool land() override {
    if (bytes.empty()) {
      bytes.resize(count);
      touch(source, count, Manner::read, swizzle,
            [&](std::byte* from, std::uint32_t at) { std::memcpy(bytes.data() + at, from, 16); });
      over();
      --group->unread;
      wake_waiter();
      return false;
    }
    write();
    --group->unfinished;
    wake_waiter();
    return true;
  }

  void wake_waiter() {
    if (group->waiter != nullptr) Machine::instance().wake(*std::exchange(group->waiter, nullptr));
  }

  virtual void write() = 0;

  void check(const void* to, std::size_t n) const {
    const std::string wrong = check_global(to, n, true);
    if (!wrong.empty()) Machine::instance().fail(FaultKind::bounds, "a copy writes outside: " + wrong, where);
  }

  std::shared_ptr<CopyGroup> group;
  std::uint32_t source = 0, count = 0;
  std::uint8_t swizzle = 16;
  std::vector<std::byte> bytes;
  bool add = false;
};

template <class T, class ToFloat, class FromFloat>
void add_elements(std::byte* to, const std::byte* from, std::size_t n, ToFloat to_float, FromFloat from_float) {
  for (std::size_t i = 0; i < n; ++i) {
    T a, b;
    std::memcpy(&a, to + i * sizeof(T), sizeof(T));
    std::memcpy(&b, from + i * sizeof(T), sizeof(T));
    a = from_float(to_float(a) + to_float(b));
    std::memcpy(to + i * sizeof(T), &a, sizeof(T));
  }
}

struct BoxStore final : Store {
  using Store::Store;
  void write() override {
    const int row_bytes = map.box[0] * map.element_bytes;
    walk_box(map, coordinates, [&](int number, const std::byte* at, int skipped, int valid) {
      if (valid == 0) return;
      auto* to = const_cast<std::byte*>(at);
      const std::byte* from = bytes.data() + number * row_bytes + skipped * map.element_bytes;
      // The hardware writes units of 16 bytes: past the last element, whatever the box holds there.
      const int unit = 16 / map.element_bytes;
      const auto n = static_cast<std::size_t>(std::min((valid + unit - 1) / unit * unit, map.box[0] - skipped));
      check(to, n * map.element_bytes);
      if (!add) {
        std::memcpy(to, from, n * map.element_bytes);
      } else if (map.type == hopper::ElementType::float32) {
        add_elements<float>(
            to, from, n, [](float x) { return x; }, [](float x) { return x; });
      } else if (map.type == hopper::ElementType::bfloat16) {
        add_elements<core::bfloat16>(
            to, from, n, [](core::bfloat16 x) { return core::to_float(x); },
            [](float x) { return core::to_bfloat16(x); });
      } else {
        add_elements<core::float16>(
            to, from, n, [](core::float16 x) { return core::to_float(x); },
            [](float x) { return core::to_float16(x); });
      }
    });
  }
  BoxMap map;
  int coordinates[5] = {};
};

struct BulkStore final : Store {
  using Store::Store;
  void write() override {
    check(target, count);
    if (add) {
      add_elements<float>(
          target, bytes.data(), count / 4, [](float x) { return x; }, [](float x) { return x; });
    } else {
      std::memcpy(target, bytes.data(), count);
    }
  }
  std::byte* target = nullptr;
};

struct SmallCopy final : Copy {
  using Copy::Copy;
  bool land() override {
    std::byte bytes[16] = {};
    if (source != nullptr) {
      check_global_access(source, 16, false, where);
      std::memcpy(bytes, source, 16);
    }
    touch(target, 16, Manner::write, 16, [&](std::byte* to, std::uint32_t) { std::memcpy(to, bytes, 16); });
    over();
    --group->unread;
    --group->unfinished;
    if (group->waiter != nullptr) Machine::instance().wake(*std::exchange(group->waiter, nullptr));
    return true;
  }
  std::shared_ptr<CopyGroup> group;
  std::uint32_t target = 0;
  const void* source = nullptr;
};

BoxMap decode_map(const void* map, int dims, const Where& where) {
  BoxMap box;
  std::memcpy(&box, map, sizeof box);
  demand(box.magic == BoxMap::magic_value, FaultKind::descriptor, "the tensor map was not made by make_tensor_map",
         where);
  demand(box.rank == dims, FaultKind::descriptor, "the tensor map has another rank than the coordinates", where);
  return box;
}

void commit(std::deque<std::shared_ptr<CopyGroup>>& groups) { groups.push_back(std::make_shared<CopyGroup>()); }

// Waits for all committed groups but the last `pending`; calls learn for each operation of them.
template <class Learn>
void wait(std::deque<std::shared_ptr<CopyGroup>>& groups, int pending, bool read_only, const char* what,
          const Where& where, Learn learn) {
  Machine& machine = Machine::instance();
  Thread& me = machine.self();
  const int waited = static_cast<int>(groups.size()) - 1 - pending;
  for (int i = 0; i < waited; ++i) {
    CopyGroup& group = *groups[static_cast<std::size_t>(i)];
    while (read_only ? group.unread > 0 : group.unfinished > 0) {
      group.waiter = &me;
      machine.block(what, where);
    }
    for (const auto& [agent, time] : group.operations) learn(agent, time);
    group.operations.clear();
  }
  if (!read_only && waited > 0) groups.erase(groups.begin(), groups.begin() + waited);
}

}  // namespace

void box_load(std::uint32_t target, const void* map, const int* coordinates, int dims, std::uint32_t barrier,
              unsigned blocks, const Where& where) {
  Machine& machine = Machine::instance();
  machine.maybe_yield();
  Block& mine = *machine.self().warp.block;
  demand(target % 128 == 0, FaultKind::descriptor, "the box's place in shared memory is not a multiple of 128 bytes",
         where);
  const BoxMap box = decode_map(map, dims, where);
  demand(!machine.grid().dependent || mine.dependency_waited, FaultKind::race,
         "a dependent launch touches global memory before grid_dependency_wait", where);
  const unsigned ranks = blocks != 0 ? blocks : 1u << (target >> rank_shift);
  for (unsigned rank = 0; rank < 16; ++rank) {
    if ((ranks >> rank & 1u) == 0) continue;
    demand(rank < mine.cluster->blocks.size(), FaultKind::descriptor, "the copy names a block outside the cluster",
           where);
    auto load = std::make_unique<BoxLoad>(*mine.cluster->blocks[rank], Actor::copy_in, where);
    load->map = box;
    std::copy(coordinates, coordinates + dims, load->coordinates);
    load->target = map_to_block(target, rank);
    load->expect(map_to_block(barrier, rank));
    machine.start(std::move(load));
  }
}

void box_store(const void* map, const int* coordinates, int dims, std::uint32_t source, bool add, const Where& where) {
  Machine& machine = Machine::instance();
  machine.maybe_yield();
  Thread& me = machine.self();
  demand(source % 128 == 0, FaultKind::descriptor, "the box's place in shared memory is not a multiple of 128 bytes",
         where);
  demand(!machine.grid().dependent || me.warp.block->dependency_waited, FaultKind::race,
         "a dependent launch touches global memory before grid_dependency_wait", where);
  auto store = std::make_unique<BoxStore>(*me.warp.block, Actor::copy_out, where);
  store->map = decode_map(map, dims, where);
  std::copy(coordinates, coordinates + dims, store->coordinates);
  store->source = source;
  store->count = static_cast<std::uint32_t>(store->map.box_bytes());
  store->swizzle = store->map.swizzle;
  store->add = add;
  store->join_group(me);
  machine.start(std::move(store));
}

void bulk_load(std::uint32_t target, const void* source, std::uint32_t bytes, std::uint32_t barrier,
               const Where& where) {
  Machine& machine = Machine::instance();
  machine.maybe_yield();
  demand(target % 16 == 0 && bytes % 16 == 0 && bytes > 0 && reinterpret_cast<std::uintptr_t>(source) % 16 == 0,
         FaultKind::descriptor, "a bulk copy moves multiples of 16 bytes between multiples of 16", where);
  check_global_access(source, bytes, false, where);
  auto load = std::make_unique<BulkLoad>(block_at(*machine.self().warp.block, target, where), Actor::copy_in, where);
  load->source = source;
  load->count = bytes;
  load->target = target;
  load->expect(barrier);
  machine.start(std::move(load));
}

void bulk_store(void* target, std::uint32_t source, std::uint32_t bytes, bool add_floats, const Where& where) {
  Machine& machine = Machine::instance();
  machine.maybe_yield();
  demand(source % 16 == 0 && bytes % 16 == 0 && bytes > 0 && reinterpret_cast<std::uintptr_t>(target) % 16 == 0,
         FaultKind::descriptor, "a bulk copy moves multiples of 16 bytes between multiples of 16", where);
  check_global_access(target, bytes, true, where);
  Thread& me = machine.self();
  auto store = std::make_unique<BulkStore>(*me.warp.block, Actor::copy_out, where);
  store->target = static_cast<std::byte*>(target);
  store->source = source;
  store->count = bytes;
  store->add = add_floats;
  store->join_group(me);
  machine.start(std::move(store));
}

void bulk_commit() { commit(Machine::instance().self().bulk_groups); }

void bulk_wait(int pending, bool read_only, const Where& where) {
  Thread& me = Machine::instance().self();
  wait(me.bulk_groups, pending, read_only, read_only ? "bulk_wait_group_read" : "bulk_wait_group", where,
       [&](std::uint32_t agent, std::uint32_t time) { me.known.raise(agent, time); });
}

void small_copy(std::uint32_t target, const void* source, bool valid, const Where& where) {
  Machine& machine = Machine::instance();
  demand(target % 16 == 0 && reinterpret_cast<std::uintptr_t>(source) % 16 == 0, FaultKind::descriptor,
         "cp.async moves 16 bytes between multiples of 16", where);
  Thread& me = machine.self();
  auto copy = std::make_unique<SmallCopy>(*me.warp.block, Actor::small_copy, where);
  copy->target = target;
  copy->source = valid ? source : nullptr;
  copy->group = me.small_groups.back();
  ++copy->group->unread;
  ++copy->group->unfinished;
  copy->group->operations.emplace_back(copy->agent, copy->time);
  machine.start(std::move(copy));
}

void small_copy_commit() { commit(Machine::instance().self().small_groups); }

void small_copy_wait(int pending, const Where& where) {
  Thread& me = Machine::instance().self();
  wait(me.small_groups, pending, false, "cp_async_wait_group", where, [&](std::uint32_t agent, std::uint32_t time) {
    me.known.raise(agent, time);
    me.unfenced_copies.emplace_back(agent, time);
  });
}

}  // namespace flash3::emulator
