// What a launch of the forward kernel is given, as one struct; and how scores are transformed before the softmax.
#pragma once

#include "hopper/tensor_map.h"

namespace flash3::forward_kernels::inline FLASH3_MACHINE {

// A tensor that the kernel also addresses itself. Strides count elements.
template <class Pointer>
struct Address {
  Pointer data = nullptr;
  long long batch_stride = 0, row_stride = 0, head_stride = 0;
};

enum class Transform : int {
  none,     // the exponent is score x exponent_scale
  scale,    // scores are multiplied first: softmax_scale is not positive, so that the largest score is not the largest
            // exponent
  softcap,  // scores become softcap x tanh(score x softmax_scale / softcap)
};

// Two integers in global memory, 0 between launches: the next tile that no block has taken, and how many blocks have
// seen that none is left. The last of them sets both to 0 again. One launch at a time may use a pair.
struct TileCounter {
  int next;
  int finished;
};

struct Params {
  // Coordinates of query: {column, head in group, row, head, batch}; of key and value: {column, row, head,
  // batch}. value_rows_8 and value_rows_1 have boxes of so many rows, for blocks that must be filled piece by piece.
  hopper::TensorMap query, key, value, value_rows_8, value_rows_1;
  hopper::TensorMap out;              // coordinates as query's, boxes of 16 rows
  bool out_by_tma = false;            // head_dim_v fills whole units of 16 bytes
  bool out_ends_with_tensor = false;  // rows beyond a sequence's end are beyond the tensor's, where TMA writes nothing

  Address<const void*> query_address, key_address, value_address;
  Address<void*> out_address;
  float* lse = nullptr;  // null: not asked for
  long long lse_batch_stride = 0, lse_head_stride = 0;
  const float* sinks = nullptr;

  // Null where lengths are fixed.
  const int* cu_seqlens_q = nullptr;
  const int* cu_seqlens_k = nullptr;
  const int* seqused_q = nullptr;
  const int* seqused_k = nullptr;

  int batch = 0;
  int heads = 0;                    // heads of the map of query: heads_kv if packed, else heads_q
  int group_shift = 0;              // 1 << group_shift query heads are packed into the rows of a tile
  int heads_per_key = 1;            // heads of the map of query that share a key head
  int seqlen_q = 0, seqlen_kv = 0;  // fixed lengths
  int rows_kv = 0;                  // rows of the tensors key and value: a row beyond is filled with zero
  int head_dim = 0, head_dim_v = 0;
  long long window_left = 0, window_right = 0;
  bool bottom_right = true;

  Transform transform = Transform::none;
  float exponent_scale = 1;    // exponents are base 2: exponent = transformed score x exponent_scale, positive
  float transform_factor = 1;  // scale: the factor; softcap: softmax_scale / softcap x 2 log2(e)
  float softcap_factor = 0;    // softcap x log2(e)

  // The order of tiles: see scheduler.h. Each block takes tile blockIdx first, and then the next that nobody has.
  TileCounter* counter = nullptr;
  int tiles = 0;
  int row_blocks = 0;            // of the longest sequence
  bool unequal_lengths = false;  // of queries: tiles are then counted by the kernel, and there may be fewer
  int heads_together = 1;
  bool longest_first = false;

  unsigned zero = 0;  // which the compiler does not know: see not_before
};

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE
