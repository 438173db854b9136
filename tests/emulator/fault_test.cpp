// Each check of the emulator: a kernel of a few lines that offends against it once, and one beside it that does not.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "emulator/report.h"
#include "hopper/buffer.h"
#include "hopper/hopper.h"
#include "hopper/launch.h"
#include "hopper/make_tensor_map.h"

namespace flash3 {
namespace {

using namespace hopper;
using emulator::FaultKind;
using emulator::Policy;

struct Shared {
  SharedTile<bfloat16, 64, 64> tile;
  SharedTile<bfloat16, 64, 64> other;
  SharedArray<int, 128> values;
  Barrier full, empty;
};

// The kernel is a function that the test has at hand: kernels get it through their parameter.
struct Params {
  std::function<void(Shared&)>* body;
};
void call_body(const Params params) { (*params.body)(shared_memory<Shared>()); }

struct Report {
  bool reported = false;
  FaultKind kind{};
  std::string text;
};

Report run(std::function<void(Shared&)> body, int threads = 128, int blocks = 1, int cluster = 1,
           const emulator::Schedule& schedule = {}) {
  LaunchShape shape;
  shape.threads = threads;
  shape.grid[0] = blocks;
  shape.cluster = cluster;
  shape.shared_bytes = sizeof(Shared);
  const emulator::WithSchedule with(schedule);
  try {
    const LaunchStatus status = launch(call_body, shape, Params{&body});
    EXPECT_TRUE(status) << status.error;
  } catch (const emulator::Fault& fault) {
    return {true, fault.kind(), fault.what()};
  }
  return {};
}

#define EXPECT_FAULT(expected_kind, part, ...)                                                          \
  for (const Policy policy : emulator::all_policies) {                                                  \
    const Report report = run(__VA_ARGS__, {1, policy});                                                \
    EXPECT_TRUE(report.reported) << to_string(policy);                                                  \
    EXPECT_STREQ(to_string(report.kind), to_string(FaultKind::expected_kind)) << report.text;           \
    EXPECT_NE(report.text.find(part), std::string::npos) << report.text;                                \
    EXPECT_NE(report.text.find("fault_test.cpp:"), std::string::npos) << report.text;                   \
    EXPECT_NE(report.text.find(std::string("seed 1, policy ") + to_string(policy)), std::string::npos); \
  }
#define EXPECT_FINE(...)                                 \
  for (const Policy policy : emulator::all_policies) {   \
    const Report report = run(__VA_ARGS__, {1, policy}); \
    EXPECT_FALSE(report.reported) << report.text;        \
  }

TEST(Race, BetweenLanesOfAWarp) {
  const auto body = [](bool synced) {
    return [=](Shared& s) {
      s.values.store(thread_index(), 0);
      sync_warp();
      s.values.store(thread_index(), 1);
      if (synced) sync_warp();
      s.values.load(thread_index() ^ 1);
    };
  };
  EXPECT_FINE(body(true), 32, 1, 1);
  EXPECT_FAULT(race, "nothing orders", body(false), 32, 1, 1);
}

TEST(Race, NeighboursInSixteenBytesAreApart) {
  EXPECT_FINE(
      [](Shared& s) {
        for (int i = 0; i < 3; ++i) s.values.store(thread_index(), i);
      },
      128, 1, 1);
}

TEST(Race, ReadThenWrite) {
  EXPECT_FAULT(
      race, "nothing orders",
      [](Shared& s) {
        if (thread_index() == 0) s.values.store(0, 1);
        sync_block();
        if (thread_index() == 64) s.values.load(0);
        if (thread_index() == 0) s.values.store(0, 2);
      },
      128, 1, 1);
}

TEST(Race, ArrivingOnANamedBarrierDoesNotAcquire) {
  const auto body = [](bool sync) {
    return [=](Shared& s) {
      if (warp_index() == 0) {
        s.values.store(lane_index(), 1);
        named_barrier_sync(1, 64);
      } else if (warp_index() == 1) {
        sync ? named_barrier_sync(1, 64) : named_barrier_arrive(1, 64);
        s.values.load(lane_index());
      }
    };
  };
  EXPECT_FINE(body(true), 128, 1, 1);
  for (const Policy policy : emulator::all_policies) {
    const Report report = run(body(false), 128, 1, 1, {1, policy});
    EXPECT_TRUE(report.reported && (report.kind == FaultKind::race || report.kind == FaultKind::uninitialised));
  }
}

TEST(Race, AtomicsDoNotRaceWithEachOtherButWithLoads) {
  const auto body = [](bool synced) {
    return [=](Shared& s) {
      if (thread_index() == 0) s.values.store(0, 0);
      sync_block();
      s.values.atomic_add(0, 1);
      if (synced) sync_block();
      if (thread_index() == 5) {
        const int value = s.values.load(0);
        if (synced && value != 128) trap();
      }
    };
  };
  EXPECT_FINE(body(true), 128, 1, 1);
  EXPECT_FAULT(race, "atomic", body(false), 128, 1, 1);
}

TEST(Race, OneMbarrierArrivalSpeaksForItsLaneAlone) {
  const auto body = [](bool synced) {
    return [=](Shared& s) {
      if (thread_index() == 0) {
        mbarrier_init(s.full, 1);
        fence_mbarrier_init();
      }
      sync_block();
      if (warp_index() == 0) {
        s.values.store(lane_index(), 1);
        if (synced) sync_warp();
        if (lane_index() == 0) mbarrier_arrive(s.full);
      } else if (warp_index() == 1) {
        mbarrier_wait_parity(s.full, 0);
        s.values.load(lane_index());
      }
    };
  };
  EXPECT_FINE(body(true), 128, 1, 1);
  for (const Policy policy : emulator::all_policies) {
    const Report report = run(body(false), 128, 1, 1, {1, policy});
    EXPECT_TRUE(report.reported && (report.kind == FaultKind::race || report.kind == FaultKind::uninitialised));
  }
}

TEST(Uninitialised, SharedMemory) {
  EXPECT_FAULT(
      uninitialised, "nothing has written", [](Shared& s) { s.values.load(thread_index()); }, 32, 1, 1);
}

TEST(Bounds, SharedArraysAndTheStruct) {
  EXPECT_FAULT(
      bounds, "of an array that has 128", [](Shared& s) { s.values.store(thread_index() + 128, 1); }, 32, 1, 1);
  EXPECT_FAULT(
      bounds, "of shared memory", [](Shared& s) { store_shared_4(shared_address(&s) + sizeof(Shared), 1); }, 32, 1, 1);
  EXPECT_FAULT(
      bounds, "of shared memory", [](Shared&) { load_shared_4(0); }, 32, 1, 1);
  EXPECT_FAULT(
      bounds, "misaligned", [](Shared& s) { store_shared_4(s.tile.address(0, 1), 1); }, 32, 1, 1);
  EXPECT_FAULT(
      barrier, "mbarrier made at",
      [](Shared& s) {
        if (thread_index() == 0) {
          mbarrier_init(s.full, 1);
          store_shared_4(shared_address(&s.full), 0);
        }
      },
      32, 1, 1);
}

TEST(Bounds, GlobalMemory) {
  const Buffer<float> buffer(std::vector<float>(10), "numbers");
  float* data = buffer.data();
  EXPECT_FINE(
      [=](Shared&) {
        if (thread_index() < 10) store_global(data + thread_index(), 1.0f);
      },
      32, 1, 1);
  EXPECT_FAULT(
      bounds, "bytes 40 to 43 of numbers", [=](Shared&) { store_global(data + 10, 1.0f); }, 32, 1, 1);
  EXPECT_FAULT(
      bounds, "no tensor", [=](Shared&) { load_global(data - 1000000); }, 32, 1, 1);
  EXPECT_FAULT(
      bounds, "misaligned", [=](Shared&) { load_global_16(data + 1); }, 32, 1, 1);
  static const float constant[4] = {};
  const emulator::Registered known(constant, sizeof constant, "constant", emulator::Access::read);
  EXPECT_FINE([](Shared&) { load_global(constant); }, 32, 1, 1);
  EXPECT_FAULT(
      bounds, "constant is read-only", [](Shared&) { atomic_add_global(const_cast<float*>(constant), 1.0f); }, 32, 1,
      1);
}

TEST(Bounds, TheTensorBehindAMap) {
  // The map says 64 rows, the buffer has 32: a box within the map, but beyond the memory.
  const Buffer<std::uint16_t> buffer(std::vector<std::uint16_t>(32 * 64), "rows");
  const AttentionTensor tensor = {buffer.data(), ElementType::bfloat16, 1, 64, 1, 64, 0, 64, 64};
  TensorMap map;
  ASSERT_EQ(make_attention_map(tensor, 64, 64, Swizzle::b128, map), "");
  EXPECT_FAULT(
      bounds, "of rows, which has 4096",
      [=](Shared& s) {
        if (thread_index() != 0) return;
        mbarrier_init(s.full, 1);
        fence_mbarrier_init();
        mbarrier_arrive_expect_tx(s.full, s.tile.byte_count);
        load_tile(s.tile, map, {0, 0, 0, 0}, s.full);
        mbarrier_wait_parity(s.full, 0);
      },
      32, 1, 1);
}

TEST(Barrier, Misuse) {
  EXPECT_FAULT(
      barrier, "no mbarrier has been made", [](Shared& s) { mbarrier_arrive(s.full); }, 32, 1, 1);
  EXPECT_FAULT(
      barrier, "is made again",
      [](Shared& s) {
        if (thread_index() == 0) {
          mbarrier_init(s.full, 1);
          mbarrier_init(s.full, 1);
        }
      },
      32, 1, 1);
  EXPECT_FAULT(
      barrier, "multiple of 32", [](Shared&) { named_barrier_sync(1, 100); }, 128, 1, 1);
  EXPECT_FAULT(
      barrier, "id is 0 to 15", [](Shared&) { named_barrier_sync(16, 128); }, 128, 1, 1);
  EXPECT_FAULT(
      barrier, "cluster_wait without", [](Shared&) { cluster_wait(); }, 32, 1, 1);
  EXPECT_FAULT(
      barrier, "no mbarrier has been made",
      [](Shared& s) {
        if (thread_index() == 0) {
          mbarrier_init(s.full, 1);
          mbarrier_inval(s.full);
          mbarrier_arrive(s.full);
        }
      },
      32, 1, 1);
}

TEST(Deadlock, SaysWhoWaitsForWhat) {
  EXPECT_FAULT(
      deadlock, "lacks 1 of 2 arrivals",
      [](Shared& s) {
        if (thread_index() == 0) {
          mbarrier_init(s.full, 2);
          fence_mbarrier_init();
          mbarrier_arrive(s.full);
        }
        sync_block();
        mbarrier_wait_parity(s.full, 0);
      },
      64, 1, 1);
  EXPECT_FAULT(
      deadlock, "barrier 1: 32 of 64 threads have come",
      [](Shared&) {
        if (warp_index() == 0) named_barrier_sync(1, 64);
      },
      64, 1, 1);
  // Polling for what never comes is a deadlock, too.
  const Buffer<int> flag(std::vector<int>(1), "flag");
  const int* at = flag.data();
  EXPECT_FAULT(
      deadlock, "polling since", [=](Shared&) { wait_global_equal(at, 1); }, 32, 1, 1);
}

TEST(Divergence, OfLanesAndOfWarps) {
  EXPECT_FAULT(
      divergence, "which must come too",
      [](Shared&) {
        if (lane_index() < 16) {
          shuffle_xor(1, 1);
        } else {
          vote_any(true);
        }
      },
      32, 1, 1);
  EXPECT_FAULT(
      divergence, "different descriptors",
      [](Shared& s) {
        Accumulator<8> d;
        wgmma_fence();
        wgmma<bfloat16>(d, s.tile.k_major(), s.tile.k_major(warp_index() * 8), false);
      },
      128, 1, 1);
  EXPECT_FAULT(
      divergence, "fewer than 4 warps",
      [](Shared& s) {
        Accumulator<8> d;
        wgmma_fence();
        wgmma<bfloat16>(d, s.tile.k_major(), s.tile.k_major(), false);
      },
      64, 1, 1);
}

TEST(Registers, Budget) {
  // 256 threads may have 256 registers each at launch.
  EXPECT_FINE(
      [](Shared&) {
        if (warpgroup_index() == 0) {
          setmaxnreg_dec<40>();
        } else {
          setmaxnreg_dec<232>();
        }
      },
      256, 1, 1);
  EXPECT_FAULT(
      registers, "wrong direction", [](Shared&) { setmaxnreg_inc<40>(); }, 384, 1, 1);
  EXPECT_FAULT(
      deadlock, "registers needed", [](Shared&) { setmaxnreg_inc<240>(); }, 384, 1, 1);
}

TEST(Fragment, GoesOutOfScopeInFlight) {
  EXPECT_FAULT(
      fragment, "out of scope",
      [](Shared& s) {
        for (int i = thread_index(); i < 64 * 64; i += 128) store_shared_2(s.tile.address(i / 64, i % 64), 0);
        fence_proxy_async();
        sync_block();
        {
          Accumulator<8> d;
          wgmma_fence();
          wgmma<bfloat16>(d, s.tile.k_major(), s.tile.k_major(), false);
          wgmma_commit_group();
        }
        wgmma_wait_group<0>();
      },
      128, 1, 1);
}

TEST(Fragment, IndexOutOfRange) {
  EXPECT_FAULT(
      bounds, "element 4 of a fragment that has 4",
      [](Shared&) {
        Accumulator<8> d;
        d[d.count] = 0;
      },
      128, 1, 1);
}

TEST(Proxy, CpAsyncNeedsAFenceBeforeWgmma) {
  const Buffer<std::uint16_t> buffer(std::vector<std::uint16_t>(64 * 64), "rows");
  const std::uint16_t* data = buffer.data();
  const auto body = [=](bool fenced) {
    return [=](Shared& s) {
      for (int i = thread_index(); i < 64 * 8; i += 128) {
        cp_async_16(s.tile.address(i / 8, i % 8 * 8), data + i * 8, true);
      }
      cp_async_commit_group();
      cp_async_wait_group<0>();
      if (fenced) fence_proxy_async();
      sync_block();
      Accumulator<64> d;
      wgmma_fence();
      multiply_abt(d, s.tile, 0, s.tile, 0, false);
      wgmma_commit_group();
      wgmma_wait_group<0>(d);
    };
  };
  EXPECT_FINE(body(true), 128, 1, 1);
  EXPECT_FAULT(proxy, "fence_proxy_async", body(false), 128, 1, 1);
}

TEST(Descriptor, UnusableBits) {
  EXPECT_FAULT(
      descriptor, "bytes into its swizzle pattern",
      [](Shared& s) {
        Accumulator<8> d;
        wgmma_fence();
        wgmma<bfloat16>(d, s.tile.k_major(), advance(s.tile.k_major(), 128), false);
      },
      128, 1, 1);
  EXPECT_FAULT(
      descriptor, "not made by make_tensor_map",
      [](Shared& s) {
        TensorMap map = {};
        if (thread_index() != 0) return;
        mbarrier_init(s.full, 1);
        fence_mbarrier_init();
        load_tile(s.tile, map, {0, 0}, s.full);
      },
      32, 1, 1);
}

TEST(Cluster, LeavingEarlyAndRemoteBarriers) {
  EXPECT_FINE(
      [](Shared& s) {
        if (thread_index() == 0) {
          mbarrier_init(s.full, 2);
          fence_mbarrier_init();
        }
        sync_cluster();
        if (thread_index() == 0) {
          mbarrier_arrive_cluster(s.full, 0);
          if (cluster_rank() == 0) mbarrier_wait_parity(s.full, 0);
        }
        sync_cluster();
      },
      32, 2, 2);
  EXPECT_FAULT(
      proxy, "without fence_mbarrier_init",
      [](Shared& s) {
        if (thread_index() == 0) mbarrier_init(s.full, 2);
        sync_cluster();
        if (thread_index() == 0) mbarrier_arrive_cluster(s.full, 0);
      },
      32, 2, 2);
}

// A word of the shared array in block 0, as any block of the cluster addresses it.
SharedAddress word_of_block_0(Shared& s, int index) {
  return map_to_block(shared_address(&s.values.elements[index]), 0);
}

TEST(Cluster, MemoryOfAnotherBlock) {
  const auto body = [](bool ordered) {
    return [=](Shared& s) {
      sync_cluster();
      if (cluster_rank() == 1) store_cluster_4(word_of_block_0(s, thread_index()), 7);
      if (ordered) sync_cluster();
      if (cluster_rank() == 0 && (s.values.load(thread_index()) != 7)) trap();
      if (!ordered) sync_cluster();
    };
  };
  EXPECT_FINE(body(true), 32, 2, 2);
  for (const Policy policy : emulator::all_policies) {
    const Report report = run(body(false), 32, 2, 2, {1, policy});
    EXPECT_TRUE(report.reported && (report.kind == FaultKind::race || report.kind == FaultKind::uninitialised));
  }
  EXPECT_FAULT(
      race, "nothing orders",
      [](Shared& s) {
        sync_cluster();
        if (cluster_rank() == 1) store_cluster_4(word_of_block_0(s, thread_index()), 1);
        if (cluster_rank() == 0) s.values.store(thread_index(), 2);
        sync_cluster();
      },
      32, 2, 2);
  EXPECT_FAULT(
      bounds, "reaches its own block's only",
      [](Shared& s) {
        sync_cluster();
        if (cluster_rank() == 1) store_shared_4(word_of_block_0(s, thread_index()), 1);
        sync_cluster();
      },
      32, 2, 2);
  EXPECT_FAULT(
      bounds, "names block 2 of a cluster of 2",
      [](Shared& s) {
        sync_cluster();
        store_cluster_4(map_to_block(shared_address(&s.values.elements[0]), 2), 1);
      },
      32, 2, 2);
}

TEST(Cluster, ABlockThatHasNotStarted) {
  EXPECT_FAULT(
      race, "has started",
      [](Shared& s) {
        if (cluster_rank() == 1) store_cluster_4(word_of_block_0(s, thread_index()), 1);
        sync_cluster();
      },
      32, 2, 2);
}

TEST(Cluster, ABlockThatMayHaveEnded) {
  // The last arrival is nobody's to wait for: block 0 must not end before it.
  const auto body = [](bool stays) {
    return [=](Shared& s) {
      if (thread_index() == 0) {
        mbarrier_init(s.full, 2);
        fence_mbarrier_init();
      }
      sync_cluster();
      if (cluster_rank() == 1 && thread_index() == 0) mbarrier_arrive_cluster(s.full, 0);
      if (stays) sync_cluster();
    };
  };
  EXPECT_FINE(body(true), 32, 2, 2);
  EXPECT_FAULT(race, "before that block's end", body(false), 32, 2, 2);
  EXPECT_FAULT(
      race, "before that block's end",
      [](Shared& s) {
        if (cluster_rank() == 0) s.values.store(thread_index(), 3);
        sync_cluster();
        if (cluster_rank() == 1) load_cluster_4(word_of_block_0(s, thread_index()));
      },
      32, 2, 2);
}

TEST(Cluster, Multicast) {
  const Buffer<std::uint16_t> buffer(std::vector<std::uint16_t>(64 * 64, 0x3f80), "rows");
  const AttentionTensor tensor = {buffer.data(), ElementType::bfloat16, 1, 64, 1, 64, 0, 64, 64};
  TensorMap map;
  ASSERT_EQ(make_attention_map(tensor, 64, 32, Swizzle::b128, map), "");
  // Each block brings half of the rows to both; `blocks` to whom, `waits` who waits for them.
  const auto body = [=](unsigned short blocks, bool waits, int announced) {
    return [=](Shared& s) {
      if (thread_index() == 0) {
        mbarrier_init(s.full, 1);
        fence_mbarrier_init();
      }
      sync_cluster();
      const int half = static_cast<int>(cluster_rank()) * 32;
      if (thread_index() == 0) {
        mbarrier_arrive_expect_tx(s.full, static_cast<unsigned>(announced));
        load_tile_multicast(s.tile, half, map, {0, half, 0, 0}, s.full, blocks);
      }
      sync_warp();
      if (waits) {
        mbarrier_wait_parity(s.full, 0);
        if (load_shared_2(s.tile.address(thread_index() * 2, 5)) != 0x3f80) trap();
      }
      sync_cluster();
    };
  };
  EXPECT_FINE(body(3, true, 8192), 32, 2, 2);
  EXPECT_FAULT(deadlock, "and 8192 bytes", body(1, true, 8192), 32, 2, 2);
  EXPECT_FAULT(barrier, "more bytes have arrived", body(3, true, 2048), 32, 2, 2);
  EXPECT_FAULT(race, "none of its threads waited", body(3, false, 8192), 32, 2, 2);
  EXPECT_FAULT(descriptor, "outside the cluster", body(7, true, 8192), 32, 2, 2);
}

TEST(Launch, RefusesImpossibleShapes) {
  std::function<void(Shared&)> nothing = [](Shared&) {};
  const auto refused = [&](auto change) {
    LaunchShape shape;
    shape.threads = 128;
    shape.shared_bytes = sizeof(Shared);
    change(shape);
    return !launch(call_body, shape, Params{&nothing});
  };
  EXPECT_FALSE(refused([](auto&) {}));
  EXPECT_TRUE(refused([](auto& s) { s.threads = 1056; }));
  EXPECT_TRUE(refused([](auto& s) { s.threads = 33; }));
  EXPECT_TRUE(refused([](auto& s) { s.shared_bytes = 227 * 1024 + 1; }));
  EXPECT_TRUE(refused([](auto& s) { s.grid[1] = 65536; }));
  EXPECT_TRUE(refused([](auto& s) { s.grid[0] = 3, s.cluster = 2; }));
}

}  // namespace
}  // namespace flash3
