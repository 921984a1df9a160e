#pragma once

#include <atomic>
#include <cstdint>

#include "core/export.h"
#include "core/function_ref.h"

// The one way in which CPU kernels use several threads. Implemented over torch's own pool
// (csrc/torch/threads.cpp), so torch.set_num_threads holds and no second pool competes with it.

namespace weft::cpu {

// How many tasks can run at once.
WEFT_API int max_threads();

// Calls task(0), …, task(tasks - 1), each once, and returns when all are done. At most
// max_threads() of them run at once; each thread takes a contiguous range. A single task, and a
// call from within a task, run on the calling thread. Where tasks throw, no further ones start, and
// one of the exceptions is thrown again here once every thread has stopped.
void parallel_for(int64_t tasks, FunctionRef<void(int64_t task)> task);

// Calls task(worker, 0), …, task(worker, tasks - 1), each once, on the first of `workers` threads
// that is free.
template <class Task>
void share_tasks(int64_t workers, int64_t tasks, const Task& task) {
  std::atomic<int64_t> next{0};
  parallel_for(workers < tasks ? workers : tasks, [&](int64_t worker) {
    for (int64_t t = next++; t < tasks; t = next++) task(worker, t);
  });
}

}  // namespace weft::cpu
