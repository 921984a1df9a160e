// check(condition, "text ", value, …): throws std::runtime_error with the bare message. The stable
// ABI turns it into a Python RuntimeError; torch's own STD_TORCH_CHECK would put function, file and
// line in front of the words meant for the user.
#pragma once

#include <sstream>
#include <stdexcept>

namespace weft {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  ((message << parts), ...);
  throw std::runtime_error(message.str());
}

template <class... Parts>
inline void check(bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]]
    fail(parts...);
}

}  // namespace weft
