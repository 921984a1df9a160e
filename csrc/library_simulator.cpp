// The CUDA kernels behind the ops of weft, on CPU tensors: torch.ops.weft_simulator.*, for tests; and,
// as a GPU has them, without a look into index tensors: torch.ops.weft_simulator_unchecked.*.

#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>
#include <vector>

#include "attention/cuda/backward_plan.h"
#include "attention/cuda/plan.h"
#include "core/divide.h"
#include "int8/cuda/plan.h"
#include "int8/cuda/plan_sm90.h"
#include "library_simulator_attention.h"
#include "library_simulator_comm.h"
#include "library_simulator_int8.h"
#include "library_simulator_norm.h"
#include "norm/cuda/plan.h"

namespace weft {
namespace {

void configure(int64_t seed, bool late_completion, bool clusters) {
  simulator::limits() =
      clusters ? gpu::Limits{4, 227 << 10, true, true} : gpu::Limits{4, 163 << 10};
  gpu::sim::options() = {static_cast<uint64_t>(seed), late_completion, /*check_races=*/true,
                         simulator::limits().multiprocessors};
}

// Who works on rows of a width, with up to `most` columns a thread in registers.
std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t> geometry(int64_t C, int64_t most) {
  const norm::cuda::Geometry g =
      norm::cuda::geometry(C, static_cast<int>(most), simulator::limits());
  return {g.lanes, g.threads, g.rows, g.split, g.span};
}

// What takes attention over bf16 tensors of these sizes, dense or of total_q packed queries, keys in
// rows or in pages, on a GPU with wgmma; of sequences that decode beside prompts their splits.
std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t> attention_plan(
    int64_t B, int64_t S, int64_t T, int64_t H, int64_t K, int64_t D, int64_t num_splits,
    int64_t multiprocessors, int64_t total_q, int64_t page_size, bool leftpad, bool packed_keys) {
  alignas(16) static char somewhere[16];
  attention::Forward p;
  p.B = B, p.S = S, p.T = T, p.H = H, p.K = K, p.D = p.Dv = D, p.num_splits = num_splits;
  const auto tensor = [&](int64_t rows, int64_t heads) {
    return attention::Heads{somewhere, DType::bf16, rows * heads * D, heads * D, D};
  };
  p.q = p.out = tensor(S, H), p.k = p.v = tensor(T, K);
  const auto* index = reinterpret_cast<int32_t*>(somewhere);
  attention::Sequences& s = p.sequences;
  if (total_q > 0) p.total_q = total_q, s.cu_q = index;
  if (leftpad) s.leftpad = index;
  if (packed_keys) p.total_k = T, s.cu_k = index;
  if (page_size > 0) {
    s.block_table = index, s.page_size = page_size, s.table_stride = ceil_div(T, page_size);
    p.caches = B * s.table_stride, p.k = p.v = tensor(page_size, K);
  }
  const gpu::Limits limits = {static_cast<uint32_t>(multiprocessors), 227 << 10, true, true};
  const auto plan = attention::cuda::plan(p, limits);
  return {static_cast<int64_t>(plan.kernel),
          plan.row_blocks,
          plan.splits,
          plan.split_keys,
          plan.grid,
          plan.workspace_bytes,
          plan.least,
          plan.least > 0 ? attention::cuda::decoding_plan(p, limits).splits : 0};
}

// What sm_90's backward makes of dense bf16 tensors of these sizes: blocks of keys, key heads that are
// gone over together, and the rows of a block of queries.
std::tuple<int64_t, int64_t, int64_t> attention_backward_plan(int64_t B, int64_t S, int64_t T,
                                                              int64_t H, int64_t K, int64_t D,
                                                              int64_t multiprocessors) {
  alignas(16) static char somewhere[16];
  attention::Backward p;
  p.B = B, p.S = S, p.T = T, p.H = H, p.K = K, p.D = p.Dv = D;
  const auto tensor = [&](int64_t rows, int64_t heads) {
    return attention::Heads{somewhere, DType::bf16, rows * heads * D, heads * D, D};
  };
  p.q = p.out = p.dout = p.dq = tensor(S, H), p.k = p.v = p.dk = p.dv = tensor(T, K);
  const auto plan =
      attention::cuda::plan(p, {static_cast<uint32_t>(multiprocessors), 227 << 10, true, true});
  const auto& own = plan.sm90;
  return {own.schedule.tiles, own.schedule.section, own.queries};
}

// The tile that block `block` of `grid` takes in a round, as {head, block of rows}; -1: none.
std::tuple<int64_t, int64_t> attention_tile(int64_t heads, int64_t blocks, int64_t section,
                                            bool last_first, int64_t round, int64_t block,
                                            int64_t grid) {
  const auto count = [](int64_t n) { return static_cast<uint32_t>(n); };
  const attention::cuda::Schedule schedule = {count(heads * blocks), count(heads), count(blocks),
                                              count(section), last_first};
  const uint32_t i = schedule.at(count(round), count(block), count(grid));
  if (i >= schedule.tiles) return {-1, -1};
  const auto tile = schedule.tile(i);
  return {tile.head, tile.block};
}

// Who takes products of int8 on sm_80, and the same of a weight alone, 16-bit x and one scale a row.
std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t> int8_plan(int64_t M, int64_t N, int64_t K,
                                                                  int64_t multiprocessors) {
  const auto plan = int8::cuda::plan_gemm(
      M, N, K, {static_cast<uint32_t>(multiprocessors), 163 << 10, false, false});
  return {plan.tiles_m, plan.tiles_n, plan.splits, plan.split_steps, plan.rounds};
}

// What a whole linear layer of int8 rows takes, or, with outliers, of floats: sm_90a's shape, or -1.
std::tuple<int64_t, int64_t> int8_linear_plan(int64_t M, int64_t N, int64_t K, bool outliers,
                                              int64_t multiprocessors, bool wgmma) {
  int8::Linear p;
  p.M = M, p.N = N, p.K = p.group = K;
  p.x = {nullptr, outliers ? DType::bf16 : DType::i8, 1, {M}, {(K + 15) / 16 * 16}};
  p.operand = outliers ? int8::Operand::outliers : int8::Operand::int8;
  const auto plan =
      int8::cuda::plan(p, {static_cast<uint32_t>(multiprocessors), 227 << 10, wgmma, wgmma});
  return {plan.sm90 ? static_cast<int64_t>(plan.sm90->shape) : -1, plan.workspace_bytes};
}

std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t> weight_only_plan(int64_t M, int64_t N,
                                                                         int64_t K,
                                                                         int64_t multiprocessors) {
  int8::Linear p;
  p.M = M, p.N = N, p.K = p.group = K, p.x.dtype = DType::bf16;
  const auto plan = int8::cuda::plan_weight_only(
      p, {static_cast<uint32_t>(multiprocessors), 163 << 10, false, false});
  return {plan.tokens, plan.warps_n, plan.warps_k, plan.blocks_n, plan.blocks_m};
}

std::string comm_failure(int64_t handle) {
  const auto found = comm::cuda::Communicator::find(handle);
  check(found != nullptr, "simulator: ", handle, " is no communicator");
  return found->failure();
}

void comm_close(int64_t handle) {
  const auto found =
      std::dynamic_pointer_cast<simulator::Rank>(comm::cuda::Communicator::find(handle));
  check(found != nullptr, "simulator: ", handle, " is no communicator");
  found->close();
}

void comm_destroy(std::vector<int64_t> handles) {
  for (const int64_t handle : handles) comm::cuda::Communicator::leave(handle);
}

std::tuple<int64_t, int64_t, int64_t, int64_t> comm_plan(int64_t kind, int64_t reduction,
                                                         int64_t dtype, int64_t n, int64_t group,
                                                         int64_t world, bool nvlink, bool multicast,
                                                         std::vector<int64_t> sizes,
                                                         std::string algorithms) {
  comm::Collective c;
  c.kind = static_cast<comm::Kind>(kind);
  c.reduction = static_cast<comm::Reduction>(reduction);
  c.dtype = static_cast<DType>(dtype);
  c.n = n;
  c.group = group;
  const auto plan = comm::cuda::plan(c, {static_cast<int>(world), nvlink, multicast}, {},
                                     comm::cuda::table_of(sizes, algorithms));
  return {static_cast<int64_t>(plan.algorithm), plan.blocks, plan.threads, plan.piece};
}

// With what tiles sm_90a multiplies int8, by how many blocks, of which some split K, and whether
// tensor copies store a result of float32; shape -1: not. Of addresses and rows of x, the bytes beyond
// a multiple of 16 count.
std::tuple<int64_t, int64_t, int64_t, bool> int8_plan_sm90(int64_t M, int64_t N, int64_t K,
                                                           int64_t multiprocessors, int64_t x_at,
                                                           int64_t x_row, int64_t out_at) {
  int8::cuda::ProductSm90 product;
  product.M = M, product.N = N, product.K = K;
  product.x = reinterpret_cast<const void*>(x_at);
  product.out = reinterpret_cast<const void*>(out_at);
  product.weight_row = (K + 15) / 16 * 16;
  product.x_row = product.weight_row + x_row;
  gpu::Limits limits = {static_cast<uint32_t>(multiprocessors), 227 << 10, true, true};
  const auto plan = int8::cuda::plan_sm90(product, limits);
  if (!plan) return {-1, 0, 0, false};
  return {static_cast<int64_t>(plan->shape), plan->splits, plan->grid, plan->tensor_out};
}

}  // namespace
}  // namespace weft

