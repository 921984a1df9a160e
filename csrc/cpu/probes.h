#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/export.h"

// What this machine can do at most, measured: the limits that benchmarks set their times against.
// The loops are the plainest that reach a limit, at the level isa_current(), on torch's own
// threads.

namespace weft::cpu {

constexpr size_t kProbeBlock = 4096;

// Bytes per second.
struct MemoryBandwidth {
  // Over buffers several times the last-level cache, in huge pages where the system gives them.
  double read;
  double copy;  // bytes read plus bytes written; streaming stores
  // Writing memory that the system has just handed out, for the first time.
  double touch_small_pages;
  double touch_huge_pages;
};

// Operations per second, register to register; a multiplication and an addition count as two. 0
// where the level has no such instruction.
struct Peaks {
  double fp32;
  double bf16;  // pairs of bf16 products added to fp32: VDPBF16PS
  double int8;  // quadruples of 8-bit products added to int32: VPDPBUSD
};

// Each measures with `threads` threads, 1 <= threads <= max_threads(), in about half a second.
WEFT_API MemoryBandwidth measure_memory_bandwidth(int threads);
WEFT_API Peaks measure_peaks(int threads);
// What `copy` and `read` are measured with, to be timed beside other work: whole blocks of
// kProbeBlock bytes, at addresses that are multiples of it.
WEFT_API void stream_copy(void* to, const void* from, size_t bytes, int threads);
WEFT_API void stream_read(const void* from, size_t bytes, int threads);
// The same for the peaks, `kind` being fp32, bf16 or int8: at least as many operations.
WEFT_API void run_operations(std::string_view kind, double operations, int threads);
// Seconds that an empty parallel_for over these threads takes.
WEFT_API double measure_fork_join(int threads);

// One level's loops, from probes_level.cpp. Where a level has no instruction for it, `run` is null.
struct ProbeLoops {
  struct Arithmetic {
    void (*run)(int64_t iterations);
    double operations;  // in an iteration
  };
  Arithmetic fp32, bf16, int8;
  // Whole blocks of kProbeBlock bytes, at addresses that are multiples of it.
  void (*read)(const void* from, size_t bytes);
  void (*copy)(void* to, const void* from, size_t bytes);
  void (*fill)(void* to, size_t bytes);
};

}  // namespace weft::cpu
