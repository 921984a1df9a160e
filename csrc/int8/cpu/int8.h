// The INT8 family on the CPU, as ops.h calls it.
#pragma once

#include <cstdint>

#include "int8/packed.h"
#include "int8/params.h"

namespace weft::int8::cpu {

// Bytes of workspace that the call needs in params.workspace (64-byte aligned).
int64_t workspace_bytes(const Quantize&);
int64_t workspace_bytes(const Linear&);

void quantize(const Quantize&);
void dequantize(const Dequantize&);
void linear(const Linear&);

int64_t packed_bytes(int64_t N, int64_t K, int bits);
PackedHeader packed_header(int64_t N, int64_t K, int bits);
void pack(const Pack&);
void unpack(const Unpack&);

}  // namespace weft::int8::cpu
