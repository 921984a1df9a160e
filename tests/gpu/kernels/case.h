// How a test kernel is called: torch.ops.weft_gpu_tests.run(name, inputs, inouts, outputs, numbers)
// finds the case of that name, which launches the kernel.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/error.h"
#include "gpu/gpu.h"

namespace weft::gpu::tests {

struct Array {
  void* data;
  int64_t count;  // elements

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

struct Call {
  std::vector<Array> inputs;   // read-only
  std::vector<Array> inouts;   // initialised
  std::vector<Array> outputs;  // poisoned
  std::vector<int64_t> numbers;
  Stream stream;
};

using Case = void (*)(const Call&);

inline std::map<std::string, Case>& cases() {
  static std::map<std::string, Case> instance;
  return instance;
}

// `const Register row_sum("row_sum", [](const Call& call) { … });`
struct Register {
  Register(const char* name, Case run) { cases()[name] = run; }
};

}  // namespace weft::gpu::tests
