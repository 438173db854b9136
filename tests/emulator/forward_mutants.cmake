# Mistakes in the forward kernel that the emulator must find: name, what it shows, file, text, and what replaces it.
# q_stages of the kernel decide which way its output leaves: 128 has buffers of their own for it, 256 reuses Q's.
function(forward_mutant name expected file find replace)
  flash3_mutant(NAME forward_${name} FILE src/forward/${file} FIND "${find}" REPLACE "${replace}" HEAD_DIM 128
    EXPECTED "${expected}")
endfunction()
function(forward_mutant_256 name expected file find replace)
  flash3_mutant(NAME forward_256_${name} FILE src/forward/${file} FIND "${find}" REPLACE "${replace}" HEAD_DIM 256
    EXPECTED "${expected}")
endfunction()

# The sound kernels, as mutants that change nothing.
forward_mutant(sound "" kernel.h "  sync_block();\n" "  sync_block();\n")
forward_mutant_256(sound "" kernel.h "  sync_block();\n" "  sync_block();\n")

forward_mutant(key_released_before_wgmma_completed race mainloop.h
  "    wgmma_wait_group<1>(scores);\n    release_and_advance(shared.k_ring, self.k_at);"
  "    release_and_advance(shared.k_ring, self.k_at);\n    wgmma_wait_group<1>(scores);")
forward_mutant(value_released_before_wgmma_completed race mainloop.h
  "    wgmma_wait_group<0>(out, probabilities);\n    release_and_advance(shared.v_ring, self.v_at);\n    if (moved)"
  "    release_and_advance(shared.v_ring, self.v_at);\n    wgmma_wait_group<0>(out, probabilities);\n    if (moved)")
forward_mutant(scores_read_before_their_wait fragment mainloop.h
  "    wgmma_wait_group<1>(scores);\n    release_and_advance(shared.k_ring, self.k_at);"
  "    release_and_advance(shared.k_ring, self.k_at);")
forward_mutant(scores_wait_for_the_wrong_group fragment mainloop.h
  "    wgmma_wait_group<1>(scores);\n    release_and_advance(shared.k_ring, self.k_at);"
  "    wgmma_wait_group<2>(scores);\n    release_and_advance(shared.k_ring, self.k_at);")
forward_mutant(output_scaled_in_flight fragment mainloop.h
  "    wgmma_wait_group<0>(out, probabilities);\n    release_and_advance(shared.v_ring, self.v_at);\n    if (moved) scale_rows(out, factor);"
  "    if (moved) scale_rows(out, factor);\n    wgmma_wait_group<0>(out, probabilities);\n    release_and_advance(shared.v_ring, self.v_at);")
forward_mutant(probabilities_overwritten_in_flight fragment mainloop.h
  "    wgmma_wait_group<0>(out, probabilities);\n    release_and_advance(shared.v_ring, self.v_at);\n    if (moved) scale_rows(out, factor);\n    repack(scores, probabilities);"
  "    repack(scores, probabilities);\n    wgmma_wait_group<0>(out, probabilities);\n    release_and_advance(shared.v_ring, self.v_at);\n    if (moved) scale_rows(out, factor);")
forward_mutant(output_accumulates_onto_nothing fragment mainloop.h
  "  bool accumulate = false;"
  "  bool accumulate = true;")
forward_mutant(no_wgmma_fence_before_the_output fragment mainloop.h
  "  wait_full(shared.v_ring, self.v_at);\n  wgmma_fence();"
  "  wait_full(shared.v_ring, self.v_at);")
forward_mutant(key_not_waited_for race,uninitialised mainloop.h
  "  wait_full(shared.k_ring, self.k_at);\n  wgmma_fence();"
  "  wgmma_fence();")
forward_mutant(value_not_waited_for race,uninitialised mainloop.h
  "  wait_full(shared.v_ring, self.v_at);\n  wgmma_fence();"
  "  wgmma_fence();")
forward_mutant(query_not_waited_for race,uninitialised mainloop.h
  "  wait_full(shared.q_ring, q_at);\n  issue_scores"
  "  issue_scores")
forward_mutant(key_waited_for_with_the_wrong_parity race,uninitialised,deadlock mainloop.h
  "  wait_full(shared.k_ring, self.k_at);\n  wgmma_fence();"
  "  mbarrier_wait_parity(shared.k_ring.full[self.k_at.stage], self.k_at.parity ^ 1u);\n  wgmma_fence();")
