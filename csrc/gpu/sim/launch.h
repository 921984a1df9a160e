// Launching in the simulator: the kernel is a function, called once for each thread.
#pragma once

#include <tuple>
#include <type_traits>

#include "gpu/launch.h"
#include "gpu/sim/engine.h"

namespace weft::gpu {

namespace detail {
template <auto kKernel>
constexpr const char* kernel_name() {
  return __PRETTY_FUNCTION__;  // "… [with auto kKernel = row_sum_kernel<float>]"
}

template <class... Params>
std::tuple<std::remove_cv_t<Params>...> parameters_of(void (*)(Params...));
}  // namespace detail

template <auto kKernel, class... Args>
void launch(const LaunchConfig& config, const Args&... args) {
  using Parameters = decltype(detail::parameters_of(kKernel));
  const Parameters parameters(static_cast<const Args&>(args)...);
  sim::run(config, detail::kernel_name<kKernel>(), [&] { std::apply(kKernel, parameters); });
}

}  // namespace weft::gpu
