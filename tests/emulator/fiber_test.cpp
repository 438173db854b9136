// Fibers, switched by hand and (compiled apart, with FLASH3_FIBER_UCONTEXT) through ucontext.
#include "emulator/fiber.h"

#include <gtest/gtest.h>

#include <vector>

namespace flash3::emulator {
namespace {

struct Pair {
  Fiber main;
  std::unique_ptr<Fiber> other;
  std::vector<int> steps;
  double sum = 0;
};

void count_to_three(void* argument) {
  Pair& pair = *static_cast<Pair*>(argument);
  double x = 0.5;  // lives across switches
  for (int i = 1; i <= 3; ++i) {
    pair.steps.push_back(i);
    pair.sum += x;
    x *= 2;
    pair.other->switch_to(pair.main);
  }
  pair.steps.push_back(-1);
  pair.other->switch_to(pair.main);
}

TEST(Fiber, SwitchesBackAndForth) {
  Pair pair;
  pair.other = std::make_unique<Fiber>(&count_to_three, &pair);
  for (int i = 1; i <= 4; ++i) {
    pair.main.switch_to(*pair.other);
    pair.steps.push_back(10 * i);
  }
  EXPECT_EQ(pair.steps, (std::vector<int>{1, 10, 2, 20, 3, 30, -1, 40}));
  EXPECT_EQ(pair.sum, 0.5 + 1 + 2);
}

TEST(Fiber, StartsOverHalfWay) {
  Pair pair;
  pair.other = std::make_unique<Fiber>(&count_to_three, &pair);
  pair.main.switch_to(*pair.other);
  pair.other->restart(&count_to_three, &pair);
  pair.main.switch_to(*pair.other);
  EXPECT_EQ(pair.steps, (std::vector<int>{1, 1}));
}

TEST(Fiber, Thousands) {
  std::vector<std::unique_ptr<Pair>> pairs;
  for (int i = 0; i < 2000; ++i) {
    pairs.push_back(std::make_unique<Pair>());
    pairs.back()->other = std::make_unique<Fiber>(&count_to_three, pairs.back().get());
  }
  for (int step = 0; step < 4; ++step) {
    for (auto& pair : pairs) pair->main.switch_to(*pair->other);
  }
  for (auto& pair : pairs) EXPECT_EQ(pair->steps, (std::vector<int>{1, 2, 3, -1}));
}

}  // namespace
}  // namespace flash3::emulator
