# Mistakes in the forward kernel that the emulator must find: name, what it shows, file, text, and what replaces it.
# The kernel for head_dim 128 holds two tiles of Q at once and overlaps tiles, that for 256 does not.
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
  "  wgmma_wait_group<1>(scores);\n  release_operands(shared, self, q_at);"
  "  release_operands(shared, self, q_at);\n  wgmma_wait_group<1>(scores);")
forward_mutant(value_released_before_wgmma_completed race mainloop.h
  "  wgmma_wait_group<0>(out, self.probabilities);\n  release_and_advance(shared.v_ring, self.v_at);\n  if (moved"
  "  release_and_advance(shared.v_ring, self.v_at);\n  wgmma_wait_group<0>(out, self.probabilities);\n  if (moved")
forward_mutant(scores_read_before_their_wait fragment mainloop.h
  "  wgmma_wait_group<1>(scores);\n"
  "")
forward_mutant(scores_wait_for_the_wrong_group fragment mainloop.h
  "  wgmma_wait_group<1>(scores);\n"
  "  wgmma_wait_group<2>(scores);\n")
forward_mutant(output_scaled_in_flight fragment mainloop.h
  "  wgmma_wait_group<0>(out, self.probabilities);\n  release_and_advance(shared.v_ring, self.v_at);\n  if (moved) scale_rows(out, block.factor);"
  "  if (moved) scale_rows(out, block.factor);\n  wgmma_wait_group<0>(out, self.probabilities);\n  release_and_advance(shared.v_ring, self.v_at);")
forward_mutant(probabilities_overwritten_in_flight fragment mainloop.h
  "  wgmma_wait_group<0>(out, self.probabilities);\n  release_and_advance(shared.v_ring, self.v_at);\n  if (moved) scale_rows(out, block.factor);\n  repack(scores, self.probabilities);"
  "  repack(scores, self.probabilities);\n  wgmma_wait_group<0>(out, self.probabilities);\n  release_and_advance(shared.v_ring, self.v_at);\n  if (moved) scale_rows(out, block.factor);")
forward_mutant(output_accumulates_onto_nothing fragment mainloop.h
  "    settled = accumulate = false;"
  "    settled = false, accumulate = true;")
forward_mutant(no_wgmma_fence_before_the_output fragment mainloop.h
  "  wait_full_unless(self.v_full, shared.v_ring, self.v_at);\n  wgmma_fence();"
  "  wait_full_unless(self.v_full, shared.v_ring, self.v_at);")
forward_mutant(key_not_waited_for race,uninitialised mainloop.h
  "  wait_full_unless(self.k_full, shared.k_ring, self.k_at);\n"
  "")
forward_mutant_256(value_not_waited_for race,uninitialised mainloop.h
  "  wait_full_unless(self.v_full, shared.v_ring, self.v_at);\n"
  "")
forward_mutant(query_not_waited_for race,uninitialised mainloop.h
  "  wait_full_unless(q_full, shared.q_ring, q_at);\n  issue_scores"
  "  issue_scores")
forward_mutant(last_value_released_before_wgmma_completed race mainloop.h
  "  wgmma_wait_group<0>(out, self.probabilities);\n  release_and_advance(shared.v_ring, self.v_at);\n  skip_blocks"
  "  release_and_advance(shared.v_ring, self.v_at);\n  wgmma_wait_group<0>(out, self.probabilities);\n  skip_blocks")
forward_mutant(blocks_that_others_need_not_let_go deadlock mainloop.h
  "  skip_blocks(shared, self, tile.share(self.warpgroup, share_after));"
  "")
forward_mutant(tile_released_while_its_output_leaves race,uninitialised kernel.h
  "    finish_tile<C>(params, shared, tile, self.warpgroup, rows, out);\n    release_by_warp(shared.work_ring, work_at);"
  "    release_by_warp(shared.work_ring, work_at);\n    finish_tile<C>(params, shared, tile, self.warpgroup, rows, out);")
forward_mutant(first_scores_read_before_their_wait fragment mainloop.h
  "  wgmma_wait_group<0>(scores);\n  release_operands"
  "  release_operands")
forward_mutant(key_waited_for_with_the_wrong_parity race,uninitialised,deadlock mainloop.h
  "  wait_full_unless(self.k_full, shared.k_ring, self.k_at);\n"
  "  mbarrier_wait_parity(shared.k_ring.full[self.k_at.stage], self.k_at.parity ^ 1u);\n")
forward_mutant(another_stage_of_values_asked_about race,uninitialised mainloop.h
  "test_full(shared.v_ring, self.v_at.next())"
  "test_full(shared.v_ring, self.v_at)")
forward_mutant(another_stage_of_keys_asked_about race,uninitialised mainloop.h
  "  release_and_advance(shared.k_ring, self.k_at);\n  self.k_full = test_full(shared.k_ring, self.k_at);"
  "  self.k_full = test_full(shared.k_ring, self.k_at);\n  release_and_advance(shared.k_ring, self.k_at);")
forward_mutant(values_of_the_wrong_stage race,uninitialised mainloop.h
  "shared.v[self.v_at.stage], 0, 0, self.accumulate"
  "shared.v[self.v_at.stage ^ 1], 0, 0, self.accumulate")
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
forward_mutant(query_released_a_block_too_early race,barrier,deadlock mainloop.h
  "if (self.is_last()) release_by_warp(shared.q_ring, q_at);"
  "if (self.block == self.last_block + 1) release_by_warp(shared.q_ring, q_at);")
