// Owns the emulated machine: threads as fibers, the blocks and clusters that run, the operations in flight, and the
// scheduler that picks what happens next.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulator/clock.h"
#include "emulator/fiber.h"
#include "emulator/instructions.h"
#include "emulator/report.h"
#include "emulator/shadow.h"

namespace flash3::emulator {

struct Block;
struct Cluster;
struct Thread;
struct Warp;
struct Warpgroup;
struct FragmentState;
struct Gathering;
struct MatrixProduct;
struct Operation;
class Machine;

// The hardware keeps the first KiB of shared memory; addresses carry the block's rank in its cluster from bit 24 on.
inline constexpr std::uint32_t shared_start = 1024;
inline constexpr std::uint32_t shared_limit = 227 * 1024;
inline constexpr int rank_shift = 24;

// A bulk or cp.async group: how many of its operations have not yet read their source, or not yet finished.
struct CopyGroup {
  int unread = 0;
  int unfinished = 0;
  std::vector<std::pair<std::uint32_t, std::uint32_t>> operations;  // their components and times, for who waits
  Thread* waiter = nullptr;
};

struct Thread {
  enum class State { ready, blocked, done };

  Thread(Machine& machine_, Warp& warp_, int index_, std::uint32_t agent_, std::unique_ptr<Fiber> fiber_);

  std::uint32_t now() const { return known.at(agent); }
  // Ends the interval in which this thread's accesses count as simultaneous: after it has told someone what it did.
  void tick() { known.set(agent, now() + 1); }
  void learn(const Clock& knows, const Clock& knows_fenced) {
    known.join(knows);
    fenced.join(knows_fenced);
  }

  Machine& machine;
  Warp& warp;
  const int index;  // in the block
  const int lane;
  const std::uint32_t agent;  // component of the clocks
  std::unique_ptr<Fiber> fiber;
  State state = State::ready;
  bool started = false;
  std::uint64_t idle_since = ~0ull;  // the machine's progress when it last polled in vain
  const char* waits_for = "";
  Where waits_at;
  std::function<std::string()> waits_detail;

  Clock known, fenced;
  std::uint32_t wgmma_fences = 1;
  std::vector<std::pair<std::uint64_t, FragmentState*>> operands;    // that wgmma reads, until that operation is over
  std::deque<std::shared_ptr<CopyGroup>> bulk_groups, small_groups;  // the last one is open
  std::vector<std::pair<std::uint32_t, std::uint32_t>>
      unfenced_copies;  // cp.async waited for since the last proxy fence
};

// Lanes or warps that must all come to the same operation before it happens.
struct Meeting {
  int expected = 0;
  int arrived = 0;
  std::uint64_t generation = 0;
  const char* what = "";
  Where where;
  std::vector<Thread*> present;
};

struct Warp {
  bool can_run(std::uint64_t progress) const;  // a lane is ready and has not just polled in vain

  Block* block = nullptr;
  Warpgroup* warpgroup = nullptr;
  int index = 0;
  std::vector<Thread*> lanes;
  Meeting meeting;
  std::array<std::array<std::uint64_t, 32>, 2> slots = {};  // what lanes exchange, by parity of the meeting
  std::shared_ptr<Gathering> gathering;                     // the named barrier that the warp came to last
  std::shared_ptr<Gathering> cluster_gathering;             // the cluster barrier that it arrived at
  double priority = 0;
  int ready = 32;
};

// Accumulator values of fragments that wgmma has: taken out of the threads' registers until they are given back.
struct AccumulatorTile {
  int columns = 0;
  std::vector<float> value;  // 64 x columns
  std::vector<float*> home;  // a thread's fragment values
  std::vector<FragmentState*> states;
  Where issued;
  std::uint64_t last_operation = 0;
  int given_back = 0;
};

struct Warpgroup {
  Block* block = nullptr;
  int index = 0;
  std::vector<Warp*> warps;
  Meeting meeting;
  std::uint32_t agent = 0;  // the first of four components, a warp each: its wgmma complete in order
  std::uint64_t issued = 0, landed = 0;
  std::vector<std::uint64_t> groups;  // the last operation of each committed group
  std::deque<std::unique_ptr<MatrixProduct>> queue;
  std::vector<std::unique_ptr<AccumulatorTile>> tiles;
  std::array<const struct ProductCall*, 128> calls = {};  // each lane's view of the wgmma it has come to
  std::vector<Thread*> waiters;
  int registers = 0;
};

struct BarrierState {
  bool live = false;
  std::uint32_t offset = 0;
  unsigned count = 0, pending = 0;
  std::int64_t bytes = 0;  // expected and not yet arrived
  std::uint64_t phase = 0;
  Where made;
  std::uint32_t maker = 0, made_time = 0, fenced_time = 0;
  bool fenced = false;
  Clock gathering, gathering_fenced;  // of the phase that is open, and all before
  Clock complete[2], complete_fenced[2];
  std::vector<Thread*> waiters;
  std::vector<unsigned> waiter_parity;
};

// One use of a named or cluster barrier: what came together, and who waits for the rest.
struct Gathering {
  bool done = false;
  int expected = 0, arrived = 0;
  Where where;
  Clock known, fenced;
  std::vector<Thread*> waiters;
};

struct Block {
  Cluster* cluster = nullptr;
  int rank = 0;
  int x = 0, y = 0, z = 0;
  std::unique_ptr<unsigned char[]> storage;
  unsigned char* shared = nullptr;  // 1024 bytes aligned; the address shared_start
  std::uint32_t shared_bytes = 0;
  std::unique_ptr<Shadow> shadow;
  std::vector<std::unique_ptr<Warpgroup>> warpgroups;
  std::vector<std::unique_ptr<Warp>> warps;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<std::unique_ptr<BarrierState>> barriers;
  std::vector<BarrierState*> barrier_at;             // by offset / 8
  std::array<std::shared_ptr<Gathering>, 16> named;  // the open use of each, if any
  int free_registers = 0;
  std::vector<Thread*> register_waiters;
  bool dependency_waited = false;
  // The last access to its memory by each thread of another block: it must be over before this block ends.
  struct RemoteAccess {
    std::uint32_t time;
    Where where;
  };
  std::unordered_map<std::uint32_t, RemoteAccess> remote_accesses;  // by agent

