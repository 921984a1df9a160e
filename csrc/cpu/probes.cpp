#include "cpu/probes.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <initializer_list>
#include <vector>

#include "core/error.h"
#include "cpu/isa.h"
#include "cpu/levels.h"
#include "cpu/memory.h"
#include "cpu/threads.h"

namespace weft::cpu {

WEFT_CPU_TABLE(ProbeLoops, probe_loops)

namespace {

// Memory straight from the system, which no allocator has touched.
class FreshMemory {
 public:
  FreshMemory(size_t bytes, bool huge_pages) : bytes_(bytes) {
    address_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(address_ != MAP_FAILED, "weft: the probe of this machine could not get ", bytes,
          " bytes of memory");
    if (huge_pages) advise_huge_pages(address_, bytes);
#if defined(__linux__)
    if (!huge_pages) madvise(address_, bytes, MADV_NOHUGEPAGE);
#endif
  }
  ~FreshMemory() { munmap(address_, bytes_); }
  FreshMemory(const FreshMemory&) = delete;
  FreshMemory& operator=(const FreshMemory&) = delete;

  char* data() const { return static_cast<char*>(address_); }
  size_t bytes() const { return bytes_; }

 private:
  void* address_;
  size_t bytes_;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

template <class F>
double seconds(F&& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return seconds_since(start);
}

// Sorted times of several rounds, fewer on a machine where they take long; `round` returns its
// seconds, so that it may leave its preparations out. A limit is taken from the best round, as
// STREAM does: whatever else the machine is doing can only slow a round down. What varies by itself
// is taken from the median.
struct Times {
  std::vector<double> sorted;
  double best() const { return sorted.front(); }
  double median() const { return sorted[sorted.size() / 2]; }
};
template <class F>
Times rounds(F&& round) {
  constexpr size_t kFewest = 3, kMost = 9;
  constexpr double kSeconds = 0.15;
  Times times;
  const auto start = std::chrono::steady_clock::now();
  while (times.sorted.size() < kFewest ||
         (times.sorted.size() < kMost && seconds_since(start) < kSeconds)) {
    times.sorted.push_back(round());
  }
  std::sort(times.sorted.begin(), times.sorted.end());
  return times;
}

// Splits [0, bytes) over the threads in whole blocks and returns the seconds that run(begin, bytes)
// took on all.
template <class F>
double seconds_split(int threads, size_t bytes, F&& run) {
  const size_t blocks = bytes / kProbeBlock;
  return seconds([&] {
    parallel_for(threads, [&](int64_t t) {
      const size_t begin = blocks * t / threads, end = blocks * (t + 1) / threads;
      run(begin * kProbeBlock, (end - begin) * kProbeBlock);
    });
  });
}

double operations_per_s(int threads, const ProbeLoops::Arithmetic& loop) {
  if (!loop.run) return 0;
  // As many iterations as take one thread some milliseconds, in which the vector units and the
  // clock wake up as well.
  int64_t iterations = 1 << 12;
  const auto alone = [&] { return seconds([&] { loop.run(iterations); }); };
  while (std::min({alone(), alone(), alone()}) < 2e-3) iterations *= 2;
  const Times times = rounds([&] {
    return seconds([&] { parallel_for(threads, [&](int64_t) { loop.run(iterations); }); });
  });
  return loop.operations * static_cast<double>(iterations) * threads / times.best();
}

double touch_bytes_per_s(int threads, bool huge_pages) {
  constexpr size_t kBytes = size_t{64} << 20;
  const Times times = rounds([&] {
    const FreshMemory memory(kBytes, huge_pages);
    return seconds_split(threads, kBytes, [&](size_t begin, size_t bytes) {
      probe_loops().fill(memory.data() + begin, bytes);
    });
  });
  return kBytes / times.median();
}

// Four times the last-level cache, within what can be spared.
size_t large_buffer_bytes() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
  const size_t cache = std::max(0L, sysconf(_SC_LEVEL3_CACHE_SIZE));
#else
  const size_t cache = 0;
#endif
  const size_t physical =
      static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t bytes = std::clamp(4 * cache, size_t{128} << 20, size_t{1} << 30);
  return std::min(bytes, physical / 16) / kProbeBlock * kProbeBlock;
}

void check_threads(int threads) {
  check(1 <= threads && threads <= max_threads(), "weft: a probe cannot run on ", threads,
        " threads, expected 1 to ", max_threads(), " (torch.get_num_threads())");
}

void check_blocks(const char* probe, std::initializer_list<const void*> addresses, size_t bytes) {
  bool whole = bytes % kProbeBlock == 0;
  for (const void* address : addresses)
    whole &= reinterpret_cast<uintptr_t>(address) % kProbeBlock == 0;
  check(whole, "weft: ", probe, " takes whole blocks of ", kProbeBlock,
        " bytes, at addresses that are multiples of it");
}

}  // namespace

MemoryBandwidth measure_memory_bandwidth(int threads) {
  check_threads(threads);
  const ProbeLoops& loops = probe_loops();
  MemoryBandwidth bandwidth;
  bandwidth.touch_small_pages = touch_bytes_per_s(threads, /*huge_pages=*/false);
  bandwidth.touch_huge_pages = touch_bytes_per_s(threads, /*huge_pages=*/true);

  const FreshMemory from(large_buffer_bytes(), /*huge_pages=*/true),
      to(from.bytes(), /*huge_pages=*/true);
  const auto fill = [&](const FreshMemory& memory) {
    return seconds_split(threads, memory.bytes(), [&](size_t begin, size_t bytes) {
      loops.fill(memory.data() + begin, bytes);
    });
  };
  const auto read = [&] {
    return seconds_split(threads, from.bytes(), [&](size_t begin, size_t bytes) {
      loops.read(from.data() + begin, bytes);
    });
  };
  const auto copy = [&] {
    return seconds_split(threads, from.bytes(), [&](size_t begin, size_t bytes) {
      loops.copy(to.data() + begin, from.data() + begin, bytes);
    });
  };
  fill(from);
  fill(to);
  const auto bytes = static_cast<double>(from.bytes());
  bandwidth.read = bytes / rounds(read).best();
  bandwidth.copy = 2 * bytes / rounds(copy).best();
  return bandwidth;
}

void stream_copy(void* to, const void* from, size_t bytes, int threads) {
  check_threads(threads);
  check_blocks("stream_copy", {to, from}, bytes);
  seconds_split(threads, bytes, [&](size_t begin, size_t count) {
    probe_loops().copy(static_cast<char*>(to) + begin, static_cast<const char*>(from) + begin,
                       count);
  });
}

void stream_read(const void* from, size_t bytes, int threads) {
  check_threads(threads);
  check_blocks("stream_read", {from}, bytes);
  seconds_split(threads, bytes, [&](size_t begin, size_t count) {
    probe_loops().read(static_cast<const char*>(from) + begin, count);
  });
}

void run_operations(std::string_view kind, double operations, int threads) {
  check_threads(threads);
  const ProbeLoops& loops = probe_loops();
  const bool known = kind == "fp32" || kind == "bf16" || kind == "int8";
  const ProbeLoops::Arithmetic& loop = kind == "bf16"   ? loops.bf16
                                       : kind == "int8" ? loops.int8
                                                        : loops.fp32;
  check(known && loop.run, "weft: run_operations has no ", kind, " at this level");
  const auto iterations = static_cast<int64_t>(operations / threads / loop.operations) + 1;
  parallel_for(threads, [&](int64_t) { loop.run(iterations); });
}

Peaks measure_peaks(int threads) {
  check_threads(threads);
  const ProbeLoops& loops = probe_loops();
  return {operations_per_s(threads, loops.fp32), operations_per_s(threads, loops.bf16),
          operations_per_s(threads, loops.int8)};
}

double measure_fork_join(int threads) {
  check_threads(threads);
  constexpr int kCalls = 200;
  const Times times = rounds([&] {
    return seconds([&] {
      for (int i = 0; i < kCalls; ++i) parallel_for(threads, [](int64_t) {});
    });
  });
  return times.median() / kCalls;
}

}  // namespace weft::cpu
