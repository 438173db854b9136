// Each instruction of the room in a small kernel. The same file runs on the emulator and, compiled by nvcc, on a GPU.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "core/half.h"
#include "hopper/buffer.h"
#include "hopper/hopper.h"
#include "hopper/launch.h"
#include "hopper/make_tensor_map.h"
#include "hopper/toy_harness.h"

namespace flash3::room_test::inline FLASH3_MACHINE {

using namespace hopper;

template <class T>
std::uint16_t rounded(float x) {
  if constexpr (is_bfloat16<T>) return core::to_bfloat16(x).bits;
  return core::to_float16(x).bits;
}
template <class T>
float widened(std::uint16_t bits) {
  if constexpr (is_bfloat16<T>) return core::to_float(core::bfloat16{bits});
  return core::to_float(core::float16{bits});
}
template <class T>
constexpr ElementType element_type = is_bfloat16<T> ? ElementType::bfloat16 : ElementType::float16;

template <class T>
std::vector<std::uint16_t> random_elements(std::size_t count, unsigned seed) {
  std::mt19937 dice(seed);
  std::vector<std::uint16_t> values(count);
  for (auto& v : values) v = rounded<T>(static_cast<float>(static_cast<int>(dice() % 17) - 8) / 4);
  return values;
}

template <class Params>
void run(void (*kernel)(Params), LaunchShape shape, const Params& params) {
  const LaunchStatus status = launch(kernel, shape, params);
  ASSERT_TRUE(status) << status.error;
  finish();
}

// ---- wgmma: every N, both types, both majors of each operand, A from shared memory and from registers, all swizzles.

struct ProductParams {
  TensorMap a, b;
  float* out;  // 64 x N
};

// A is stored 64 x K (K-major) or K x 64; B is stored N x K (K-major) or K x N.
template <class T, int N, int K, Major a_major, Major b_major, Swizzle a_swizzle, Swizzle b_swizzle>
struct ProductShared {
  static constexpr bool a_rows_are_m = a_major == Major::k;
  static constexpr bool b_rows_are_n = b_major == Major::k;
  SharedTile<T, a_rows_are_m ? 64 : K, a_rows_are_m ? K : 64, a_swizzle> a;
  SharedTile<T, b_rows_are_n ? N : K, b_rows_are_n ? K : N, b_swizzle> b;
  Barrier full;
};

template <class T, int N, int K, Major a_major, Major b_major, Swizzle a_swizzle, Swizzle b_swizzle, bool registers>
FLASH3_KERNEL(128, 1)
product_kernel(FLASH3_GRID_CONSTANT(ProductParams) params) {
  auto& shared = shared_memory<ProductShared<T, N, K, a_major, b_major, a_swizzle, b_swizzle>>();
  if (thread_index() == 0) {
    mbarrier_init(shared.full, 1);
    fence_mbarrier_init();
  }
  sync_block();
  if (thread_index() == 0) {
    prefetch_tensor_map(params.a);
    mbarrier_arrive_expect_tx(shared.full, shared.a.byte_count + shared.b.byte_count);
    load_tile(shared.a, params.a, {0, 0}, shared.full);
    load_tile(shared.b, params.b, {0, 0}, shared.full);
  }
  mbarrier_wait_parity(shared.full, 0);
  Accumulator<N> sum;
  Operand<T, K> a;
  if constexpr (registers) {
    // ldmatrix gives the fragment's four 8 x 8 parts: rows 0-7 and 8-15 of columns 0-7, then of columns 8-15.
    const int lane = lane_index();
    FLASH3_UNROLL
    for (int k = 0; k < K / 16; ++k) {
      unsigned words[4];
      ldmatrix_x4(shared.a.address(warp_index() * 16 + lane % 16, k * 16 + lane / 16 * 8), words);
      FLASH3_UNROLL
      for (int i = 0; i < 4; ++i) a[4 * k + i] = words[i];
    }
  }
  wgmma_fence();
  if constexpr (registers && b_major == Major::mn) {
    multiply_ab(sum, a, shared.b, 0, 0, false);
  } else if constexpr (registers) {
    FLASH3_UNROLL
    for (int k = 0; k < K / 16; ++k) wgmma<Major::k>(sum, a, k, shared.b.k_major(0, k * 16), k > 0);
  } else if constexpr (a_major == Major::k && b_major == Major::k) {
    multiply_abt(sum, shared.a, 0, shared.b, 0, false);
  } else if constexpr (a_major == Major::k) {
    multiply_ab(sum, shared.a, 0, shared.b, 0, 0, false);
  } else if constexpr (b_major == Major::mn) {
    multiply_atb(sum, shared.a, 0, shared.b, 0, false);
  } else {
    FLASH3_UNROLL
    for (int k = 0; k < K; k += 16) {
      wgmma<T, Major::mn, Major::k>(sum, shared.a.mn_major(k, 0), shared.b.k_major(0, k), k > 0);
    }
  }
  wgmma_commit_group();
  wgmma_wait_group<0>(sum, a);
  FLASH3_UNROLL
  for (int i = 0; i < sum.count; ++i) {
    store_global(params.out + row_of(half_of(i), thread_index()) * N + column_of(i, lane_index()), sum[i]);
  }
}

template <class T>
TensorMap map_of(const Buffer<std::uint16_t>& data, int rows, int columns, Swizzle swizzle) {
  TensorMapShape shape;
  shape.base = data.data();
  shape.type = element_type<T>;
  shape.rank = 2;
  shape.sizes[0] = columns;
  shape.sizes[1] = rows;
  shape.stride_bytes[1] = columns * 2;
  shape.box[0] = static_cast<int>(swizzle) / 2;
  shape.box[1] = rows;
  shape.swizzle = swizzle;
  TensorMap map = {};
  EXPECT_EQ(make_tensor_map(shape, map), "");
  return map;
}

template <class T, int N, int K = 64, Major a_major = Major::k, Major b_major = Major::k,
          Swizzle a_swizzle = Swizzle::b128, Swizzle b_swizzle = Swizzle::b128, bool registers = false>
void test_product() {
  SCOPED_TRACE("N " + std::to_string(N) + " K " + std::to_string(K));
  using Shared = ProductShared<T, N, K, a_major, b_major, a_swizzle, b_swizzle>;
  const auto a = random_elements<T>(64 * K, 1), b = random_elements<T>(static_cast<std::size_t>(N) * K, 2);
  const Buffer<std::uint16_t> a_buffer(a, "a"), b_buffer(b, "b");
  const Buffer<float> out(std::vector<float>(64 * N, -1.0f), "out");
  ProductParams params;
  params.a = map_of<T>(a_buffer, decltype(Shared::a)::rows, decltype(Shared::a)::columns, a_swizzle);
  params.b = map_of<T>(b_buffer, decltype(Shared::b)::rows, decltype(Shared::b)::columns, b_swizzle);
  params.out = out.data();
  LaunchShape shape;
  shape.threads = 128;
  shape.shared_bytes = sizeof(Shared);
  run(product_kernel<T, N, K, a_major, b_major, a_swizzle, b_swizzle, registers>, shape, params);
  const std::vector<float> given = out.get();
  for (int m = 0; m < 64; ++m) {
    for (int n = 0; n < N; ++n) {
      float sum = 0;  // exact: small multiples of 1/16
      for (int k = 0; k < K; ++k) {
        sum += widened<T>(a[static_cast<std::size_t>(a_major == Major::k ? m * K + k : k * 64 + m)]) *
               widened<T>(b[static_cast<std::size_t>(b_major == Major::k ? n * K + k : k * N + n)]);
      }
      ASSERT_EQ(given[static_cast<std::size_t>(m * N + n)], sum) << "row " << m << " column " << n;
    }
  }
}

template <class T, int... N>
void test_widths() {
  (test_product<T, N>(), ...);
}
template <class T, int... N>
void test_widths_of_values() {
  (test_product<T, N, 32, Major::k, Major::mn, Swizzle::b64, Swizzle::b32, true>(), ...);
}

TEST(Wgmma, EveryWidth) {
  test_widths<bfloat16, 8, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256>();
  test_widths<float16, 8, 64, 80, 96, 112, 128, 176, 256>();
}
TEST(Wgmma, EveryWidthFromRegistersWithValuesByRows) {
  test_widths_of_values<bfloat16, 16, 32, 64, 80, 96, 128, 160, 176, 192, 256>();
  test_widths_of_values<float16, 16, 64, 96, 128, 192, 256>();
}
TEST(Wgmma, ShapesOfTheForwardKernels) {  // P V: as many columns of P as a block has keys
  test_product<bfloat16, 64, 128, Major::k, Major::mn, Swizzle::b128, Swizzle::b128, true>();
  test_product<float16, 96, 96, Major::k, Major::mn, Swizzle::b64, Swizzle::b64, true>();
  test_product<bfloat16, 128, 112, Major::k, Major::mn, Swizzle::b32, Swizzle::b128, true>();
  test_product<float16, 256, 64, Major::k, Major::mn, Swizzle::b128, Swizzle::b128, true>();
}
TEST(Wgmma, SeveralPanels) {
  test_product<bfloat16, 128, 192>();
  test_product<float16, 256, 64, Major::k, Major::mn>();
  test_product<bfloat16, 128, 128, Major::k, Major::mn, Swizzle::b128, Swizzle::b128, true>();
}
TEST(Wgmma, Majors) {
  test_product<bfloat16, 64, 64, Major::mn, Major::mn>();
  test_product<bfloat16, 64, 64, Major::mn, Major::k>();
  test_product<float16, 64, 128, Major::mn, Major::mn>();
  test_product<float16, 64, 64, Major::k, Major::k, Swizzle::b128, Swizzle::b128, true>();
}
TEST(Wgmma, Swizzles) {
  test_product<bfloat16, 64, 64, Major::k, Major::k, Swizzle::b64, Swizzle::b32>();
  test_product<bfloat16, 64, 64, Major::k, Major::k, Swizzle::b32, Swizzle::b64>();
  test_product<bfloat16, 96, 64, Major::mn, Major::mn, Swizzle::b64, Swizzle::b32>();
  test_product<bfloat16, 96, 64, Major::mn, Major::mn, Swizzle::b32, Swizzle::b64>();
}

// ---- ldmatrix, stmatrix and the tile's addresses.

struct MatrixParams {
  std::uint16_t* out;  // 32 x 64 elements, from shared memory by ordinary loads
  unsigned* back;      // four words a lane
};

struct MatrixShared {
  SharedTile<bfloat16, 32, 64> tile;
};

template <bool transposed_store, bool transposed_load>
FLASH3_KERNEL(32, 1)
matrix_kernel(FLASH3_GRID_CONSTANT(MatrixParams) params) {
  auto& tile = shared_memory<MatrixShared>().tile;
  const int lane = lane_index();
  for (int i = lane; i < 32 * 64; i += 32) store_shared_2(tile.address(i / 64, i % 64), 0xffff);
  sync_warp();
  unsigned words[4];
  for (int i = 0; i < 4; ++i)
    words[i] = static_cast<unsigned>(lane * 8 + 2 * i) | static_cast<unsigned>(lane * 8 + 2 * i + 1) << 16;
  const SharedAddress row = tile.right_of(tile.below(tile.address(lane % 16, lane / 16 * 8), 16), 32);
  stmatrix_x4<transposed_store>(row, words);
  const unsigned two[2] = {words[0], words[1]};
  stmatrix_x2(tile.address(lane % 16, 0), two);
  sync_warp();
  for (int i = lane; i < 32 * 64; i += 32) store_global(params.out + i, load_shared_2(tile.address(i / 64, i % 64)));
  ldmatrix_x4<transposed_load>(row, words);
  for (int i = 0; i < 4; ++i) store_global(params.back + lane * 4 + i, words[i]);
}

template <bool transposed_store, bool transposed_load>
void test_matrix() {
  const Buffer<std::uint16_t> out(std::vector<std::uint16_t>(32 * 64), "out");
  const Buffer<unsigned> back(std::vector<unsigned>(128), "back");
  LaunchShape shape;
  shape.threads = 32;
  shape.shared_bytes = sizeof(MatrixShared);
  run(matrix_kernel<transposed_store, transposed_load>, shape, MatrixParams{out.data(), back.data()});
  const auto elements = out.get();
  const auto words = back.get();
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      for (int e = 0; e < 2; ++e) {
        const int r = transposed_store ? lane % 4 * 2 + e : lane / 4,
                  c = transposed_store ? lane / 4 : lane % 4 * 2 + e;
        const int row = 16 + i % 2 * 8 + r, column = 32 + i / 2 * 8 + c;
        EXPECT_EQ(elements[static_cast<std::size_t>(row * 64 + column)], lane * 8 + 2 * i + e);
        if (i < 2) {
          EXPECT_EQ(elements[static_cast<std::size_t>((i * 8 + lane / 4) * 64 + lane % 4 * 2 + e)],
                    lane * 8 + 2 * i + e);
        }
        const int lr = transposed_load ? lane % 4 * 2 + e : lane / 4,
                  lc = transposed_load ? lane / 4 : lane % 4 * 2 + e;
        const auto at = static_cast<std::size_t>((16 + i % 2 * 8 + lr) * 64 + 32 + i / 2 * 8 + lc);
        EXPECT_EQ(words[static_cast<std::size_t>(lane * 4 + i)] >> (16 * e) & 0xffff, elements[at]);
      }
    }
  }
  EXPECT_EQ(elements[20], 0xffff);
}