STABLE_TORCH_LIBRARY(weft_simulator, m) {
  weft::norm::define_ops(m);
  weft::attention::define_ops(m);
  weft::int8::define_ops(m);
  m.def(
      "int8_plan_sm90(int M, int N, int K, int multiprocessors, int x_at=0, int x_row=0, int "
      "out_at=0) -> (int shape, int splits, int grid, bool tensor_out)");
  m.def("configure(int seed, bool late_completion, bool clusters) -> ()");
  m.def(
      "int8_plan(int M, int N, int K, int multiprocessors) -> (int tiles_m, int tiles_n, int "
      "splits, int steps, int rounds)");
  m.def(
      "int8_linear_plan(int M, int N, int K, bool outliers, int multiprocessors, bool wgmma) -> "
      "(int "
      "shape, int workspace_bytes)");
  m.def(
      "weight_only_plan(int M, int N, int K, int multiprocessors) -> (int tokens, int warps_n, int "
      "warps_k, int blocks_n, int blocks_m)");
  m.def(
      "geometry(int columns, int most) -> (int lanes, int threads, int rows, int split, int span)");
  m.def(
      "attention_plan(int B, int S, int T, int H, int K, int D, int num_splits, int "
      "multiprocessors, int total_q, int page_size, bool leftpad, bool packed_keys) -> (int "
      "kernel, int row_blocks, "
      "int splits, int split_keys, "
      "int grid, int workspace_bytes, int least, int decoding_splits)");
  m.def(
      "attention_backward_plan(int B, int S, int T, int H, int K, int D, int multiprocessors) -> "
      "(int tiles, int section, int queries)");
  m.def(
      "attention_tile(int heads, int blocks, int section, bool last_first, int round, int block, "
      "int grid) -> (int head, int block)");
}

