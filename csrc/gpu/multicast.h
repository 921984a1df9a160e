// Memory of several GPUs behind one address, and the kind of memory that can lie there; for the host.
// Between processes it goes by file descriptors, which a process sends to another over a socket.
// "Device" is the current one. What fails throws, with the driver's error.
#pragma once

#include <cstddef>
#include <cstdint>

namespace weft::gpu {

// sm_90 with NVSwitch.
bool has_multicast();
// `bytes`, rounded up to what multicast memory of so many devices is made of.
size_t multicast_bytes(size_t bytes, int devices);

// An allocation, or a multicast object, with addresses of its own once it is mapped.
class Shareable {
 public:
  Shareable() = default;
  Shareable(Shareable&& other) noexcept { *this = static_cast<Shareable&&>(other); }
  Shareable& operator=(Shareable&& other) noexcept;
  ~Shareable();

  // Memory of the device. bytes as from multicast_bytes, here and below.
  static Shareable allocate(size_t bytes);
  // One address for the memory of so many devices.
  static Shareable multicast(size_t bytes, int devices);
  // What descriptor() of another process stands for. The caller closes it.
  static Shareable open(int descriptor, size_t bytes);

  // The caller closes it.
  int descriptor() const;
  void map();
  std::byte* data() const { return data_; }

  // Of a multicast object: this device takes part; and, once all do, with this memory.
  void add_device();
  void bind(const Shareable& memory);

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  uint64_t handle_ = 0;
  bool bound_ = false;
  int device_ = 0;
};

}  // namespace weft::gpu