TEST(Matrix, StoreAndLoad) {
  test_matrix<false, false>();
  test_matrix<true, false>();
  test_matrix<false, true>();
}

// ---- TMA: filling with zero, skipping, adding, boxes of few rows in the middle of a tile, plain bytes.

struct CopyParams {
  TensorMap in, in_rows, out, sum;
  const float* bytes_in;
  float *bytes_out, *bytes_sum;
};

struct CopyShared {
  SharedTile<bfloat16, 64, 64> tile;
  SharedTile<bfloat16, 16, 64> rows;
  SharedArray<float, 64> bytes;
  Barrier full;
};

FLASH3_KERNEL(32, 1)
copy_kernel(FLASH3_GRID_CONSTANT(CopyParams) params) {
  auto& shared = shared_memory<CopyShared>();
  if (elect_one()) {
    mbarrier_init(shared.full, 1);
    fence_mbarrier_init();
    mbarrier_expect_tx(shared.full, 256);
    mbarrier_arrive_expect_tx(shared.full, shared.tile.byte_count + shared.rows.byte_count);
    load_tile(shared.tile, params.in, {0, 5, 1, 2}, shared.full, CacheHint::evict_last);
    for (int row = 0; row < 16; ++row) {  // boxes of one row, in reverse order
      cp_async_bulk_tensor_load(shared.rows.panel(0) + static_cast<unsigned>(row * 128), params.in_rows,
                                {0, 15 - row, 0, 0}, shared.full);
    }
    cp_async_bulk_load(shared_address(&shared.bytes), params.bytes_in, 256, shared.full);
    mbarrier_wait_parity(shared.full, 0);
    store_tile(params.out, {0, 3, 0, 1}, shared.tile);
    cp_async_bulk_tensor_store(params.out, {0, 0, 1, 1}, shared.tile.panel(0));
    bulk_commit_group();
    cp_reduce_async_bulk_tensor_add(params.sum, {0, 0, 0, 0}, shared.rows.panel(0));
    cp_async_bulk_store(params.bytes_out, shared_address(&shared.bytes), 256);
    cp_reduce_async_bulk_add(params.bytes_sum, shared_address(&shared.bytes), 256);
    bulk_commit_group();
    bulk_wait_group_read<1>();
    bulk_wait_group<0>();
  }
}

