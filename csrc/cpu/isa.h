#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/export.h"

// Which instruction-set level the CPU kernels run at. Kernels are compiled once per level (see
// levels.h); a family's table of function pointers is indexed by isa_current().

namespace weft::cpu {

enum class Isa {
  generic,
  avx2,
  avx512,
  avx512_bf16
};  // ordered: each level includes those before it
inline constexpr int kIsaCount = 4;

WEFT_API const char* isa_name(Isa isa);
WEFT_API std::optional<Isa> isa_from_name(std::string_view name);

// Compiled in, offered by the CPU, and its registers saved by the operating system.
WEFT_API bool isa_available(Isa isa);
WEFT_API bool isa_compiled(Isa isa);
// Why isa_available is false, for people; empty when it is true.
WEFT_API std::string isa_why_not(Isa isa);

WEFT_API Isa isa_best();
// Starts as the environment's WEFT_CPU_ISA, or isa_best() where that is unset or empty. Throws
// std::runtime_error, naming the available levels, while WEFT_CPU_ISA holds a name that is unknown
// or not available here.
WEFT_API Isa isa_current();
// From now on isa_current() is `isa`. Throws std::runtime_error where it is not available.
WEFT_API void isa_force(Isa isa);
// The same by name; throws for an unknown name too.
WEFT_API void isa_force(std::string_view name);

// What CPUID says, for the features that some level needs. Empty on other CPUs than x86-64.
struct CpuFeature {
  const char* name;
  bool present;
};
WEFT_API std::vector<CpuFeature> cpu_features();

// Whether the CPU multiplies tiles of bf16 (AMX), which no level does yet.
bool has_amx();

}  // namespace weft::cpu
