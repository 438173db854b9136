# Mistakes that the emulator must find. The first two arguments of each: where, and what it shows.
set(kernels tests/hopper/toy_kernels.h)

function(gemm_mutant name expected find replace)
  flash3_mutant(NAME ${name} FILE ${kernels} FIND "${find}" REPLACE "${replace}" RUN run_gemm EXPECTED "${expected}")
endfunction()
function(linear_mutant name expected find replace)
  flash3_mutant(NAME ${name} FILE ${kernels} FIND "${find}" REPLACE "${replace}" RUN run_linear EXPECTED "${expected}")
endfunction()

gemm_mutant(no_proxy_fence proxy
  "  write_fragment(sum, shared.out, consumer * 64);\n  fence_proxy_async();"
  "  write_fragment(sum, shared.out, consumer * 64);")
gemm_mutant(wait_on_the_wrong_parity race,uninitialised,deadlock
  "    wait_full(shared.ring, at);\n"
  "    mbarrier_wait_parity(shared.ring.full[at.stage], at.parity ^ 1u);\n")
gemm_mutant(producer_waits_on_the_wrong_parity deadlock
  "    wait_empty(shared.ring, at);\n"
  "    mbarrier_wait_parity(shared.ring.empty[at.stage], at.parity);\n")
gemm_mutant(stage_released_before_wgmma_completed race
  "    wgmma_commit_group();\n    wgmma_wait_group<0>(sum);\n    release_stage(at);"
  "    wgmma_commit_group();\n    release_stage(at);\n    wgmma_wait_group<0>(sum);")
gemm_mutant(stage_not_waited_for_by_the_producer race,barrier
  "    wait_empty(shared.ring, at);\n"
  "")
gemm_mutant(wait_leaves_the_group_pending fragment
  "wgmma_wait_group<0>(sum);"
  "wgmma_wait_group<1>(sum);")
gemm_mutant(wait_names_no_fragment fragment
  "wgmma_wait_group<0>(sum);"
  "wgmma_wait_group<0>();")
gemm_mutant(bytes_one_row_too_few barrier
  "shared.a[0].byte_count + shared.b[0].byte_count"
  "shared.a[0].byte_count + shared.b[0].byte_count - 128")
gemm_mutant(bytes_one_row_too_many deadlock
  "shared.a[0].byte_count + shared.b[0].byte_count"
  "shared.a[0].byte_count + shared.b[0].byte_count + 128")
gemm_mutant(named_barrier_too_small race,uninitialised
  "named_barrier_sync(sum_written, 256)"
  "named_barrier_sync(sum_written, 128)")
gemm_mutant(named_barrier_too_large deadlock
  "named_barrier_sync(sum_written, 256)"
  "named_barrier_sync(sum_written, 384)")
gemm_mutant(named_barrier_counts_differ barrier
  "named_barrier_sync(sum_written, 256)"
  "named_barrier_sync(sum_written, 256 + 32 * (warp_index() % 2))")
gemm_mutant(no_barrier_between_write_and_store race,proxy
  "  named_barrier_sync(sum_written, 256);\n"
  "")
gemm_mutant(no_fence_after_init proxy
  "    shared.ring.init(256);\n    fence_mbarrier_init();"
  "    shared.ring.init(256);")
gemm_mutant(no_barrier_after_init race,barrier
  "    shared.ring.init(256);\n    fence_mbarrier_init();\n  }\n  sync_block();"
  "    shared.ring.init(256);\n    fence_mbarrier_init();\n  }")
gemm_mutant(stage_released_by_one_warpgroup_only race,barrier
  "shared.ring.init(256)"
  "shared.ring.init(128)")
gemm_mutant(one_arrival_too_few deadlock
  "shared.ring.init(256)"
  "shared.ring.init(257)")
gemm_mutant(registers_beyond_the_budget deadlock
  "    setmaxnreg_inc<232>();\n    gemm_consume"
  "    setmaxnreg_inc<240>();\n    gemm_consume")
gemm_mutant(store_not_waited_for race
  "    store_tile(params.out, {block_y() * 128, block_x() * 128}, shared.out);\n    bulk_commit_group();\n    bulk_wait_group<0>();"
  "    store_tile(params.out, {block_y() * 128, block_x() * 128}, shared.out);\n    bulk_commit_group();")
gemm_mutant(store_not_committed race
  "    store_tile(params.out, {block_y() * 128, block_x() * 128}, shared.out);\n    bulk_commit_group();"
  "    store_tile(params.out, {block_y() * 128, block_x() * 128}, shared.out);")
gemm_mutant(wrong_stage_read race,uninitialised
  "shared.b[at.stage], 0, step > 0"
  "shared.b[(at.stage + 1) % 3], 0, step > 0")
gemm_mutant(accumulates_onto_nothing fragment
  "shared.b[at.stage], 0, step > 0"
  "shared.b[at.stage], 0, true")
gemm_mutant(no_wgmma_fence fragment
  "    wait_full(shared.ring, at);\n    wgmma_fence();\n    multiply_abt(sum"
  "    wait_full(shared.ring, at);\n    multiply_abt(sum")

linear_mutant(scores_read_before_their_wait fragment
  "    wgmma_wait_group<0>(scores, out);\n"
  "")