TEST(Tma, FillsSkipsAndAdds) {
  // (3 batches, 40 rows, 2 heads, 50 columns of a row of 56): 64 x 64 boxes stick out on every side.
  constexpr int batch = 3, rows = 40, heads = 2, columns = 50, pitch = 56;
  const auto in = random_elements<bfloat16>(batch * rows * heads * pitch, 5);
  const Buffer<std::uint16_t> in_buffer(in, "in");
  const std::vector<std::uint16_t> seven(in.size(), rounded<bfloat16>(7));
  const Buffer<std::uint16_t> out_buffer(seven, "out"), sum_buffer(seven, "sum");
  std::vector<float> floats(64);
  for (int i = 0; i < 64; ++i) floats[static_cast<std::size_t>(i)] = static_cast<float>(i) + 0.5f;
  const Buffer<float> bytes_in(floats, "bytes_in"), bytes_out(std::vector<float>(64), "bytes_out"),
      bytes_sum(floats, "bytes_sum");
  CopyParams params;
  const auto make = [&](const Buffer<std::uint16_t>& buffer, int box_rows, TensorMap& map) {
    const AttentionTensor tensor = {buffer.data(), ElementType::bfloat16, batch,         rows, heads,
                                    columns,       rows * heads * pitch,  heads * pitch, pitch};
    EXPECT_EQ(make_attention_map(tensor, 64, box_rows, Swizzle::b128, map), "");
  };
  make(in_buffer, 64, params.in);
  make(in_buffer, 1, params.in_rows);
  make(out_buffer, 64, params.out);
  make(sum_buffer, 16, params.sum);
  params.bytes_in = bytes_in.data();
  params.bytes_out = bytes_out.data();
  params.bytes_sum = bytes_sum.data();
  LaunchShape shape;
  shape.threads = 32;
  shape.shared_bytes = sizeof(CopyShared);
  run(copy_kernel, shape, params);

  const auto out = out_buffer.get(), sum = sum_buffer.get();
  const auto index = [&](int b, int row, int head, int column) {
    return static_cast<std::size_t>(((b * rows + row) * heads + head) * pitch + column);
  };
  const auto loaded = [&](int row, int column) -> std::uint16_t {  // of the tile at row 5, head 1, batch 2
    return row + 5 < rows && column < columns ? in[index(2, row + 5, 1, column)] : std::uint16_t{0};
  };
  for (int b = 0; b < batch; ++b) {
    for (int row = 0; row < rows; ++row) {
      for (int head = 0; head < heads; ++head) {
        for (int column = 0; column < pitch; ++column) {
          std::uint16_t wanted = seven[0], wanted_sum = seven[0];
          // Stores come in units of 16 bytes: the 6 columns past the tensor's last are written, too.
          if (b == 1 && head == 0 && row >= 3) wanted = loaded(row - 3, column);
          if (b == 1 && head == 1) wanted = loaded(row, column);
          if (b == 0 && column < columns && head == 0 && row < 16) {
            wanted_sum = rounded<bfloat16>(7 + widened<bfloat16>(in[index(0, 15 - row, 0, column)]));
          }
          ASSERT_EQ(out[index(b, row, head, column)], wanted) << b << " " << row << " " << head << " " << column;
          ASSERT_EQ(sum[index(b, row, head, column)], wanted_sum) << b << " " << row << " " << head << " " << column;
        }
      }
    }
  }
  EXPECT_EQ(bytes_out.get(), floats);
  for (auto& f : floats) f *= 2;
  EXPECT_EQ(bytes_sum.get(), floats);
}

