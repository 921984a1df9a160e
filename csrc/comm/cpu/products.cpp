// Collectives of a product that is computed while they go.
//
//   linear_all_reduce      y = Σ_r x_r · W_rᵀ + bias             [M, N] on every rank
//   linear_reduce_scatter  the same, of which a rank keeps M / W rows
//   all_gather_linear      X = (x_0; x_1; …), and meanwhile the own rows of X · Wᵀ
//
// The product is computed tile by tile, straight into shared memory, where the peers read it: nothing
// is copied. A rank is a tile ahead of what it adds up, so that a peer may be late by as much before
// anybody waits. Tiles of floats are large, as their products pack the weight for each; what is a tile
// or less is added up behind the whole. INT8's weights are packed already: those tiles are small, and
// their sums come out of nearer caches.
//
//   for each tile    compute k + 1 into a tile's room; publish; wait for k; y[k] = Σ_r tile_r[k] + bias
//   two-shot         the same, but each rank adds up its rows of a tile, in place too, and copies the
//                    others' from where they did: k - 1, while they add up k
//
// What is small in 16 bits is computed whole and reduced like any other message. Who calls by which
// way is never a rank's own choice: it goes by what the signature says.
//
// A rank has kTiles rooms, which all its products fill by turns. Rule of writing: tile t + 5 is written
// by who has seen everyone add up t + 2, or in one-shot publish it; that comes behind the last that a
// rank reads of t, as it copies t behind its sum of t + 1 and before it computes t + 3.
//
// Besides the product a rank reads W tiles for each that it adds up (two-shot: 2, and copies one). With
// a core for every rank and none to spare that is work no order can hide: it is what remains exposed.
#include <algorithm>
#include <cstring>

#include "comm/cpu/communicator.h"
#include "comm/cpu/kernels.h"
#include "core/divide.h"

namespace weft::comm::cpu {
namespace {

constexpr int64_t kSlot = kSlotBytes;
// Tiles are wide by whole panels of a packed weight, and high, as it is packed, or read, for each.
constexpr int64_t kTileColumns = 64, kTileRows = 512, kInt8TileBytes = 512 << 10;

char* at(void* base, int64_t element, int64_t size) {
  return static_cast<char*>(base) + element * size;
}
const char* at(const void* base, int64_t element, int64_t size) {
  return static_cast<const char*>(base) + element * size;
}

}  // namespace

// A matrix in tiles of at most `most` elements. Column by column of tiles, so that a weight's rows
// are read once, or row by row, so that x's are quantised once.
class Communicator::Grid {
 public:
  Grid(int64_t rows, int64_t columns, int64_t most, bool by_rows)
      : rows_(rows), columns_(columns), by_rows_(by_rows) {
    if (rows == 0 || columns == 0) return;
    high_ = std::min({rows, kTileRows, most / kTileColumns});
    wide_ = std::min(columns, most / high_ / kTileColumns * kTileColumns);
    if (wide_ == columns) high_ = std::min(most / wide_, rows);
    down_ = ceil_div(rows, high_);
    across_ = ceil_div(columns, wide_);
  }
  int64_t tiles() const { return down_ * across_; }
  int64_t elements() const { return high_ * wide_; }  // of the largest
  Tile at(int64_t k) const {
    const int64_t row = (by_rows_ ? k / across_ : k % down_) * high_;
    const int64_t column = (by_rows_ ? k % across_ : k / down_) * wide_;
    return {row, std::min(high_, rows_ - row), column, std::min(wide_, columns_ - column)};
  }

