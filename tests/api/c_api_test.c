/* The C interface from a C99 program: results against attention written out here, error paths, struct growth, threads.
 */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flash3/c_api.h"

static int checks = 0, failures = 0;

#define CHECK(condition)                                                        \
  do {                                                                          \
    ++checks;                                                                   \
    if (!(condition)) {                                                         \
      ++failures;                                                               \
      fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
    }                                                                           \
  } while (0)

#define CHECK_OK(call)                                                                    \
  do {                                                                                    \
    const flash3_status status_of_call = (call);                                          \
    ++checks;                                                                             \
    if (status_of_call != FLASH3_OK) {                                                    \
      ++failures;                                                                         \
      fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, flash3_last_error()); \
    }                                                                                     \
  } while (0)

enum { batch = 2, seqlen_q = 3, seqlen_kv = 5, heads_q = 4, heads_kv = 2, head_dim = 8, head_dim_v = 6 };
enum {
  size_q = batch * seqlen_q * heads_q * head_dim,
  size_k = batch * seqlen_kv * heads_kv * head_dim,
  size_v = batch * seqlen_kv * heads_kv * head_dim_v,
  size_out = batch * seqlen_q * heads_q * head_dim_v,
  size_lse = batch * heads_q * seqlen_q
};
static const int64_t shape_q[] = {batch, seqlen_q, heads_q, head_dim};
static const int64_t shape_k[] = {batch, seqlen_kv, heads_kv, head_dim};
static const int64_t shape_v[] = {batch, seqlen_kv, heads_kv, head_dim_v};
static const int64_t shape_out[] = {batch, seqlen_q, heads_q, head_dim_v};
static const int64_t shape_lse[] = {batch, heads_q, seqlen_q};

typedef struct problem {
  float q[size_q], k[size_k], v[size_v], out[size_out], lse[size_lse];
  flash3_tensor query, key, value, output, lse_view;
  flash3_options options;
  flash3_forward_args args;
} problem;

static void fill(float* x, int n, unsigned* state) {
  for (int i = 0; i < n; ++i) {
    *state = *state * 1664525u + 1013904223u;
    x[i] = (float)(*state >> 8) / 8388608.0f - 1.0f;
  }
}

/* Pointers lead from one part of *p to another: set it up where it will stay. */
static void set_up(problem* p, unsigned seed) {
  const flash3_options options = FLASH3_OPTIONS_INIT;
  const flash3_forward_args args = FLASH3_FORWARD_ARGS_INIT;
  fill(p->q, size_q, &seed);
  fill(p->k, size_k, &seed);
  fill(p->v, size_v, &seed);
  memset(p->out, 0xff, sizeof p->out);
  memset(p->lse, 0xff, sizeof p->lse);
  p->query = flash3_dense_tensor(p->q, FLASH3_FLOAT32, 4, shape_q);
  p->key = flash3_dense_tensor(p->k, FLASH3_FLOAT32, 4, shape_k);
  p->value = flash3_dense_tensor(p->v, FLASH3_FLOAT32, 4, shape_v);
  p->output = flash3_dense_tensor(p->out, FLASH3_FLOAT32, 4, shape_out);
  p->lse_view = flash3_dense_tensor(p->lse, FLASH3_FLOAT32, 3, shape_lse);
  p->options = options;
  p->args = args;
  p->args.query = &p->query;
  p->args.key = &p->key;
  p->args.value = &p->value;
  p->args.out = &p->output;
  p->args.lse = &p->lse_view;
  p->args.options = &p->options;
}