// ---- GQA packing: the rows of a tile are (row, head in group).

struct PackedParams {
  TensorMap in;
  std::uint16_t* out;  // 32 x 64
  int head = 0;
};
struct PackedShared {
  SharedTile<bfloat16, 32, 64> tile;
  Barrier full;
};
FLASH3_KERNEL(32, 1)
packed_kernel(FLASH3_GRID_CONSTANT(PackedParams) params) {
  auto& shared = shared_memory<PackedShared>();
  if (lane_index() == 0) {
    mbarrier_init(shared.full, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(shared.full, shared.tile.byte_count);
    load_tile(shared.tile, params.in, {0, params.head, 3, 1, 0}, shared.full);
  }
  sync_warp();
  mbarrier_wait_parity(shared.full, 0);
  for (int i = lane_index(); i < 32 * 64; i += 32) {
    store_global(params.out + i, load_shared_2(shared.tile.address(i / 64, i % 64)));
  }
}

// From row 3 of key head 1, and from head `first` of the group.
void test_packed_heads(int heads, int group, int first) {
  constexpr int rows = 9, d = 64;
  const auto in = random_elements<bfloat16>(static_cast<std::size_t>(rows * heads * d), 6);
  const Buffer<std::uint16_t> in_buffer(in, "in"), out_buffer(std::vector<std::uint16_t>(32 * 64), "out");
  PackedParams params;
  params.out = out_buffer.data();
  params.head = first;
  const AttentionTensor tensor = {in_buffer.data(), ElementType::bfloat16, 1, rows, heads, d, 0, heads * d, d};
  ASSERT_EQ(make_packed_attention_map(tensor, group, 64, 32, Swizzle::b128, params.in), "");
  LaunchShape shape;
  shape.threads = 32;
  shape.shared_bytes = sizeof(PackedShared);
  run(packed_kernel, shape, params);
  const auto out = out_buffer.get();
  for (int i = 0; i < 32; ++i) {
    const int row = 3 + i / group, head = group + first + i % group;
    for (int c = 0; c < d; ++c) {
      const std::uint16_t wanted =
          row < rows ? in[static_cast<std::size_t>((row * heads + head) * d + c)] : std::uint16_t{0};
      ASSERT_EQ(out[static_cast<std::size_t>(i * 64 + c)], wanted) << i << " " << c;
    }
  }
}

TEST(Tma, PackedHeads) {
  test_packed_heads(8, 4, 0);
  test_packed_heads(128, 64, 32);  // more heads in a group than rows in a box
}

// ---- TMA in every number of dimensions, adding in every type.

struct DimensionParams {
  TensorMap in[6], out[6], sum[5];  // by dimensions
};
struct DimensionShared {
  SharedTile<bfloat16, 8, 64> tile;
  Barrier full;
};

template <int dims>
FLASH3_DEVICE void copy_box(const DimensionParams& params, DimensionShared& shared, unsigned parity) {
  int at[dims] = {};
  at[1] = 3;
  mbarrier_arrive_expect_tx(shared.full, shared.tile.byte_count);
  cp_async_bulk_tensor_load(shared.tile.panel(0), params.in[dims], at, shared.full);
  mbarrier_wait_parity(shared.full, parity);
  cp_async_bulk_tensor_store(params.out[dims], at, shared.tile.panel(0));
  if constexpr (dims <= 4) cp_reduce_async_bulk_tensor_add(params.sum[dims], at, shared.tile.panel(0));
  bulk_commit_group();
  bulk_wait_group<0>();
}

FLASH3_KERNEL(32, 1)
dimension_kernel(FLASH3_GRID_CONSTANT(DimensionParams) params) {
  auto& shared = shared_memory<DimensionShared>();
  if (!elect_one()) return;
  mbarrier_init(shared.full, 1);
  fence_mbarrier_init();
  copy_box<2>(params, shared, 0);
  copy_box<3>(params, shared, 1);
  copy_box<4>(params, shared, 0);
  copy_box<5>(params, shared, 1);
}

TEST(Tma, EveryNumberOfDimensions) {
  // 8 rows of 128 bytes; 16-bit numbers 1, adding 2-byte floats in 2 and 3 dimensions and float32 in 4.
  constexpr std::size_t rows = 11, words = rows * 32;
  const std::vector<unsigned> ones(words, 0x3c003c00u), twos(words, 0x40004000u);  // float16: 1 and 2
  const Buffer<unsigned> in(ones, "in"), out(std::vector<unsigned>(words), "out"), sum(twos, "sum");
  const Buffer<unsigned> float_sum(std::vector<unsigned>(words, std::bit_cast<unsigned>(0.5f)), "float_sum");
  DimensionParams params;
  const auto make = [&](const Buffer<unsigned>& buffer, int dims, ElementType type, TensorMap& map) {
    TensorMapShape shape;
    shape.base = buffer.data();
    shape.type = type;
    shape.rank = dims;
    const int columns = type == ElementType::float32 ? 32 : 64;
    const int sizes[] = {columns, static_cast<int>(rows), 1, 1, 1}, box[] = {columns, 8, 1, 1, 1};
    for (int d = 0; d < dims; ++d) {
      shape.sizes[d] = sizes[d];
      shape.stride_bytes[d] = 128;
      shape.box[d] = box[d];
    }
    EXPECT_EQ(make_tensor_map(shape, map), "");
  };
  for (int dims = 2; dims <= 5; ++dims) {
    make(in, dims, ElementType::float16, params.in[dims]);
    make(out, dims, ElementType::float16, params.out[dims]);
    if (dims <= 3) make(sum, dims, ElementType::float16, params.sum[dims]);
  }
  make(float_sum, 4, ElementType::float32, params.sum[4]);
  LaunchShape shape;
  shape.threads = 32;
  shape.shared_bytes = sizeof(DimensionShared);
  run(dimension_kernel, shape, params);
  const auto copied = out.get(), added = sum.get(), floats = float_sum.get();
  const float once = std::bit_cast<float>(0x3c003c00u) + 0.5f;
  for (std::size_t i = 0; i < words; ++i) {
    const bool inside = i / 32 >= 3;
    EXPECT_EQ(copied[i], inside ? 0x3c003c00u : 0u);
    EXPECT_EQ(added[i], inside ? 0x44004400u : 0x40004000u);  // 2 + 1 + 1
    EXPECT_EQ(floats[i], std::bit_cast<unsigned>(inside ? once : 0.5f));
  }
}

// ---- Barriers tested without waiting, and given up; memory by 4 and 16 bytes; fences for the async proxy.

struct AccessParams {
  const unsigned* in;  // 16 bytes a thread
  unsigned* out;       // 16 words a thread
  unsigned* scratch;   // 4 words a thread
};
struct AccessShared {
  SharedArray<Words4, 32> words;
  SharedArray<Words4, 32> back;
  Ring<1> ring;
  Barrier other;
};

FLASH3_KERNEL(32, 1)
access_kernel(FLASH3_GRID_CONSTANT(AccessParams) params) {
  auto& shared = shared_memory<AccessShared>();
  const int lane = lane_index();
  unsigned* out = params.out + (block_y() * grid_x() + block_x()) * 512 + lane * 16;
  unsigned* scratch = params.scratch + (block_y() * grid_x() + block_x()) * 128 + lane * 4;
  if (lane == 0) {
    shared.ring.init(32);
    mbarrier_init(shared.other, 1);
    fence_mbarrier_init();
  }
  sync_warp();
  RingPosition<1> at;
  wait_empty(shared.ring, at);
  unsigned before = 0, after = 0;
  if (lane == 0) {
    before = static_cast<unsigned>(mbarrier_test_wait_parity(shared.ring.full[0], 0)) * 2 +
             static_cast<unsigned>(mbarrier_test_wait_parity(shared.ring.full[0], 1));
  }
  Words4 words = load_global_16(params.in + lane * 4);
  for (int i = 0; i < 4; ++i) words.word[i] += 1;
  store_global_16(scratch, words);
  store_shared_16(shared_address(&shared.words) + static_cast<unsigned>(lane) * 16, words);
  fence_proxy_async_all();  // what was written to both memories is for TMA
  sync_warp();
  if (lane == 0) {
    announce(shared.ring, at, 512);
    cp_async_bulk_load(shared_address(&shared.back), params.scratch + (block_y() * grid_x() + block_x()) * 128, 512,
                       shared.ring.full[0]);
  }
  while (!try_full(shared.ring, at)) {
  }
  if (lane == 0) {
    after = static_cast<unsigned>(mbarrier_test_wait_parity(shared.ring.full[0], 0)) * 2 +
            static_cast<unsigned>(mbarrier_test_wait_parity(shared.ring.full[0], 1));
  }
  const SharedAddress mine = shared_address(&shared.back) + static_cast<unsigned>(lane) * 16;
  const Words4 landed = load_shared_16(mine);
  for (int i = 0; i < 4; ++i) store_global(out + i, landed.word[i]);
  store_global(out + 4, load_shared_4(shared_address(&shared.words) + static_cast<unsigned>(lane) * 16 + 8));
  store_shared_4(mine, 77u + static_cast<unsigned>(lane));
  sync_warp();
  store_global(out + 5, load_shared_4(shared_address(&shared.back) + static_cast<unsigned>(31 - lane) * 16));
  release(shared.ring, at);
  at.advance();
  wait_empty(shared.ring, at);  // all 32 have released it
  if (lane == 0) {
    mbarrier_inval(shared.other);
    store_shared_4(shared_address(&shared.other), 5);  // now it is ordinary memory
  }
  sync_warp();
  store_global(out + 6, load_shared_4(shared_address(&shared.other)));
  store_global(out + 7, before * 4 + after);
  store_global(out + 8, load_global_constant(params.in + lane));
  store_global(out + 9, static_cast<unsigned>(grid_x() * 100 + grid_y() * 10 + grid_z()));
  store_global(out + 10, static_cast<unsigned>(block_threads() + opaque(lane)));
  const float x = static_cast<float>(lane) / 8 - 2;
  store_global(out + 11, float_to_bits(tanh_approx(x)));
  store_global(out + 12, float_to_bits(log2_approx(static_cast<float>(lane + 1))));
  store_global(out + 13, float_to_bits(fused_multiply_add(x, 3, bits_to_float(0x3f800000u))));
  store_global(out + 14, float_to_bits(maximum(x, 0) - minimum(x, 0) + maximum(bits_to_float(0x7fffffffu), 1)));
  store_global(out + 15,
               float_to_bits(unpack_low<float16>(pack<float16>(x, 9)) + unpack_high<bfloat16>(pack<bfloat16>(9, x))));
}

TEST(Access, MemoryBarriersAndArithmetic) {
  std::vector<unsigned> in(128);
  for (unsigned i = 0; i < 128; ++i) in[i] = 1000 + i;
  const Buffer<unsigned> in_buffer(in, "in"), out_buffer(std::vector<unsigned>(6 * 512), "out"),
      scratch(std::vector<unsigned>(6 * 128), "scratch");
  LaunchShape shape;
  shape.grid[0] = 3;
  shape.grid[1] = 2;
  shape.threads = 32;
  shape.shared_bytes = sizeof(AccessShared);
  run(access_kernel, shape, AccessParams{in_buffer.data(), out_buffer.data(), scratch.data()});
  const auto out = out_buffer.get();
  for (unsigned thread = 0; thread < 6 * 32; ++thread) {
    const unsigned lane = thread % 32;
    const unsigned* o = out.data() + thread * 16;
    const float x = static_cast<float>(lane) / 8 - 2;
    const auto number = [&](int i) { return std::bit_cast<float>(o[i]); };
    for (unsigned i = 0; i < 4; ++i) EXPECT_EQ(o[i], 1001 + lane * 4 + i);
    EXPECT_EQ(o[4], 1001 + lane * 4 + 2);
    EXPECT_EQ(o[5], 77 + 31 - lane);
    EXPECT_EQ(o[6], 5u);
    // Before: parity 0 has not completed, parity 1 counts as completed; after the phase it is the other way.
    EXPECT_EQ(o[7], lane == 0 ? 1u * 4 + 2 : 0u);
    EXPECT_EQ(o[8], 1000 + lane);
    EXPECT_EQ(o[9], 321u);
    EXPECT_EQ(o[10], 32 + lane);
    EXPECT_NEAR(number(11), std::tanh(x), 2e-3);
    EXPECT_NEAR(number(12), std::log2(static_cast<float>(lane + 1)), 1e-5);
    EXPECT_EQ(number(13), x * 3 + 1);
    EXPECT_EQ(number(14), std::abs(x) + 1);
    EXPECT_EQ(number(15), 2 * x);
  }
}

// ---- Warps, blocks, arithmetic.

struct WarpParams {
  unsigned* out;  // 16 words a thread
  int* counter;
  unsigned zero = 0;
};
struct WarpShared {
  SharedArray<int, 64> values;
  SharedArray<int, 1> total;
};

FLASH3_KERNEL(64, 1)
warp_kernel(FLASH3_GRID_CONSTANT(WarpParams) params) {
  auto& shared = shared_memory<WarpShared>();
  const int thread = thread_index(), lane = lane_index();
  unsigned* out = params.out + thread * 16;
  store_global(out + 0, static_cast<unsigned>(shuffle_xor(thread, 5)));
  store_global(out + 1, static_cast<unsigned>(shuffle(thread, 7)));
  store_global(out + 2, static_cast<unsigned>(shuffle_up(thread, 3)));
  store_global(out + 3, vote_ballot(lane % 3 == 0));
  store_global(out + 4,
               static_cast<unsigned>(vote_any(thread == 40)) * 2 + static_cast<unsigned>(vote_all(thread < 32)));
  store_global(out + 5, static_cast<unsigned>(elect_one()));
  store_global(out + 6, float_to_bits(row_maximum(static_cast<float>(lane))));
  float sums[2] = {static_cast<float>(lane), static_cast<float>(-2 * lane)};
  row_sums(sums);
  store_global(out + 7, float_to_bits(lane % 2 == 0 ? sums[0] : sums[1]));
  store_global(out + 8, pack<bfloat16>(static_cast<float>(lane), -1.5f));
  store_global(out + 9, pack<float16>(static_cast<float>(lane), -1.5f));
  store_global(out + 10, float_to_bits(unpack_high<float16>(pack<float16>(1.0f, static_cast<float>(lane)))));
  store_global(out + 11, float_to_bits(unpack_low<bfloat16>(pack<bfloat16>(static_cast<float>(lane), 1.0f))));

  // Values change hands between two warps, once by a block barrier and once by a named one.
  shared.values.store(thread, thread * 10);
  if (thread == 0) shared.total.store(0, 0);
  sync_block();
  const int other = shared.values.load(63 - thread);
  shared.total.atomic_add(0, thread);
  if (warp_index() == 0) {
    named_barrier_arrive(3, 64);
  } else {
    named_barrier_sync(3, 64);
    store_global(out + 13, static_cast<unsigned>(shared.total.load(0)));
  }
  store_global(out + 12, static_cast<unsigned>(other));
  if (elect_one()) atomic_add_global(params.counter, 1);
  store_global(out + 14, float_to_bits(exp2_approx(static_cast<float>(lane) / 4 - 3)));
  const float late = not_before(static_cast<float>(lane), exp2_approx(static_cast<float>(lane)), params.zero);
  store_global(out + 15, float_to_bits(rcp_approx(late + 0.5f)));
}

TEST(Warp, ExchangesVotesAndArithmetic) {
  const Buffer<unsigned> out_buffer(std::vector<unsigned>(64 * 16), "out");
  const Buffer<int> counter(std::vector<int>(1), "counter");
  LaunchShape shape;
  shape.threads = 64;
  shape.grid[0] = 1;
  shape.shared_bytes = sizeof(WarpShared);
  run(warp_kernel, shape, WarpParams{out_buffer.data(), counter.data()});
  const auto out = out_buffer.get();
  int elected = 0;
  for (unsigned thread = 0; thread < 64; ++thread) {
    const unsigned* o = out.data() + thread * 16;
    const unsigned lane = thread % 32;
    const auto bits = [](float x) { return std::bit_cast<unsigned>(x); };
    EXPECT_EQ(o[0], thread ^ 5u);
    EXPECT_EQ(o[1], thread / 32 * 32 + 7);
    EXPECT_EQ(o[2], lane < 3 ? thread : thread - 3);
    EXPECT_EQ(o[3], 0x49249249u);
    EXPECT_EQ(o[4], thread < 32 ? 1u : 2u);
    elected += static_cast<int>(o[5]);
    EXPECT_EQ(o[6], bits(static_cast<float>(lane / 4 * 4 + 3)));
    EXPECT_EQ(o[7], bits(static_cast<float>(lane / 4 * 16 + 6) * (lane % 2 == 0 ? 1.0f : -2.0f)));
    EXPECT_EQ(o[8] & 0xffff, rounded<bfloat16>(static_cast<float>(lane)));
    EXPECT_EQ(o[8] >> 16, rounded<bfloat16>(-1.5f));
    EXPECT_EQ(o[9] & 0xffff, rounded<float16>(static_cast<float>(lane)));
    EXPECT_EQ(o[10], bits(static_cast<float>(lane)));
    EXPECT_EQ(o[11], bits(static_cast<float>(lane)));
    EXPECT_EQ(o[12], (63 - thread) * 10);
    if (thread >= 32) {
      EXPECT_EQ(o[13], 63u * 64 / 2);
    }
    EXPECT_NEAR(std::bit_cast<float>(o[14]) / std::exp2(static_cast<float>(lane) / 4 - 3), 1, 1e-6);
    EXPECT_NEAR(std::bit_cast<float>(o[15]) * (static_cast<float>(lane) + 0.5f), 1, 1e-6);
  }
  EXPECT_EQ(elected, 2);
  EXPECT_EQ(counter.get()[0], 2);
}

// ---- cp.async, counters, and blocks that wait for each other through global memory.

struct ChainParams {
  const unsigned* in;  // 16 bytes a thread
  unsigned* out;
  int* turn;
  int* next_tile;
  int* tiles;
};
struct ChainShared {
  SharedArray<Words4, 32> words;
};

FLASH3_KERNEL(32, 1)
chain_kernel(FLASH3_GRID_CONSTANT(ChainParams) params) {
  auto& shared = shared_memory<ChainShared>();
  const int lane = lane_index();
  cp_async_16(shared_address(&shared.words) + static_cast<unsigned>(lane) * 16, params.in + lane * 4, lane % 2 == 0);
  cp_async_commit_group();
  cp_async_wait_group<0>();
  sync_warp();
  const Words4 words = shared.words.load(31 - lane);
  if (lane == 0) {
    wait_global_equal(params.turn, block_x());  // blocks take turns
  }
  sync_warp();
  for (int i = 0; i < 4; ++i) {
    unsigned* out = params.out + lane * 4 + i;
    store_global(out, load_global(out) * 3 + words.word[i] + static_cast<unsigned>(block_x()));
  }
  fence_acq_rel_gpu();
  sync_warp();
  if (lane == 0) {
    add_release_global(params.turn, 1);
    const int tile = atomic_add_global(params.next_tile, 1);
    store_global(params.tiles + tile, block_x());
  }
}

TEST(Global, TurnsAndCounters) {
  constexpr int blocks = 6;
  std::vector<unsigned> in(128);
  for (unsigned i = 0; i < 128; ++i) in[i] = i * i;
  const Buffer<unsigned> in_buffer(in, "in"), out_buffer(std::vector<unsigned>(128), "out");
  const Buffer<int> turn(std::vector<int>(1), "turn"), next(std::vector<int>(1), "next"),
      tiles(std::vector<int>(blocks, -1), "tiles");
  LaunchShape shape;
  shape.grid[0] = blocks;
  shape.threads = 32;
  shape.shared_bytes = sizeof(ChainShared);
  run(chain_kernel, shape, ChainParams{in_buffer.data(), out_buffer.data(), turn.data(), next.data(), tiles.data()});
  const auto out = out_buffer.get();
  for (unsigned lane = 0; lane < 32; ++lane) {
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned word = (31 - lane) % 2 == 0 ? in[(31 - lane) * 4 + i] : 0;
      unsigned wanted = 0;
      for (unsigned block = 0; block < blocks; ++block) wanted = wanted * 3 + word + block;
      EXPECT_EQ(out[lane * 4 + i], wanted);
    }
  }
  std::vector<int> seen(blocks);
  for (const int block : tiles.get()) ++seen[static_cast<std::size_t>(block)];
  EXPECT_EQ(seen, std::vector<int>(blocks, 1));
}

