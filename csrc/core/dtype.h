// Element types, as plain C++ sees them: storage structs for the 16-bit floats and a run-time tag.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/inline.h"

namespace weft {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

enum class DType : uint8_t { f64, f32, bf16, f16, i64, i32, i8, u8, boolean, other };

// A nibble each, the first lowest: a table would be built on the stack.
WEFT_INLINE constexpr size_t size_of(DType t) {
  return 0x0111482248 >> (4 * static_cast<int>(t)) & 15;
}

WEFT_INLINE constexpr const char* name_of(DType t) {
  constexpr const char* names[] = {"float64", "float32", "bfloat16", "float16", "int64",
                                   "int32",   "int8",    "uint8",    "bool",    "another dtype"};
  return names[static_cast<size_t>(t)];
}

WEFT_INLINE constexpr bool is_float(DType t) { return t <= DType::f16; }

// The type that a kernel on T accumulates in, and whose statistics it saves.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using acc_t = typename Accumulator<T>::type;

WEFT_INLINE constexpr DType acc_of(DType t) { return t == DType::f64 ? DType::f64 : DType::f32; }

// The type behind a tag: f(T{}) for a floating tag. Nothing else may reach it: ops.h has checked.
template <class F>
WEFT_INLINE decltype(auto) with_float_type(DType t, F&& f) {
  switch (t) {
    case DType::f64:
      return f(double{});
    case DType::bf16:
      return f(bf16{});
    case DType::f16:
      return f(f16{});
    default:
      return f(float{});
  }
}

}  // namespace weft