/* Causal attention (bottom-right), one row at a time, in double. */
static void expected_row(const problem* p, int b, int i, int h, double scale, double* out, double* lse) {
  const int group = heads_q / heads_kv, kv_head = h / group, visible = i + seqlen_kv - seqlen_q + 1;
  double score[seqlen_kv], sum = 0;
  for (int d = 0; d < head_dim_v; ++d) out[d] = 0;
  for (int j = 0; j < visible; ++j) {
    score[j] = 0;
    for (int d = 0; d < head_dim; ++d) {
      score[j] += (double)p->q[((b * seqlen_q + i) * heads_q + h) * head_dim + d] *
                  (double)p->k[((b * seqlen_kv + j) * heads_kv + kv_head) * head_dim + d];
    }
    sum += exp(scale * score[j]);
  }
  for (int j = 0; j < visible; ++j) {
    for (int d = 0; d < head_dim_v; ++d) {
      out[d] += exp(scale * score[j]) / sum * (double)p->v[((b * seqlen_kv + j) * heads_kv + kv_head) * head_dim_v + d];
    }
  }
  *lse = log(sum);
}

static int is_causal_attention(const problem* p, double scale) {
  for (int b = 0; b < batch; ++b) {
    for (int i = 0; i < seqlen_q; ++i) {
      for (int h = 0; h < heads_q; ++h) {
        double out[head_dim_v], lse;
        expected_row(p, b, i, h, scale, out, &lse);
        if (!(fabs(p->lse[(b * heads_q + h) * seqlen_q + i] - lse) < 1e-5)) return 0;
        for (int d = 0; d < head_dim_v; ++d) {
          if (!(fabs(p->out[((b * seqlen_q + i) * heads_q + h) * head_dim_v + d] - out[d]) < 1e-5)) return 0;
        }
      }
    }
  }
  return 1;
}

static void test_forward(flash3_engine engine) {
  flash3_execution execution = FLASH3_EXECUTION_INIT;
  const double scale = 0.7, half_scale = 0.35;
  problem p;
  set_up(&p, 1);
  execution.engine = (int32_t)engine;
  p.options.causal = 1;
  p.options.softmax_scale = &scale;
  CHECK_OK(flash3_forward(&p.args, &execution));
  CHECK(is_causal_attention(&p, scale));
  p.options.softmax_scale = &half_scale;
  CHECK_OK(flash3_forward(&p.args, &execution));
  CHECK(is_causal_attention(&p, half_scale));
  CHECK(!is_causal_attention(&p, scale));
  p.options.softmax_scale = NULL;
  p.args.lse = NULL;
  p.args.options = NULL;
  memset(p.out, 0xff, sizeof p.out);
  CHECK_OK(flash3_forward(&p.args, &execution));
  CHECK(!is_causal_attention(&p, 1 / sqrt(head_dim))); /* causal is off by default */
}

/* A full mask from windows that do not limit is the default; a window of (0, 0), top left, leaves one key a query. */
static void test_window(void) {
  flash3_execution execution = FLASH3_EXECUTION_INIT;
  const int64_t zero = 0;
  int same = 1;
  problem p;
  set_up(&p, 2);
  execution.engine = FLASH3_ENGINE_REFERENCE;
  p.options.window_left = &zero;
  p.options.window_right = &zero;
  p.options.alignment = FLASH3_TOP_LEFT;
  CHECK_OK(flash3_forward(&p.args, &execution));
  for (int i = 0; i < seqlen_q; ++i) {
    for (int h = 0; h < heads_q; ++h) {
      for (int d = 0; d < head_dim_v; ++d) {
        same = same && p.out[(i * heads_q + h) * head_dim_v + d] == p.v[(i * heads_kv + h / 2) * head_dim_v + d];
      }
    }
  }
  CHECK(same);
}

