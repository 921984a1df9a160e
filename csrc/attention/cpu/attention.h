// The attention family on the CPU, as ops.h calls it.
#pragma once

#include <cstdint>

#include "attention/params.h"

namespace weft::attention::cpu {

// Bytes of workspace that the call needs in params.workspace (64-byte aligned).
int64_t workspace_bytes(const Forward&);
int64_t workspace_bytes(const Backward&);

void forward(const Forward&);
void backward(const Backward&);
void append(const Append&);
void rotary(const Rotary&);
void merge(const Merge&);

}  // namespace weft::attention::cpu
