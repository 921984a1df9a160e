// The simulator as its users see it: those who call kernels, not those who write them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace weft::gpu::sim {

struct Options {
  // The order in which threads run is drawn from it. 0: in turn.
  uint64_t seed = 0;
  // Asynchronous work completes as late as its wait allows, instead of at once.
  bool late_completion = false;
  // Two threads, one address, one a write, no order between them: an error.
  bool check_races = true;
  // Of the GPU, an H200 where nothing else is said. What it has no room for waits for a block to end.
  uint32_t multiprocessors = 132;
};

// Taken by launches that begin later. Not to be changed while a kernel runs.
Options& options();

// While this object lives launches wait. run() lets them go: those of a stream one after the other,
// in order, and the streams side by side, on a GPU that has room for all. For kernels that wait for
// each other, such as those of several ranks.
class Streams {
 public:
  Streams();
  ~Streams();
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;

  void run();

  struct Launches;

  // While this object lives launches do not wait, within Streams either.
  class Pause {
   public:
    Pause();
    ~Pause();
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;

   private:
    Launches* streams_;
  };

 private:
  std::unique_ptr<Launches> launches_;
};

// Memory that kernels may access while this object lives. What is known of its bytes, whether they
// have been written, stays from launch to launch. Several may overlap, as views of one storage do:
// an access must lie within one that allows it, and a byte is initialised when one says so.
class Allocation {
 public:
  enum class Rights { read, read_write };
  enum class Contents { initialised, poison };  // poison: to be written before it is read

  Allocation(const void* data, size_t bytes, Rights rights, Contents contents);
  Allocation(Allocation&&) noexcept;
  Allocation& operator=(Allocation&&) noexcept;
  ~Allocation();

  // Has every byte been written?
  bool written() const;

  struct Record;

 private:
  std::unique_ptr<Record> record_;
};

// A range of multicast addresses while this object lives: `bytes` bytes from `address` on, which
// need not be memory, stand for as many in each of the replicas, which are allocations.
class Multicast {
 public:
  Multicast(const void* address, size_t bytes, std::vector<void*> replicas);
  Multicast(const Multicast&) = delete;
  Multicast& operator=(const Multicast&) = delete;
  ~Multicast();

  const std::byte* const address;
  const size_t bytes;
  const std::vector<void*> replicas;
};

}  // namespace weft::gpu::sim