/* The gradient in query of sum(out) + sum(lse), against differences of the forward pass in float64. */
static void test_backward(flash3_engine engine) {
  flash3_execution execution = FLASH3_EXECUTION_INIT;
  flash3_backward_args args = FLASH3_BACKWARD_ARGS_INIT;
  float ones[size_out], d_q[size_q], d_k[size_k], d_v[size_v];
  flash3_tensor d_out, d_lse, d_query, d_key, d_value;
  const double step = 1e-4, scale = 1 / sqrt(head_dim);
  int agree = 1;
  problem p;
  set_up(&p, 3);
  p.options.causal = 1;
  execution.engine = (int32_t)engine;
  CHECK_OK(flash3_forward(&p.args, &execution));
  for (int i = 0; i < size_out; ++i) ones[i] = 1;
  d_out = flash3_dense_tensor(ones, FLASH3_FLOAT32, 4, shape_out);
  d_lse = flash3_dense_tensor(ones, FLASH3_FLOAT32, 3, shape_lse);
  d_query = flash3_dense_tensor(d_q, FLASH3_FLOAT32, 4, shape_q);
  d_key = flash3_dense_tensor(d_k, FLASH3_FLOAT32, 4, shape_k);
  d_value = flash3_dense_tensor(d_v, FLASH3_FLOAT32, 4, shape_v);
  args.query = &p.query;
  args.key = &p.key;
  args.value = &p.value;
  args.out = &p.output;
  args.lse = &p.lse_view;
  args.d_out = &d_out;
  args.d_lse = &d_lse;
  args.d_query = &d_query;
  args.d_key = &d_key;
  args.d_value = &d_value;
  args.options = &p.options;
  CHECK_OK(flash3_backward(&args, &execution));
  for (int e = 0; e < size_q; ++e) {
    const int row = e / head_dim, h = row % heads_q, i = row / heads_q % seqlen_q, b = row / heads_q / seqlen_q;
    const float saved = p.q[e];
    double out[head_dim_v], loss[2], moved[2];
    for (int side = 0; side < 2; ++side) {
      p.q[e] = saved + (float)(side == 0 ? -step : step);
      moved[side] = (double)p.q[e];
      expected_row(&p, b, i, h, scale, out, &loss[side]);
      for (int d = 0; d < head_dim_v; ++d) loss[side] += out[d];
    }
    p.q[e] = saved;
    agree = agree && fabs((loss[1] - loss[0]) / (moved[1] - moved[0]) - (double)d_q[e]) < 1e-4;
  }
  CHECK(agree);
  args.d_out = NULL;
  CHECK(flash3_backward(&args, &execution) == FLASH3_INVALID_ARGUMENT);
  CHECK(strcmp(flash3_last_error_argument(), "d_out") == 0);
}

static void test_plan(flash3_engine engine) {
  flash3_execution execution = FLASH3_EXECUTION_INIT;
  flash3_plan* plan = NULL;
  problem p;
  set_up(&p, 4);
  execution.engine = (int32_t)engine;
  execution.num_threads = 1;
  CHECK_OK(flash3_plan_forward(&p.args, &execution, &plan));
  CHECK(plan != NULL);
  if (plan == NULL) return;
  CHECK(flash3_plan_engine(plan) == engine);
  CHECK(flash3_plan_num_threads(plan) == 1);
  CHECK(flash3_plan_flops(plan) == 2.0 * batch * heads_q * seqlen_q * seqlen_kv * (head_dim + head_dim_v));
  CHECK(strstr(flash3_plan_text(plan), "engine") != NULL);
  flash3_plan_free(plan);
  flash3_plan_free(NULL);
  p.query.rank = 3;
  CHECK(flash3_plan_forward(&p.args, &execution, &plan) == FLASH3_INVALID_ARGUMENT);
  CHECK(plan == NULL);
  CHECK(flash3_plan_forward(&p.args, &execution, NULL) == FLASH3_INVALID_ARGUMENT);
  CHECK(strcmp(flash3_last_error_argument(), "plan") == 0);
  CHECK(flash3_plan_backward(NULL, &execution, &plan) == FLASH3_INVALID_ARGUMENT);
}

/* Keys 0 and 1, and keys 2 to 4, apart and merged, are what all keys are together; d_out alone leaves the parts' d_out
   scaled by their weights, which add up to 1. */