// ---- Clusters: multicast, arrivals across blocks.

struct ClusterParams {
  TensorMap in;        // {column, row, head}
  std::uint16_t* out;  // a tile a block
};
struct ClusterShared {
  SharedTile<bfloat16, 16, 64> tile;
  Barrier full, empty;
};

FLASH3_KERNEL(32, 1)
cluster_kernel(FLASH3_GRID_CONSTANT(ClusterParams) params) {
  auto& shared = shared_memory<ClusterShared>();
  const unsigned rank = cluster_rank();
  if (lane_index() == 0) {
    mbarrier_init(shared.full, 1);
    mbarrier_init(shared.empty, cluster_size());
    fence_mbarrier_init();
  }
  sync_cluster();
  for (unsigned round = 0; round < 3; ++round) {
    if (lane_index() == 0) {
      mbarrier_arrive_expect_tx(shared.full, shared.tile.byte_count);
      // Every block says to block 0 that its tile is free and its bytes announced; block 0 sends to both.
      mbarrier_arrive_cluster(shared.empty, 0);
      if (rank == 0) {
        mbarrier_wait_parity(shared.empty, round & 1);
        cp_async_bulk_tensor_load_multicast(shared.tile.panel(0), params.in, {0, 0, static_cast<int>(round)},
                                            shared.full, 3);
      }
    }
    sync_warp();
    mbarrier_wait_parity(shared.full, round & 1);
    for (int i = lane_index(); i < 16 * 64; i += 32) {
      store_global(params.out + (round * 2 + rank) * 16 * 64 + static_cast<unsigned>(i),
                   load_shared_2(shared.tile.address(i / 64, i % 64)));
    }
    sync_warp();
  }
  sync_cluster();  // no block leaves while another may still arrive at its barriers
}