forward_mutant(values_of_the_wrong_stage race,uninitialised mainloop.h
  "multiply_ab(out, probabilities, shared.v[self.v_at.stage], 0, 0, accumulate)"
  "multiply_ab(out, probabilities, shared.v[self.k_at.stage], 0, 0, accumulate)")
forward_mutant(a_lane_speaks_for_its_warp_unsynchronised race mainloop.h
  "  sync_warp();\n  if (lane_index() == 0) release(ring, at);"
  "  if (lane_index() == 0) release(ring, at);")
forward_mutant(one_thread_speaks_for_its_warpgroup race mainloop.h
  "  sync_warp();\n  if (lane_index() == 0) release(ring, at);"
  "  sync_warp();\n  for (int warp = 0; warp < 4; ++warp) {\n    if (thread_index() % 128 == 0) release(ring, at);\n  }")

forward_mutant(one_release_of_keys_too_few_awaited race kernel.h
  "shared.k_ring.init(4 * C::warpgroups)"
  "shared.k_ring.init(4 * C::warpgroups - 1)")
forward_mutant(one_release_of_values_too_many_awaited deadlock kernel.h
  "shared.v_ring.init(4 * C::warpgroups)"
  "shared.v_ring.init(4 * C::warpgroups + 1)")
forward_mutant(no_fence_after_init proxy kernel.h
  "    fence_mbarrier_init();\n"
  "")
forward_mutant(no_barrier_after_init race,barrier kernel.h
  "  sync_block();\n"
  "")
forward_mutant(query_released_too_early race kernel.h
  "    const bool accumulate = visit_blocks(params, shared, tile, self, q_at, rows, probabilities, out);\n    if constexpr (C::out_apart) release_by_warp(shared.q_ring, q_at);"
  "    if constexpr (C::out_apart) release_by_warp(shared.q_ring, q_at);\n    const bool accumulate = visit_blocks(params, shared, tile, self, q_at, rows, probabilities, out);")
forward_mutant(block_ends_before_its_last_store race kernel.h
  "  if (owns_stores()) bulk_wait_group_read<0>();  // shared memory"
  "  // shared memory")
forward_mutant(registers_beyond_the_budget deadlock kernel.h
  "setmaxnreg_inc<C::consumer_registers>()"
  "setmaxnreg_inc<C::consumer_registers + 8>()")

forward_mutant(bytes_of_keys_too_few barrier producer.h
  "announce(shared.k_ring, at, shared.k[0].byte_count)"
  "announce(shared.k_ring, at, shared.k[0].byte_count - 16)")
forward_mutant(bytes_of_keys_too_many deadlock producer.h
  "announce(shared.k_ring, at, shared.k[0].byte_count)"
  "announce(shared.k_ring, at, shared.k[0].byte_count + 16)")
forward_mutant(bytes_of_one_warpgroups_query barrier,race,uninitialised producer.h
  "C::warpgroups * shared.q[0][0].byte_count"
  "shared.q[0][0].byte_count")
forward_mutant(key_stage_not_waited_for race,barrier producer.h
  "  wait_empty(shared.k_ring, at);\n"
  "")
forward_mutant(query_stage_not_waited_for race,barrier producer.h
  "  wait_empty(shared.q_ring, at);\n"
  "")
forward_mutant(copy_signals_the_wrong_stage race,barrier,uninitialised,deadlock producer.h
  "load_tile(shared.k[at.stage], params.key, {0, row, head, batch}, shared.k_ring.full[at.stage])"
  "load_tile(shared.k[at.stage], params.key, {0, row, head, batch}, shared.k_ring.full[at.stage ^ 1])")
forward_mutant(keys_brought_with_another_swizzle descriptor,uninitialised,race config.h
  "hopper::SharedTile<T, C::block_kv, C::head_dim> k[C::stages]"
  "hopper::SharedTile<T, C::block_kv, C::head_dim, hopper::Swizzle::b64> k[C::stages]")

forward_mutant(end_announced_before_it_is_written race,uninitialised scheduler.h
  "  shared.tile(at).set(tile_valid, 0);\n  mbarrier_arrive(shared.work_ring.full[at.stage]);"
  "  mbarrier_arrive(shared.work_ring.full[at.stage]);\n  shared.tile(at).set(tile_valid, 0);")

