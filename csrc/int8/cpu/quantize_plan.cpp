// Splits quantisation over threads by rows, for the kernels of the current ISA level.
#include <algorithm>
#include <cstring>

#include "cpu/levels.h"
#include "cpu/threads.h"
#include "int8/cpu/int8.h"
#include "int8/cpu/kernels.h"

namespace weft::int8::cpu {

WEFT_CPU_TABLE(QuantizeKernels, quantize_kernels)

namespace {

constexpr int64_t kGrain = 32768;  // elements that are worth another thread

struct Plan {
  int64_t tasks, scratch_bytes;
  bool shared;  // scales that rows share have yet to be found
  int64_t extremes_bytes, total;

  explicit Plan(const Quantize& p)
      : tasks(std::clamp<int64_t>(
            p.N * p.C / kGrain, 1,
            std::max<int64_t>(std::min<int64_t>(::weft::cpu::max_threads(), p.N), 1))),
        scratch_bytes(row_floats(p.C) * (p.transposed ? 4 + kWaitingRows : 4)),
        shared(p.dynamic && p.grid.row == 0),
        extremes_bytes(shared ? p.scales * static_cast<int64_t>(sizeof(Extremes)) : 0),
        total(tasks * (scratch_bytes + extremes_bytes)) {}
};

}  // namespace

int64_t workspace_bytes(const Quantize& p) { return Plan(p).total; }

void quantize(const Quantize& p) {
  const Plan plan(p);
  char* const scratch = static_cast<char*>(p.workspace);
  auto* const extremes = reinterpret_cast<Extremes*>(scratch + plan.tasks * plan.scratch_bytes);
  const auto split = [&](auto&& run) {
    ::weft::cpu::parallel_for(plan.tasks, [&](int64_t task) {
      run(task, p.N * task / plan.tasks, p.N * (task + 1) / plan.tasks,
          reinterpret_cast<float*>(scratch + task * plan.scratch_bytes));
    });
  };
  Quantize rounding = p;
  if (plan.shared) {
    std::memset(static_cast<void*>(extremes), 0,
                static_cast<size_t>(plan.tasks * plan.extremes_bytes));
    split([&](int64_t task, int64_t begin, int64_t end, float* t) {
      quantize_kernels().extremes(p, begin, end, t, extremes + task * p.scales);
    });
    for (int64_t i = 0; i < p.scales; ++i) {
      for (int64_t task = 1; task < plan.tasks; ++task)
        extremes[i].add(extremes[task * p.scales + i]);
      const Scale s(extremes[i], p.symmetric);
      p.scale[i] = s.scale;
      if (p.zero_point) p.zero_point[i] = s.zero_point;
    }
    rounding.dynamic = false;
  }
  split([&](int64_t, int64_t begin, int64_t end, float* t) {
    quantize_kernels().rows(rounding, begin, end, t);
  });
}

void dequantize(const Dequantize& p) {
  const int64_t tasks =
      std::clamp<int64_t>(p.N * p.C / kGrain, 1,
                          std::max<int64_t>(std::min<int64_t>(::weft::cpu::max_threads(), p.N), 1));
  ::weft::cpu::parallel_for(tasks, [&](int64_t task) {
    quantize_kernels().dequantize(p, p.N * task / tasks, p.N * (task + 1) / tasks);
  });
}

}  // namespace weft::int8::cpu
