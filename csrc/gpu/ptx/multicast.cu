// Multicast memory by the driver's virtual memory management, whose functions the runtime looks up:
// nothing links to libcuda.
#include "gpu/multicast.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <exception>
#include <utility>

#include "core/error.h"

namespace weft::gpu {
namespace {

// The driver's function of that name, as CUDA `version` has it.
template <class F>
F* driver(const char* name, unsigned version) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t status =
      cudaGetDriverEntryPointByVersion(name, &function, version, cudaEnableDefault, &found);
  check(status == cudaSuccess && found == cudaDriverEntryPointSuccess, "CUDA: the driver has no ",
        name);
  return reinterpret_cast<F*>(function);
}

template <class F, class... Args>
void call(const char* name, unsigned version, Args... args) {
  const CUresult result = driver<F>(name, version)(args...);
  check(result == CUDA_SUCCESS, "CUDA: ", name, ": error ", static_cast<int>(result));
}
#define WEFT_DRIVER(version, name, ...) call<decltype(name)>(#name, version, __VA_ARGS__)

constexpr unsigned kVirtualMemory = 10020, kMulticast = 12010;  // the CUDA that they came with
constexpr CUmemAllocationHandleType kDescriptor = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;

int device() {
  int current = 0;
  check(cudaGetDevice(&current) == cudaSuccess && cudaFree(nullptr) == cudaSuccess,
        "CUDA: no current device");
  return current;
}

CUmemAllocationProp memory_of(int of) {
  CUmemAllocationProp prop{};
  prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  prop.requestedHandleTypes = kDescriptor;
  prop.location = {CU_MEM_LOCATION_TYPE_DEVICE, of};
  return prop;
}

CUmulticastObjectProp object_of(size_t bytes, int devices) {
  CUmulticastObjectProp prop{};
  prop.numDevices = static_cast<unsigned>(devices);
  prop.size = bytes;
  prop.handleTypes = kDescriptor;
  return prop;
}

}  // namespace

bool has_multicast() {
  int value = 0;
  WEFT_DRIVER(kVirtualMemory, cuDeviceGetAttribute, &value, CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED,
              device());
  return value != 0;
}

size_t multicast_bytes(size_t bytes, int devices) {
  size_t memory = 0, object = 0;
  const CUmemAllocationProp prop = memory_of(device());
  WEFT_DRIVER(kVirtualMemory, cuMemGetAllocationGranularity, &memory, &prop,
              CU_MEM_ALLOC_GRANULARITY_MINIMUM);
  const CUmulticastObjectProp shared = object_of(bytes, devices);
  WEFT_DRIVER(kMulticast, cuMulticastGetGranularity, &object, &shared,
              CU_MULTICAST_GRANULARITY_MINIMUM);
  const size_t unit = memory > object ? memory : object;  // powers of two
  return (bytes + unit - 1) / unit * unit;
}

Shareable Shareable::allocate(size_t bytes) {
  Shareable made;
  made.device_ = device();
  const CUmemAllocationProp prop = memory_of(made.device_);
  CUmemGenericAllocationHandle handle = 0;
  WEFT_DRIVER(kVirtualMemory, cuMemCreate, &handle, bytes, &prop, 0ULL);
  made.handle_ = handle;
  made.bytes_ = bytes;
  return made;
}

Shareable Shareable::multicast(size_t bytes, int devices) {
  Shareable made;
  made.device_ = device();
  const CUmulticastObjectProp prop = object_of(bytes, devices);
  CUmemGenericAllocationHandle handle = 0;
  WEFT_DRIVER(kMulticast, cuMulticastCreate, &handle, &prop);
  made.handle_ = handle;
  made.bytes_ = bytes;
  return made;
}

Shareable Shareable::open(int descriptor, size_t bytes) {
  Shareable made;
  made.device_ = device();
  CUmemGenericAllocationHandle handle = 0;
  WEFT_DRIVER(kVirtualMemory, cuMemImportFromShareableHandle, &handle,
              reinterpret_cast<void*>(static_cast<uintptr_t>(descriptor)), kDescriptor);
  made.handle_ = handle;
  made.bytes_ = bytes;
  return made;
}

Shareable& Shareable::operator=(Shareable&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(handle_, other.handle_);
  std::swap(bound_, other.bound_);
  std::swap(device_, other.device_);
  return *this;
}

// Errors of a context that is going away are nobody's business.
Shareable::~Shareable() {
  if (!bytes_) return;
  try {
    const auto address = reinterpret_cast<CUdeviceptr>(data_);
    if (data_) {
      WEFT_DRIVER(kVirtualMemory, cuMemUnmap, address, bytes_);
      WEFT_DRIVER(kVirtualMemory, cuMemAddressFree, address, bytes_);
    }
    if (bound_) WEFT_DRIVER(kMulticast, cuMulticastUnbind, handle_, device_, size_t{0}, bytes_);
    WEFT_DRIVER(kVirtualMemory, cuMemRelease, handle_);
  } catch (const std::exception&) {
  }
}

int Shareable::descriptor() const {
  int descriptor = -1;
  WEFT_DRIVER(kVirtualMemory, cuMemExportToShareableHandle, &descriptor, handle_, kDescriptor,
              0ULL);
  return descriptor;
}

void Shareable::map() {
  CUdeviceptr address = 0;
  WEFT_DRIVER(kVirtualMemory, cuMemAddressReserve, &address, bytes_, size_t{0}, CUdeviceptr{0},
              0ULL);
  WEFT_DRIVER(kVirtualMemory, cuMemMap, address, bytes_, size_t{0}, handle_, 0ULL);
  data_ = reinterpret_cast<std::byte*>(address);
  CUmemAccessDesc access{};
  access.location = {CU_MEM_LOCATION_TYPE_DEVICE, device_};
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  WEFT_DRIVER(kVirtualMemory, cuMemSetAccess, address, bytes_, &access, size_t{1});
}

void Shareable::add_device() { WEFT_DRIVER(kMulticast, cuMulticastAddDevice, handle_, device_); }

void Shareable::bind(const Shareable& memory) {
  WEFT_DRIVER(kMulticast, cuMulticastBindMem, handle_, size_t{0}, memory.handle_, size_t{0}, bytes_,
              0ULL);
  bound_ = true;
}

}  // namespace weft::gpu
