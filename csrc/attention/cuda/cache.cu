// Launches the kernels of cache.h.
#include "attention/cuda/cache.h"

#include "attention/cuda/attention.h"
#include "attention/cuda/launch.h"
#include "attention/cuda/plan.h"

namespace weft::attention::cuda {
namespace {

// f(X{}, vector) for the dtype and, both compile-time, whether rows are vectors.
template <class F>
void with_kernel(DType x, bool vector, const F& f) {
  const auto with_vector = [&](auto type) {
    if (vector)
      f(type, std::true_type{});
    else
      f(type, std::false_type{});
  };
  if (x == DType::bf16)
    with_vector(bf16{});
  else if (x == DType::f16)
    with_vector(f16{});
  else
    with_vector(float{});
}

gpu::LaunchConfig config(int64_t tasks, int64_t each, const Device& device) {
  return {.grid = {grid_size(ceil_div<int64_t>(tasks, each))},
          .block = kCacheThreads,
          .stream = device.stream};
}

constexpr int64_t kWarps = kCacheThreads / kWarp;

int64_t unit_of(DType dtype) { return static_cast<int64_t>(16 / size_of(dtype)); }

}  // namespace

void append(const Append& p, const Device& device) {
  const int64_t rows = p.cu_new ? p.S : p.B * p.S, unit = unit_of(p.k.dtype);
  if (rows == 0) return;
  bool vector = p.D % unit == 0 && p.Dv % unit == 0;
  for (const Heads* t : {&p.k, &p.v, &p.k_cache, &p.v_cache}) vector = vector && is_vector(*t);
  with_kernel(p.k.dtype, vector, [&](auto x, auto is_vec) {
    launch<append_kernel<decltype(x), decltype(is_vec)::value>>(config(rows * p.K, kWarps, device),
                                                                p, rows);
  });
}

void rotary(const Rotary& p, const Device& device) {
  const int64_t rows = p.cu_seqlens ? p.total : p.B * p.S, unit = unit_of(p.x.dtype);
  const auto table = reinterpret_cast<uintptr_t>(p.cos) | reinterpret_cast<uintptr_t>(p.sin);
  const bool vector = p.R / 2 % unit == 0 && p.D % unit == 0 && is_vector(p.x) &&
                      is_vector(p.out) && table % 16 == 0;
  const int64_t units = (p.R / 2 + p.D - p.R) / (vector ? unit : 1);
  if (rows * p.H * units == 0) return;
  with_kernel(p.x.dtype, vector, [&](auto x, auto is_vec) {
    launch<rotary_kernel<decltype(x), decltype(is_vec)::value>>(
        config(rows * p.H * units, kCacheThreads, device), p, rows);
  });
}

void merge(const Merge& p, const Device& device) {
  const int64_t rows = p.B * p.S * p.H, unit = unit_of(p.out.dtype);
  if (rows == 0) return;
  const bool vector = p.Dv % unit == 0 && p.part % unit == 0 && is_vector(p.parts);
  with_kernel(p.out.dtype, vector, [&](auto x, auto is_vec) {
    launch<merge_kernel<decltype(x), decltype(is_vec)::value>>(config(rows, kWarps, device), p);
  });
}

}  // namespace weft::attention::cuda