TEST(Cluster, MulticastAndRemoteArrival) {
  const auto in = random_elements<bfloat16>(3 * 16 * 64, 8);
  const Buffer<std::uint16_t> in_buffer(in, "in"), out_buffer(std::vector<std::uint16_t>(6 * 16 * 64), "out");
  ClusterParams params;
  params.out = out_buffer.data();
  TensorMapShape map;
  map.base = in_buffer.data();
  map.rank = 3;
  const int sizes[] = {64, 16, 3};
  for (int d = 0; d < 3; ++d) map.sizes[d] = sizes[d];
  map.stride_bytes[1] = 128;
  map.stride_bytes[2] = 16 * 128;
  map.box[0] = 64;
  map.box[1] = 16;
  map.box[2] = 1;
  ASSERT_EQ(make_tensor_map(map, params.in), "");
  LaunchShape shape;
  shape.grid[0] = 2;
  shape.cluster = 2;
  shape.threads = 32;
  shape.shared_bytes = sizeof(ClusterShared);
  run(cluster_kernel, shape, params);
  const auto out = out_buffer.get();
  for (std::size_t i = 0; i < out.size(); ++i) {
    ASSERT_EQ(out[i], in[i / (2 * 16 * 64) * 16 * 64 + i % (16 * 64)]) << i;
  }
}

