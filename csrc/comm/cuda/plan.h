// Which algorithm, how many blocks, pieces of what size: pure functions of the call and of what the
// ranks have agreed on, so that all ranks plan alike.
#pragma once

#include <cstdint>

#include "comm/cuda/group.h"
#include "comm/params.h"

namespace weft::comm::cuda {

struct Topology {
  int world = 1;
  bool nvlink = false;     // between any two of the GPUs
  bool multicast = false;  // they have memory behind one address, and the caller wants it used
};

// What a communicator's kernels may take.
struct Budget {
  uint32_t blocks = 32;  // of at most kMostThreads: what is left of the GPU is its neighbours'
  int64_t slot_bytes = 256 << 10;  // of a block
};

constexpr uint32_t kMostThreads = 512;

enum class Algorithm : uint8_t {
  one_shot,   // everybody reads everything
  two_shot,   // everybody reduces a share and reads the others' results
  multicast,  // the same, and the switch reduces and copies
};

struct Plan {
  Algorithm algorithm = Algorithm::one_shot;
  uint32_t blocks = 1, threads = 32;
  int64_t piece = 0;  // elements that a block takes at once: of n; of the shares in two_shot,
                      // multicast
};
Plan plan(const Collective&, const Topology&, const Budget&);

}  // namespace weft::comm::cuda