forward_mutant(output_buffer_reused_too_early race epilogue.h
  "    if (owns_stores()) bulk_wait_group_read<0>();  // the last"
  "    // the last")
forward_mutant(no_barrier_before_the_buffer_is_written race epilogue.h
  "  named_barrier_sync(out_buffer + warpgroup, 128);\n  stage_out"
  "  stage_out")
forward_mutant(no_barrier_between_write_and_store race,proxy,uninitialised epilogue.h
  "  fence_proxy_async();\n  named_barrier_sync(out_buffer + warpgroup, 128);"
  "  fence_proxy_async();")
forward_mutant(no_proxy_fence_before_the_store proxy epilogue.h
  "  fence_proxy_async();\n  named_barrier_sync"
  "  named_barrier_sync")
forward_mutant(named_barrier_of_half_the_threads race,proxy,uninitialised epilogue.h
  "  fence_proxy_async();\n  named_barrier_sync(out_buffer + warpgroup, 128);"
  "  fence_proxy_async();\n  named_barrier_sync(out_buffer + warpgroup, 64);")
forward_mutant(log_sum_exp_of_rows_that_are_not_there bounds epilogue.h
  "params.lse != nullptr && lane_index() % 4 == 0 && position < tile[tile_seqlen_q]"
  "params.lse != nullptr && lane_index() % 4 == 0")
forward_mutant_256(query_fetched_over_an_output_not_yet_stored race epilogue.h
  "    if (owns_stores()) bulk_wait_group_read<0>();\n    release_by_warp"
  "    release_by_warp")
forward_mutant_256(output_written_over_a_query_in_use race kernel.h
  "    finish_tile<C>(params, shared, tile, self.warpgroup, q_at, rows, out);"
  "    finish_tile<C>(params, shared, tile, self.warpgroup ^ 1, q_at, rows, out);")

forward_mutant(next_tile_read_before_it_is_named race,uninitialised mainloop.h
  "  wait_full(shared.work_ring, next_at);\n  return next[tile_valid]"
  "  return next[tile_valid]")
forward_mutant(tile_visited_before_it_is_named race,uninitialised kernel.h
  "    release_by_warp(shared.work_ring, position_of<work_stages>(count));\n    wait_full(shared.work_ring, next_at);"
  "    release_by_warp(shared.work_ring, position_of<work_stages>(count));")
forward_mutant(nobody_wants_the_next_tile deadlock producer.h
  "      if (block == nearly_done) mbarrier_arrive(shared.next_wanted);\n"
  "")
forward_mutant(keys_brought_for_a_tile_not_yet_named race,uninitialised producer.h
  "    wait_full(shared.work_ring, work_at);\n    const Tile tile = shared.tile(work_at);\n    if (!tile[tile_valid]) return;\n    load_query"
  "    const Tile tile = shared.tile(work_at);\n    if (!tile[tile_valid]) return;\n    load_query")
forward_mutant(values_brought_for_a_tile_not_yet_named race,uninitialised producer.h
  "    wait_full(shared.work_ring, work_at);\n    const Tile tile = shared.tile(work_at);\n    if (!tile[tile_valid]) return;\n    const int head"
  "    const Tile tile = shared.tile(work_at);\n    if (!tile[tile_valid]) return;\n    const int head")
forward_mutant(tile_never_released_by_a_producer deadlock producer.h
  "      load_value<C>(params, shared, v_at, tile, head, block);\n    }\n    release(shared.work_ring, work_at);"
  "      load_value<C>(params, shared, v_at, tile, head, block);\n    }")
forward_mutant(skipped_stage_released_before_it_is_full race,barrier,deadlock,uninitialised mainloop.h
  "    wait_full(ring, at);\n    release_and_advance(ring, at);"
  "    release_and_advance(ring, at);")
forward_mutant(value_released_twice barrier,race,deadlock mainloop.h
  "    wgmma_wait_group<0>(out, probabilities);\n    release_and_advance(shared.v_ring, self.v_at);\n    if (moved)"
  "    wgmma_wait_group<0>(out, probabilities);\n    release_by_warp(shared.v_ring, self.v_at);\n    release_and_advance(shared.v_ring, self.v_at);\n    if (moved)")
forward_mutant(key_never_released deadlock mainloop.h
  "    wgmma_wait_group<1>(scores);\n    release_and_advance(shared.k_ring, self.k_at);"
  "    wgmma_wait_group<1>(scores);\n    self.k_at.advance();")
