#pragma once

// The levels that this build holds, weakest first: X(level) for each. A source that is compiled
// once per level puts all it defines into `namespace weft::cpu::WEFT_CPU_LEVEL`, or the linker
// might keep its AVX-512 copy for everyone. For the same reason such a source includes no header
// that is not written for it, standard containers included.
#if defined(__x86_64__)
#define WEFT_FOR_EACH_CPU_LEVEL(X) X(generic) X(avx2) X(avx512) X(avx512_bf16)
#else
#define WEFT_FOR_EACH_CPU_LEVEL(X) X(generic)
#endif
