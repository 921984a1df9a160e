// The ranks of one host as a group that reduces together: collectives over a Segment.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "comm/cpu/segment.h"
#include "comm/params.h"
#include "core/export.h"
#include "core/function_ref.h"

namespace weft::comm::cpu {

struct Options {
  double timeout = 30;        // seconds, of each call
  int cpus = 0;               // that the ranks have between them; 0: as many as ranks
  std::vector<Choice> table;  // empty: default_table
};

// By world and the CPUs that it has: measured by `python -m bench comm --tune`.
WEFT_API std::vector<Choice> default_table(int world, int cpus);

// What a rank did when, of a call that was recorded: times in nanoseconds of the steady clock, which
// all processes of a host share.
enum class Phase : uint8_t { call, product, put, wait, take };
struct Span {
  uint64_t call;
  Kind kind;
  Phase phase;
  int64_t piece;
  int64_t begin, end;
};

using Progress = FunctionRef<void(int64_t)>;
// Writes a tile of this rank's product to `to`, its rows `stride` elements apart.
using Product = FunctionRef<void(const Tile&, void* to, int64_t stride)>;
using Meanwhile = FunctionRef<void()>;

class WEFT_API Communicator {
 public:
  // As rank 0, which makes the shared memory; then as the others, who find it by its name.
  Communicator(int world, Options options);
  Communicator(const std::string& name, int rank, int world, Options options);
  ~Communicator();

  // What ops know it by. Handles are not used again.
  int64_t handle() const { return handle_; }
  static std::shared_ptr<Communicator> find(int64_t handle);
  // From now on found by its handle.
  static void enter(const std::shared_ptr<Communicator>& communicator);

  const std::string& name() const { return name_; }
  int rank() const { return rank_; }
  int world() const { return world_; }
  // All ranks have opened it: its name goes, so that nothing is left after a crash.
  void all_here() const;

  // Throws std::runtime_error: op, call, rank, what is wrong. From then on every call does, with
  // the same words, and the peers' calls fail as well.
  void run(const Collective& collective);
  // The same for an all-reduce whose result is used as it comes: progress(n) when the first n
  // elements of y are there, for rising n, the whole at last.
  void run(const Collective& collective, Progress progress);
  // linear_all_reduce and linear_reduce_scatter of what `product` computes, tile by tile, each
  // element once; meanwhile() when all of it is on its way.
  void run_product(const Collective& collective, Product product) {
    run_product(collective, product, nullptr);
  }
  void run_product(const Collective& collective, Product product, Meanwhile meanwhile) {
    run_product(collective, product, &meanwhile);
  }
  // linear_all_reduce of what is small in 16 bits, where the way into shared memory saves less than it
  // costs: product() puts the whole into y, if it does not lie there, and all_reduce follows, in place.
  static constexpr int64_t kWholeBytes = 1 << 20;
  static bool goes_whole(const Collective& c) {
    return c.kind == Kind::linear_all_reduce && size_of(c.dtype) == 2 && c.n * 2 <= kWholeBytes;
  }
  void run_behind(const Collective& collective, FunctionRef<void()> product);
  void run_behind(const Collective& collective);
  // all_gather_linear: meanwhile(k, steps) for every k < steps, while the peers' parts come.
  void run_gather(const Collective& collective, FunctionRef<void(int64_t, int64_t)> meanwhile);
  // So many calls stand in a queue, which the thread that calls serve(true) before each and
  // serve(false) behind it empties. While there are any, a call from another thread waits until
  // there are none, and one of that thread's between two of them throws: it would overtake.
  void queue(int pending) {
    pending_ = pending;
    if (pending == 0) pending_.notify_all();
  }
  void serve(bool serving) {
    server_ = std::this_thread::get_id();
    serving_ = serving;
  }
  // Keep what the calls from now on do, or no longer; and what has been kept since it was asked for.
  void record(bool on);
  std::vector<Span> take_spans();
  // Why it has failed; empty if it has not.
  std::string failure() const;
  // Peers that still wait for this rank learn that it has gone, and the memory is let go. Calls
  // after it throw.
  void close();

 private:
  class Grid;

  Communicator(std::unique_ptr<Segment> segment, Options options);
  void call(const Collective& c, FunctionRef<void()> body);
  void keep_place(const Collective& c) const;
  const Choice& choice(const Collective& c) const;
  void all_reduce(const Collective& c, const Progress* progress = nullptr);
  void one_shot(const Collective& c, int64_t piece, const Progress* progress);
  void two_shot(const Collective& c, int64_t piece, const Progress* progress);
  void reduce_scatter(const Collective& c, int64_t piece);
  void all_gather(const Collective& c, int64_t piece);
  void all_reduce_int8(const Collective& c, const Progress* progress);
  static int64_t now();
  template <class F>
  void timed(Phase phase, int64_t piece, F&& f) {
    if (!recording_) return f();
    const int64_t begin = now();
    f();
    spans_.push_back({turns_.call(), kind_, phase, piece, begin, now()});
  }
  template <class Put, class Take>
  void rounds(const Collective& c, int64_t pieces, int64_t bytes, Put&& put, Take&& take);
  void run_product(const Collective& c, Product product, const Meanwhile* meanwhile);
  void run_meanwhile(int64_t tiles, const Meanwhile* meanwhile);
  static int64_t part_bytes(const Grid& grid, const Collective& c);
  void product_one_shot(const Collective& c, const Grid& grid, Product product,
                        const Meanwhile* meanwhile);
  void product_two_shot(const Collective& c, const Grid& grid, Product product,
                        const Meanwhile* meanwhile);
  void product_scatter(const Collective& c, const Grid& grid, Product product,
                       const Meanwhile* meanwhile);
  char* room(int r, int64_t k) const {
    return segment_->tile(r, first_tile_ + static_cast<uint64_t>(k));
  }
  void gather_meanwhile(const Collective& c, FunctionRef<void(int64_t, int64_t)> meanwhile);
  void add_up(const Collective& c, const Tile& tile, const void* const* parts, void* also) const;
  template <int64_t kAhead, class Put, class Meanwhile, class Take>
  void rounds_ahead(const Collective& c, int64_t pieces, Phase phase, Put&& put,
                    Meanwhile&& meanwhile, Take&& take);
  void reduce(const Collective& c, const void* const* sources, int64_t first, int64_t n, void* also,
              bool stream) const;
  void first_wait(const Collective& c, uint32_t event);
  void spread(int64_t n, int64_t bytes, int64_t align,
              FunctionRef<void(int64_t begin, int64_t end)> part) const;
  [[noreturn]] void give_up(const Collective& c, const Broken& broken);
  [[noreturn]] void fail_with(int blamed, const std::string& message);

  void set_failure(const std::string& message, int blamed);

  std::unique_ptr<Segment> segment_;  // until it is closed
  std::string name_;
  int rank_, world_;
  Options options_;
  Turns turns_;
  int threads_;
  int64_t handle_ = 0;
  int process_;  // fork generation: a child cannot go on with its parent's
  bool closed_ = false;
  std::atomic<int> pending_{0};
  std::atomic<std::thread::id> server_{};
  std::atomic<bool> serving_{false};
  std::string failure_;
  uint64_t first_tile_ = 0;  // of the next product
  bool recording_ = false;
  std::vector<Span> spans_;
  Kind kind_ = Kind::all_reduce;      // of the call that is recorded
  mutable std::mutex mutex_;          // held through a call
  mutable std::mutex failure_mutex_;  // of failure_ alone, so that asking for it does not wait
};

}  // namespace weft::comm::cpu