static void test_merge(void) {
  enum { parts = 2, first = 2 };
  const int64_t shape_parts_out[] = {parts, batch, seqlen_q, heads_q, head_dim_v};
  const int64_t shape_parts_lse[] = {parts, batch, heads_q, seqlen_q};
  static float parts_out[parts][size_out], parts_lse[parts][size_lse], d_parts_out[parts][size_out];
  static float d_parts_lse[parts][size_lse], whole_out[size_out], whole_lse[size_lse], d_out[size_out];
  flash3_merge_args args = FLASH3_MERGE_ARGS_INIT;
  flash3_merge_backward_args back = FLASH3_MERGE_BACKWARD_ARGS_INIT;
  flash3_tensor all_out, all_lse, gradient, d_all_out, d_all_lse;
  int same = 1, weights = 1;
  problem p;
  set_up(&p, 7);
  CHECK_OK(flash3_forward(&p.args, NULL));
  memcpy(whole_out, p.out, sizeof whole_out);
  memcpy(whole_lse, p.lse, sizeof whole_lse);
  for (int part = 0; part < parts; ++part) {
    const int from = part == 0 ? 0 : first, to = part == 0 ? first : seqlen_kv;
    p.key.data = p.k + from * heads_kv * head_dim;
    p.value.data = p.v + from * heads_kv * head_dim_v;
    p.key.shape[1] = p.value.shape[1] = to - from;
    p.output.data = parts_out[part];
    p.lse_view.data = parts_lse[part];
    CHECK_OK(flash3_forward(&p.args, NULL));
  }
  p.output.data = p.out;
  p.lse_view.data = p.lse;
  memset(p.out, 0xff, sizeof p.out);
  memset(p.lse, 0xff, sizeof p.lse);
  all_out = flash3_dense_tensor(parts_out, FLASH3_FLOAT32, 5, shape_parts_out);
  all_lse = flash3_dense_tensor(parts_lse, FLASH3_FLOAT32, 4, shape_parts_lse);
  args.parts_out = &all_out;
  args.parts_lse = &all_lse;
  args.out = &p.output;
  args.lse = &p.lse_view;
  CHECK_OK(flash3_merge(&args, NULL));
  for (int i = 0; i < size_out; ++i) same = same && fabs((double)p.out[i] - (double)whole_out[i]) < 1e-5;
  for (int i = 0; i < size_lse; ++i) same = same && fabs((double)p.lse[i] - (double)whole_lse[i]) < 1e-5;
  CHECK(same);

  for (int i = 0; i < size_out; ++i) d_out[i] = 1;
  gradient = flash3_dense_tensor(d_out, FLASH3_FLOAT32, 4, shape_out);
  d_all_out = flash3_dense_tensor(d_parts_out, FLASH3_FLOAT32, 5, shape_parts_out);
  d_all_lse = flash3_dense_tensor(d_parts_lse, FLASH3_FLOAT32, 4, shape_parts_lse);
  back.parts_out = &all_out;
  back.parts_lse = &all_lse;
  back.d_out = &gradient;
  back.d_parts_out = &d_all_out;
  back.d_parts_lse = &d_all_lse;
  CHECK_OK(flash3_merge_backward(&back, NULL));
  for (int i = 0; i < size_out; ++i) {
    weights = weights && fabs((double)d_parts_out[0][i] + (double)d_parts_out[1][i] - 1) < 1e-5;
  }
  CHECK(weights);

  args.parts_lse = NULL;
  CHECK(flash3_merge(&args, NULL) == FLASH3_INVALID_ARGUMENT);
  CHECK(strcmp(flash3_last_error_argument(), "parts_lse") == 0);
  CHECK(flash3_merge_backward(NULL, NULL) == FLASH3_INVALID_ARGUMENT);
}