 private:
  int64_t rows_, columns_, high_ = 0, wide_ = 0, down_ = 0, across_ = 0;
  bool by_rows_;
};

// In linear_reduce_scatter a tile has a part for every rank, in lines of its own.
int64_t Communicator::part_bytes(const Grid& grid, const Collective& c) {
  return round_up<int64_t>(grid.elements() * static_cast<int64_t>(size_of(c.dtype)), 64);
}

void Communicator::run_product(const Collective& c, Product product, const Meanwhile* meanwhile) {
  call(c, [&] {
    const int64_t size = static_cast<int64_t>(size_of(c.dtype));
    const int64_t parts = c.kind == Kind::linear_reduce_scatter ? world() : 1;
    const int64_t room = segment_->tile_bytes(),
                  bytes = c.int8 ? std::min(kInt8TileBytes, room) : room;
    const Grid grid(c.rows(), c.columns, bytes / size / parts / kTileColumns * kTileColumns,
                    c.int8);
    segment_->make_room(part_bytes(grid, c) * parts);
    if (parts > 1)
      product_scatter(c, grid, product, meanwhile);
    else if (choice(c).two_shot)
      product_two_shot(c, grid, product, meanwhile);
    else
      product_one_shot(c, grid, product, meanwhile);
    first_tile_ += static_cast<uint64_t>(grid.tiles());
  });
}

// A product behind the last tile.
void Communicator::run_meanwhile(int64_t tiles, const Meanwhile* meanwhile) {
  if (meanwhile) timed(Phase::product, tiles, *meanwhile);
}

void Communicator::run_behind(const Collective& c, FunctionRef<void()> product) {
  call(c, [&] {
    timed(Phase::product, 0, product);
    all_reduce(c);
  });
}

void Communicator::run_behind(const Collective& c) {
  call(c, [&] { all_reduce(c); });
}

void Communicator::run_gather(const Collective& c, FunctionRef<void(int64_t, int64_t)> meanwhile) {
  call(c, [&] { gather_meanwhile(c, meanwhile); });
}

// put(k, event) for each piece, which is a phase, and when the peers can read it meanwhile(k), kAhead
// ahead of take(k, event). The first is there also where there are none: calls meet in it.
template <int64_t kAhead, class Put, class Meanwhile, class Take>
void Communicator::rounds_ahead(const Collective& c, int64_t pieces, Phase phase, Put&& put,
                                Meanwhile&& meanwhile, Take&& take) {
  static_assert(kAhead < static_cast<int64_t>(kReads));
  uint32_t events[kAhead + 1];
  const int64_t rounds = std::max<int64_t>(pieces, 1);
  for (int64_t k = 0; k < rounds + kAhead; ++k) {
    if (k < rounds) {
      const uint32_t event = events[k % (kAhead + 1)] = turns_.next();
      if (k < pieces) timed(phase, k, [&] { put(k, event); });
      turns_.publish();
      meanwhile(k);
      turns_.worked();
    }
    const int64_t due = k - kAhead;
    if (due < 0) continue;
    const uint32_t event = events[due % (kAhead + 1)];
    timed(Phase::wait, due, [&] { due == 0 ? first_wait(c, event) : turns_.wait(event); });
    if (due < pieces) timed(Phase::take, due, [&] { take(due, event); });
  }
}

// y[tile] = Σ parts + bias, parts being [tile.rows, tile.columns] of each rank; also to `also`.
void Communicator::add_up(const Collective& c, const Tile& tile, const void* const* parts,
                          void* also) const {
  const int64_t size = static_cast<int64_t>(size_of(c.dtype)), W = world();
  const bool whole = tile.columns == c.columns && !c.bias;  // rows without gaps
  const int64_t rows = whole ? 1 : tile.rows,
                columns = whole ? tile.rows * c.columns : tile.columns;
  const auto add = [&](int64_t row, int64_t from, int64_t to) {
    const void* sources[kMaxWorld + 1];
    for (int64_t r = 0; r < W; ++r) sources[r] = at(parts[r], row * columns + from, size);
    if (c.bias) sources[W] = at(c.bias, tile.column + from, size);
    kernels().reduce(c.dtype, Reduction::sum, sources, static_cast<int>(W + (c.bias ? 1 : 0)),
                     at(c.y, (tile.row + row) * c.columns + tile.column + from, size),
                     also ? at(also, row * columns + from, size) : nullptr, to - from, false);
  };
  if (whole)
    return spread(columns, columns * size, kTileColumns,
                  [&](int64_t begin, int64_t end) { add(0, begin, end); });
  spread(rows, rows * columns * size, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) add(row, 0, columns);
  });
}

void Communicator::product_one_shot(const Collective& c, const Grid& grid, Product product,
                                    const Meanwhile* meanwhile) {
  const int64_t tiles = grid.tiles();
  rounds_ahead<1>(
      c, tiles, Phase::product,
      [&](int64_t k, uint32_t) {
        const Tile tile = grid.at(k);
        product(tile, room(rank(), k), tile.columns);
      },
      [&](int64_t k) {
        if (k + 1 >= tiles) run_meanwhile(tiles, meanwhile);
      },
      [&](int64_t k, uint32_t) {
        const void* parts[kMaxWorld];
        for (int r = 0; r < world(); ++r) parts[r] = room(r, k);
        add_up(c, grid.at(k), parts, nullptr);
      });
}

