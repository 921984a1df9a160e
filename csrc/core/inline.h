// Sources that are compiled once per ISA level share these headers with everyone. An inline
// function that the compiler leaves out of line would exist once per set of flags, and the linker
// might keep the AVX-512 copy for all: so what they share is never left out of line.
#pragma once

#define WEFT_INLINE [[gnu::always_inline]] inline
