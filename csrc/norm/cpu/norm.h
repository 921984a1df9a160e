// The norm family on the CPU, as ops.h calls it.
#pragma once

#include <cstdint>

#include "norm/params.h"

namespace weft::norm::cpu {

// Bytes of workspace that the call needs in params.workspace (64-byte aligned).
int64_t workspace_bytes(const Forward&);
int64_t workspace_bytes(const Backward&);

void forward(Forward);
void backward(Backward);
void dropout_mask(const Dropout&, int64_t count, int stream, bool* mask);

}  // namespace weft::norm::cpu
