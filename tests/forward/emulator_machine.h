// The emulator as a machine of the differential tests.
#pragma once

#include <cstdlib>
#include <functional>
#include <map>
#include <memory>

#include "emulator/memory.h"
#include "emulator/report.h"
#include "forward/differential.h"
#include "forward/launch.h"
#include "plan/forward_plan.h"

namespace flash3::testing {

class Emulator final : public Machine {
 public:
  // Each launch asks for its schedule. With `tile` that kernel runs, whatever the planner would choose.
  explicit Emulator(std::function<emulator::Schedule()> schedule, int multiprocessors = 3,
                    const plan::ForwardTile* tile = nullptr)
      : schedule_(std::move(schedule)), multiprocessors_(multiprocessors), tile_(tile) {}
  explicit Emulator(emulator::Schedule schedule) : Emulator([schedule] { return schedule; }) {}

  DeviceType device() const override { return DeviceType::cpu; }
  void* allocate(std::size_t bytes, bool kernels_write) override {
    void* memory = std::aligned_alloc(128, (bytes + 255) / 128 * 128);
    memory_[memory] = std::make_unique<emulator::Registered>(
        memory, bytes + 16, "a tensor", kernels_write ? emulator::Access::read_write : emulator::Access::read);
    return memory;
  }
  void release(void* memory) override {
    memory_.erase(memory);
    std::free(memory);
  }
  void upload(void* to, const void* from, std::size_t bytes) override {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  void download(void* to, const void* from, std::size_t bytes) override {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  void forward(const ForwardArgs& args) override {
    const core::ForwardProblem problem = core::check(args);
    if (auto why = plan::forward_refusal(problem)) throw Unsupported(*why);
    plan::Gpu gpu;
    gpu.multiprocessors = multiprocessors_;
    plan::ForwardPlan chosen = plan::plan_forward(problem, gpu);
    if (tile_ != nullptr) {
      chosen.tile = *tile_;
      chosen.row_blocks =
          static_cast<int>((problem.max_seqlen_q * chosen.group + tile_->block_q() - 1) / tile_->block_q());
      chosen.tiles = chosen.row_blocks * chosen.heads * static_cast<int>(problem.batch);
      chosen.blocks = std::min(chosen.tiles, multiprocessors_);
    }
    forward_kernels::TileCounter counter{0, 0};
    const emulator::Registered registered(&counter, sizeof counter, "the tile counter");
    const emulator::WithSchedule with(schedule_());
    forward_kernels::launch(problem, chosen, &counter, {});
    if (counter.next != 0 || counter.finished != 0) throw DeviceError("the tile counter was not set back");
  }

 private:
  std::function<emulator::Schedule()> schedule_;
  int multiprocessors_;
  const plan::ForwardTile* tile_;
  std::map<void*, std::unique_ptr<emulator::Registered>> memory_;
};

}  // namespace flash3::testing