linear_mutant(operand_changed_while_read fragment
  "    wgmma_wait_group<0>(out, p);\n    sync_warp();\n    if (leader) release(shared.v_ring, at);"
  "    p[0] = 0;\n    wgmma_wait_group<0>(out, p);\n    sync_warp();\n    if (leader) release(shared.v_ring, at);")
linear_mutant(no_fence_before_operand_in_registers fragment
  "    wait_full(shared.v_ring, at);\n    wgmma_fence();"
  "    wait_full(shared.v_ring, at);")
linear_mutant(epilogue_writes_q_of_the_other_warpgroup race
  "write_fragment(out, shared.q, consumer * 64)"
  "write_fragment(out, shared.q, (1 - consumer) * 64)")
linear_mutant(epilogue_reuses_a_stage_in_use race,barrier
  "write_fragment(out, shared.q, consumer * 64)"
  "write_fragment(out, shared.k[0], 0)")
linear_mutant(one_thread_releases_for_its_warpgroup race
  "    if (leader) release(shared.v_ring, at);"
  "    for (int warp = 0; warp < 4; ++warp) {\n      if (thread_index() % 128 == 0) release(shared.v_ring, at);\n    }")
linear_mutant(q_not_waited_for uninitialised,race
  "  mbarrier_wait_parity(shared.q_full, 0);\n"
  "")
linear_mutant(lanes_part_before_a_collective deadlock,divergence
  "    wgmma_wait_group<0>(out, p);\n    sync_warp();"
  "    wgmma_wait_group<0>(out, p);\n    if (lane_index() < 16) sync_warp();")

gemm_mutant(swapped_swizzle descriptor
  "multiply_abt(sum, shared.a[at.stage], consumer * 64, shared.b[at.stage], 0, step > 0)"
  "multiply_abt(sum, shared.a[at.stage], consumer * 64, reinterpret_cast<SharedTile<T, 128, 64, Swizzle::b64>&>(shared.b[at.stage]), 0, step > 0)")
gemm_mutant(wrong_stride_in_the_descriptor bounds,uninitialised,race
  "multiply_abt(sum, shared.a[at.stage], consumer * 64, shared.b[at.stage], 0, step > 0)"
  "wgmma<T>(sum, shared.a[at.stage].k_major(consumer * 64), make_descriptor(shared.b[at.stage].address(), 16, 2048, Swizzle::b128), step > 0)")
gemm_mutant(tile_off_its_alignment descriptor
  "multiply_abt(sum, shared.a[at.stage], consumer * 64, shared.b[at.stage], 0, step > 0)"
  "wgmma<T>(sum, shared.a[at.stage].k_major(consumer * 64), make_descriptor(shared.b[at.stage].address() + 128, 16, 1024, Swizzle::b128), step > 0)")

function(cluster_mutant name expected find replace)
  flash3_mutant(NAME cluster_${name} FILE tests/hopper/toy_cluster.h FIND "${find}" REPLACE "${replace}"
    RUN run_cluster_gemm EXPECTED "${expected}")
endfunction()
cluster_mutant(sound "" "  sync_warp();\n  sync_cluster();\n" "  sync_warp();\n  sync_cluster();\n")
cluster_mutant(block_ends_before_the_other_has_arrived race
  "  sync_warp();\n  sync_cluster();\n"
  "")
cluster_mutant(other_block_not_awaited_at_the_start race,barrier
  "    fence_mbarrier_init();\n  }\n  sync_cluster();"
  "    fence_mbarrier_init();\n  }\n  sync_block();")
cluster_mutant(no_fence_after_init proxy
  "    fence_mbarrier_init();\n"
  "")
cluster_mutant(releases_of_one_block_only_awaited race,barrier
  "shared.ring.init(2 * 8)"
  "shared.ring.init(8)")
cluster_mutant(stage_released_to_the_own_block_twice race
  "lane_index() < 2) {\n        mbarrier_arrive_cluster(shared.ring.empty[at.stage], static_cast<unsigned>(lane_index()));"
  "lane_index() < 2) {\n        mbarrier_arrive_cluster(shared.ring.empty[at.stage], cluster_rank());")
cluster_mutant(half_brought_to_the_own_block_only deadlock
  "shared.ring.full[at.stage], 3)"
  "shared.ring.full[at.stage], static_cast<unsigned short>(1u << cluster_rank()))")
cluster_mutant(bytes_of_the_own_half_only barrier,uninitialised,race
  "shared.b[0].byte_count);"
  "shared.b[0].byte_count / 2);")
cluster_mutant(both_bring_the_same_half race,barrier,uninitialised
  "load_tile_multicast(shared.b[at.stage], half, params.b"
  "load_tile_multicast(shared.b[at.stage], 0, params.b")
cluster_mutant(bytes_on_the_barrier_of_another_stage race,barrier,uninitialised,deadlock
  "load_tile_multicast(shared.b[at.stage], half, params.b, {step * 64, block_y() * 128 + half},\n                        shared.ring.full[at.stage], 3)"
  "load_tile_multicast(shared.b[at.stage], half, params.b, {step * 64, block_y() * 128 + half},\n                        shared.ring.full[(at.stage + 1) % 3], 3)")