forward_mutant_256(query_released_a_block_too_early race,deadlock mainloop.h
  "if (self.is_last()) release_by_warp(shared.q_ring, q_at);"
  "if (self.block == self.last_block + 1) release_by_warp(shared.q_ring, q_at);")
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
  "hopper::SharedTile<T, C::block_kv, C::head_dim> k[C::k_stages]"
  "hopper::SharedTile<T, C::block_kv, C::head_dim, hopper::Swizzle::b64> k[C::k_stages]")

forward_mutant(end_announced_before_it_is_written race,uninitialised scheduler.h
  "  shared.tile(at).set(tile_valid, 0);\n  mbarrier_arrive(shared.work_ring.full[at.stage]);"
  "  mbarrier_arrive(shared.work_ring.full[at.stage]);\n  shared.tile(at).set(tile_valid, 0);")

forward_mutant(output_read_before_it_is_written race,uninitialised epilogue.h
  "    fence_proxy_async();\n    sync_warp();\n"
  "    fence_proxy_async();\n")
forward_mutant(memory_gone_before_the_last_output_is_taken race kernel.h
  "  wait_until_out_is_taken();\n"
  "")
forward_mutant(output_not_fenced_for_tma proxy epilogue.h
  "    fence_proxy_async();\n"
  "")
forward_mutant(output_overwritten_before_it_is_taken race epilogue.h
  "    wait_until_out_is_taken();\n"
  "    sync_warp();\n")
forward_mutant(another_warps_output_stored race,uninitialised,proxy epilogue.h
  "OutTile::below(place.address(), first_row)"
  "OutTile::below(place.address(), first_row ^ 16)")
forward_mutant(log_sum_exp_of_rows_that_are_not_there bounds epilogue.h
  "opaque(lane_index()) % 4 == 0 && row + 8 * half < existing"
  "opaque(lane_index()) % 4 == 0")

forward_mutant(next_tile_read_before_it_is_named race,uninitialised mainloop.h
  "{test_full(shared.work_ring, next_at),"
  "{true,")
forward_mutant(next_tiles_query_not_waited_for race,uninitialised mainloop.h
  "test_full(shared.q_ring, next_q_at)}"
  "true}")
forward_mutant_256(next_tile_read_before_it_is_named race,uninitialised kernel.h
  "    wait_full_unless(is.named, shared.work_ring, work_at);\n    const Tile tile"
  "    const Tile tile")
forward_mutant(tile_visited_before_it_is_named race,uninitialised kernel.h
  "  wait_full(shared.work_ring, work_at);\n  Tile tile"
  "  Tile tile")
forward_mutant(nobody_wants_the_next_tile deadlock producer.h
  "      if (block == nearly_done) mbarrier_arrive(shared.next_wanted);\n"
  "")
# What stands in for for_each_tile in one of the producers, with or without its wait and its release.
function(producer_mutant name expected wait release find)
  forward_mutant(${name} "${expected}" producer.h
    "for_each_tile(shared, [&](const Tile& tile) {${find}"
    "[&](auto bring) {\n    for (unsigned count = 0;; ++count) {\n      const RingPosition<work_stages> work_at = position_of<work_stages>(count);\n      ${wait}\n      const Tile tile = shared.tile(work_at);\n      if (!tile[tile_valid]) return;\n      bring(tile);\n      ${release}\n    }\n  }([&](const Tile& tile) {${find}")
endfunction()
set(wait "wait_full(shared.work_ring, work_at);")
set(release "release(shared.work_ring, work_at);")
set(of_query " load_query")
set(of_key "\n    const int head = tile[tile_kv_head];\n    const int begin = tile[tile_block_begin], end")
set(of_value "\n    const int head = tile[tile_kv_head];\n    const int begin = tile[tile_block_begin];")
producer_mutant(queries_brought_for_a_tile_not_yet_named race,uninitialised "" "${release}" "${of_query}")
producer_mutant(keys_brought_for_a_tile_not_yet_named race,uninitialised "" "${release}" "${of_key}")
producer_mutant(values_brought_for_a_tile_not_yet_named race,uninitialised "" "${release}" "${of_value}")
producer_mutant(query_load_releases_its_tile_never deadlock "${wait}" "" "${of_query}")
producer_mutant(tile_never_released_by_a_producer deadlock "${wait}" "" "${of_value}")
forward_mutant(skipped_stage_released_before_it_is_full race,barrier,deadlock,uninitialised mainloop.h
  "    wait_full(ring, at);\n    release_and_advance(ring, at);"
  "    release_and_advance(ring, at);")
forward_mutant(value_released_twice barrier,race,deadlock mainloop.h
  "  release_and_advance(shared.v_ring, self.v_at);\n  if (moved"
  "  release_by_warp(shared.v_ring, self.v_at);\n  release_and_advance(shared.v_ring, self.v_at);\n  if (moved")
forward_mutant(key_never_released deadlock mainloop.h
  "  release_and_advance(shared.k_ring, self.k_at);\n  self.k_full"
  "  self.k_at.advance();\n  self.k_full")
