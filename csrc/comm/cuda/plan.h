// Which algorithm, how many blocks, pieces of what size: pure functions of the call and of what the
// ranks have agreed on, so that all ranks plan alike.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

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

// Of a table that says which algorithm serves which message: the first row that has room for it, and
// whose algorithm can do the call.
struct Row {
  int64_t bytes;  // up to
  Algorithm algorithm;
};
using Table = std::vector<Row>;
// Of bytes, which grow, and as many names of algorithms with spaces between. Throws where they are no
// table.
Table table_of(const std::vector<int64_t>& bytes, const std::string& algorithms);

struct Plan {
  Algorithm algorithm = Algorithm::one_shot;
  uint32_t blocks = 1, threads = 32;
  int64_t piece = 0;  // elements that a block takes at once: of n; of the shares in two_shot,
                      // multicast
};
// Behind the rows of `table` come weft's own (plan.cpp).
Plan plan(const Collective&, const Topology&, const Budget&, const Table& table);

}  // namespace weft::comm::cuda
