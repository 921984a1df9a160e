#include "comm/cuda/communicator.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <sstream>
#include <unordered_map>

#include "comm/words.h"
#include "core/error.h"

namespace weft::comm::cuda {
namespace {

struct Registry {
  std::mutex mutex;
  std::unordered_map<int64_t, std::shared_ptr<Communicator>> communicators;
};
Registry& registry() {
  static Registry* const all = new Registry;  // never destroyed: ops may run while a process ends
  return *all;
}

}  // namespace

Communicator::Communicator(const Options& options) : options_(options) {
  const Budget& b = options.budget;
  check(options.topology.world >= 1 && options.topology.world <= kMostRanks,
        "weft: ", options.topology.world, " ranks on CUDA, expected 1 to ", kMostRanks);
  check(b.blocks >= 1 && b.blocks <= kMostBlocks, "weft: a communicator of ", b.blocks,
        " blocks on CUDA, expected 1 to ", kMostBlocks);
  check(b.slot_bytes >= 128 && b.slot_bytes % 128 == 0, "weft: slots of ", b.slot_bytes,
        " bytes, expected a multiple of 128");
  group_.world = options.topology.world;
  group_.slot_bytes = b.slot_bytes;
  group_.timeout = static_cast<uint64_t>(std::min(options.timeout, 1e9) * 1e9);
}

std::shared_ptr<Communicator> Communicator::find(int64_t handle) {
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  const auto found = all.communicators.find(handle);
  return found == all.communicators.end() ? nullptr : found->second;
}

void Communicator::enter(int64_t handle, const std::shared_ptr<Communicator>& communicator) {
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  communicator->handle_ = handle;
  check(all.communicators.emplace(handle, communicator).second, "weft: communicator ", handle,
        " has its GPUs already");
}

void Communicator::leave(int64_t handle) {
  std::shared_ptr<Communicator> last;  // ends outside of the lock
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  const auto found = all.communicators.find(handle);
  if (found == all.communicators.end()) return;
  last = std::move(found->second);
  all.communicators.erase(found);
}

void Communicator::launch(const Collective& c, gpu::Stream stream) const {
  const std::string failed = failure();
  check(failed.empty(), failed);
  check(c.group + 4 <= group_.slot_bytes, "weft.", name_of(c.kind), ": group_size is ", c.group,
        ", and a slot has ", group_.slot_bytes, " bytes");
  launch_collective(c, group_, plan(c, options_.topology, options_.budget, options_.table), stream);
}

void Communicator::run_product(
    const Collective& c, FunctionRef<void(const Tile& tile, void* to, int64_t stride)> product) {
  constexpr int64_t kPiece = 1 << 20, kMostPieces = 4, kRows = 128;  // bytes; …; a product's tile
  const bool scatters = c.kind == Kind::linear_reduce_scatter;
  const int64_t size = static_cast<int64_t>(size_of(c.dtype)), N = c.columns, rows = c.rows(),
                parts = scatters ? world() : 1;
  const int64_t pieces = std::clamp<int64_t>(rows * parts * N * size / kPiece, 1, kMostPieces);
  const int64_t step =
      std::max<int64_t>((rows + pieces - 1) / pieces + kRows - 1, kRows) / kRows * kRows;
  char* const products = static_cast<char*>(const_cast<void*>(c.x));
  for (int64_t row = 0; row < rows || row == 0; row += step) {
    Collective piece = c;
    const int64_t count = std::min(step, rows - row), first = row * parts;
    piece.kind = scatters ? Kind::reduce_scatter : Kind::all_reduce;
    piece.n = count * N;
    piece.x = products + first * N * size;
    piece.y = static_cast<char*>(c.y) + row * N * size;
    for (int64_t r = 0; r < parts && piece.n > 0; ++r)
      product({r * rows + row, count, 0, N}, products + (first + r * count) * N * size, N);
    fork(piece);
  }
  join();
}

void Communicator::run_beside(const Collective& c, FunctionRef<void()> meanwhile) {
  fork(c);
  meanwhile();
  join();
}

void Communicator::run_gather(const Collective& c, FunctionRef<void(int64_t, int64_t)> meanwhile) {
  Collective gather = c;
  gather.kind = Kind::all_gather;
  run_beside(gather, [&] { meanwhile(0, 1); });
}

std::string Communicator::failure() const {
  Status& s = *group_.status;
  const Trouble trouble = std::atomic_ref(s.trouble).load(std::memory_order_acquire);
  if (trouble == Trouble::none) return {};
  const Collective mine = Collective::of(s.mine);
  std::ostringstream text, where;
  where << s.call << " of ";
  if (s.block == 0)
    where << "the communicator, on CUDA";
  else  // counts those that have so many blocks
    where << "block " << s.block << ", on CUDA";
  text << "weft." << name_of(mine.kind) << ": rank " << s.rank;
  if (trouble == Trouble::mismatch) {
    text << " calls " << words(Collective::of(s.theirs)) << ", rank " << rank() << " calls "
         << words(mine) << " (call " << where.str() << ")";
    return text.str();
  }
  if (trouble == Trouble::late) text << " did not come within " << options_.timeout << " s";
  if (trouble == Trouble::closed) text << " has closed its communicator";
  if (trouble == Trouble::gave_up) {
    text << " has given up";
    if (s.blamed != s.rank) text << ", because of rank " << s.blamed;
  }
  text << " (call " << where.str() << ", seen from rank " << rank() << " of " << world() << ")";
  return text.str();
}

}  // namespace weft::comm::cuda
