// Sources that are compiled once per ISA level share these headers with everyone. An inline
// function that the compiler leaves out of line would exist once per set of flags, and the linker
// might keep the AVX-512 copy for all: so what they share is never left out of line. nvcc compiles
// it for the device as well.
#pragma once

#ifdef __CUDACC__
#define WEFT_INLINE __host__ __device__ __forceinline__
#else
#define WEFT_INLINE [[gnu::always_inline]] inline
#endif
