// The memory that the ranks of a communicator share: a POSIX shared-memory object, with a line of
// flags and a ring of slots for each rank, and room for the tiles of products (products.cpp).
//
//   Header | Flag of rank 0 … W - 1 | slots of rank 0 | … of rank W - 1 | tiles of rank 0 | …
//
// Rank 0 creates it, exclusively, under a name that nobody else has; the others open it by that
// name, and as soon as all have it, the name goes: what then remains is freed with the last
// process, however it ends. Each rank allocates its own slots before it says that it is there: so
// they lie on the NUMA node that it runs on, and a full /dev/shm is an error here and no SIGBUS later.
// Its tiles it allocates, as much of each as is asked for, before the first product: until then they
// are addresses and no memory.
//
// Each rank keeps a lock on byte r of the object (fcntl), which the system takes from a process
// that ends, even before its parent has noticed: so peers see who lives, across containers too.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "comm/cpu/protocol.h"
#include "core/divide.h"

namespace weft::comm::cpu {

constexpr int kMaxWorld = 64;
constexpr int64_t kSlotBytes = 256 << 10;
constexpr int64_t kTiles = 5;             // of a rank
constexpr int64_t kTilesOfAll = 8 << 20;  // bytes, one of each rank

class Segment final : public Peers {
 public:
  // Creates it, as rank 0. Throws std::runtime_error.
  static std::unique_ptr<Segment> create(int world);
  // Opens what rank 0 has created.
  static std::unique_ptr<Segment> open(const std::string& name, int rank, int world);
  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  const std::string& name() const { return name_; }
  // Takes the name away; no error where it is gone already. Rank 0's end does it as well.
  void unlink() const;

  int rank() const { return rank_; }
  int world() const { return world_; }
  Flag* flags() const { return reinterpret_cast<Flag*>(base_ + sizeof(Flag)); }
  char* slot(int r, uint32_t event) const {
    return base_ + slots_at(r) + event % kRing * kSlotBytes;
  }
  // Of events of up to `bytes`, a part of the slot: all of its parts in turn. Lines that the peers
  // have read lately, and still hold, take longer to write than such as both sides have let go.
  // What is shorter than kTurnBytes stays where it is.
  char* slot(int r, uint32_t event, int64_t bytes) const {
    constexpr int64_t kTurnBytes = 8 << 10;
    if (bytes < kTurnBytes) return slot(r, event);
    const int64_t part = round_up<int64_t>(bytes, 64), parts = kSlotBytes / part;
    return slot(r, event) + event / kRing % parts * part;
  }
  // What fits into a tile.
  int64_t tile_bytes() const { return std::max(kTilesOfAll / world_ / 4096 * 4096, kSlotBytes); }
  char* tile(int r, uint64_t number) const {
    return base_ + tiles_at(r) + number % kTiles * static_cast<uint64_t>(tile_bytes());
  }
  // The own tiles' first `bytes` are memory from here on. Throws std::runtime_error.
  void make_room(int64_t bytes);
  bool alive(int r) const override;

 private:
  Segment(std::string name, int file, int rank, int world);
  void map();
  void check_room(int error, size_t bytes) const;
  static size_t header_bytes(int world);
  size_t total_bytes() const { return tiles_at(world_); }
  size_t slots_at(int r) const;
  size_t tiles_at(int r) const;

  std::string name_;
  int file_, rank_, world_;
  int process_;
  char* base_ = nullptr;
  int64_t room_ = 0;  // bytes of each tile that are memory
};

}  // namespace weft::comm::cpu
