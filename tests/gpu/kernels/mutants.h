// Wrong kernels, small and on purpose: each makes one mistake that a GPU often lets pass, and the
// simulator must name.
#pragma once

#include "case.h"

namespace weft::gpu::tests {

// Reads a row past the end of x.
WEFT_KERNEL void past_the_end_kernel(const float* x, float* y) {
  store(y + thread(), load(x + thread() + 1));
}
const Register past_the_end("past_the_end", [](const Call& call) {
  launch<past_the_end_kernel>({.block = kWarp, .stream = call.stream}, call.inputs[0].as<float>(),
                              call.outputs[0].as<float>());
});

// Writes to an input.
WEFT_KERNEL void writes_input_kernel(float* x) { store(x + thread(), 0.0f); }
const Register writes_input("writes_input", [](const Call& call) {
  launch<writes_input_kernel>({.block = kWarp, .stream = call.stream}, call.inputs[0].as<float>());
});

// Loads four floats at an address that is no multiple of 16.
WEFT_KERNEL void unaligned_kernel(const float* x, float* y) {
  store(y + 4 * thread(), load<4>(x + 4 * thread() + 1));
}
const Register unaligned("unaligned", [](const Call& call) {
  launch<unaligned_kernel>({.block = 4, .stream = call.stream}, call.inputs[0].as<float>(),
                           call.outputs[0].as<float>());
});

// Accumulates into an output that nobody has cleared.
WEFT_KERNEL void uncleared_output_kernel(const float* x, float* y) {
  store(y + thread(), load(y + thread()) + load(x + thread()));
}
const Register uncleared_output("uncleared_output", [](const Call& call) {
  launch<uncleared_output_kernel>({.block = kWarp, .stream = call.stream},
                                  call.inputs[0].as<float>(), call.outputs[0].as<float>());
});

// Half of a tile is filled, all of it is read.
WEFT_KERNEL void half_filled_kernel(const float* x, float* y) {
  SharedLayout layout;
  const Shared<float> tile = layout.take<float>(kWarp);
  if (lane() < kWarp / 2) tile[lane()] = load(x + lane());
  sync_block();
  store<Cache::normal, float>(y + lane(), tile[lane()]);
}
const Register half_filled("half_filled", [](const Call& call) {
  launch<half_filled_kernel>(
      {.block = kWarp, .shared_bytes = kWarp * sizeof(float), .stream = call.stream},
      call.inputs[0].as<float>(), call.outputs[0].as<float>());
});

// A tile's neighbour is read: the address is in shared memory, but not in the tile.
WEFT_KERNEL void wrong_tile_kernel(float* y) {
  SharedLayout layout;
  const Shared<float> first = layout.take<float>(kWarp), second = layout.take<float>(kWarp);
  first[lane()] = 1.0f;
  second[lane()] = 2.0f;
  sync_block();
  store<Cache::normal, float>(y + lane(), first[lane() + 1]);
}
const Register wrong_tile("wrong_tile", [](const Call& call) {
  launch<wrong_tile_kernel>(
      {.block = kWarp, .shared_bytes = 2 * kWarp * sizeof(float), .stream = call.stream},
      call.outputs[0].as<float>());
});

// Half of the block waits for a barrier that the other half has left behind.
WEFT_KERNEL void divergent_barrier_kernel(float* y) {
  if (thread() < kWarp) sync_block();
  store(y + thread(), 1.0f);
}
const Register divergent_barrier("divergent_barrier", [](const Call& call) {
  launch<divergent_barrier_kernel>({.block = 2 * kWarp, .stream = call.stream},
                                   call.outputs[0].as<float>());
});

// Some lanes shuffle, the others vote.
WEFT_KERNEL void divergent_warp_kernel(float* y) {
  const float v = lane() < 8 ? shuffle(1.0f, 0) : static_cast<float>(ballot(true));
  store(y + thread(), v);
}
const Register divergent_warp("divergent_warp", [](const Call& call) {
  launch<divergent_warp_kernel>({.block = kWarp, .stream = call.stream},
                                call.outputs[0].as<float>());
});

// A flag that nobody sets.
WEFT_KERNEL void endless_wait_kernel(uint32_t* flag) {
  while (load_acquire<Scope::gpu>(flag) == 0) {
  }
}
const Register endless_wait("endless_wait", [](const Call& call) {
  launch<endless_wait_kernel>({.grid = {2}, .block = kWarp, .stream = call.stream},
                              call.inouts[0].as<uint32_t>());
});

// Floats that threads add up as they come.
WEFT_KERNEL void unordered_sum_kernel(const float* x, float* sum) {
  reduce_add(sum, load(x + thread()));
}
const Register unordered_sum("unordered_sum", [](const Call& call) {
  launch<unordered_sum_kernel>({.block = kWarp, .stream = call.stream}, call.inputs[0].as<float>(),
                               call.inouts[0].as<float>());
});

// ---- order. In the kernels below a Mistake takes one line away.
enum class Mistake {
  none,
  no_barrier,
  no_fence,
  no_release,
  no_acquire,
  no_wait,
  wrong_phase,
  wrong_order,
  early_reuse,
  early_exit,
  early_start,
  no_fence_init,
  few_bytes,
  narrow_scope,
};

// Neighbours in the block read what a thread wrote.
template <Mistake kMistake>
WEFT_KERNEL void neighbours_kernel(const float* x, float* y) {
  SharedLayout layout;
  const Shared<float> tile = layout.take<float>(threads());
  tile[thread()] = load(x + thread());
  if constexpr (kMistake != Mistake::no_barrier) sync_block();
  store<Cache::normal, float>(y + thread(), tile[(thread() + 1) % threads()]);
}

// The same, with the tile used again.
template <Mistake kMistake>
WEFT_KERNEL void reused_tile_kernel(const float* x, float* y) {
  SharedLayout layout;
  const Shared<float> tile = layout.take<float>(threads());
  float sum = 0;
  for (int n = 0; n < 3; ++n) {
    tile[thread()] = load(x + thread()) + static_cast<float>(n);
    sync_block();
    sum += tile[(thread() + 40) % threads()];
    if constexpr (kMistake != Mistake::early_reuse) sync_block();
  }
  store(y + thread(), sum);
}

// Lanes that trust each other without saying so.
template <Mistake kMistake>
WEFT_KERNEL void warp_tile_kernel(const float* x, float* y) {
  SharedLayout layout;
  const Shared<float> tile = layout.take<float>(kWarp);
  tile[lane()] = load(x + lane());
  if constexpr (kMistake != Mistake::no_barrier) sync_warp();
  store<Cache::normal, float>(y + lane(), tile[lane() ^ 1]);
}

// A flag that says that data are there; release and acquire order the two.
template <Mistake kMistake>
WEFT_KERNEL void flag_kernel(const float* x, float* between, uint32_t* flag, float* y) {
  if (block().x == 0) {
    store(between + lane(), load(x + lane()));
    sync_warp();
    if (lane() == 0) {
      if constexpr (kMistake == Mistake::no_release)
        store_relaxed<Scope::gpu>(flag, 1u);
      else if constexpr (kMistake == Mistake::narrow_scope)
        store_release<Scope::block>(flag, 1u);
      else
        store_release<Scope::gpu>(flag, 1u);
    }
  } else {
    while (load_acquire<Scope::gpu>(flag) == 0) {
    }
    store(y + lane(), load(between + lane()));
  }
}

// The same by relaxed accesses and fences.
template <Mistake kMistake>
WEFT_KERNEL void fenced_flag_kernel(const float* x, float* between, uint32_t* flag, float* y) {
  if (block().x == 0) {
    store(between + lane(), load(x + lane()));
    sync_warp();
    if constexpr (kMistake != Mistake::no_fence) fence<Scope::gpu>();
    if (lane() == 0) store_relaxed<Scope::gpu>(flag, 1u);
  } else {
    while (load_relaxed<Scope::gpu>(flag) == 0) {
    }
    if constexpr (kMistake != Mistake::no_wait) fence<Scope::gpu>();
    store(y + lane(), load(between + lane()));
  }
}

// copy_async, and then the data at once.
template <Mistake kMistake>
WEFT_KERNEL void unawaited_copy_kernel(const float* x, float* y) {
  SharedLayout layout;
  const Shared<float> tile = layout.take<float>(4 * kWarp);
  copy_async<4>(tile, 4 * lane(), x + 4 * lane());
  copy_async_commit();
  if constexpr (kMistake != Mistake::no_wait) copy_async_wait<0>();
  store(y + 4 * lane(), tile.load<4>(4 * lane()));
  copy_async_wait<0>();
}

// A bulk load into a stage, its data, and the next load into the same stage.
template <Mistake kMistake>
WEFT_KERNEL void bulk_stage_kernel(const float* x, float* y) {
  SharedLayout layout;
  const Shared<float> tile = layout.take<float>(4 * kWarp);
  const Shared<MBarrier> full = layout.take<MBarrier>(1);
  if (lane() == 0) {
    mbarrier_init(full, 1);
    if constexpr (kMistake != Mistake::no_fence_init) fence_mbarrier_init();
  }
  sync_block();
  Vec<float, 4> sum = Vec<float, 4>::filled(0);
  for (uint32_t n = 0; n < 2; ++n) {
    if (lane() == 0) {
      mbarrier_arrive_expect(full, kMistake == Mistake::few_bytes ? 256 : tile.bytes());
      bulk_load(tile, x + n * 4 * kWarp, 4 * kWarp, full);
    }
    mbarrier_wait(full, kMistake == Mistake::wrong_phase ? n ^ 1 : n);
    const Vec<float, 4> v = tile.load<4>(4 * lane());
    for (int i = 0; i < 4; ++i) sum[i] += v[i];
    if constexpr (kMistake != Mistake::early_reuse) sync_block();
  }
  store(y + 4 * lane(), sum);
}

// A tile that is written by threads and sent off by a bulk store.
template <Mistake kMistake>
WEFT_KERNEL void bulk_store_kernel(const float* x, float* y) {
  SharedLayout layout;
  const Shared<float> tile = layout.take<float>(kWarp);
  for (int n = 0; n < 2; ++n) {
    tile[lane()] = load(x + n * kWarp + lane());
    if constexpr (kMistake != Mistake::no_fence) fence_async();
    if constexpr (kMistake != Mistake::no_barrier) sync_block();
    if (lane() == 0) {
      bulk_store(y + n * kWarp, tile, kWarp);
      bulk_commit();
      const bool wait = kMistake == Mistake::early_exit ? n == 0 : kMistake != Mistake::early_reuse;
      if (wait) bulk_wait_read<0>();
    }
    sync_block();
  }
  if constexpr (kMistake != Mistake::early_exit) bulk_wait<0>();
}

// A block writes into another, which reads.
template <Mistake kMistake>
WEFT_KERNEL void cluster_visit_kernel(float* y) {
  SharedLayout layout;
  const Shared<float> word = layout.take<float>(kWarp);
  if constexpr (kMistake != Mistake::early_start) sync_cluster();
  if (cluster_rank() == 0) word.in_block(1).store(lane(), 1.0f);
  if constexpr (kMistake != Mistake::no_barrier) sync_cluster();
  if (cluster_rank() == 1) store<Cache::normal, float>(y + lane(), word[lane()]);
}

// A block reads from another, which may have ended.
template <Mistake kMistake>
WEFT_KERNEL void cluster_exit_kernel(float* y) {
  SharedLayout layout;
  const Shared<float> word = layout.take<float>(kWarp);
  word[lane()] = 1;
  sync_cluster();
  if (cluster_rank() == 0) store(y + lane(), word.in_block(1).load(lane()));
  if constexpr (kMistake != Mistake::early_exit) sync_cluster();
}

// A block writes into another, and tells it by an mbarrier instead of a cluster barrier.
template <Mistake kMistake>
WEFT_KERNEL void cluster_message_kernel(float* y) {
  constexpr Scope kScope = kMistake == Mistake::narrow_scope ? Scope::block : Scope::cluster;
  SharedLayout layout;
  const Shared<float> word = layout.take<float>(kWarp);
  const Shared<MBarrier> full = layout.take<MBarrier>(1);
  if (thread() == 0) {
    mbarrier_init(full, kWarp);
    fence_mbarrier_init();
  }
  sync_cluster();
  if (cluster_rank() == 0) {
    word.in_block(1).store(lane(), 1.0f);
    mbarrier_arrive<kScope>(full.in_block(1));
  } else {
    mbarrier_wait<Scope::cluster>(full, 0);
    store<Cache::normal, float>(y + lane(), word[lane() ^ 1]);
  }
  sync_cluster();
}

// Two kernels, the second of which may start before the first has ended.
template <Mistake kMistake>
WEFT_KERNEL void dependent_kernel(const float* x, float* y) {
  if constexpr (kMistake != Mistake::no_wait) wait_for_prerequisites();
  store(y + thread(), load(x + thread()) + 1);
}

// sum = Σ x over blocks of 32, by bulk copies of one block after the other: `counters` count who has
// begun, and hence whose turn is when, and who has added. No two blocks fit into a multiprocessor.
constexpr uint32_t kOneAMultiprocessor = 120 << 10;
template <Mistake kMistake>
WEFT_KERNEL void ordered_sum_kernel(const float* x, float* sum, uint32_t* counters) {
  SharedLayout layout;
  const Shared<float> part = layout.take<float>(kWarp, 128);
  const Shared<uint32_t> turn = layout.take<uint32_t>(1);
  uint32_t *begun = counters, *done = counters + 1;
  if (lane() == 0)
    turn[0] = kMistake == Mistake::wrong_order ? blocks().x - 1 - block().x : atomic_add(begun, 1u);
  sync_block();
  const uint32_t before = turn[0];
  part[lane()] = load(x + before * kWarp + lane());
  fence_async();
  sync_block();
  if (lane() != 0) return;
  const auto added = [&] {
    if constexpr (kMistake == Mistake::no_acquire)
      return load_relaxed<Scope::gpu>(done);
    else
      return load_acquire<Scope::gpu>(done);
  };
  if (before == 0) {
    bulk_store(sum, part, kWarp);
  } else {
    if constexpr (kMistake != Mistake::no_wait)
      while (added() + (kMistake == Mistake::wrong_phase ? 1 : 0) < before) {
      }
    if constexpr (kMistake != Mistake::no_fence) fence_async_global();
    bulk_reduce_add(sum, part, kWarp);
  }
  bulk_commit();
  if constexpr (kMistake == Mistake::early_exit)
    bulk_wait_read<0>();
  else
    bulk_wait<0>();
  if constexpr (kMistake == Mistake::no_release)
    reduce_add<Scope::gpu>(done, 1u);
  else if constexpr (kMistake == Mistake::narrow_scope)
    reduce_add<Scope::block, Order::release>(done, 1u);
  else
    reduce_add<Scope::gpu, Order::release>(done, 1u);
}

// Reads with Cache::read_only what the kernel writes.
WEFT_KERNEL void stale_cache_kernel(float* y) {
  store(y + thread(), 1.0f);
  sync_block();
  store(y + threads() + thread(), load<Cache::read_only>(y + threads() - 1 - thread()));
}
const Register stale_cache("stale_cache", [](const Call& call) {
  launch<stale_cache_kernel>({.block = 2 * kWarp, .stream = call.stream},
                             call.outputs[0].as<float>());
});

// Consumers ask for more registers than the producer has given back.
WEFT_KERNEL_BOUNDS(384, 1) void greedy_registers_kernel(int32_t* out) {
  if (warp() < 4)
    decrease_registers<80>();
  else
    increase_registers<224>();
  store(out + thread(), 1);
}
const Register greedy_registers("greedy_registers", [](const Call& call) {
  launch<greedy_registers_kernel>({.block = 384, .stream = call.stream},
                                  call.outputs[0].as<int32_t>());
});

// x, y and what is between them are as large as any of the kernels needs.
template <Mistake kMistake>
void run_mutant(const Call& call, const std::string& kernel) {
  const float* x = call.inputs[0].as<float>();
  float* y = call.outputs[0].as<float>();
  const LaunchConfig one{.block = kWarp, .shared_bytes = 1024, .stream = call.stream};
  const LaunchConfig two{.block = 2 * kWarp, .shared_bytes = 1024, .stream = call.stream};
  const LaunchConfig pair{
      .grid = {2}, .block = kWarp, .cluster = {2}, .shared_bytes = 1024, .stream = call.stream};
  if (kernel == "neighbours") launch<neighbours_kernel<kMistake>>(two, x, y);
  if (kernel == "reused_tile") launch<reused_tile_kernel<kMistake>>(two, x, y);
  if (kernel == "warp_tile") launch<warp_tile_kernel<kMistake>>(one, x, y);
  if (kernel == "flag")
    launch<flag_kernel<kMistake>>({.grid = {2}, .block = kWarp, .stream = call.stream}, x,
                                  call.outputs[1].as<float>(), call.inouts[0].as<uint32_t>(), y);
  if (kernel == "fenced_flag")
    launch<fenced_flag_kernel<kMistake>>({.grid = {2}, .block = kWarp, .stream = call.stream}, x,
                                         call.outputs[1].as<float>(), call.inouts[0].as<uint32_t>(),
                                         y);
  if (kernel == "unawaited_copy") launch<unawaited_copy_kernel<kMistake>>(one, x, y);
  if (kernel == "bulk_stage") launch<bulk_stage_kernel<kMistake>>(one, x, y);
  if (kernel == "bulk_store") launch<bulk_store_kernel<kMistake>>(one, x, y);
  if (kernel == "cluster_visit") launch<cluster_visit_kernel<kMistake>>(pair, y);
  if (kernel == "cluster_exit") launch<cluster_exit_kernel<kMistake>>(pair, y);
  if (kernel == "cluster_message") launch<cluster_message_kernel<kMistake>>(pair, y);
  if (kernel == "ordered_sum")
    launch<ordered_sum_kernel<kMistake>>(
        {.grid = {static_cast<uint32_t>(call.inputs[0].count) / kWarp},
         .block = kWarp,
         .shared_bytes = kOneAMultiprocessor,
         .stream = call.stream},
        x, y, call.inouts[0].as<uint32_t>());
  if (kernel == "dependent") {
    launch<dependent_kernel<kMistake>>(one, x, y);
    launch<dependent_kernel<kMistake>>({.block = kWarp, .stream = call.stream, .dependent = true},
                                       y, call.outputs[1].as<float>());
  }
}

// numbers: which of the kernels.
template <Mistake kMistake>
void mutant(const Call& call) {
  constexpr const char* kKernels[] = {
      "neighbours",  "reused_tile",     "warp_tile",     "flag",         "unawaited_copy",
      "bulk_stage",  "bulk_store",      "cluster_visit", "cluster_exit", "dependent",
      "fenced_flag", "cluster_message", "ordered_sum"};
  run_mutant<kMistake>(call, kKernels[call.numbers[0]]);
}
const Register correct("correct", mutant<Mistake::none>);
const Register no_barrier("no_barrier", mutant<Mistake::no_barrier>);
const Register no_fence("no_fence", mutant<Mistake::no_fence>);
const Register no_release("no_release", mutant<Mistake::no_release>);
const Register no_acquire("no_acquire", mutant<Mistake::no_acquire>);
const Register no_wait("no_wait", mutant<Mistake::no_wait>);
const Register wrong_phase("wrong_phase", mutant<Mistake::wrong_phase>);
const Register wrong_order("wrong_order", mutant<Mistake::wrong_order>);
const Register early_reuse("early_reuse", mutant<Mistake::early_reuse>);
const Register early_exit("early_exit", mutant<Mistake::early_exit>);
const Register early_start("early_start", mutant<Mistake::early_start>);
const Register no_fence_init("no_fence_init", mutant<Mistake::no_fence_init>);
const Register few_bytes("few_bytes", mutant<Mistake::few_bytes>);
const Register narrow_scope("narrow_scope", mutant<Mistake::narrow_scope>);

}  // namespace weft::gpu::tests