struct NeighbourParams {
  unsigned* out;  // 32 words a block, two rounds
};
struct NeighbourShared {
  SharedArray<unsigned, 32> mailbox;
  Barrier filled;
};

// Each block writes into its neighbour's memory and says so at its barrier; then each reads from it.
FLASH3_KERNEL(32, 1)
neighbour_kernel(FLASH3_GRID_CONSTANT(NeighbourParams) params) {
  auto& shared = shared_memory<NeighbourShared>();
  const unsigned other = cluster_rank() ^ 1u;
  const auto lane = static_cast<unsigned>(lane_index());
  if (lane == 0) {
    mbarrier_init(shared.filled, 32);
    fence_mbarrier_init();
  }
  cluster_arrive();
  cluster_wait();
  const SharedAddress there = map_to_block(shared_address(&shared.mailbox) + lane * 4, other);
  store_cluster_4(there, static_cast<unsigned>(block_x()) * 100 + lane);
  mbarrier_arrive_release_cluster(shared.filled, other);
  mbarrier_wait_parity_cluster(shared.filled, 0);
  unsigned* out = params.out + static_cast<unsigned>(block_x()) * 64;
  store_global(out + lane, shared.mailbox.load(static_cast<int>(31 - lane)));
  sync_cluster();
  store_global(out + 32 + lane, load_cluster_4(there));
  sync_cluster();
}

