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

// Converts the arguments to the parameters, of which each thread gets a copy.
template <class... Params, class... Args>
void launch_with(const LaunchConfig& config, const char* name, void (*kernel)(Params...),
                 const Args&... args) {
  const std::tuple<std::remove_cv_t<Params>...> parameters(static_cast<Params>(args)...);
  sim::run(config, name, [kernel, parameters] { std::apply(kernel, parameters); });
}

}  // namespace detail

template <auto kKernel, class... Args>
void launch(const LaunchConfig& config, const Args&... args) {
  detail::launch_with(config, detail::kernel_name<kKernel>(), kKernel, args...);
}

}  // namespace weft::gpu