STABLE_TORCH_LIBRARY_IMPL(weft_simulator, CPU, m) {
  weft::norm::implement_ops<weft::SimulatorNorm>(m);
  weft::attention::implement_ops<weft::SimulatorAttention>(m);
  weft::int8::implement_ops<weft::SimulatorInt8>(m);
}

STABLE_TORCH_LIBRARY(weft_simulator_unchecked, m) { weft::attention::define_ops(m); }

STABLE_TORCH_LIBRARY_IMPL(weft_simulator_unchecked, CPU, m) {
  weft::attention::implement_ops<weft::UncheckedSimulatorAttention>(m);
}

STABLE_TORCH_LIBRARY_IMPL(weft_simulator, CompositeExplicitAutograd, m) {
  m.impl("configure", TORCH_BOX(&weft::configure));
  m.impl("int8_plan", TORCH_BOX(&weft::int8_plan));
  m.impl("int8_linear_plan", TORCH_BOX(&weft::int8_linear_plan));
  m.impl("weight_only_plan", TORCH_BOX(&weft::weight_only_plan));
  m.impl("int8_plan_sm90", TORCH_BOX(&weft::int8_plan_sm90));
  m.impl("geometry", TORCH_BOX(&weft::geometry));
  m.impl("attention_plan", TORCH_BOX(&weft::attention_plan));
  m.impl("attention_backward_plan", TORCH_BOX(&weft::attention_backward_plan));
  m.impl("attention_tile", TORCH_BOX(&weft::attention_tile));
}

STABLE_TORCH_LIBRARY(weft_simulator_comm, m) {
  weft::comm::define_ops(m);
  weft::fused::define_ops(m);
  m.def(
      "create(int[] blocks, int slot_bytes, float timeout, bool nvlink, bool multicast, int[] "
      "sizes, str algorithms) -> int[]");
  m.def("destroy(int[] handles) -> ()");
  m.def("close(int handle) -> ()");
  m.def("begin() -> ()");
  m.def("run(bool whole) -> ()");
  m.def("failure(int handle) -> str");
  m.def(
      "plan(int kind, int reduction, int dtype, int n, int group, int world, bool nvlink, "
      "bool multicast, int[] sizes, str algorithms) -> (int algorithm, int blocks, int threads, "
      "int piece)");
}

STABLE_TORCH_LIBRARY_IMPL(weft_simulator_comm, CPU, m) {
  weft::comm::implement_ops<weft::SimulatorComm>(m);
  weft::fused::implement_ops<weft::SimulatorFused>(m);
}

STABLE_TORCH_LIBRARY_IMPL(weft_simulator_comm, CompositeExplicitAutograd, m) {
  m.impl("create", TORCH_BOX(&weft::simulator::create_ranks));
  m.impl("destroy", TORCH_BOX(&weft::comm_destroy));
  m.impl("close", TORCH_BOX(&weft::comm_close));
  m.impl("begin", TORCH_BOX(&weft::simulator::begin_round));
  m.impl("run", TORCH_BOX(&weft::simulator::run_round));
  m.impl("failure", TORCH_BOX(&weft::comm_failure));
  m.impl("plan", TORCH_BOX(&weft::comm_plan));
}
