// Owns a small problem for each toy kernel: runs it on the machine and compares with plain loops.
#pragma once

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "core/half.h"
#include "hopper/buffer.h"
#include "hopper/launch.h"
#include "hopper/make_tensor_map.h"
#include "hopper/toy_cluster.h"

namespace flash3::toy::inline FLASH3_MACHINE {

struct Matrix {
  Matrix(int rows_, int columns_, unsigned seed) : rows(rows_), columns(columns_) {
    std::mt19937 dice(seed);
    std::normal_distribution<float> normal;
    bits.resize(static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns));
    for (auto& b : bits) b = core::to_bfloat16(normal(dice)).bits;
  }
  float at(int row, int column) const {
    return core::to_float(core::bfloat16{bits[static_cast<std::size_t>(row * columns + column)]});
  }

  int rows, columns;
  std::vector<std::uint16_t> bits;
};

inline std::string differs(const char* what, int row, int column, double given, double wanted) {
  return std::string(what) + " at (" + std::to_string(row) + ", " + std::to_string(column) + ") is " +
         std::to_string(given) + ", not " + std::to_string(wanted);
}

// Both return an empty string, or what is wrong with the result.
inline std::string run_gemm(int k = 320, bool cluster = false) {
  using namespace hopper;
  const int m = 256, n = 128;
  Matrix a(m, k, 1), b(n, k, 2), out(m, n, 3);
  const Buffer<std::uint16_t> a_data(a.bits, "a"), b_data(b.bits, "b"), out_data(out.bits, "out");
  GemmParams params;
  params.k_steps = k / 64;
  const auto make = [](const Matrix& matrix, const Buffer<std::uint16_t>& data, int rows, TensorMap& map) {
    TensorMapShape shape;
    shape.base = data.data();
    shape.rank = 2;
    shape.sizes[0] = matrix.columns;
    shape.sizes[1] = matrix.rows;
    shape.stride_bytes[1] = matrix.columns * 2;
    shape.box[0] = 64;
    shape.box[1] = rows;
    return make_tensor_map(shape, map);
  };
  const std::string error = make(a, a_data, 128, params.a) + make(b, b_data, cluster ? 64 : 128, params.b) +
                            make(out, out_data, 128, params.out);
  if (!error.empty()) return error;
  LaunchShape shape;
  shape.grid[0] = m / 128;
  shape.grid[1] = n / 128;
  shape.threads = gemm_threads;
  shape.cluster = cluster ? 2 : 1;
  shape.shared_bytes = sizeof(GemmShared<bfloat16>);
  const auto kernel = cluster ? cluster_gemm_kernel<bfloat16> : gemm_kernel<bfloat16>;
  if (const LaunchStatus status = launch(kernel, shape, params); !status) return status.error;
  finish();
  out.bits = out_data.get();
  for (int row = 0; row < m; ++row) {
    for (int column = 0; column < n; ++column) {
      double sum = 0;
      for (int i = 0; i < k; ++i) sum += static_cast<double>(a.at(row, i)) * b.at(column, i);
      if (!(std::abs(out.at(row, column) - sum) <= 0.005 * std::abs(sum) + 3e-4 * std::sqrt(k))) {
        return differs("out", row, column, out.at(row, column), sum);
      }
    }
  }
  return {};
}

inline std::string run_cluster_gemm(int k = 320) { return run_gemm(k, true); }

// seqlen_q rows of queries against seqlen_kv keys, neither a multiple of a tile: TMA fills and skips the rest.
inline std::string run_linear(int seqlen_q = 200, int seqlen_kv = 300) {
  using namespace hopper;
  constexpr int d = 64, heads = 2;
  Matrix q(seqlen_q, heads * d, 1), k(seqlen_kv, heads * d, 2), v(seqlen_kv, heads * d, 3), out(seqlen_q, heads * d, 4);
  const Buffer<std::uint16_t> q_data(q.bits, "q"), k_data(k.bits, "k"), v_data(v.bits, "v"), out_data(out.bits, "out");
  LinearParams params;
  params.key_blocks = (seqlen_kv + 63) / 64;
  params.scale = 0.125f;
  const auto make = [](const Matrix& matrix, const Buffer<std::uint16_t>& data, int rows, TensorMap& map) {
    const AttentionTensor tensor = {data.data(), ElementType::bfloat16, 1, matrix.rows, heads, d, 0, matrix.columns, d};
    return make_attention_map(tensor, 64, rows, Swizzle::b128, map);
  };
  const std::string error = make(q, q_data, 128, params.q) + make(k, k_data, 64, params.k) +
                            make(v, v_data, 64, params.v) + make(out, out_data, 128, params.out);
  if (!error.empty()) return error;
  LaunchShape shape;
  shape.grid[0] = (seqlen_q + 127) / 128;
  shape.grid[1] = heads;
  shape.threads = gemm_threads;
  shape.shared_bytes = sizeof(LinearShared<bfloat16, d>);
  const LaunchStatus status = launch(linear_kernel<bfloat16, d>, shape, params);
  if (!status) return status.error;
  finish();
  out.bits = out_data.get();
  std::vector<double> wanted(d);
  for (int head = 0; head < heads; ++head) {
    for (int row = 0; row < seqlen_q; ++row) {
      std::fill(wanted.begin(), wanted.end(), 0.0);
      double size = 0;
      for (int key = 0; key < seqlen_kv; ++key) {
        float score = 0;
        for (int i = 0; i < d; ++i) score += q.at(row, head * d + i) * k.at(key, head * d + i);
        score = core::to_float(core::to_bfloat16(score * params.scale));
        size += score * score;
        for (int i = 0; i < d; ++i) {
          wanted[static_cast<std::size_t>(i)] += static_cast<double>(score) * v.at(key, head * d + i);
        }
      }
      for (int i = 0; i < d; ++i) {
        const double given = out.at(row, head * d + i), want = wanted[static_cast<std::size_t>(i)];
        if (!(std::abs(given - want) <= 0.005 * std::abs(want) + 0.002 * std::sqrt(size))) {
          return differs("out", row, head * d + i, given, want);
        }
      }
    }
  }
  return {};
}

}  // namespace flash3::toy::inline FLASH3_MACHINE
