// Owns how wgmma is issued, reads its operands from shared memory, accumulates, and is waited for.
#include "emulator/product.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "core/half.h"
#include "emulator/machine.h"

namespace flash3::emulator {

namespace {

constexpr int k_step = 16;
constexpr float poison = std::numeric_limits<float>::quiet_NaN();

// Where element i of thread t's accumulator lies in the 64 x N tile.
int row_of(int thread, int i) { return thread / 32 * 16 + thread % 32 / 4 + (i >> 1 & 1) * 8; }
int column_of(int thread, int i) { return (i >> 2) * 8 + thread % 4 * 2 + (i & 1); }

float to_float(std::uint16_t bits, MatrixType type) {
  return type == MatrixType::bfloat16 ? core::to_float(core::bfloat16{bits}) : core::to_float(core::float16{bits});
}

struct DecodedDescriptor {
  std::uint32_t start, leading, stride;
  int row_bytes;  // of the swizzle pattern; 16 without swizzle
};

DecodedDescriptor decode(std::uint64_t bits, char operand, const Where& where) {
  const auto field = [&](int from, int width) {
    return static_cast<std::uint32_t>(bits >> from & ((std::uint64_t{1} << width) - 1));
  };
  constexpr int row_bytes[] = {16, 128, 64, 32};
  DecodedDescriptor d = {field(0, 14) << 4, field(16, 14) << 4, field(32, 14) << 4, row_bytes[field(62, 2)]};
  const auto complain = [&](const std::string& what) {
    Machine::instance().fail(FaultKind::descriptor, std::string("the descriptor of operand ") + operand + " " + what,
                             where);
  };
  if (field(14, 2) != 0 || field(30, 2) != 0 || field(46, 3) != 0 || field(52, 10) != 0) complain("sets unused bits");
  if (field(49, 3) != 0) complain("has a base offset, which is not supported");
  // Bits 7 to 9 of an address choose the permutation: a pattern that starts elsewhere needs a base offset.
  const std::uint32_t pattern = static_cast<std::uint32_t>(d.row_bytes) * 8;
  if (d.row_bytes > 16 && d.start % pattern / 128 != 0) {
    complain("starts " + std::to_string(d.start % pattern) + " bytes into its swizzle pattern of " +
             std::to_string(pattern));
  }
  return d;
}

// Reads `outer` rows of A, or columns of B, times 16 of K, as out[k * outer + i]. Each warp reads its own 16 rows of A
// and all of B.
void read_operand(Block& block, const DecodedDescriptor& d, bool outer_contiguous, int outer,
                  const MatrixProduct& product, std::uint32_t agent, bool is_a, float* out) {
  Toucher by;
  by.where = product.call.where;
  by.time = static_cast<std::uint32_t>(product.number);
  by.actor = Actor::product;
  by.known = &product.known;
  by.fenced = &product.fenced;
  const auto row_bytes = static_cast<std::uint32_t>(d.row_bytes);
  const std::uint32_t row_chunks = row_bytes / 16;
  // The 16 bytes at an offset: eight elements that follow each other along the contiguous index.
  const auto read_chunk = [&](int i, std::uint32_t offset, std::uint16_t(&elements)[8]) {
    by.agent = is_a ? agent + static_cast<std::uint32_t>(i / 16) : agent;
    by.agents = is_a ? 1 : 4;
    std::uint32_t address = d.start + offset;
    address ^= address >> 3 & (row_bytes - 16);
    const std::uint32_t at = shared_offset(block, address, 16, product.call.where);
    touch_shared(block, at, 16, Manner::read, by, static_cast<std::uint8_t>(d.row_bytes));
    std::memcpy(elements, block.shared + at, 16);
  };
  std::uint16_t elements[8];
  if (outer_contiguous) {
    for (int k = 0; k < k_step; ++k) {
      const auto k_low = static_cast<std::uint32_t>(k % 8), k_high = static_cast<std::uint32_t>(k / 8);
      for (int i = 0; i < outer; i += 8) {
        const auto chunk = static_cast<std::uint32_t>(i / 8);
        const std::uint32_t offset = d.row_bytes == 16 ? chunk * d.stride + k_low * 16 + k_high * d.leading
                                                       : chunk % row_chunks * 16 + chunk / row_chunks * d.leading +
                                                             k_low * row_bytes + k_high * d.stride;
        read_chunk(i, offset, elements);
        for (int e = 0; e < 8; ++e) out[k * outer + i + e] = to_float(elements[e], product.call.type);
      }
    }
    return;
  }
  for (int i = 0; i < outer; ++i) {
    const auto low = static_cast<std::uint32_t>(i % 8), high = static_cast<std::uint32_t>(i / 8);
    for (int half = 0; half < 2; ++half) {
      const std::uint32_t chunk_stride = d.row_bytes == 16 ? d.leading : 16;
      read_chunk(i, low * row_bytes + high * d.stride + static_cast<std::uint32_t>(half) * chunk_stride, elements);
      for (int e = 0; e < 8; ++e) out[(half * 8 + e) * outer + i] = to_float(elements[e], product.call.type);
    }
  }
}

// Operand A in registers: word 0 holds columns 2t, 2t + 1 of row g, word 1 those of row g + 8, words 2 and 3 the same
// eight columns further, for lane 4g + t.
void unpack_operand(const MatrixProduct& product, float* out) {
  for (int thread = 0; thread < 128; ++thread) {
    for (int word = 0; word < 4; ++word) {
      const std::uint32_t bits = product.a_words[static_cast<std::size_t>(thread * 4 + word)];
      const int row = thread / 32 * 16 + thread % 32 / 4 + word % 2 * 8;
      const int k = thread % 4 * 2 + word / 2 * 8;
      out[k * 64 + row] = to_float(static_cast<std::uint16_t>(bits), product.call.type);
      out[(k + 1) * 64 + row] = to_float(static_cast<std::uint16_t>(bits >> 16), product.call.type);
    }
  }
}

void multiply(const float* a, const float* b, int n, bool accumulate, float* d) {
  if (!accumulate) std::fill(d, d + 64 * n, 0.0f);
  for (int row = 0; row < 64; ++row) {
    float* out = d + row * n;
    for (int k = 0; k < k_step; ++k) {
      const float factor = a[k * 64 + row];
      const float* column = b + k * n;
      for (int i = 0; i < n; ++i) out[i] += factor * column[i];
    }
  }
}

AccumulatorTile& tile_of(Warpgroup& group, const ProductCall& first) {
  for (auto& tile : group.tiles) {
    if (tile->home[0] == first.d) return *tile;
  }
  auto tile = std::make_unique<AccumulatorTile>();
  tile->columns = first.columns;
  tile->value.assign(static_cast<std::size_t>(64 * first.columns), 0.0f);
  group.tiles.push_back(std::move(tile));
  return *group.tiles.back();
}

// Takes a lane's accumulator out of its registers, which read as NaN from here on.
void take(AccumulatorTile& tile, int thread, const ProductCall& call) {
  FragmentState& state = *call.d_state;
  Machine& machine = Machine::instance();
  if (state.phase == FragmentState::Phase::in_flight) return;
  if (state.phase == FragmentState::Phase::free && state.touched == *state.fences) {
    machine.fail(FaultKind::fragment,
                 "thread " + std::to_string(thread) +
                     " of the warpgroup has not executed wgmma_fence since ordinary "
                     "code last used the accumulator",
                 call.where);
  }
  if (call.accumulate && !state.initialised) {
    machine.fail(FaultKind::fragment, "accumulates onto registers that nothing has set", call.where);
  }
  for (int i = 0; i < call.columns / 2; ++i) {
    tile.value[static_cast<std::size_t>(row_of(thread, i) * call.columns + column_of(thread, i))] = call.d[i];
    call.d[i] = poison;
  }
  state.phase = FragmentState::Phase::in_flight;
  state.initialised = true;
}

// All 128 threads have come: the product goes onto the warpgroup's queue.
void enqueue(Warpgroup& group) {
  Machine& machine = Machine::instance();
  const ProductCall& first = *group.calls[0];
  auto product = std::make_unique<MatrixProduct>();
  product->call = first;
  product->number = ++group.issued;
  AccumulatorTile& tile = tile_of(group, first);
  const bool fresh = tile.home.empty();
  if (tile.given_back > 0) {
    machine.fail(FaultKind::divergence,
                 "only some warps of the warpgroup waited for the wgmma at " + to_string(tile.issued), first.where);
  }
  for (int thread = 0; thread < 128; ++thread) {
    const ProductCall& call = *group.calls[static_cast<std::size_t>(thread)];
    if (call.a != first.a || call.b != first.b || call.accumulate != first.accumulate) {
      machine.fail(FaultKind::divergence, "threads of a warpgroup give wgmma different descriptors or flags",
                   call.where);
    }
    if (fresh) {
      tile.home.push_back(call.d);
      tile.states.push_back(call.d_state);
    } else if (tile.home[static_cast<std::size_t>(thread)] != call.d) {
      machine.fail(FaultKind::divergence, "threads of a warpgroup give wgmma different accumulators", call.where);
    }
    take(tile, thread, call);
    call.d_state->issued = call.where;
    if (call.a_state != nullptr) {
      if (call.a_state->touched == *call.a_state->fences) {
        machine.fail(FaultKind::fragment,
                     "a thread has not executed wgmma_fence since ordinary code last used operand A", call.where);
      }
      product->a_words.insert(product->a_words.end(), call.a_words, call.a_words + 4);
      ++call.a_state->readers;
      call.a_state->issued = call.where;
      group.warps[static_cast<std::size_t>(thread / 32)]
          ->lanes[static_cast<std::size_t>(thread % 32)]
          ->operands.emplace_back(product->number, call.a_state);
    }
  }
  product->tile = &tile;
  tile.last_operation = product->number;
  tile.issued = first.where;

  // A warp knows what any of its lanes knows; all four must know that the operands are there.
  for (std::size_t w = 0; w < 4; ++w) {
    Clock known, fenced;
    for (Thread* lane : group.warps[w]->lanes) {
      known.join(lane->known);
      fenced.join(lane->fenced);
    }
    if (w == 0) {
      product->known = known;
      product->fenced = fenced;
    } else {
      product->known.meet(known);
      product->fenced.meet(fenced);
    }
  }
  for (Warp* warp : group.warps) {
    for (Thread* lane : warp->lanes) lane->tick();
  }
  if (first.a_words == nullptr) decode(first.a, 'A', first.where);
  decode(first.b, 'B', first.where);
  group.queue.push_back(std::move(product));
  machine.product_queued(group);
}

}  // namespace

FragmentState::FragmentState()
    : fences(&Machine::instance().self().wgmma_fences), touched(Machine::instance().self().wgmma_fences) {}

FragmentState::~FragmentState() {
  if (phase == Phase::in_flight || readers > 0) {
    Machine::instance().fail_in_destructor(FaultKind::fragment, "the fragment goes out of scope while wgmma has it",
                                           issued);
  }
}

void FragmentState::name(const Where& where) {
  if (phase == Phase::in_flight) {
    Machine::instance().fail(FaultKind::fragment,
                             "named as finished, but the wait does not cover the wgmma at " + to_string(issued), where);
  }
  if (readers > 0) {
    Machine::instance().fail(FaultKind::fragment,
                             "named as finished, but the wait does not cover the wgmma at " + to_string(issued) +
                                 ", which reads the operand",
                             where);
  }
  phase = Phase::free;
}

void FragmentState::refuse(int index, int count, const Where& where) const {
  Machine& machine = Machine::instance();
  if (index < 0 || index >= count) {
    machine.fail(FaultKind::bounds,
                 "element " + std::to_string(index) + " of a fragment that has " + std::to_string(count), where);
  }
  if (phase == Phase::unnamed) {
    machine.fail(FaultKind::fragment,
                 "touched after a wait that did not name it; the wgmma was issued at " + to_string(issued), where);
  }
  machine.fail(FaultKind::fragment, "touched before a wait for the wgmma issued at " + to_string(issued), where);
}

void issue_product(const ProductCall& call) {
  Machine& machine = Machine::instance();
  Thread& me = machine.self();
  Warpgroup& group = *me.warp.warpgroup;
  if (group.warps.size() != 4) machine.fail(FaultKind::divergence, "the warpgroup has fewer than 4 warps", call.where);
  group.calls[static_cast<std::size_t>(me.index % 128)] = &call;
  machine.meet(group.meeting, "wgmma", call.where, [&] { enqueue(group); });
}

void commit_products(const Where& where) {
  Machine& machine = Machine::instance();
  Warpgroup& group = *machine.self().warp.warpgroup;
  machine.meet(group.meeting, "wgmma_commit_group", where, [&] { group.groups.push_back(group.issued); });
}

void wait_for_products(int pending, const Where& where) {
  Machine& machine = Machine::instance();
  Thread& me = machine.self();
  Warpgroup& group = *me.warp.warpgroup;
  machine.meet(me.warp.meeting, "wgmma_wait_group", where, [] {});
  const auto committed = group.groups.size();
  const auto skipped = static_cast<std::size_t>(pending);
  const std::uint64_t target = committed > skipped ? group.groups[committed - 1 - skipped] : 0;
  while (group.landed < target) {
    group.waiters.push_back(&me);
    machine.block("wgmma_wait_group", where);
  }
  me.known.raise(group.agent + static_cast<std::uint32_t>(me.warp.index % 4), static_cast<std::uint32_t>(target));
  const auto thread = static_cast<std::size_t>(me.index % 128);
  for (auto& tile : group.tiles) {
    if (tile->last_operation > target || tile->states[thread] == nullptr) continue;
    for (int i = 0; i < tile->columns / 2; ++i) {
      const int at = row_of(me.index % 128, i) * tile->columns + column_of(me.index % 128, i);
      tile->home[thread][i] = tile->value[static_cast<std::size_t>(at)];
    }
    tile->states[thread]->phase = FragmentState::Phase::unnamed;
    tile->states[thread] = nullptr;
    ++tile->given_back;
  }
  std::erase_if(group.tiles, [](const auto& tile) { return tile->given_back == 128; });
  std::erase_if(me.operands, [&](const auto& operand) {
    if (operand.first > target) return false;
    --operand.second->readers;
    return true;
  });
}

void land_product(Warpgroup& group) {
  std::unique_ptr<MatrixProduct> product = std::move(group.queue.front());
  group.queue.pop_front();
  const ProductCall& call = product->call;
  thread_local std::vector<float> a(64 * k_step), b(256 * k_step);
  if (product->a_words.empty()) {
    read_operand(*group.block, decode(call.a, 'A', call.where), call.a_is_m_major, 64, *product, group.agent, true,
                 a.data());
  } else {
    unpack_operand(*product, a.data());
  }
  read_operand(*group.block, decode(call.b, 'B', call.where), call.b_is_n_major, call.columns, *product, group.agent,
               false, b.data());
  multiply(a.data(), b.data(), call.columns, call.accumulate, product->tile->value.data());
  group.landed = product->number;
  Machine& machine = Machine::instance();
  for (Thread* waiter : group.waiters) machine.wake(*waiter);
  group.waiters.clear();
}

}  // namespace flash3::emulator
