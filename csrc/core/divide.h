// Division that rounds up, of numbers that are not negative.
#pragma once

#include <type_traits>

#include "core/inline.h"

namespace weft {

template <class T>
WEFT_INLINE constexpr T ceil_div(T a, std::type_identity_t<T> b) {
  return (a + b - 1) / b;
}
template <class T>
WEFT_INLINE constexpr T round_up(T a, std::type_identity_t<T> b) {
  return ceil_div(a, b) * b;
}

}  // namespace weft
