#include "cpu/isa.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>

#include "cpu/levels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace weft::cpu {
namespace {

constexpr std::array<const char*, kIsaCount> kNames = {"generic", "avx2", "avx512", "avx512_bf16"};

#define WEFT_COUNT_LEVEL(level) +1
constexpr int kCompiledLevels = 0 WEFT_FOR_EACH_CPU_LEVEL(WEFT_COUNT_LEVEL);
#undef WEFT_COUNT_LEVEL

struct Machine {
  std::vector<CpuFeature> features;
  std::array<std::string, kIsaCount> why_not;  // by level; empty: available
};

#if defined(__x86_64__)

struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx,
                    &r.edx);  // zeros where the CPU has no such leaf
  return r;
}

// Intel SDM vol. 2A, CPUID, tables 3-8 (leaves 1 and 7) and 3-10/3-11 (feature bits).
struct FeatureBit {
  const char* name;
  Isa level;  // the first level that needs it
  uint32_t leaf, subleaf;
  uint32_t Registers::* word;
  int bit;
};
constexpr FeatureBit kFeatureBits[] = {
    {"avx", Isa::avx2, 1, 0, &Registers::ecx, 28},
    {"fma", Isa::avx2, 1, 0, &Registers::ecx, 12},
    {"f16c", Isa::avx2, 1, 0, &Registers::ecx, 29},
    {"avx2", Isa::avx2, 7, 0, &Registers::ebx, 5},
    {"avx512f", Isa::avx512, 7, 0, &Registers::ebx, 16},
    {"avx512dq", Isa::avx512, 7, 0, &Registers::ebx, 17},
    {"avx512bw", Isa::avx512, 7, 0, &Registers::ebx, 30},
    {"avx512vl", Isa::avx512, 7, 0, &Registers::ebx, 31},
    {"avx512_vnni", Isa::avx512_bf16, 7, 0, &Registers::ecx, 11},
    {"avx512_bf16", Isa::avx512_bf16, 7, 1, &Registers::eax, 5},
};

// XCR0: the register state that the operating system saves on a context switch (Intel SDM vol.
// 1, 13.3). In assembly, because the intrinsic wants a compiler flag that this file must not have.
uint64_t saved_state() {
  constexpr uint32_t kOsxsave = 1u << 27;
  if (!(cpuid(1, 0).ecx & kOsxsave)) return 0;
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

bool probe_amx() { return cpuid(7, 0).edx >> 22 & 1; }  // amx-bf16

Machine probe() {
  constexpr uint64_t kYmm = 0x06;  // SSE and AVX state
  constexpr uint64_t kZmm = 0xe6;  // with opmask, upper halves of ZMM0-15, and ZMM16-31
  Machine machine;
  auto& why_not = machine.why_not;
  for (const FeatureBit& f : kFeatureBits) {
    const bool present = cpuid(f.leaf, f.subleaf).*f.word >> f.bit & 1;
    machine.features.push_back({f.name, present});
    std::string& reason = why_not[static_cast<int>(f.level)];
    if (!present) reason += (reason.empty() ? "the CPU lacks " : ", ") + std::string(f.name);
  }
  const uint64_t state = saved_state();
  for (int level = static_cast<int>(Isa::avx2); level < kIsaCount; ++level) {
    const uint64_t needed = level < static_cast<int>(Isa::avx512) ? kYmm : kZmm;
    if (why_not[level].empty() && (state & needed) != needed) {
      why_not[level] = "the operating system does not save its registers";
    }
    if (why_not[level].empty() && !why_not[level - 1].empty()) why_not[level] = why_not[level - 1];
  }
  return machine;
}

#else

bool probe_amx() { return false; }

Machine probe() {
  Machine machine;
  for (int level = kCompiledLevels; level < kIsaCount; ++level) {
    machine.why_not[level] = "not compiled: this level is for x86-64";
  }
  return machine;
}

#endif

const Machine& machine() {
  static const Machine probed = probe();
  return probed;
}

std::string available_names() {
  std::string names;
  for (int level = 0; level < kIsaCount; ++level) {
    if (!isa_available(static_cast<Isa>(level))) continue;
    names += (names.empty() ? "" : ", ") + std::string(kNames[level]);
  }
  return names;
}

// `source` says where the name came from.
Isa require_available(std::string_view name, const std::string& source) {
  const std::optional<Isa> isa = isa_from_name(name);
  if (isa && isa_available(*isa)) return *isa;
  throw std::runtime_error(
      source + " is '" + std::string(name) + "', which is " +
      (isa ? "not available here: " + isa_why_not(*isa) : "no level that weft knows") +
      "; available: " + available_names());
}

Isa initial_isa() {
  const char* wanted = std::getenv("WEFT_CPU_ISA");
  return wanted && *wanted ? require_available(wanted, "weft: WEFT_CPU_ISA") : isa_best();
}

constexpr int kUndecided = -1;
std::atomic<int> current{kUndecided};

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

std::optional<Isa> isa_from_name(std::string_view name) {
  for (int level = 0; level < kIsaCount; ++level) {
    if (name == kNames[level]) return static_cast<Isa>(level);
  }
  return std::nullopt;
}

bool isa_compiled(Isa isa) { return static_cast<int>(isa) < kCompiledLevels; }

bool isa_available(Isa isa) { return isa_why_not(isa).empty(); }

std::string isa_why_not(Isa isa) { return machine().why_not[static_cast<int>(isa)]; }

Isa isa_best() {
  int level = kIsaCount - 1;
  while (!isa_available(static_cast<Isa>(level))) --level;  // generic is always there
  return static_cast<Isa>(level);
}

Isa isa_current() {
  int level = current.load(std::memory_order_relaxed);
  if (level == kUndecided) {
    // Two threads may both come here; they find the same answer, and neither undoes an isa_force in
    // between.
    const int found = static_cast<int>(initial_isa());
    if (current.compare_exchange_strong(level, found)) level = found;
  }
  return static_cast<Isa>(level);
}

void isa_force(Isa isa) { isa_force(std::string_view(isa_name(isa))); }

void isa_force(std::string_view name) {
  current.store(static_cast<int>(require_available(name, "weft.force_isa: the level")));
}

std::vector<CpuFeature> cpu_features() { return machine().features; }

bool has_amx() {
  static const bool has = probe_amx();
  return has;
}

}  // namespace weft::cpu
