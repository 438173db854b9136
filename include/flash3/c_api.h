/// \file
/// The C interface (C99): the same functions as flash3/attention.h, with status codes instead of exceptions.
///
/// Conventions:
/// - Every function that can fail returns a status; flash3_last_error() has the sentence that goes with it. Nothing
///   throws through this interface. All functions may be called from many threads at once.
/// - Argument structs begin with struct_size, so that later versions can add fields at the end: start each from its
///   _INIT macro, which sets the size and leaves everything else zero. Zero (null, for pointers) always means the
///   default, or absent.
/// - The library keeps no pointer that it is given, and frees nothing that it did not make.
/// - What each argument means, and the shapes and data types accepted, is said once, in flash3/attention.h.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "flash3/export.h"
#include "flash3/version.h"

#ifdef __cplusplus
extern "C" {
#endif

/// What became of a call.
typedef enum flash3_status {
  FLASH3_OK = 0,
  FLASH3_INVALID_ARGUMENT = 1,  ///< an argument is refused; nothing has been written
  FLASH3_UNSUPPORTED = 2,       ///< the engine cannot do this; nothing has been written
  FLASH3_OUT_OF_MEMORY = 3,     ///< workspace cannot be had
  FLASH3_DEVICE_ERROR = 4,      ///< the CUDA driver or a device reported a failure
  FLASH3_INTERNAL_ERROR = 5     ///< a defect in flash3
} flash3_status;

/// Values of flash3_tensor.dtype.
typedef enum flash3_dtype {
  FLASH3_FLOAT32 = 0,
  FLASH3_FLOAT16 = 1,
  FLASH3_BFLOAT16 = 2,
  FLASH3_FLOAT8_E4M3 = 3,
  FLASH3_FLOAT64 = 4,
  FLASH3_INT32 = 5
} flash3_dtype;

/// Values of flash3_tensor.device_type.
typedef enum flash3_device_type { FLASH3_CPU = 0, FLASH3_CUDA = 1 } flash3_device_type;

/// Values of flash3_execution.engine.
typedef enum flash3_engine {
  FLASH3_ENGINE_AUTOMATIC = 0,
  FLASH3_ENGINE_CUDA = 1,
  FLASH3_ENGINE_CPU = 2,
  FLASH3_ENGINE_REFERENCE = 3,
  FLASH3_ENGINE_EMULATOR = 4
} flash3_engine;

/// Values of flash3_options.alignment.
typedef enum flash3_mask_alignment { FLASH3_BOTTOM_RIGHT = 0, FLASH3_TOP_LEFT = 1 } flash3_mask_alignment;

#define FLASH3_MAX_RANK 6

/// A view of a tensor that the caller owns. This struct does not grow.
typedef struct flash3_tensor {
  void* data;           ///< written only where the tensor is an output
  int32_t dtype;        ///< flash3_dtype
  int32_t device_type;  ///< flash3_device_type
  int32_t device_index;
  int32_t rank;  ///< 0 to FLASH3_MAX_RANK
  int64_t shape[FLASH3_MAX_RANK];
  int64_t strides[FLASH3_MAX_RANK];  ///< in elements
} flash3_tensor;

/// A dense row-major tensor in CPU memory.
static inline flash3_tensor flash3_dense_tensor(void* data, flash3_dtype dtype, int32_t rank, const int64_t* shape) {
  flash3_tensor tensor;
  int64_t stride = 1;
  memset(&tensor, 0, sizeof tensor);
  tensor.data = data;
  tensor.dtype = (int32_t)dtype;
  tensor.rank = rank;
  for (int32_t d = (rank < FLASH3_MAX_RANK ? rank : FLASH3_MAX_RANK) - 1; d >= 0; --d) {
    tensor.shape[d] = shape[d];
    tensor.strides[d] = stride;
    stride *= shape[d];
  }
  return tensor;
}

/// What is computed, apart from tensors: flash3::AttentionOptions.
typedef struct flash3_options {
  size_t struct_size;
  const double* softmax_scale;  ///< null: 1 / sqrt(head_dim)
  const int64_t* window_left;   ///< null: no limit
  const int64_t* window_right;  ///< null: no limit
  double softcap;               ///< 0: off
  int32_t causal;               ///< 0 or 1
  int32_t alignment;            ///< flash3_mask_alignment
} flash3_options;
#define FLASH3_OPTIONS_INIT \
  { .struct_size = sizeof(flash3_options) }

/// How it is computed: flash3::Execution.
typedef struct flash3_execution {
  size_t struct_size;
  int32_t engine;       ///< flash3_engine
  int32_t num_threads;  ///< 0: every core that the process may use
  void* stream;         ///< cudaStream_t; null: the default stream
} flash3_execution;
#define FLASH3_EXECUTION_INIT \
  { .struct_size = sizeof(flash3_execution) }

/// Tensors of a forward pass: flash3::ForwardArgs. Those marked optional may be null.
typedef struct flash3_forward_args {
  size_t struct_size;
  const flash3_tensor* query;
  const flash3_tensor* key;
  const flash3_tensor* value;
  const flash3_tensor* out;           ///< output
  const flash3_tensor* lse;           ///< output, optional
  const flash3_tensor* cu_seqlens_q;  ///< optional
  const flash3_tensor* cu_seqlens_k;  ///< optional
  const flash3_tensor* seqused_q;     ///< optional
  const flash3_tensor* seqused_k;     ///< optional
  const flash3_tensor* sinks;         ///< optional
  const flash3_tensor* bias;          ///< optional
  const flash3_options* options;      ///< null: the defaults
  const int64_t* max_seqlen_q;        ///< optional
  const int64_t* max_seqlen_k;        ///< optional
} flash3_forward_args;
#define FLASH3_FORWARD_ARGS_INIT \
  { .struct_size = sizeof(flash3_forward_args) }

/// Tensors of a backward pass: flash3::BackwardArgs. Those marked optional may be null.
typedef struct flash3_backward_args {
  size_t struct_size;
  const flash3_tensor* query;
  const flash3_tensor* key;
  const flash3_tensor* value;
  const flash3_tensor* out;
  const flash3_tensor* lse;
  const flash3_tensor* d_out;
  const flash3_tensor* d_lse;         ///< optional
  const flash3_tensor* d_query;       ///< output
  const flash3_tensor* d_key;         ///< output
  const flash3_tensor* d_value;       ///< output
  const flash3_tensor* d_sinks;       ///< output, optional
  const flash3_tensor* d_bias;        ///< output, optional
  const flash3_tensor* cu_seqlens_q;  ///< optional
  const flash3_tensor* cu_seqlens_k;  ///< optional
  const flash3_tensor* seqused_q;     ///< optional
  const flash3_tensor* seqused_k;     ///< optional
  const flash3_tensor* sinks;         ///< optional
  const flash3_tensor* bias;          ///< optional
  const flash3_options* options;      ///< null: the defaults
  const int64_t* max_seqlen_q;        ///< optional
  const int64_t* max_seqlen_k;        ///< optional
} flash3_backward_args;
#define FLASH3_BACKWARD_ARGS_INIT \
  { .struct_size = sizeof(flash3_backward_args) }

/// Computes args->out and, if given, args->lse. execution may be null: the defaults.
FLASH3_EXPORT flash3_status flash3_forward(const flash3_forward_args* args, const flash3_execution* execution);

/// Computes the gradients. execution may be null: the defaults.
FLASH3_EXPORT flash3_status flash3_backward(const flash3_backward_args* args, const flash3_execution* execution);

/// Tensors of a merge of partial results: flash3::MergeArgs. Those marked optional may be null.
typedef struct flash3_merge_args {
  size_t struct_size;
  const flash3_tensor* parts_out;
  const flash3_tensor* parts_lse;
  const flash3_tensor* out;  ///< output
  const flash3_tensor* lse;  ///< output, optional
} flash3_merge_args;
#define FLASH3_MERGE_ARGS_INIT \
  { .struct_size = sizeof(flash3_merge_args) }

/// Tensors of the gradients of a merge: flash3::MergeBackwardArgs. Those marked optional may be null.
typedef struct flash3_merge_backward_args {
  size_t struct_size;
  const flash3_tensor* parts_out;
  const flash3_tensor* parts_lse;
  const flash3_tensor* d_out;
  const flash3_tensor* d_lse;        ///< optional
  const flash3_tensor* d_parts_out;  ///< output
  const flash3_tensor* d_parts_lse;  ///< output
} flash3_merge_backward_args;
#define FLASH3_MERGE_BACKWARD_ARGS_INIT \
  { .struct_size = sizeof(flash3_merge_backward_args) }

/// Merges attention over disjoint sets of keys through its log-sum-exp. execution may be null: the defaults.
FLASH3_EXPORT flash3_status flash3_merge(const flash3_merge_args* args, const flash3_execution* execution);
FLASH3_EXPORT flash3_status flash3_merge_backward(const flash3_merge_backward_args* args,
                                                  const flash3_execution* execution);

/// What a call would run, and why. Made by flash3_plan_forward or flash3_plan_backward, freed by flash3_plan_free.
typedef struct flash3_plan flash3_plan;

/// On success *plan is a new plan that the caller frees; on failure it is null.
FLASH3_EXPORT flash3_status flash3_plan_forward(const flash3_forward_args* args, const flash3_execution* execution,
                                                flash3_plan** plan);
FLASH3_EXPORT flash3_status flash3_plan_backward(const flash3_backward_args* args, const flash3_execution* execution,
                                                 flash3_plan** plan);

/// Several lines for a person. The text belongs to the plan.
FLASH3_EXPORT const char* flash3_plan_text(const flash3_plan* plan);
FLASH3_EXPORT flash3_engine flash3_plan_engine(const flash3_plan* plan);
/// CPU threads; 0 on a GPU.
FLASH3_EXPORT int32_t flash3_plan_num_threads(const flash3_plan* plan);
/// Floating-point operations of the visible (query, key) pairs' matrix products.
FLASH3_EXPORT double flash3_plan_flops(const flash3_plan* plan);
/// Null is accepted.
FLASH3_EXPORT void flash3_plan_free(flash3_plan* plan);

/// What this machine has of what flash3 wants: flash3::HardwareReport. Freed by flash3_hardware_free.
typedef struct flash3_hardware flash3_hardware;

/// On success *report is a new report that the caller frees; on failure it is null.
FLASH3_EXPORT flash3_status flash3_check_hardware(flash3_hardware** report);

/// The checklist for a person, a line each. The text belongs to the report.
FLASH3_EXPORT const char* flash3_hardware_text(const flash3_hardware* report);
/// What will run on bfloat16 tensors in CPU memory.
FLASH3_EXPORT flash3_engine flash3_hardware_engine(const flash3_hardware* report);
/// GPUs that the CUDA driver shows.
FLASH3_EXPORT int32_t flash3_hardware_num_gpus(const flash3_hardware* report);
/// Of them, those that the Hopper kernels can run on.
FLASH3_EXPORT int32_t flash3_hardware_num_hopper_gpus(const flash3_hardware* report);
/// Null is accepted.
FLASH3_EXPORT void flash3_hardware_free(flash3_hardware* report);

/// What was wrong in the last call on this thread that returned a status: a sentence that names the argument, what was
/// given and what is accepted. Empty if that call succeeded. Valid until this thread's next such call.
FLASH3_EXPORT const char* flash3_last_error(void);

/// The argument at fault, "cu_seqlens_q" for example; empty unless that call returned FLASH3_INVALID_ARGUMENT.
FLASH3_EXPORT const char* flash3_last_error_argument(void);

/// "ok", "invalid argument", ...; "unknown status" for anything else. Static text.
FLASH3_EXPORT const char* flash3_status_name(flash3_status status);

/// Version of the library that runs, "0.1.0" for example, which may be newer than FLASH3_VERSION_*. Static text.
FLASH3_EXPORT const char* flash3_version(void);

#ifdef __cplusplus
}  // extern "C"
#endif
