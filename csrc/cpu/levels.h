#pragma once

#include "cpu/isa.h"

// The levels that this build holds, weakest first: X(level, …) for each. A source that is compiled
// once per level puts all it defines into `namespace weft::cpu::WEFT_CPU_LEVEL`, or the linker
// might keep its AVX-512 copy for everyone. For the same reason such a source includes no header
// that is not written for it, standard containers included.
#if defined(__x86_64__)
#define WEFT_FOR_EACH_CPU_LEVEL(X, ...) \
  X(generic __VA_OPT__(, ) __VA_ARGS__) \
  X(avx2 __VA_OPT__(, ) __VA_ARGS__)    \
  X(avx512 __VA_OPT__(, ) __VA_ARGS__)  \
  X(avx512_bf16 __VA_OPT__(, ) __VA_ARGS__)
#else
#define WEFT_FOR_EACH_CPU_LEVEL(X, ...) X(generic __VA_OPT__(, ) __VA_ARGS__)
#endif

// Defines `const Type& name()`: the current level's table, of those that each level's namespace has
// under this name.
#define WEFT_CPU_TABLE(Type, name)                                                                \
  WEFT_FOR_EACH_CPU_LEVEL(WEFT_DECLARE_TABLE, Type, name)                                         \
  const Type& name() {                                                                            \
    static constexpr const Type* tables[] = {WEFT_FOR_EACH_CPU_LEVEL(WEFT_TABLE_OF, Type, name)}; \
    return *tables[static_cast<int>(::weft::cpu::isa_current())];                                 \
  }
#define WEFT_DECLARE_TABLE(level, Type, name) \
  namespace level {                           \
  extern const Type name;                     \
  }
#define WEFT_TABLE_OF(level, Type, name) &level::name,
