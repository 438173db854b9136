// Causal attention with shared key heads (grouped queries), forward and backward, on the best engine present.
#include <flash3/flash3.h>

#include <cstdint>
#include <iostream>
#include <random>
#include <vector>

int main() {
  const std::int64_t batch = 1, seqlen = 512, heads_q = 8, heads_kv = 2, head_dim = 64;

  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const auto make = [&](std::int64_t heads) {
    std::vector<float> x(static_cast<std::size_t>(batch * seqlen * heads * head_dim));
    for (float& value : x) value = normal(random);
    return x;
  };
  std::vector<float> query = make(heads_q), key = make(heads_kv), value = make(heads_kv), d_out = make(heads_q);
  std::vector<float> out(query.size()), lse(static_cast<std::size_t>(batch * heads_q * seqlen));
  std::vector<float> d_query(query.size()), d_key(key.size()), d_value(value.size());

  // A view owns nothing: a pointer, a data type, a shape and, where the memory is not dense, strides.
  const auto view = [&](std::vector<float>& x, std::int64_t heads) {
    return flash3::TensorView(x.data(), flash3::DType::float32, {batch, seqlen, heads, head_dim});
  };
  const flash3::TensorView lse_view(lse.data(), flash3::DType::float32, {batch, heads_q, seqlen});

  try {
    flash3::ForwardArgs forward;
    forward.query = view(query, heads_q);
    forward.key = view(key, heads_kv);
    forward.value = view(value, heads_kv);
    forward.out = view(out, heads_q);
    forward.lse = lse_view;
    forward.options.causal = true;
    std::cout << flash3::plan_forward(forward).to_string();
    flash3::forward(forward);

    flash3::BackwardArgs backward;
    backward.query = forward.query;
    backward.key = forward.key;
    backward.value = forward.value;
    backward.out = forward.out;
    backward.lse = lse_view;
    backward.d_out = view(d_out, heads_q);
    backward.d_query = view(d_query, heads_q);
    backward.d_key = view(d_key, heads_kv);
    backward.d_value = view(d_value, heads_kv);
    backward.options = forward.options;
    flash3::backward(backward);
  } catch (const flash3::Error& error) {  // names the argument, what was given and what is accepted
    std::cerr << error.what() << '\n';
    return 1;
  }
  std::cout << "out[0]             " << out[0] << "\nlast of d_query    " << d_query.back() << '\n';
  return 0;
}
