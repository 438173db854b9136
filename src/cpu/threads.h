// Threads borrowed for one call, and the order in which they share its work.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace flash3::cpu {

// Cores that the process may run on.
int available_cores();

// Waits until the value is reached. Spins first: most waits are shorter than a trip through the kernel.
inline void wait_until_equal(const std::atomic<std::int64_t>& value, std::int64_t wanted) {
  for (int spin = 0; spin < 2000; ++spin) {
    if (value.load(std::memory_order_acquire) == wanted) return;
  }
  for (std::int64_t seen; (seen = value.load(std::memory_order_acquire)) != wanted;) value.wait(seen);
}

inline void add_and_notify(std::atomic<std::int64_t>& value) {
  value.fetch_add(1, std::memory_order_acq_rel);
  value.notify_all();
}

// Runs body(thread) on the calling thread as thread 0 and on count - 1 others, and returns when all have. The first
// exception is thrown again here. If the system denies a thread, the others do its work: bodies take work from a queue
// and may not rely on their number.
template <class Body>
void run_on_threads(int count, const Body& body) {
  std::exception_ptr error;
  std::mutex mutex;
  const auto guarded = [&](int thread) noexcept {
    try {
      body(thread);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> others;
    others.reserve(static_cast<std::size_t>(count - 1));
    try {
      for (int thread = 1; thread < count; ++thread) others.emplace_back(guarded, thread);
    } catch (const std::system_error&) {
    }
    guarded(0);
  }
  if (error) std::rethrow_exception(error);
}

// What there is to do for one head: first its operands are prepared in pieces, then its tiles are computed.
struct HeadWork {
  std::int64_t preparations = 0;
  std::int64_t computations = 0;
};

// Hands out the pieces of all heads in one fixed order. A piece waits only for pieces before it (for its slot of
// memory, which the head before in that slot must be done with; a computation also for its head's preparations), so the
// order cannot deadlock.
class Pipeline {
 public:
  Pipeline(const std::vector<HeadWork>& work, std::int64_t slots) : slots_(slots) {
    first_.push_back(0);
    for (std::size_t h = 0; h < work.size(); ++h) {
      // A head without pieces would seem done before those that held its slot earlier are.
      if (work[h].preparations + work[h].computations == 0) continue;
      heads_.push_back({static_cast<std::int64_t>(h), work[h]});
      first_.push_back(first_.back() + work[h].preparations + work[h].computations);
    }
    state_ = std::vector<State>(heads_.size());
  }

  // prepare(head, slot, piece) and compute(head, slot, piece) until nothing is left.
  template <class Prepare, class Compute>
  void work(const Prepare& prepare, const Compute& compute) {
    std::size_t h = 0;
    for (std::int64_t item; (item = next_.fetch_add(1, std::memory_order_relaxed)) < first_.back();) {
      while (item >= first_[h + 1]) ++h;
      const auto& [head, work] = heads_[h];
      const std::int64_t slot = static_cast<std::int64_t>(h) % slots_;
      const std::int64_t piece = item - first_[h];
      if (const auto slots = static_cast<std::size_t>(slots_); h >= slots) {
        wait_until_equal(state_[h - slots].prepared, heads_[h - slots].work.preparations);
        wait_until_equal(state_[h - slots].computed, heads_[h - slots].work.computations);
      }
      if (piece < work.preparations) {
        prepare(head, slot, piece);
        add_and_notify(state_[h].prepared);
      } else {
        wait_until_equal(state_[h].prepared, work.preparations);
        compute(head, slot, piece - work.preparations);
        add_and_notify(state_[h].computed);
      }
    }
  }

 private:
  struct Entry {
    std::int64_t head;
    HeadWork work;
  };
  struct State {
    std::atomic<std::int64_t> prepared{0}, computed{0};
  };
  std::int64_t slots_;
  std::vector<Entry> heads_;         // those with work
  std::vector<std::int64_t> first_;  // of each of them, among all pieces
  std::vector<State> state_;
  std::atomic<std::int64_t> next_{0};
};

}  // namespace flash3::cpu
