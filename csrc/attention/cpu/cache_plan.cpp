// Splits the family's small ops over threads, for the kernels of the current ISA level.
#include "attention/cpu/attention.h"

#include <algorithm>

#include "attention/cpu/cache.h"
#include "cpu/levels.h"
#include "cpu/threads.h"

namespace weft::attention::cpu {

WEFT_CPU_TABLE(CacheKernels, cache_kernels)

namespace {

constexpr int64_t kGrain = 32768;  // elements that are worth another thread

template <class Params>
void split(const Params& p, int64_t rows, int64_t row_elements,
           void (*kernel)(const Params&, int64_t begin, int64_t end)) {
  const int64_t most = std::min<int64_t>(::weft::cpu::max_threads(), rows);
  const int64_t tasks =
      std::clamp<int64_t>(rows * row_elements / kGrain, 1, std::max<int64_t>(most, 1));
  ::weft::cpu::parallel_for(
      tasks, [&](int64_t task) { kernel(p, rows * task / tasks, rows * (task + 1) / tasks); });
}

}  // namespace

void append(const Append& p) {
  split(p, p.cu_new ? p.S : p.B * p.S, p.K * (p.D + p.Dv), cache_kernels().append);
}
void rotary(const Rotary& p) {
  split(p, p.cu_seqlens ? p.S : p.B * p.S, p.H * p.D, cache_kernels().rotary);
}
void merge(const Merge& p) { split(p, p.B * p.S, p.P * p.H * p.Dv, cache_kernels().merge); }

}  // namespace weft::attention::cpu