TEST(Cluster, MemoryOfANeighbour) {
  const Buffer<unsigned> out_buffer(std::vector<unsigned>(4 * 64), "out");
  LaunchShape shape;
  shape.grid[0] = 4;
  shape.cluster = 2;
  shape.threads = 32;
  shape.shared_bytes = sizeof(NeighbourShared);
  run(neighbour_kernel, shape, NeighbourParams{out_buffer.data()});
  const auto out = out_buffer.get();
  for (unsigned block = 0; block < 4; ++block) {
    for (unsigned lane = 0; lane < 32; ++lane) {
      EXPECT_EQ(out[block * 64 + lane], (block ^ 1u) * 100 + 31 - lane);
      EXPECT_EQ(out[block * 64 + 32 + lane], block * 100 + lane);
    }
  }
}

// ---- A launch that depends on the one before it.

struct StepParams {
  int* value;
};
FLASH3_KERNEL(32, 1)
step_kernel(FLASH3_GRID_CONSTANT(StepParams) params) {
  grid_dependency_wait();
  if (thread_index() == 0) store_global(params.value, load_global(params.value) * 2 + 1);
  grid_launch_dependents();
}

TEST(Grid, DependentLaunches) {
  const Buffer<int> value(std::vector<int>(1), "value");
  LaunchShape shape;
  shape.threads = 32;
  shape.dependent = true;
  for (int i = 0; i < 20; ++i) run(step_kernel, shape, StepParams{value.data()});
  EXPECT_EQ(value.get()[0], (1 << 20) - 1);
}

// ---- Everything together.

TEST(Toy, GemmAndLinearAttention) {
  EXPECT_EQ(toy::run_gemm(), "");
  EXPECT_EQ(toy::run_cluster_gemm(), "");
  EXPECT_EQ(toy::run_cluster_gemm(64 * 50), "");
  EXPECT_EQ(toy::run_gemm(64 * 50), "");
  EXPECT_EQ(toy::run_linear(), "");
  EXPECT_EQ(toy::run_linear(128, 64 * 20), "");
}

// ---- What a tensor map refuses.

TEST(TensorMap, SaysWhatItRefuses) {
  const Buffer<std::uint16_t> data(std::vector<std::uint16_t>(64 * 64), "data");
  TensorMapShape good;
  good.base = data.data();
  good.rank = 2;
  good.sizes[0] = good.sizes[1] = 64;
  good.stride_bytes[1] = 128;
  good.box[0] = 64;
  good.box[1] = 8;
  TensorMap map;
  EXPECT_EQ(make_tensor_map(good, map), "");
  const auto refusal = [&](auto change) {
    TensorMapShape shape = good;
    change(shape);
    return make_tensor_map(shape, map);
  };
  const auto contains = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  EXPECT_TRUE(contains(refusal([](auto& s) { s.rank = 6; }), "rank is 6"));
  EXPECT_TRUE(contains(refusal([](auto& s) { s.base = nullptr; }), "null"));
  EXPECT_TRUE(contains(refusal([](auto& s) { s.base = static_cast<const char*>(s.base) + 2; }), "16 bytes"));
  EXPECT_TRUE(contains(refusal([](auto& s) { s.sizes[1] = 0; }), "size of dimension 1 is 0"));
  EXPECT_TRUE(contains(refusal([](auto& s) { s.stride_bytes[1] = 130; }), "stride in bytes of dimension 1 is 130"));
  EXPECT_TRUE(contains(refusal([](auto& s) { s.box[1] = 257; }), "box of dimension 1 is 257"));
  EXPECT_TRUE(contains(refusal([](auto& s) { s.box[0] = 128; }), "at most the swizzle's 128"));
  // A dimension of size 1 may carry any stride.
  EXPECT_EQ(refusal([](auto& s) { s.sizes[1] = 1, s.stride_bytes[1] = -3; }), "");
  AttentionTensor queries = {data.data(), ElementType::bfloat16, 1, 4, 12, 64, 0, 12 * 64, 64};
  EXPECT_TRUE(contains(make_packed_attention_map(queries, 5, 64, 60, Swizzle::b128, map), "group is 5"));
  EXPECT_TRUE(contains(make_packed_attention_map(queries, 3, 64, 64, Swizzle::b128, map), "64 rows"));
}

}  // namespace flash3::room_test::inline FLASH3_MACHINE
