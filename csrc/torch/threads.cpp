#include "cpu/threads.h"

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <exception>

namespace weft::cpu {

int max_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

void parallel_for(int64_t tasks, FunctionRef<void(int64_t)> task) {
  if (tasks <= 0) return;
  if (tasks == 1) return task(0);
  // An exception may cross neither the OpenMP region nor torch's C interface, which would lose its
  // message.
  std::exception_ptr error;
  std::atomic<bool> failed{false};
  torch::stable::parallel_for(0, tasks, /*grain_size=*/1, [&](int64_t begin, int64_t end) {
    try {
      for (int64_t i = begin; i < end && !failed.load(std::memory_order_relaxed); ++i) task(i);
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace weft::cpu
