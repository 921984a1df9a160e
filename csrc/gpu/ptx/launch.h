// Launching through the CUDA runtime.
#pragma once

#include <cuda_runtime.h>

#include "core/error.h"
#include "gpu/launch.h"

namespace weft::gpu {

namespace detail {

template <auto kKernel>
constexpr const char* kernel_name() {
  return __PRETTY_FUNCTION__;  // "… [with auto kKernel = row_sum_kernel<float>]"
}

inline void check_cuda(cudaError_t status, const char* what, const char* kernel) {
  check(status == cudaSuccess, "CUDA: ", what, " of ", kernel, ": ", cudaGetErrorString(status));
}

// Programmatic dependent launch came with sm_90.
inline bool has_dependent_launch() {
  int device = 0, major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  return major >= 9;
}

// Converts the arguments to the parameters, which cudaLaunchKernelEx takes as they are.
template <class... Params, class... Args>
cudaError_t launch_with(const cudaLaunchConfig_t& config, void (*kernel)(Params...),
                        const Args&... args) {
  return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

}  // namespace detail

template <auto kKernel, class... Args>
void launch(const LaunchConfig& c, const Args&... args) {
  const char* name = detail::kernel_name<kKernel>();
  constexpr uint32_t kAlwaysShared = 48 << 10, kPortableCluster = 8;
  if (c.shared_bytes > kAlwaysShared)
    detail::check_cuda(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            static_cast<int>(c.shared_bytes)),
                       "shared memory", name);
  if (c.cluster.count() > kPortableCluster)
    detail::check_cuda(
        cudaFuncSetAttribute(kKernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cluster",
        name);

  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = {c.grid.x, c.grid.y, c.grid.z};
  config.blockDim = {c.block, 1, 1};
  config.dynamicSmemBytes = c.shared_bytes;
  config.stream = static_cast<cudaStream_t>(c.stream);
  config.attrs = attributes;
  if (c.cluster.count() > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {c.cluster.x, c.cluster.y, c.cluster.z};
  }
  if (c.dependent && detail::has_dependent_launch()) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  detail::check_cuda(detail::launch_with(config, kKernel, args...), "launch", name);
}

}  // namespace weft::gpu