  ~Block();
  std::string name() const;
};

struct Cluster {
  int index = 0;
  std::vector<std::unique_ptr<Block>> blocks;
  int running = 0;  // threads
  std::uint32_t agents = 0;
  std::shared_ptr<Gathering> barrier;  // barrier.cluster
  // Components lent to operations: reusable once the operation is over and the next issuer knows of it.
  struct Slot {
    std::uint32_t agent;
    std::uint32_t time;
    bool busy;
    Where where;   // of the operation that has it, or had it last
    Block* block;  // whose memory it uses
  };
  std::vector<Slot> slots;
};

// Something asynchronous that will happen at a moment of the scheduler's choice.
struct Operation {
  virtual ~Operation() = default;
  // Happens. True when it is over; false when it has a further step.
  virtual bool land() = 0;
  double priority = 0;
};

class Machine {
 public:
  Machine(const GridShape& grid, const Schedule& schedule, std::function<void()> kernel);
  ~Machine();

  void run();

  // For code that runs in a thread.
  Thread& self() { return *current_; }
  bool in_thread() const { return in_thread_; }
  static Machine& instance();
  static bool running();

  void block(const char* what, const Where& where, std::function<std::string()> detail = {});
  void wake(Thread& thread);
  void maybe_yield();                    // a moment at which others may go first
  void poll_failed(const Where& where);  // the thread looked in vain: others go first
  void progress() { ++progress_; }

  // Waits for all of `meeting`; the last to come runs `together` before anyone goes on. Returns the meeting's number.
  std::uint64_t meet(Meeting& meeting, const char* what, const Where& where, const std::function<void()>& together);

  void start(std::unique_ptr<Operation> operation);
  void product_queued(Warpgroup& warpgroup);  // a wgmma joined the warpgroup's queue

  // Ends the launch with a report.
  [[noreturn]] void fail(FaultKind kind, const std::string& text, const Where& where);
  // The same from a destructor, which must not throw: leaves the thread's stack as it is.
  void fail_in_destructor(FaultKind kind, const char* text, const Where& where) noexcept;

  const GridShape& grid() const { return grid_; }
  const Schedule& schedule() const { return schedule_; }
  int elected_lane() const { return elected_lane_; }
  std::mt19937_64& dice() { return dice_; }

  // Lends a component for an operation that `issuer` starts; the operation's time on it.
  std::pair<std::uint32_t, std::uint32_t> lend(Block& block, const Clock& issuer, const Where& where);
  void give_back(Cluster& cluster, std::uint32_t agent);

 private:
  struct Abandon {};  // unwinds a thread's stack after a fault

  static void thread_main(void* thread);
  void leave();        // the thread stops here for now
  void abandon_all();  // unwinds all threads
  Fault make_fault(FaultKind kind, const std::string& text, const Where& where) const;
  void start_cluster();
  void end_cluster(Cluster& cluster);
  void run_warp(Warp& warp);
  bool step();
  [[noreturn]] void deadlock();
  double draw() { return std::uniform_real_distribution<double>(0, 1)(dice_); }

  GridShape grid_;
  Schedule schedule_;
  std::function<void()> kernel_;
  std::mt19937_64 dice_;
  int elected_lane_;
  Fiber scheduler_;
  Thread* current_ = nullptr;
  bool in_thread_ = false;
  std::vector<std::unique_ptr<Cluster>> clusters_;
  int next_cluster_ = 0, total_clusters_ = 0;
  std::vector<std::unique_ptr<Operation>> operations_;
  std::vector<Warpgroup*> product_queues_;
  Warp* last_warp_ = nullptr;
  std::uint64_t progress_ = 0, steps_ = 0, vain_rounds_ = 0;
  std::vector<std::uint64_t> change_points_;
  std::unique_ptr<Fault> fault_;
  bool abandoning_ = false;
};

// Accesses of the calling thread, or of an operation, to the shared memory of the block that an address names.
Block& block_at(Block& from, std::uint32_t address, const Where& where);
// The calling thread is about to use another block's memory, or its own.
void note_access(Block& block, const Where& where);
void touch_shared(Block& block, std::uint32_t offset, std::uint32_t bytes, Manner manner, const Toucher& by,
                  std::uint8_t swizzle = 0);
// Offset in its block of an address that must have `bytes` bytes inside the shared struct.
std::uint32_t shared_offset(Block& block, std::uint32_t address, std::uint32_t bytes, const Where& where);
Toucher toucher(Thread& thread, const Where& where);

// mbarrier steps that operations take too.
BarrierState& barrier_at(Block& block, std::uint32_t address, const Where& where);
void complete_bytes(BarrierState& barrier, std::int64_t bytes, const Clock& known, const Clock& fenced,
                    const Where& where);

}  // namespace flash3::emulator
