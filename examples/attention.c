/* Attention of one query over three keys from C; prints what ran and the result. */
#include <flash3/c_api.h>
#include <stdio.h>

int main(void) {
  float q[] = {1, 0}, k[] = {1, 0, 0, 1, 1, 1}, v[] = {1, 2, 3, 4, 5, 6}, o[2];
  const int64_t shape_q[] = {1, 1, 1, 2}, shape_k[] = {1, 3, 1, 2}; /* batch, seqlen, heads, head_dim */
  const flash3_tensor query = flash3_dense_tensor(q, FLASH3_FLOAT32, 4, shape_q);
  const flash3_tensor key = flash3_dense_tensor(k, FLASH3_FLOAT32, 4, shape_k);
  const flash3_tensor value = flash3_dense_tensor(v, FLASH3_FLOAT32, 4, shape_k);
  const flash3_tensor out = flash3_dense_tensor(o, FLASH3_FLOAT32, 4, shape_q);
  flash3_forward_args args = FLASH3_FORWARD_ARGS_INIT;
  flash3_plan* plan;
  args.query = &query;
  args.key = &key;
  args.value = &value;
  args.out = &out;
  if (flash3_plan_forward(&args, NULL, &plan) != FLASH3_OK || flash3_forward(&args, NULL) != FLASH3_OK) {
    fprintf(stderr, "%s\n", flash3_last_error());
    flash3_plan_free(plan);
    return 1;
  }
  printf("%sout      %.4f %.4f\n", flash3_plan_text(plan), o[0], o[1]);
  flash3_plan_free(plan);
  return 0;
}
