#include "comm/cuda/plan.h"

#include <algorithm>
#include <iterator>
#include <sstream>

#include "core/divide.h"
#include "core/error.h"

namespace weft::comm::cuda {
namespace {

constexpr int64_t kVector = 16;            // bytes
constexpr int64_t kLeast = 128 * kVector;  // of a message, that are worth another block

constexpr const char* kNames[] = {"one_shot", "two_shot", "multicast"};  // of Algorithm
constexpr size_t kMostRows = 16;

// weft's own table, for GPUs with such a link and up to so many ranks. Up to some size a second round
// costs more than reading (W - 1) · n bytes; two ranks read as much either way.
struct OwnRow {
  bool nvlink;  // is needed
  int world;
  Row row;
};
constexpr OwnRow kOwnRows[] = {
    {false, 2, {INT64_MAX, Algorithm::one_shot}},
    {false, kMostRanks, {64 << 10, Algorithm::one_shot}},
    {false, kMostRanks, {INT64_MAX, Algorithm::multicast}},
    {true, 4, {512 << 10, Algorithm::one_shot}},
    {true, kMostRanks, {256 << 10, Algorithm::one_shot}},
    {false, kMostRanks, {INT64_MAX, Algorithm::two_shot}},
};

// A switch adds in an order of its own and rounds once: sums, and averages whose division is exact and
// whose sum, which it hands out in the dtype, does not overflow before.
bool can(Algorithm algorithm, const Collective& c, const Topology& t) {
  if (algorithm == Algorithm::one_shot) return true;
  if (t.world <= 2) return false;
  if (algorithm == Algorithm::two_shot) return true;
  const bool averages = (t.world & (t.world - 1)) == 0 && c.dtype != DType::f16;
  return t.multicast &&
         (c.reduction == Reduction::sum || (c.reduction == Reduction::avg && averages));
}

Algorithm choose(const Collective& c, const Topology& t, int64_t bytes, const Table& table) {
  if (c.kind != Kind::all_reduce) return Algorithm::one_shot;
  const auto serves = [&](const Row& row) {
    return bytes <= row.bytes && can(row.algorithm, c, t);
  };
  for (const Row& row : table)
    if (serves(row)) return row.algorithm;
  for (const OwnRow& own : kOwnRows)
    if (t.world <= own.world && (t.nvlink || !own.nvlink) && serves(own.row))
      return own.row.algorithm;
  return Algorithm::one_shot;
}

}  // namespace

Table table_of(const std::vector<int64_t>& bytes, const std::string& algorithms) {
  std::istringstream text(algorithms);
  const std::vector<std::string> names{std::istream_iterator<std::string>(text), {}};
  check(names.size() == bytes.size() && names.size() <= kMostRows,
        "weft: a table of algorithms has ", bytes.size(), " sizes and ", names.size(),
        " algorithms, expected as many, up to ", kMostRows);
  Table table;
  for (size_t i = 0; i < names.size(); ++i) {
    const auto found = std::find(std::begin(kNames), std::end(kNames), names[i]);
    check(found != std::end(kNames), "weft: a table of algorithms has ", names[i],
          ", expected one_shot, two_shot or multicast");
    const int64_t last = table.empty() ? 0 : table.back().bytes;
    check(bytes[i] > last, "weft: a table of algorithms has a row up to ", bytes[i],
          " bytes behind one up to ", last, ", expected rows that grow");
    table.push_back({bytes[i], static_cast<Algorithm>(found - std::begin(kNames))});
  }
  return table;
}

Plan plan(const Collective& c, const Topology& t, const Budget& budget, const Table& table) {
  const int64_t size = static_cast<int64_t>(size_of(c.dtype));
  Plan plan;
  plan.algorithm = choose(c, t, c.n * size, table);

  // A piece is made of units: of one share for each rank where those are reduced apart.
  const bool shares = plan.algorithm != Algorithm::one_shot;
  const int64_t parts = shares || c.kind == Kind::reduce_scatter ? t.world : 1;
  int64_t unit = kVector / size, room = budget.slot_bytes / parts / kVector;
  if (c.kind == Kind::all_reduce_int8) {
    unit = c.group;
    room = std::max<int64_t>(1, (budget.slot_bytes - kVector) / (c.group + 4));
  }
  const int64_t units = std::max<int64_t>(1, ceil_div(c.n, unit * (shares ? t.world : 1)));
  const int64_t bytes = c.n * size * (c.kind == Kind::reduce_scatter ? t.world : 1);
  const int64_t blocks = std::clamp<int64_t>(bytes / kLeast, 1, budget.blocks);
  const int64_t piece = std::min(ceil_div(units, blocks), room);
  plan.blocks = static_cast<uint32_t>(std::min(blocks, ceil_div(units, piece)));
  plan.piece = piece * unit;
  const int64_t vectors = ceil_div(plan.piece * parts * size, kVector);
  plan.threads =
      static_cast<uint32_t>(std::clamp<int64_t>(round_up(vectors, 32), 32, int64_t{kMostThreads}));
  return plan;
}

}  // namespace weft::comm::cuda
