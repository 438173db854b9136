// Owns the scheduler: which warp runs or which operation lands next, and what it means when nobody can.
#include "emulator/machine.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "emulator/product.h"

namespace flash3::emulator {
namespace {

thread_local Machine* active = nullptr;
// Stacks are worth keeping from launch to launch: their pages have been touched.
thread_local std::vector<std::unique_ptr<Fiber>> spare_fibers;

constexpr std::uint64_t vain_round_limit = 20000;

// Registers a thread that the compiler may use: a quarter of the file for each quarter of the warps, in units of 8.
int launch_registers(int threads) {
  const int warps_a_quarter = (threads / 32 + 3) / 4;
  return std::min(256, 16384 / (32 * warps_a_quarter) / 8 * 8);
}

}  // namespace

Thread::Thread(Machine& machine_, Warp& warp_, int index_, std::uint32_t agent_, std::unique_ptr<Fiber> fiber_)
    : machine(machine_), warp(warp_), index(index_), lane(index_ % 32), agent(agent_), fiber(std::move(fiber_)) {
  known.set(agent, 1);
  bulk_groups.push_back(std::make_shared<CopyGroup>());
  small_groups.push_back(std::make_shared<CopyGroup>());
}

Block::~Block() = default;

std::string Block::name() const {
  return "(" + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")";
}

bool Warp::can_run(std::uint64_t progress) const {
  if (ready == 0) return false;
  return std::any_of(lanes.begin(), lanes.end(),
                     [&](const Thread* t) { return t->state == Thread::State::ready && t->idle_since != progress; });
}

Machine::Machine(const GridShape& grid, const Schedule& schedule, std::function<void()> kernel)
    : grid_(grid), schedule_(schedule), kernel_(std::move(kernel)), dice_(schedule.seed) {
  elected_lane_ = static_cast<int>(dice_() % 32);
  for (int i = 0; i < 8; ++i) change_points_.push_back(dice_() % (std::uint64_t{64} << (i * 2)));
}

Machine::~Machine() = default;

Machine& Machine::instance() { return *active; }
bool Machine::running() { return active != nullptr; }

void Machine::run() {
  total_clusters_ = grid_.size[0] * grid_.size[1] * grid_.size[2] / grid_.cluster;
  Machine* const outer = std::exchange(active, this);
  struct Restore {
    Machine* outer;
    ~Restore() { active = outer; }
  } restore{outer};
  try {
    while (true) {
      while (next_cluster_ < total_clusters_ && static_cast<int>(clusters_.size()) < schedule_.resident_clusters) {
        start_cluster();
      }
      if (clusters_.empty() && operations_.empty()) break;
      if (!step()) deadlock();
      if (fault_) throw Fault(*fault_);
      const auto ended =
          std::find_if(clusters_.begin(), clusters_.end(), [](const auto& cluster) { return cluster->running == 0; });
      if (ended == clusters_.end()) continue;
      end_cluster(**ended);
      clusters_.erase(ended);
    }
  } catch (const Fault&) {
    abandon_all();
    throw;
  }
}

void Machine::abandon_all() {
  abandoning_ = true;
  in_thread_ = true;
  for (auto& cluster : clusters_) {
    for (auto& block : cluster->blocks) {
      for (auto& thread : block->threads) {
        if (thread->started && thread->state != Thread::State::done) {
          current_ = thread.get();
          scheduler_.switch_to(*thread->fiber);
        }
        spare_fibers.push_back(std::move(thread->fiber));
      }
    }
  }
}

void Machine::start_cluster() {
  auto cluster = std::make_unique<Cluster>();
  cluster->index = next_cluster_++;
  const int clusters_x = grid_.size[0] / grid_.cluster;
  for (int rank = 0; rank < grid_.cluster; ++rank) {
    auto block = std::make_unique<Block>();
    block->cluster = cluster.get();
    block->rank = rank;
    block->x = cluster->index % clusters_x * grid_.cluster + rank;
    block->y = cluster->index / clusters_x % grid_.size[1];
    block->z = cluster->index / clusters_x / grid_.size[1];
    block->shared_bytes = static_cast<std::uint32_t>(grid_.shared_bytes);
    block->storage = std::make_unique<unsigned char[]>(grid_.shared_bytes + 1024);
    const auto base = reinterpret_cast<std::uintptr_t>(block->storage.get());
    block->shared = block->storage.get() + ((base + 1023) / 1024 * 1024 - base);
    std::memset(block->shared, 0xff, grid_.shared_bytes);  // NaN in every type
    block->shadow = std::make_unique<Shadow>(grid_.shared_bytes);
    block->barrier_at.resize(grid_.shared_bytes / 8 + 1, nullptr);
    const int warps = grid_.threads / 32;
    for (int g = 0; g < (warps + 3) / 4; ++g) {
      auto group = std::make_unique<Warpgroup>();
      group->block = block.get();
      group->index = g;
      group->registers = launch_registers(grid_.threads);
      block->warpgroups.push_back(std::move(group));
    }
    for (int w = 0; w < warps; ++w) {
      auto warp = std::make_unique<Warp>();
      warp->block = block.get();
      warp->warpgroup = block->warpgroups[static_cast<std::size_t>(w / 4)].get();
      warp->index = w;
      warp->meeting.expected = 32;
      warp->priority = draw();
      warp->warpgroup->warps.push_back(warp.get());
      warp->warpgroup->meeting.expected += 32;
      for (int lane = 0; lane < 32; ++lane) {
        std::unique_ptr<Fiber> fiber;
        if (spare_fibers.empty()) {
          fiber = std::make_unique<Fiber>(&thread_main, nullptr);
        } else {
          fiber = std::move(spare_fibers.back());
          spare_fibers.pop_back();
        }
        auto thread = std::make_unique<Thread>(*this, *warp, w * 32 + lane, cluster->agents++, std::move(fiber));
        thread->fiber->restart(&thread_main, thread.get());
        warp->lanes.push_back(thread.get());
        block->threads.push_back(std::move(thread));
      }
      block->warps.push_back(std::move(warp));
    }
    cluster->running += grid_.threads;
    cluster->blocks.push_back(std::move(block));
  }
  for (auto& block : cluster->blocks) {
    for (auto& group : block->warpgroups) {
      group->agent = cluster->agents;
      cluster->agents += 4;
    }
  }
  clusters_.push_back(std::move(cluster));
}

void Machine::end_cluster(Cluster& cluster) {
  for (auto& block : cluster.blocks) {
    Clock all;
    for (auto& thread : block->threads) all.join(thread->known);
    for (const Cluster::Slot& slot : cluster.slots) {
      if (slot.block != block.get() || all.at(slot.agent) >= slot.time) continue;
      fail(FaultKind::race,
           "block " + block->name() + " ended, but none of its threads waited for the asynchronous copy", slot.where);
    }
    for (const auto& [agent, access] : block->remote_accesses) {
      if (all.at(agent) >= access.time) continue;
      fail(FaultKind::race,
           "nothing orders this access to the shared memory of block " + block->name() + " before that block's end",
           access.where);
    }
  }
  for (auto& block : cluster.blocks) {
    for (auto& group : block->warpgroups) std::erase(product_queues_, group.get());
    for (auto& thread : block->threads) spare_fibers.push_back(std::move(thread->fiber));
  }
}

void Machine::thread_main(void* argument) {
  Thread& thread = *static_cast<Thread*>(argument);
  Machine& machine = thread.machine;
  thread.started = true;
  try {
    machine.kernel_();
    for (const auto& tile : thread.warp.warpgroup->tiles) {
      if (tile->states[static_cast<std::size_t>(thread.index % 128)] == nullptr) continue;
      machine.fail(FaultKind::fragment, "the thread ended without a wait for this wgmma", tile->issued);
    }
  } catch (const Abandon&) {
  }
  thread.state = Thread::State::done;
  --thread.warp.ready;
  --thread.warp.block->cluster->running;
  machine.progress();
  thread.fiber->switch_to(machine.scheduler_);
}

void Machine::leave() {
  self().fiber->switch_to(scheduler_);
  if (abandoning_) throw Abandon();
}

void Machine::run_warp(Warp& warp) {
  last_warp_ = &warp;
  const std::size_t first = schedule_.policy == Policy::earliest ? 0 : dice_() % 32;
  for (std::size_t i = 0; i < 32 && !fault_; ++i) {
    Thread& thread = *warp.lanes[(first + i) % 32];
    if (thread.state != Thread::State::ready) continue;
    current_ = &thread;
    in_thread_ = true;
    scheduler_.switch_to(*thread.fiber);
    in_thread_ = false;
  }
}

// One thing happens. False if nothing can.
bool Machine::step() {
  ++steps_;
  std::vector<Warp*> warps, idle;
  for (auto& cluster : clusters_) {
    for (auto& block : cluster->blocks) {
      for (auto& warp : block->warps) {
        if (warp->can_run(progress_)) {
          warps.push_back(warp.get());
        } else if (warp->ready > 0) {
          idle.push_back(warp.get());
        }
      }
    }
  }
  std::erase_if(product_queues_, [](const Warpgroup* group) { return group->queue.empty(); });
  const std::size_t landings = operations_.size() + product_queues_.size();
  if (warps.empty() && landings == 0) {
    if (idle.empty() || ++vain_rounds_ > vain_round_limit) return false;
    run_warp(*idle[dice_() % idle.size()]);
    return true;
  }

  const auto land = [&](std::size_t i) {
    progress();
    if (i < operations_.size()) {
      // Landing may start further operations: take it out first.
      std::unique_ptr<Operation> operation = std::move(operations_[i]);
      operations_.erase(operations_.begin() + static_cast<std::ptrdiff_t>(i));
      if (!operation->land()) operations_.push_back(std::move(operation));
    } else {
      land_product(*product_queues_[i - operations_.size()]);
    }
  };

  switch (schedule_.policy) {
    case Policy::run_ahead:
      if (last_warp_ != nullptr && dice_() % 16 != 0 &&
          std::find(warps.begin(), warps.end(), last_warp_) != warps.end()) {
        run_warp(*last_warp_);
        return true;
      }
      [[fallthrough]];
    case Policy::random: {
      const std::size_t i = dice_() % (warps.size() + landings);
      i < warps.size() ? run_warp(*warps[i]) : land(i - warps.size());
      return true;
    }
    case Policy::earliest:
      landings > 0 ? land(0) : run_warp(*warps[dice_() % warps.size()]);
      return true;
    case Policy::latest:
      warps.empty() ? land(dice_() % landings) : run_warp(*warps[dice_() % warps.size()]);
      return true;
    case Policy::priority: {
      Warp* best = nullptr;
      for (Warp* warp : warps) {
        if (best == nullptr || warp->priority > best->priority) best = warp;
      }
      std::size_t landing = landings;
      double landing_priority = -1;
      for (std::size_t i = 0; i < landings; ++i) {
        const double p = i < operations_.size() ? operations_[i]->priority
                                                : product_queues_[i - operations_.size()]->queue.front()->priority;
        if (p > landing_priority) landing = i, landing_priority = p;
      }
      const bool change = std::find(change_points_.begin(), change_points_.end(), steps_) != change_points_.end();
      if (best != nullptr && best->priority >= landing_priority) {
        if (change) best->priority = draw() * 0.1;
        run_warp(*best);
      } else {
        land(landing);
      }
      return true;
    }
  }
  return false;
}

void Machine::block(const char* what, const Where& where, std::function<std::string()> detail) {
  Thread& me = self();
  me.state = Thread::State::blocked;
  --me.warp.ready;
  me.waits_for = what;
  me.waits_at = where;
  me.waits_detail = std::move(detail);
  leave();
}

void Machine::wake(Thread& thread) {
  thread.state = Thread::State::ready;
  ++thread.warp.ready;
  thread.waits_detail = nullptr;
  progress();
}

void Machine::maybe_yield() {
  const bool yields = schedule_.policy == Policy::random     ? dice_() % 8 == 0
                      : schedule_.policy == Policy::priority ? dice_() % 32 == 0
                                                             : false;
  if (yields) leave();
}

void Machine::poll_failed(const Where& where) {
  Thread& me = self();
  me.idle_since = progress_;
  me.waits_for = "polling";
  me.waits_at = where;
  leave();
}

std::uint64_t Machine::meet(Meeting& meeting, const char* what, const Where& where,
                            const std::function<void()>& together) {
  Thread& me = self();
  if (meeting.arrived == 0) {
    meeting.what = what;
    meeting.where = where;
  }
  const auto disagree = [&](const Meeting& with) {
    const Thread& other = *with.present.front();
    fail(FaultKind::divergence,
         std::string("thread ") + std::to_string(me.index) + " comes to " + what + ", but thread " +
             std::to_string(other.index) + ", which must come too, is at " + with.what + " at " + to_string(with.where),
         where);
  };
  if (meeting.arrived > 0 && (std::strcmp(meeting.what, what) != 0 || !(meeting.where == where))) disagree(meeting);
  Meeting& of_warp = me.warp.meeting;
  Meeting& of_group = me.warp.warpgroup->meeting;
  if (&meeting == &of_group && of_warp.arrived > 0) disagree(of_warp);
  if (&meeting == &of_warp && of_group.arrived > 0) {
    for (const Thread* t : of_group.present) {
      if (&t->warp == &me.warp) disagree(of_group);
    }
  }
  const std::uint64_t generation = meeting.generation;
  meeting.present.push_back(&me);
  if (++meeting.arrived < meeting.expected) {
    block(what, where, [&meeting] {
      return std::to_string(meeting.arrived) + " of " + std::to_string(meeting.expected) + " threads have come";
    });
    return generation;
  }
  together();
  meeting.arrived = 0;
  ++meeting.generation;
  for (Thread* t : meeting.present) {
    if (t != &me) wake(*t);
  }
  meeting.present.clear();
  return generation;
}

void Machine::start(std::unique_ptr<Operation> operation) {
  operation->priority = draw();
  if (schedule_.policy == Policy::earliest) {
    progress();
    while (!operation->land()) {
    }
  } else {
    operations_.push_back(std::move(operation));
  }
}

void Machine::product_queued(Warpgroup& warpgroup) {
  warpgroup.queue.back()->priority = draw();
  if (schedule_.policy == Policy::earliest) {
    land_product(warpgroup);
  } else if (std::find(product_queues_.begin(), product_queues_.end(), &warpgroup) == product_queues_.end()) {
    product_queues_.push_back(&warpgroup);
  }
}

std::pair<std::uint32_t, std::uint32_t> Machine::lend(Block& block, const Clock& issuer, const Where& where) {
  Cluster& cluster = *block.cluster;
  for (Cluster::Slot& slot : cluster.slots) {
    if (slot.busy || issuer.at(slot.agent) < slot.time) continue;
    slot.busy = true;
    slot.where = where;
    slot.block = &block;
    return {slot.agent, ++slot.time};
  }
  cluster.slots.push_back({cluster.agents++, 1, true, where, &block});
  return {cluster.slots.back().agent, 1};
}

void Machine::give_back(Cluster& cluster, std::uint32_t agent) {
  for (Cluster::Slot& slot : cluster.slots) {
    if (slot.agent == agent) slot.busy = false;
  }
}

Fault Machine::make_fault(FaultKind kind, const std::string& text, const Where& where) const {
  std::string who;
  if (in_thread_) {
    const Thread& me = *current_;
    who = "\n  thread " + std::to_string(me.index) + " (warp " + std::to_string(me.warp.index) + ", lane " +
          std::to_string(me.lane) + ") of block " + me.warp.block->name();
  }
  return Fault(kind, std::string("emulator: ") + to_string(kind) + " at " + to_string(where) + "\n  " + text + who +
                         "\n  seed " + std::to_string(schedule_.seed) + ", policy " + to_string(schedule_.policy));
}

void Machine::fail(FaultKind kind, const std::string& text, const Where& where) {
  if (!in_thread_) throw make_fault(kind, text, where);
  if (!fault_) fault_ = std::make_unique<Fault>(make_fault(kind, text, where));
  throw Abandon();
}

void Machine::fail_in_destructor(FaultKind kind, const char* text, const Where& where) noexcept {
  if (abandoning_ || fault_) return;
  fault_ = std::make_unique<Fault>(make_fault(kind, text, where));
  self().state = Thread::State::done;
  self().fiber->switch_to(scheduler_);
}

void Machine::deadlock() {
  // Threads that wait for the same thing at the same line are one line of the report.
  std::map<std::string, std::vector<const Thread*>> groups;
  Where first;
  for (auto& cluster : clusters_) {
    for (auto& block : cluster->blocks) {
      for (auto& thread : block->threads) {
        if (thread->state == Thread::State::done) continue;
        std::string text = std::string(thread->waits_for) + " since " + to_string(thread->waits_at);
        if (thread->waits_detail) text += " (" + thread->waits_detail() + ")";
        text += ", block " + block->name();
        if (groups.empty()) first = thread->waits_at;
        groups[text].push_back(thread.get());
      }
    }
  }
  std::string report = "nobody can go on:";
  for (const auto& [text, threads] : groups) {
    report += "\n    " + std::to_string(threads.size()) + (threads.size() == 1 ? " thread" : " threads") + " (" +
              std::to_string(threads.front()->index);
    if (threads.size() > 1) report += " ... " + std::to_string(threads.back()->index);
    report += "): " + text;
  }
  fail(FaultKind::deadlock, report, first);
}

}  // namespace flash3::emulator
