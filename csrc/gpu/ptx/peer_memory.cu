// Peer memory by way of cudaIpc. Memory is allocated here and not by torch, whose allocator may hand
// out memory that has no handle (expandable segments).
#include "gpu/peer_memory.h"

#include <cuda_runtime_api.h>

#include <cstring>
#include <utility>

#include "core/error.h"

namespace weft::gpu {
namespace {

void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // it has been told
  fail("CUDA: ", what, ": ", cudaGetErrorString(status));
}

// The capture that a stream is part of; 0: none.
unsigned long long capture_of(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long id = 0;
  check_cuda(cudaStreamGetCaptureInfo(stream, &status, &id), "cudaStreamGetCaptureInfo");
  return status == cudaStreamCaptureStatusNone ? 0 : id;
}

std::string spell(const void* data, size_t bytes) {
  constexpr const char* digits = "0123456789abcdef";
  std::string text;
  for (size_t i = 0; i < bytes; ++i) {
    const auto byte = static_cast<const unsigned char*>(data)[i];
    text += digits[byte >> 4];
    text += digits[byte & 15];
  }
  return text;
}

cudaIpcMemHandle_t handle_of(const std::string& text) {
  cudaIpcMemHandle_t handle;
  check(text.size() == 2 * sizeof handle, "weft: '", text, "' is no handle of a GPU's memory");
  const auto digit = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
  auto* bytes = reinterpret_cast<unsigned char*>(&handle);
  for (size_t i = 0; i < sizeof handle; ++i)
    bytes[i] = static_cast<unsigned char>(digit(text[2 * i]) << 4 | digit(text[2 * i + 1]));
  return handle;
}

}  // namespace

PeerMemory PeerMemory::allocate(size_t bytes) {
  PeerMemory memory;
  check_cuda(cudaMalloc(reinterpret_cast<void**>(&memory.data_), bytes), "cudaMalloc");
  return memory;
}

PeerMemory PeerMemory::open(const std::string& text) {
  PeerMemory memory;
  void* data = nullptr;
  check_cuda(cudaIpcOpenMemHandle(&data, handle_of(text), cudaIpcMemLazyEnablePeerAccess),
             "cudaIpcOpenMemHandle");
  memory.data_ = static_cast<std::byte*>(data);
  memory.opened_ = true;
  return memory;
}

PeerMemory& PeerMemory::operator=(PeerMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(opened_, other.opened_);
  return *this;
}

PeerMemory::~PeerMemory() {
  if (!data_) return;
  const cudaError_t status = opened_ ? cudaIpcCloseMemHandle(data_) : cudaFree(data_);
  if (status != cudaSuccess) cudaGetLastError();  // not the next call's
}

std::string PeerMemory::handle() const {
  cudaIpcMemHandle_t handle;
  check_cuda(cudaIpcGetMemHandle(&handle, data_), "cudaIpcGetMemHandle");
  return spell(&handle, sizeof handle);
}

HostMemory::HostMemory(size_t bytes) {
  check_cuda(cudaHostAlloc(&data_, bytes, cudaHostAllocPortable | cudaHostAllocMapped),
             "cudaHostAlloc");
  std::memset(data_, 0, bytes);
}
HostMemory::~HostMemory() {
  if (cudaFreeHost(data_) != cudaSuccess) cudaGetLastError();
}

SideStream::SideStream() {
  int least = 0, greatest = 0;
  cudaStream_t made = nullptr;
  check_cuda(cudaDeviceGetStreamPriorityRange(&least, &greatest),
             "cudaDeviceGetStreamPriorityRange");
  check_cuda(cudaStreamCreateWithPriority(&made, cudaStreamNonBlocking, greatest),
             "cudaStreamCreateWithPriority");
  stream_ = made;
}
SideStream::~SideStream() { cudaStreamDestroy(static_cast<cudaStream_t>(stream_)); }

int current_device() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

std::string device_name() {
  char name[32] = {};
  check_cuda(cudaDeviceGetPCIBusId(name, sizeof name, current_device()), "cudaDeviceGetPCIBusId");
  return name;
}

Link link_to(const std::string& name) {
  int other = 0, reaches = 0, atomics = 0;
  const int own = current_device();
  if (cudaDeviceGetByPCIBusId(&other, name.c_str()) != cudaSuccess) {
    cudaGetLastError();
    return Link::pcie;
  }
  if (other == own) return Link::nvlink;
  check_cuda(cudaDeviceCanAccessPeer(&reaches, own, other), "cudaDeviceCanAccessPeer");
  if (!reaches) return Link::none;
  // Atomics go across NVLink, and not across PCIe.
  check_cuda(cudaDeviceGetP2PAttribute(&atomics, cudaDevP2PAttrNativeAtomicSupported, own, other),
             "cudaDeviceGetP2PAttribute");
  return atomics ? Link::nvlink : Link::pcie;
}

void copy_to_device(void* to, const void* from, size_t bytes) {
  check_cuda(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
}

void synchronise_device() { check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize"); }

bool in_one_graph(Stream a, Stream b) {
  return capture_of(static_cast<cudaStream_t>(a)) == capture_of(static_cast<cudaStream_t>(b));
}

void order_streams(Stream before, Stream after) {
  const auto stream = static_cast<cudaStream_t>(after);
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
  const cudaError_t recorded = cudaEventRecord(event, static_cast<cudaStream_t>(before));
  const cudaError_t waits =
      recorded == cudaSuccess ? cudaStreamWaitEvent(stream, event, 0) : recorded;
  cudaEventDestroy(event);  // when it has happened
  check_cuda(waits, "cudaStreamWaitEvent");
}

}  // namespace weft::gpu
