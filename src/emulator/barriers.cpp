// Owns synchronisation: mbarriers, named barriers, warp-wide exchange, cluster barriers, fences, register budgets.
#include <algorithm>
#include <cstring>

#include "emulator/instructions.h"
#include "emulator/machine.h"

namespace flash3::emulator {
namespace {

std::string barrier_text(const BarrierState& b) {
  return "mbarrier at offset " + std::to_string(b.offset) + " made at " + to_string(b.made) + ", phase " +
         std::to_string(b.phase) + " lacks " + std::to_string(b.pending) + " of " + std::to_string(b.count) +
         " arrivals and " + std::to_string(b.bytes) + " bytes";
}

bool phase_done(const BarrierState& b, unsigned parity) { return (b.phase & 1) != parity; }

void end_phase_if_complete(BarrierState& b, const Where& where) {
  if (b.pending != 0) return;
  Machine& machine = Machine::instance();
  if (b.bytes < 0) {
    machine.fail(FaultKind::barrier,
                 "more bytes have arrived than were announced, by " + std::to_string(-b.bytes) + ": " + barrier_text(b),
                 where);
  }
  if (b.bytes != 0) return;
  b.complete[b.phase & 1] = b.gathering;
  b.complete_fenced[b.phase & 1] = b.gathering_fenced;
  ++b.phase;
  b.pending = b.count;
  machine.progress();
  std::vector<Thread*> still;
  std::vector<unsigned> still_parity;
  for (std::size_t i = 0; i < b.waiters.size(); ++i) {
    if (phase_done(b, b.waiter_parity[i])) {
      machine.wake(*b.waiters[i]);
    } else {
      still.push_back(b.waiters[i]);
      still_parity.push_back(b.waiter_parity[i]);
    }
  }
  b.waiters = std::move(still);
  b.waiter_parity = std::move(still_parity);
}

// The barrier, checked to be made and known to be made.
BarrierState& usable(std::uint32_t address, bool remote, const Where& where) {
  Machine& machine = Machine::instance();
  Thread& me = machine.self();
  Block& block = block_at(*me.warp.block, address, where);
  note_access(block, where);
  BarrierState& b = barrier_at(block, address, where);
  if (me.known.at(b.maker) < b.made_time) {
    machine.fail(FaultKind::race, "nothing orders the mbarrier's init at " + to_string(b.made) + " before this use",
                 where);
  }
  if (remote && (!b.fenced || me.known.at(b.maker) < b.fenced_time)) {
    machine.fail(
        FaultKind::proxy,
        "the mbarrier made at " + to_string(b.made) + " is used from another block without fence_mbarrier_init", where);
  }
  return b;
}

void learn_phase(Thread& thread, const BarrierState& b, unsigned parity) {
  thread.learn(b.complete[parity], b.complete_fenced[parity]);
}

// Counts a whole warp in, and lets everyone go if it was the last.
void come(std::shared_ptr<Gathering>& open, Warp& warp) {
  Gathering& gathering = *open;
  for (Thread* lane : warp.lanes) {
    gathering.known.join(lane->known);
    gathering.fenced.join(lane->fenced);
    lane->tick();
  }
  gathering.arrived += 32;
  Machine& machine = Machine::instance();
  machine.progress();
  if (gathering.arrived < gathering.expected) return;
  gathering.done = true;
  for (Thread* waiter : gathering.waiters) machine.wake(*waiter);
  open = nullptr;
}

void wait_for(const std::shared_ptr<Gathering>& gathering, const char* what, const Where& where, int id = -1) {
  Machine& machine = Machine::instance();
  Thread& me = machine.self();
  const std::shared_ptr<Gathering> held = gathering;
  while (!held->done) {
    held->waiters.push_back(&me);
    machine.block(what, where, [g = held.get(), id] {
      return (id < 0 ? "" : "barrier " + std::to_string(id) + ": ") + std::to_string(g->arrived) + " of " +
             std::to_string(g->expected) + " threads have come";
    });
  }
  me.learn(held->known, held->fenced);
}

}  // namespace

BarrierState& barrier_at(Block& block, std::uint32_t address, const Where& where) {
  const std::uint32_t offset = shared_offset(block, address, 8, where);
  BarrierState* b = offset % 8 == 0 ? block.barrier_at[offset / 8] : nullptr;
  if (b == nullptr || !b->live) {
    Machine::instance().fail(FaultKind::barrier, "no mbarrier has been made at offset " + std::to_string(offset),
                             where);
  }
  return *b;
}

void complete_bytes(BarrierState& b, std::int64_t bytes, const Clock& known, const Clock& fenced, const Where& where) {
  b.gathering.join(known);
  b.gathering_fenced.join(fenced);
  b.bytes -= bytes;
  end_phase_if_complete(b, where);
}

void mbarrier_init(std::uint32_t address, unsigned count, const Where& where) {
  Machine& machine = Machine::instance();
  Thread& me = machine.self();
  Block& block = *me.warp.block;
  const std::uint32_t offset = shared_offset(block, address, 8, where);
  if (offset % 8 != 0) machine.fail(FaultKind::barrier, "an mbarrier must be 8 bytes aligned", where);
  if (count == 0 || count >= (1u << 20)) machine.fail(FaultKind::barrier, "the count must be 1 to 2^20 - 1", where);
  BarrierState*& at = block.barrier_at[offset / 8];
  if (at == nullptr) {
    block.barriers.push_back(std::make_unique<BarrierState>());
    at = block.barriers.back().get();
  } else if (at->live) {
    machine.fail(FaultKind::barrier, "the mbarrier made at " + to_string(at->made) + " is made again", where);
  }
  touch_shared(block, offset, 8, Manner::write, toucher(me, where));
  *at = BarrierState{};
  at->live = true;
  at->offset = offset;
  at->count = at->pending = count;
  at->made = where;
  at->maker = me.agent;
  at->made_time = me.now();
}

void mbarrier_inval(std::uint32_t address, const Where& where) { usable(address, false, where).live = false; }

void mbarrier_arrive(std::uint32_t address, std::int64_t expected_bytes, bool remote, const Where& where) {
  Machine& machine = Machine::instance();
  machine.maybe_yield();
  Thread& me = machine.self();
  BarrierState& b = usable(address, remote, where);
  if (b.pending == 0) {
    machine.fail(FaultKind::barrier, "one arrival more than the phase expects: " + barrier_text(b), where);
  }
  b.gathering.join(me.known);
  b.gathering_fenced.join(me.fenced);
  me.tick();
  b.bytes += expected_bytes;
  --b.pending;
  machine.progress();
  end_phase_if_complete(b, where);
}

void mbarrier_expect_tx(std::uint32_t address, std::int64_t bytes, const Where& where) {
  BarrierState& b = usable(address, false, where);
  b.bytes += bytes;
  Machine::instance().progress();
}

bool mbarrier_test(std::uint32_t address, unsigned parity, const Where& where) {
  Machine& machine = Machine::instance();
  machine.maybe_yield();
  BarrierState& b = usable(address, false, where);
  if (phase_done(b, parity)) {
    learn_phase(machine.self(), b, parity);
    return true;
  }
  machine.poll_failed(where);
  return false;
}

void mbarrier_wait(std::uint32_t address, unsigned parity, const Where& where) {
  Machine& machine = Machine::instance();
  if (parity > 1) machine.fail(FaultKind::barrier, "parity is " + std::to_string(parity) + ", not 0 or 1", where);
  machine.maybe_yield();
  Thread& me = machine.self();
  BarrierState& b = usable(address, false, where);
  // The hardware looks again only now and then: the phase may have moved on when it does.
  while (!phase_done(b, parity)) {
    b.waiters.push_back(&me);
    b.waiter_parity.push_back(parity);
    machine.block("mbarrier_wait_parity", where,
                  [&b, parity] { return "parity " + std::to_string(parity) + " of " + barrier_text(b); });
  }
  learn_phase(me, b, parity);
}

void fence_mbarrier_init() {
  Thread& me = Machine::instance().self();
  for (auto& b : me.warp.block->barriers) {
    if (b->live && !b->fenced && b->maker == me.agent) {
      b->fenced = true;
      b->fenced_time = me.now();
    }
  }
  me.tick();
}

void fence_proxy_async() {
  fence_mbarrier_init();  // a barrier's init is an ordinary write too
  Thread& me = Machine::instance().self();
  me.fenced.set(me.agent, me.now() - 1);
  for (const auto& [agent, time] : me.unfenced_copies) me.fenced.raise(agent, time);
  me.unfenced_copies.clear();
}

Words exchange(std::uint64_t word, const char* what, const Where& where) {
  Machine& machine = Machine::instance();
  Thread& me = machine.self();
  Warp& warp = me.warp;
  // A lane can be one meeting ahead of another, not two: two sets of slots are enough.
  const std::size_t parity = warp.meeting.generation & 1;
  warp.slots[parity][static_cast<std::size_t>(me.lane)] = word;
  machine.meet(warp.meeting, what, where, [] {});
  Words words;
  std::memcpy(words.lane, warp.slots[parity].data(), sizeof words.lane);
  return words;
}

bool elect(const Where& where) {
  Machine& machine = Machine::instance();
  machine.meet(machine.self().warp.meeting, "elect_one", where, [] {});
  return machine.self().lane == machine.elected_lane();
}

void sync_warp(const Where& where) {
  Machine& machine = Machine::instance();
  Warp& warp = machine.self().warp;
  machine.meet(warp.meeting, "sync_warp", where, [&] {
    Clock known, fenced;
    for (Thread* lane : warp.lanes) {
      known.join(lane->known);
      fenced.join(lane->fenced);
    }
    for (Thread* lane : warp.lanes) {
      lane->learn(known, fenced);
      lane->tick();
    }
  });
}

void named_barrier(int id, int threads, bool wait, const Where& where) {
  Machine& machine = Machine::instance();
  Thread& me = machine.self();
  Warp& warp = me.warp;
  if (id < 0 || id > 15) machine.fail(FaultKind::barrier, "a named barrier's id is 0 to 15", where);
  if (threads <= 0 || threads % 32 != 0 || threads > static_cast<int>(warp.block->threads.size())) {
    machine.fail(FaultKind::barrier,
                 "a named barrier counts " + std::to_string(threads) + " threads: a multiple of 32 up to the block's " +
                     std::to_string(warp.block->threads.size()) + " is possible",
                 where);
  }
  const auto count = [&] {
    std::shared_ptr<Gathering>& open = warp.block->named[static_cast<std::size_t>(id)];
    if (open == nullptr) {
      open = std::make_shared<Gathering>();
      open->expected = threads;
      open->where = where;
    } else if (open->expected != threads) {
      machine.fail(FaultKind::barrier,
                   "named barrier " + std::to_string(id) + " is counted to " + std::to_string(threads) +
                       " here and to " + std::to_string(open->expected) + " at " + to_string(open->where),
                   where);
    }
    warp.gathering = open;
    come(open, warp);
  };
  machine.meet(warp.meeting, wait ? "named_barrier_sync" : "named_barrier_arrive", where, count);
  if (wait) wait_for(warp.gathering, "named_barrier_sync", where, id);
}

void cluster_arrive(const Where& where) {
  Machine& machine = Machine::instance();
  Warp& warp = machine.self().warp;
  machine.meet(warp.meeting, "cluster_arrive", where, [&] {
    Cluster& cluster = *warp.block->cluster;
    if (cluster.barrier == nullptr) {
      cluster.barrier = std::make_shared<Gathering>();
      cluster.barrier->expected = machine.grid().threads * machine.grid().cluster;
      cluster.barrier->where = where;
    }
    if (warp.cluster_gathering != nullptr) {
      machine.fail(FaultKind::barrier, "cluster_arrive again before cluster_wait", where);
    }
    warp.cluster_gathering = cluster.barrier;
    come(cluster.barrier, warp);
  });
}

void cluster_wait(const Where& where) {
  Machine& machine = Machine::instance();
  Warp& warp = machine.self().warp;
  std::shared_ptr<Gathering> mine = warp.cluster_gathering;
  if (mine == nullptr) machine.fail(FaultKind::barrier, "cluster_wait without cluster_arrive", where);
  machine.meet(warp.meeting, "cluster_wait", where, [&] { warp.cluster_gathering = nullptr; });
  wait_for(mine, "cluster_wait", where);
}

void set_registers(int count, bool increase, const Where& where) {
  Machine& machine = Machine::instance();
  Thread& me = machine.self();
  Warpgroup& group = *me.warp.warpgroup;
  Block& block = *me.warp.block;
  // What the warpgroup must find free before it can go on; the last thread to come takes it.
  machine.meet(group.meeting, "setmaxnreg", where, [&] {
    const auto fail = [&](const char* why) {
      machine.fail(FaultKind::registers,
                   std::string(why) + ": the warpgroup has " + std::to_string(group.registers) +
                       " registers a thread and " + (increase ? "raises" : "lowers") + " them to " +
                       std::to_string(count),
                   where);
    };
    if (group.warps.size() != 4) fail("the warpgroup has fewer than 4 warps");
    if (increase ? count < group.registers : count > group.registers) fail("wrong direction");
    const int needed = (count - group.registers) * 128;
    while (block.free_registers < needed) {
      block.register_waiters.push_back(&me);
      machine.block("setmaxnreg_inc", where, [&block, needed] {
        return std::to_string(needed) + " registers needed, " + std::to_string(block.free_registers) + " free";
      });
    }
    block.free_registers -= needed;
    group.registers = count;
    if (needed < 0) {
      for (Thread* waiter : block.register_waiters) machine.wake(*waiter);
      block.register_waiters.clear();
    }
  });
}

}  // namespace flash3::emulator
