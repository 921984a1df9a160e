// Wrong kernels with matrices, a mistake each, like those of mutants.h.
#pragma once

#include "case.h"

namespace weft::gpu::tests {

// Rows of 24 bytes: every other one begins between two multiples of 16.
WEFT_KERNEL void misaligned_row_kernel(uint32_t* out) {
  SharedLayout layout;
  const Shared<uint16_t> tile = layout.take<uint16_t>(8 * 12);
  for (uint32_t i = lane(); i < tile.count(); i += kWarp) tile[i] = 1;
  sync_warp();
  store(out + lane(), ldmatrix<1>(tile, lane() % 8 * 12)[0]);
}
const Register misaligned_row("misaligned_row", [](const Call& call) {
  launch<misaligned_row_kernel>({.block = kWarp, .shared_bytes = 8 * 24, .stream = call.stream},
                                call.outputs[0].as<uint32_t>());
});

// Lanes name rows of matrices before the others have written them.
WEFT_KERNEL void early_ldmatrix_kernel(uint32_t* out) {
  SharedLayout layout;
  const Shared<uint16_t> tile = layout.take<uint16_t>(64);
  tile.store<2>(2 * lane(), {1, 2});
  store(out + lane(), ldmatrix<1>(tile, lane() % 8 * 8)[0]);
}
const Register early_ldmatrix("early_ldmatrix", [](const Call& call) {
  launch<early_ldmatrix_kernel>({.block = kWarp, .shared_bytes = 128, .stream = call.stream},
                                call.outputs[0].as<uint32_t>());
});

}  // namespace weft::gpu::tests