static void test_hardware(void) {
  flash3_hardware* report = NULL;
  CHECK_OK(flash3_check_hardware(&report));
  CHECK(report != NULL);
  if (report == NULL) return;
  CHECK(strstr(flash3_hardware_text(report), "CPU") != NULL);
  CHECK(flash3_hardware_num_hopper_gpus(report) >= 0);
  CHECK(flash3_hardware_num_hopper_gpus(report) <= flash3_hardware_num_gpus(report));
  CHECK(flash3_hardware_engine(report) == FLASH3_ENGINE_CPU || flash3_hardware_num_hopper_gpus(report) > 0);
  flash3_hardware_free(report);
  flash3_hardware_free(NULL);
  CHECK(flash3_check_hardware(NULL) == FLASH3_INVALID_ARGUMENT);
  CHECK(strcmp(flash3_last_error_argument(), "report") == 0);
}

static int refused(const flash3_forward_args* args, const flash3_execution* execution, const char* argument,
                   const char* words) {
  const flash3_status status = flash3_forward(args, execution);
  if (status == FLASH3_INVALID_ARGUMENT && strcmp(flash3_last_error_argument(), argument) == 0 &&
      strstr(flash3_last_error(), words) != NULL) {
    return 1;
  }
  fprintf(stderr, "status %s, argument '%s': %s\n", flash3_status_name(status), flash3_last_error_argument(),
          flash3_last_error());
  return 0;
}

static void test_errors(void) {
  flash3_execution execution = FLASH3_EXECUTION_INIT;
  float before[size_out];
  const double not_a_number = NAN;
  const int64_t minus_one = -1;
  problem p;
  set_up(&p, 5);
  memcpy(before, p.out, sizeof before);
  execution.engine = FLASH3_ENGINE_REFERENCE;

  CHECK(refused(NULL, &execution, "flash3_forward_args", "null"));
  p.args.query = NULL;
  CHECK(refused(&p.args, &execution, "query", "null"));
  set_up(&p, 5);
  p.key.rank = 7;
  CHECK(refused(&p.args, &execution, "key", "7"));
  p.key.rank = -1;
  CHECK(refused(&p.args, &execution, "key", "-1"));
  set_up(&p, 5);
  p.value.dtype = 6;
  CHECK(refused(&p.args, &execution, "value", "6"));
  p.value.dtype = 256; /* would be float32 if it were cut to 8 bits */
  CHECK(refused(&p.args, &execution, "value", "256"));
  set_up(&p, 5);
  p.output.device_type = 2;
  CHECK(refused(&p.args, &execution, "out", "device"));
  set_up(&p, 5);
  p.value.shape[1] = 4;
  CHECK(refused(&p.args, &execution, "value", "shape"));
  set_up(&p, 5);
  p.options.softmax_scale = &not_a_number;
  CHECK(refused(&p.args, &execution, "softmax_scale", "nan"));
  set_up(&p, 5);
  p.options.window_left = &minus_one;
  CHECK(refused(&p.args, &execution, "window_left", "-1"));
  set_up(&p, 5);
  p.options.causal = 2;
  CHECK(refused(&p.args, &execution, "causal", "2"));
  set_up(&p, 5);
  p.options.alignment = 2;
  CHECK(refused(&p.args, &execution, "alignment", "2"));
  set_up(&p, 5);
  execution.engine = 5;
  CHECK(refused(&p.args, &execution, "engine", "5"));
  execution.engine = FLASH3_ENGINE_REFERENCE;
  execution.num_threads = -1;
  CHECK(refused(&p.args, &execution, "num_threads", "-1"));
  execution.num_threads = 0;
  CHECK(memcmp(before, p.out, sizeof before) == 0);

  execution.engine = FLASH3_ENGINE_CUDA; /* the tensors are not on a GPU */
  CHECK(flash3_forward(&p.args, &execution) == FLASH3_UNSUPPORTED);
  CHECK(strstr(flash3_last_error(), "cuda") != NULL);
  CHECK(strcmp(flash3_last_error_argument(), "") == 0);
  CHECK(memcmp(before, p.out, sizeof before) == 0);

  execution.engine = FLASH3_ENGINE_REFERENCE;
  CHECK_OK(flash3_forward(&p.args, &execution));
  CHECK(strcmp(flash3_last_error(), "") == 0);
}