// Of tile k, rank r adds up the rows [rows · r / W, rows · (r + 1) / W).
void Communicator::product_two_shot(const Collective& c, const Grid& grid, Product product,
                                    const Meanwhile* meanwhile) {
  const int64_t size = static_cast<int64_t>(size_of(c.dtype)), W = world(), tiles = grid.tiles();
  const auto share = [&](int64_t k, int64_t r) {
    Tile tile = grid.at(k);
    const int64_t first = tile.rows * r / W, last = tile.rows * (r + 1) / W;
    tile.row += first;
    tile.rows = last - first;
    return tile;
  };
  const auto place = [&](int r, int64_t k, const Tile& part) {
    return at(room(r, k), (part.row - grid.at(k).row) * part.columns, size);
  };
  const auto show = [&](int64_t k) {
    const uint32_t event = turns_.next();
    if (k < tiles) {
      const Tile tile = grid.at(k);
      timed(Phase::product, k, [&] { product(tile, room(rank(), k), tile.columns); });
    }
    turns_.publish();
    if (k + 1 >= tiles) run_meanwhile(tiles, meanwhile);
    turns_.worked();
    return event;
  };
  const auto reduce = [&](int64_t k) {
    const uint32_t result = turns_.next();
    const Tile own = share(k, rank());
    const void* parts[kMaxWorld];
    for (int r = 0; r < W; ++r) parts[r] = place(r, k, own);
    add_up(c, own, parts, place(rank(), k, own));
    turns_.publish();
    return result;
  };
  const auto gather = [&](int64_t k, uint32_t result) {
    timed(Phase::wait, k, [&] { turns_.wait(result); });
    timed(Phase::take, k, [&] {
      for (int64_t i = 1; i < W; ++i) {
        const int r = static_cast<int>((rank() + i) % W);
        const Tile tile = share(k, r);
        const char* from = place(r, k, tile);
        for (int64_t row = 0; row < tile.rows; ++row)
          std::memcpy(at(c.y, (tile.row + row) * c.columns + tile.column, size),
                      from + row * tile.columns * size, static_cast<size_t>(tile.columns * size));
      }
    });
  };
  uint32_t now = show(0), before = 0;
  timed(Phase::wait, 0, [&] { first_wait(c, now); });
  for (int64_t k = 0; k < tiles; ++k) {
    const uint32_t next = k + 1 < tiles ? show(k + 1) : now;
    if (k > 0) timed(Phase::wait, k, [&] { turns_.wait(now); });
    uint32_t result = 0;
    timed(Phase::take, k, [&] { result = reduce(k); });
    if (k > 0) gather(k - 1, before);
    before = result;
    now = next;
  }
  if (tiles) gather(tiles - 1, before);
}

// Tile k has a part for every rank: that tile of the rank's rows.
void Communicator::product_scatter(const Collective& c, const Grid& grid, Product product,
                                   const Meanwhile* meanwhile) {
  const int64_t part = part_bytes(grid, c), tiles = grid.tiles();
  rounds_ahead<1>(
      c, tiles, Phase::product,
      [&](int64_t k, uint32_t) {
        for (int64_t r = 0; r < world(); ++r) {
          Tile tile = grid.at(k);
          tile.row += r * c.rows();
          product(tile, room(rank(), k) + r * part, tile.columns);
        }
      },
      [&](int64_t k) {
        if (k + 1 >= tiles) run_meanwhile(tiles, meanwhile);
      },
      [&](int64_t k, uint32_t) {
        const void* parts[kMaxWorld];
        for (int r = 0; r < world(); ++r) parts[r] = room(r, k) + rank() * part;
        add_up(c, grid.at(k), parts, nullptr);
      });
}

void Communicator::gather_meanwhile(const Collective& c,
                                    FunctionRef<void(int64_t, int64_t)> meanwhile) {
  const int64_t bytes = c.n * static_cast<int64_t>(size_of(c.dtype)), step = kSlot;
  const int64_t pieces = ceil_div(bytes, step);
  const auto count = [&](int64_t k) {
    return static_cast<size_t>(std::min(step, bytes - k * step));
  };
  char* const y = static_cast<char*>(c.y);
  if (bytes) std::memcpy(y + rank() * bytes, c.x, static_cast<size_t>(bytes));
  rounds_ahead<2>(
      c, pieces, Phase::put,
      [&](int64_t k, uint32_t event) {
        std::memcpy(segment_->slot(rank(), event), at(c.x, k * step, 1), count(k));
      },
      [&](int64_t k) {
        if (k < pieces) timed(Phase::product, k, [&] { meanwhile(k, pieces); });
      },
      [&](int64_t k, uint32_t event) {
        for (int i = 1; i < world(); ++i) {
          const int r = (rank() + i) % world();
          std::memcpy(y + r * bytes + k * step, segment_->slot(r, event), count(k));
        }
      });
}

}  // namespace weft::comm::cpu
