// The INT8 family on the CPU, as ops.h calls it.
#pragma once

#include <cstdint>

#include "int8/params.h"

namespace weft::int8::cpu {

// Bytes of workspace that the call needs in params.workspace (64-byte aligned).
int64_t workspace_bytes(const Quantize&);
int64_t workspace_bytes(const Linear&);

void quantize(const Quantize&);
void dequantize(const Dequantize&);
void linear(const Linear&);

int64_t packed_bytes(int64_t N, int64_t K, int bits);
// Throws where `packed` is no weight of that shape.
void check_packed(const char* op, const void* packed, int64_t N, int64_t K, int bits);
void pack(const Pack&);
void unpack(const Unpack&);
// Throws where one is not -128 to 127: with others, integers overflow.
void check_zero_points(const char* op, const char* name, const int32_t* points, int64_t count);

}  // namespace weft::int8::cpu
