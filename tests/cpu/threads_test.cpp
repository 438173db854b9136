// The queue that threads share, and the workspace of a call.
#include "cpu/threads.h"

#include <gtest/gtest.h>

#include <limits>
#include <set>
#include <stdexcept>
#include <tuple>

#include "cpu/workspace.h"

namespace flash3::cpu {
namespace {

TEST(Threads, AnExceptionOfAnyThreadComesBack) {
  for (int bad = 0; bad < 3; ++bad) {
    std::atomic<int> ended{0};
    EXPECT_THROW(run_on_threads(3,
                                [&](int thread) {
                                  ++ended;
                                  if (thread == bad) throw std::runtime_error("broken");
                                }),
                 std::runtime_error);
    EXPECT_EQ(ended, 3);
  }
}

// Each piece once, a head's computations after its preparations, and no two heads in a slot at a time.
TEST(Threads, ThePipelineKeepsItsPromises) {
  const std::vector<HeadWork> work{{2, 3}, {0, 0}, {1, 0}, {0, 4}, {3, 1}, {2, 2}};
  for (const std::int64_t slots : {1, 2, 3}) {
    for (const int threads : {1, 2, 4}) {
      Pipeline pipeline(work, slots);
      std::mutex mutex;
      std::set<std::tuple<std::int64_t, bool, std::int64_t>> seen;
      std::vector<std::int64_t> prepared(work.size()), running(static_cast<std::size_t>(slots), -1);
      std::vector<int> users(static_cast<std::size_t>(slots));
      const auto enter = [&](std::int64_t head, std::int64_t slot) {
        auto& of_slot = running[static_cast<std::size_t>(slot)];
        if (users[static_cast<std::size_t>(slot)]++ == 0) of_slot = head;
        EXPECT_EQ(of_slot, head);
      };
      run_on_threads(threads, [&](int) {
        const auto piece = [&](bool computation) {
          return [&, computation](std::int64_t head, std::int64_t slot, std::int64_t index) {
            {
              const std::lock_guard lock(mutex);
              enter(head, slot);
              EXPECT_TRUE(seen.emplace(head, computation, index).second);
              if (computation) {
                EXPECT_EQ(prepared[static_cast<std::size_t>(head)], work[static_cast<std::size_t>(head)].preparations);
              }
            }
            std::this_thread::yield();
            const std::lock_guard lock(mutex);
            --users[static_cast<std::size_t>(slot)];
            if (!computation) ++prepared[static_cast<std::size_t>(head)];
          };
        };
        pipeline.work(piece(false), piece(true));
      });
      EXPECT_EQ(seen.size(), 18u) << slots << " slots, " << threads << " threads";
    }
  }
}

TEST(Workspace, SizesThatOverflowAreOutOfMemory) {
  Workspace one;
  EXPECT_THROW(one.reserve<double>(std::numeric_limits<std::int64_t>::max() / 4), std::bad_alloc);
  Workspace two;
  two.reserve<std::byte>(std::int64_t{1} << 60);
  EXPECT_THROW(two.allocate(1 << 10), std::bad_alloc);
}

TEST(Workspace, RegionsAreAlignedAndApart) {
  Workspace workspace;
  const auto a = workspace.reserve<std::uint8_t>(3);
  const auto b = workspace.reserve<float>(5);
  workspace.allocate(2);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(workspace.at<float>(b, 1)) % workspace_alignment, 0u);
  EXPECT_GE(reinterpret_cast<std::uint8_t*>(workspace.at<float>(b, 0)) - workspace.at<std::uint8_t>(a, 0), 3);
  EXPECT_GE(reinterpret_cast<std::uint8_t*>(workspace.at<float>(b, 0) + 5), workspace.at<std::uint8_t>(a, 0));
  EXPECT_GE(reinterpret_cast<float*>(workspace.at<std::uint8_t>(a, 1)) - workspace.at<float>(b, 0), 5);
}

}  // namespace
}  // namespace flash3::cpu
