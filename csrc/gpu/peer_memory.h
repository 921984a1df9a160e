// Memory of a GPU that other GPUs, and other processes, reach; for the host. "Device" is the current
// one. What fails throws, in the CUDA runtime's words.
#pragma once

#include <cstddef>
#include <string>

#include "gpu/launch.h"

namespace weft::gpu {

// A piece of a GPU's memory, this process's or another's.
class PeerMemory {
 public:
  PeerMemory() = default;
  static PeerMemory allocate(size_t bytes);
  // What handle() has said in another process, which must not free it before this one is done.
  static PeerMemory open(const std::string& handle);
  PeerMemory(PeerMemory&& other) noexcept { *this = std::move(other); }
  PeerMemory& operator=(PeerMemory&& other) noexcept;
  ~PeerMemory();

  std::byte* data() const { return data_; }
  // In letters and digits.
  std::string handle() const;

 private:
  std::byte* data_ = nullptr;
  bool opened_ = false;
};

// Memory of the host that kernels write to, zeroed.
class HostMemory {
 public:
  explicit HostMemory(size_t bytes);
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;
  ~HostMemory();

  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

// A stream of the device's that goes before others where both could.
class SideStream {
 public:
  SideStream();
  SideStream(const SideStream&) = delete;
  SideStream& operator=(const SideStream&) = delete;
  ~SideStream();

  Stream stream() const { return stream_; }

 private:
  Stream stream_ = nullptr;
};

int current_device();
// By which another process finds the device.
std::string device_name();

enum class Link { none, pcie, nvlink };
// From the device to another, by its name. nvlink also to itself. A device that this process does not
// see counts as one by PCIe: opening its memory will tell.
Link link_to(const std::string& device_name);

// From the host, at once.
void copy_to_device(void* to, const void* from, size_t bytes);
void synchronise_device();
// Both are captured into one graph, or neither into any.
bool in_one_graph(Stream a, Stream b);
// What comes into `after` from now on waits for all that is in `before`. Where that is captured into a
// graph, so is `after` from here on.
void order_streams(Stream before, Stream after);

}  // namespace weft::gpu
