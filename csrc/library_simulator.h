// What the families of the simulated library share: the device, and the memory of a call.
#pragma once

#include <cstdint>
#include <vector>

#include "core/dtype.h"
#include "core/error.h"
#include "gpu/device.h"
#include "gpu/sim/simulator.h"
#include "torch/tensor.h"

namespace weft::simulator {

namespace sim = gpu::sim;

// Small, so that persistent blocks take several rows; with clusters as sm_90 or without as sm_80.
inline gpu::Limits& limits() {
  static gpu::Limits instance = {4, 227 << 10, true, true};
  return instance;
}

// A backend on CPU tensors, but for its functions.
struct Backend {
  static constexpr const char* name = "cpu";
  static constexpr const char* dtypes = "float32, bfloat16 or float16 (on CUDA)";
  static bool has(const Tensor& t) { return t.is_cpu(); }
  static bool has(const Tensor& t, const Tensor&) { return t.is_cpu(); }
  static bool takes(DType dtype) { return is_float(dtype) && dtype != DType::f64; }
  static constexpr bool kHostMemory = true;
  struct Guard {
    explicit Guard(const Tensor&) {}
  };
  static void prepare(void*, int64_t) {}
};

// What a call may touch: every tensor, in its own bounds and rights.
class Memory {
 public:
  void input(const void* data, DType dtype, int64_t count) { add(data, dtype, count, false); }
  void output(const void* data, DType dtype, int64_t count) { add(data, dtype, count, true); }
  // May be written in part: what was there before counts.
  void update(const void* data, DType dtype, int64_t count) {
    if (data && count > 0)
      inputs_.emplace_back(data, bytes(dtype, count), sim::Allocation::Rights::read_write,
                           sim::Allocation::Contents::initialised);
  }
  // May be used in part, and holds nothing.
  void workspace(const void* data, int64_t count) {
    if (data && count > 0)
      inputs_.emplace_back(data, bytes(DType::u8, count), sim::Allocation::Rights::read_write,
                           sim::Allocation::Contents::poison);
  }

  // Has all been written that was to be?
  void check_written() const {
    for (const sim::Allocation& output : outputs_)
      check(output.written(), "simulator: the kernel has left parts of a result unwritten");
  }

 private:
  static size_t bytes(DType dtype, int64_t count) {
    return static_cast<size_t>(count) * size_of(dtype);
  }
  void add(const void* data, DType dtype, int64_t count, bool writes) {
    if (!data || count <= 0) return;
    auto& list = writes ? outputs_ : inputs_;
    list.emplace_back(
        data, bytes(dtype, count),
        writes ? sim::Allocation::Rights::read_write : sim::Allocation::Rights::read,
        writes ? sim::Allocation::Contents::poison : sim::Allocation::Contents::initialised);
  }

  std::vector<sim::Allocation> inputs_, outputs_;
};

}  // namespace weft::simulator
