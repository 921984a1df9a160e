// The ranks of a node as a group that reduces together, as the op libraries have it: on GPUs, and in
// the simulator. Who derives from it brings the memory.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "comm/cuda/plan.h"
#include "core/function_ref.h"
#include "gpu/launch.h"

namespace weft::comm::cuda {

struct Options {
  double timeout = 30;  // seconds, of each wait of a call
  Topology topology;
  Budget budget;
  Table table;  // before weft's own rows
};

// Launches the call's kernel; kernels.cu.
void launch_collective(const Collective&, const Group&, const Plan&, gpu::Stream);

class Communicator {
 public:
  explicit Communicator(const Options& options);
  virtual ~Communicator() = default;

  // What ops know it by: the handle of the communicator on the CPU whose GPUs these are.
  int64_t handle() const { return handle_; }
  static std::shared_ptr<Communicator> find(int64_t handle);
  // From now on found by the handle, until it leaves.
  static void enter(int64_t handle, const std::shared_ptr<Communicator>& communicator);
  static void leave(int64_t handle);

  int rank() const { return group_.rank; }
  int world() const { return group_.world; }
  const Options& options() const { return options_; }

  // Puts the call into a stream and returns. Throws std::runtime_error where an earlier one is known
  // to have failed: op, call, rank, what is wrong.
  virtual void run(const Collective& collective) = 0;
  // linear_all_reduce and linear_reduce_scatter: product(tile, to, stride) puts the computation of a
  // tile into the stream. x is room for the whole product. Of some rows the product is reduced in a
  // stream of its own while that of the next is computed.
  void run_product(const Collective& collective,
                   FunctionRef<void(const Tile& tile, void* to, int64_t stride)> product);
  // What meanwhile() puts into the stream goes beside the collective; what comes later, behind both.
  void run_beside(const Collective& collective, FunctionRef<void()> meanwhile);
  // all_gather_linear, beside meanwhile(0, 1).
  void run_gather(const Collective& collective, FunctionRef<void(int64_t, int64_t)> meanwhile);
  // The same, and then what progress(n) puts into the stream.
  void run(const Collective& collective, FunctionRef<void(int64_t n)> progress) {
    run(collective);
    progress(collective.n);
  }
  // Why it has failed; empty where nothing is known of that yet.
  std::string failure() const;

 protected:
  void launch(const Collective& collective, gpu::Stream stream) const;
  // The collective in a stream of its own, behind what is in the current one by now; which waits
  // for all such in join().
  virtual void fork(const Collective& collective) = 0;
  virtual void join() = 0;

  Options options_;
  Group group_;

 private:
  int64_t handle_ = 0;
};

}  // namespace weft::comm::cuda