static void test_struct_growth(void) {
  struct {
    flash3_forward_args args;
    uint64_t later;
  } newer;
  problem p;
  flash3_execution execution = FLASH3_EXECUTION_INIT;
  set_up(&p, 6);
  execution.engine = FLASH3_ENGINE_REFERENCE;

  newer.args = p.args;
  newer.args.struct_size = sizeof newer;
  newer.later = 0;
  CHECK_OK(flash3_forward(&newer.args, &execution));
  newer.later = 1;
  CHECK(refused(&newer.args, &execution, "flash3_forward_args", "knows only"));

  p.args.struct_size = 0;
  CHECK(refused(&p.args, &execution, "flash3_forward_args", "struct_size is 0"));
  p.args.struct_size = sizeof p.args - 1;
  CHECK(refused(&p.args, &execution, "flash3_forward_args", "struct_size"));
  set_up(&p, 6);
  p.options.struct_size = 0;
  CHECK(refused(&p.args, &execution, "flash3_options", "struct_size is 0"));
  set_up(&p, 6);
  execution.struct_size = 0;
  CHECK(refused(&p.args, &execution, "flash3_execution", "struct_size is 0"));
}

/* Each thread sees its own errors and its own results. */
static void* work(void* argument) {
  const int id = *(const int*)argument;
  intptr_t wrong = 0;
  for (int round = 0; round < 50; ++round) {
    flash3_execution execution = FLASH3_EXECUTION_INIT;
    char expected[64];
    problem p;
    set_up(&p, (unsigned)(id * 1000 + round));
    execution.engine = FLASH3_ENGINE_REFERENCE;
    p.options.causal = 1;
    if (flash3_forward(&p.args, &execution) != FLASH3_OK) ++wrong;
    if (!is_causal_attention(&p, 1 / sqrt(head_dim))) ++wrong;
    p.query.dtype = 1000 + id;
    snprintf(expected, sizeof expected, "dtype code %d ", 1000 + id);
    if (flash3_forward(&p.args, &execution) != FLASH3_INVALID_ARGUMENT) ++wrong;
    if (strstr(flash3_last_error(), expected) == NULL) ++wrong;
  }
  return (void*)wrong;
}

static void test_threads(void) {
  enum { count = 4 };
  pthread_t threads[count];
  int ids[count];
  CHECK(flash3_forward(NULL, NULL) == FLASH3_INVALID_ARGUMENT);
  for (int t = 0; t < count; ++t) {
    ids[t] = t;
    CHECK(pthread_create(&threads[t], NULL, work, &ids[t]) == 0);
  }
  for (int t = 0; t < count; ++t) {
    void* wrong = NULL;
    CHECK(pthread_join(threads[t], &wrong) == 0);
    CHECK(wrong == NULL);
  }
  CHECK(strcmp(flash3_last_error_argument(), "flash3_forward_args") == 0); /* this thread's error is untouched */
}

static void test_names(void) {
  char version[32];
  snprintf(version, sizeof version, "%d.%d.%d", FLASH3_VERSION_MAJOR, FLASH3_VERSION_MINOR, FLASH3_VERSION_PATCH);
  CHECK(strcmp(flash3_version(), version) == 0);
  CHECK(strcmp(flash3_status_name(FLASH3_UNSUPPORTED), "unsupported") == 0);
  CHECK(strcmp(flash3_status_name((flash3_status)99), "unknown status") == 0);
}

int main(void) {
  static const flash3_engine engines[] = {FLASH3_ENGINE_REFERENCE, FLASH3_ENGINE_CPU};
  for (size_t e = 0; e < sizeof engines / sizeof engines[0]; ++e) {
    test_forward(engines[e]);
    test_backward(engines[e]);
    test_plan(engines[e]);
  }
  test_window();
  test_merge();
  test_hardware();
  test_errors();
  test_struct_growth();
  test_threads();
  test_names();
  printf("%d checks, %d failures\n", checks, failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
