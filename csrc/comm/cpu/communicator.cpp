// Who puts what into shared memory when, for each collective.
//
// A message goes in pieces, each an event (protocol.h) or two. While the peers may still be busy
// with piece k, a rank puts piece k + 1: that hides most of the waiting, and keeps what is shared
// in the caches.
//
//   one_shot        put x[k]; wait; y[k] = ⊕ x_r[k]
//                   a rank writes n to shared memory and reads (W - 1) · n
//   two_shot        put x[k]; wait; reduce the own share of piece k into y and a second event; wait;
//                   copy the others' shares
//                   a rank writes n and reads 2 · n · (W - 1) / W
//   reduce_scatter  put what the others own of x; wait; y[k] = ⊕
//   all_gather      put x[k]; wait; copy the others'
//   int8            put q and scales of x[k]; wait; y[k] = ⊕ s_r · q_r
//
// The own part is read from x itself. Sums run over the ranks in order, on whichever rank: the same
// bits everywhere and every time.
#include "comm/cpu/communicator.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <sstream>
#include <unordered_map>
#include <utility>

#include "comm/cpu/kernels.h"
#include "comm/words.h"
#include "core/divide.h"
#include "core/error.h"
#include "cpu/levels.h"
#include "cpu/threads.h"

namespace weft::comm::cpu {

WEFT_CPU_TABLE(Kernels, kernels)

namespace {

constexpr int64_t kSlot = kSlotBytes;
constexpr int64_t kLine = 64;
constexpr int64_t kInt8Piece = 32768;       // elements, a multiple of every group
constexpr int64_t kGrainBytes = 64 << 10;   // worth another thread
constexpr int64_t kStreamBytes = 16 << 20;  // messages beyond it leave no cache to their results

// Looks at a counter before yielding, and yields before sleeping. The peer may wait for this CPU,
// even where there is one for every rank: another process has the other. Where nobody does, a yield
// is but a slower look.
Patience patience_for(double timeout) {
  const double seconds = std::min(timeout, 1e9);  // as nanoseconds in 64 bits
  return {20, 300, std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9))};
}

template <class T>
T* at(T* base, int64_t element, int64_t size) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return static_cast<Byte*>(base) + element * size;
}

void copy(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
}

// How often this process has come out of a fork as the child.
std::atomic<int> forks{0};
int fork_generation() {
  static const int watching = pthread_atfork(nullptr, nullptr, [] { ++forks; });
  (void)watching;
  return forks.load(std::memory_order_relaxed);
}

constexpr const char* kForked =
    "this communicator belongs to the process that was forked; make one in the child";

struct Registry {
  std::mutex mutex;
  std::unordered_map<int64_t, std::weak_ptr<Communicator>> communicators;
  int64_t handles = 0;
};
Registry& registry() {
  static Registry* const all = new Registry;  // never destroyed: ops may run while a process ends
  return *all;
}

}  // namespace

std::vector<Choice> default_table(int world, int cpus) {
  if (world == 2) return {{INT64_MAX, false, 256 << 10}};
  if (world <= cpus) return {{64 << 10, false, 64 << 10}, {INT64_MAX, true, 128 << 10}};
  return {{64 << 10, false, 64 << 10}, {INT64_MAX, true, 256 << 10}};
}

Communicator::Communicator(std::unique_ptr<Segment> segment, Options options)
    : segment_(std::move(segment)),
      name_(segment_->name()),
      rank_(segment_->rank()),
      world_(segment_->world()),
      options_(std::move(options)),
      turns_(segment_->flags(), segment_->rank(), segment_->world(), patience_for(options_.timeout),
             *segment_),
      threads_(std::max(1, options_.cpus / segment_->world())),
      process_(fork_generation()) {
  if (options_.table.empty()) {
    options_.table = default_table(world(), options_.cpus ? options_.cpus : world());
  }
  const int64_t least = 8 * kLine * world();  // a line of fp64 for every rank
  for (const Choice& choice : options_.table) {
    check(choice.piece >= least && choice.piece <= kSlot,
          "weft: a table of algorithms has pieces of ", choice.piece, " bytes, expected ", least,
          " to ", kSlot);
  }
}

Communicator::Communicator(int world, Options options)
    : Communicator(Segment::create(world), std::move(options)) {}

Communicator::Communicator(const std::string& name, int rank, int world, Options options)
    : Communicator(Segment::open(name, rank, world), std::move(options)) {}

Communicator::~Communicator() { close(); }

void Communicator::all_here() const {
  const std::lock_guard lock(mutex_);
  if (segment_) segment_->unlink();
}

void Communicator::enter(const std::shared_ptr<Communicator>& communicator) {
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  communicator->handle_ = ++all.handles;
  std::erase_if(all.communicators, [](const auto& entry) { return entry.second.expired(); });
  all.communicators.emplace(communicator->handle_, communicator);
}

std::shared_ptr<Communicator> Communicator::find(int64_t handle) {
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  const auto found = all.communicators.find(handle);
  return found == all.communicators.end() ? nullptr : found->second.lock();
}

// In a child the locks may be held for ever, by threads that only its parent has.
std::string Communicator::failure() const {
  if (process_ != fork_generation()) return kForked;
  const std::lock_guard lock(failure_mutex_);
  return failure_;
}

void Communicator::close() {
  if (process_ != fork_generation()) return;  // it is the parent's
  const std::lock_guard lock(mutex_);
  if (closed_) return;
  if (failure_.empty()) turns_.stop(State::closed);
  closed_ = true;
  segment_.reset();
}

// Waits until the queue is empty, unless this call comes out of it.
void Communicator::keep_place(const Collective& c) const {
  if (server_.load() == std::this_thread::get_id()) {
    check(serving_, "weft.", name_of(c.kind),
          ": in a callback of a work this call would overtake those behind it");
    return;
  }
  while (const int pending = pending_.load()) pending_.wait(pending);
}

// What all calls have about them.
void Communicator::call(const Collective& c, FunctionRef<void()> body) {
  check(process_ == fork_generation(), "weft.", name_of(c.kind), ": ", kForked);
  if (pending_.load(std::memory_order_relaxed)) keep_place(c);
  const std::lock_guard lock(mutex_);
  check(failure_.empty(), failure_);
  check(!closed_, "weft.", name_of(c.kind), ": the communicator is closed");

  turns_.begin(c.signature());
  kind_ = c.kind;
  try {
    timed(Phase::call, 0, body);
  } catch (const Broken& broken) {
    give_up(c, broken);
  } catch (const std::exception& error) {  // this rank's events are out of step from here on
    if (failure_.empty()) set_failure(error.what(), rank());
    throw;
  }
}

int64_t Communicator::now() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

void Communicator::record(bool on) {
  const std::lock_guard lock(mutex_);
  recording_ = on;
}

std::vector<Span> Communicator::take_spans() {
  const std::lock_guard lock(mutex_);
  return std::exchange(spans_, {});
}

const Choice& Communicator::choice(const Collective& c) const {
  const int64_t bytes = c.n * static_cast<int64_t>(size_of(c.dtype));
  auto found = options_.table.begin();
  while (found + 1 != options_.table.end() && bytes > found->bytes) ++found;
  return *found;
}

void Communicator::run(const Collective& c) {
  call(c, [&] {
    switch (c.kind) {
      case Kind::all_reduce:
      case Kind::all_reduce_int8:
        return all_reduce(c);
      case Kind::reduce_scatter:
        return reduce_scatter(c, choice(c).piece);
      case Kind::all_gather:
        return all_gather(c, choice(c).piece);
      default:
        fail("weft.", name_of(c.kind), ": it has no product");
    }
  });
}

void Communicator::run(const Collective& c, Progress progress) {
  call(c, [&] { all_reduce(c, &progress); });
}

void Communicator::all_reduce(const Collective& c, const Progress* progress) {
  if (c.kind == Kind::all_reduce_int8) return all_reduce_int8(c, progress);
  const Choice& chosen = choice(c);
  return chosen.two_shot ? two_shot(c, chosen.piece, progress)
                         : one_shot(c, chosen.piece, progress);
}

// Waits for a call's first event, and sees that all have called the same.
void Communicator::first_wait(const Collective& c, uint32_t event) {
  turns_.wait(event);
  const int odd = turns_.odd_one_out();
  if (odd < 0) return turns_.none_failed();
  std::ostringstream text;
  text << "weft." << name_of(c.kind) << ": rank " << odd << " calls "
       << words(Collective::of(turns_.signature_of(odd))) << ", rank " << rank() << " calls "
       << words(c) << " (call " << turns_.call() << " of the communicator)";
  fail_with(odd, text.str());
}

void Communicator::give_up(const Collective& c, const Broken& broken) {
  std::ostringstream text;
  text << "weft." << name_of(c.kind) << ": rank " << broken.rank;
  switch (broken.trouble) {
    case Trouble::late:
      text << " did not come within " << options_.timeout << " s";
      break;
    case Trouble::dead:
      text << " has died";
      break;
    case Trouble::closed:
      text << " has closed its communicator";
      break;
    case Trouble::failed:
      text << " has given up";
      if (broken.blamed != broken.rank) text << ", because of rank " << broken.blamed;
      break;
  }
  text << " (call " << turns_.call() << " of the communicator, seen from rank " << rank() << " of "
       << world() << ")";
  fail_with(broken.blamed, text.str());
}

void Communicator::fail_with(int blamed, const std::string& message) {
  set_failure(message, blamed);
  fail(message);
}

void Communicator::set_failure(const std::string& message, int blamed) {
  {
    const std::lock_guard lock(failure_mutex_);
    failure_ = message;
  }
  turns_.stop(State::failed, blamed);
}

// Calls part for ranges of [0, n), each of whole `align`s, on as many threads as are worth it.
void Communicator::spread(int64_t n, int64_t bytes, int64_t align,
                          FunctionRef<void(int64_t, int64_t)> part) const {
  const int64_t most =
      bytes < 2 * kGrainBytes ? 1 : std::min<int64_t>(threads_, ::weft::cpu::max_threads());
  const int64_t tasks = std::clamp<int64_t>(bytes / kGrainBytes, 1, std::max<int64_t>(most, 1));
  if (tasks == 1) return part(0, n);
  const int64_t share = round_up(ceil_div(n, tasks), align);
  ::weft::cpu::parallel_for(tasks, [&](int64_t task) {
    const int64_t begin = std::min(task * share, n), end = std::min(begin + share, n);
    if (begin < end) part(begin, end);
  });
}

// y[first, first + n) = ⊕ sources + bias; also to `also`.
void Communicator::reduce(const Collective& c, const void* const* sources, int64_t first, int64_t n,
                          void* also, bool stream) const {
  const int64_t size = static_cast<int64_t>(size_of(c.dtype)), width = c.bias ? c.columns : n;
  for (int64_t i = 0; i < n;) {
    const int64_t column = c.bias ? (first + i) % width : 0,
                  count = std::min(width - column, n - i);
    const void* terms[kMaxWorld + 1];
    for (int r = 0; r < world(); ++r) terms[r] = at(sources[r], i, size);
    if (c.bias) terms[world()] = at(c.bias, column, size);
    kernels().reduce(c.dtype, c.reduction, terms, world() + (c.bias ? 1 : 0),
                     at(c.y, first + i, size), also ? at(also, i, size) : nullptr, count, stream);
    i += count;
  }
}

// put(k, slot) for each piece of up to `bytes`, one ahead of take(k, slots): slots(r) is rank r's.
template <class Put, class Take>
void Communicator::rounds(const Collective& c, int64_t pieces, int64_t bytes, Put&& put,
                          Take&& take) {
  const auto show = [&](int64_t k) {
    const uint32_t event = turns_.next();
    timed(Phase::put, k, [&] { put(k, segment_->slot(rank(), event, bytes)); });
    turns_.publish();
    return event;
  };
  uint32_t now = show(0);
  timed(Phase::wait, 0, [&] { first_wait(c, now); });
  for (int64_t k = 0; k < pieces; ++k) {
    const uint32_t next = k + 1 < pieces ? show(k + 1) : now;
    if (k > 0) timed(Phase::wait, k, [&] { turns_.wait(now); });
    timed(Phase::take, k, [&] { take(k, [&](int r) { return segment_->slot(r, now, bytes); }); });
    now = next;
  }
}

void Communicator::one_shot(const Collective& c, int64_t piece, const Progress* progress) {
  const int64_t size = static_cast<int64_t>(size_of(c.dtype)), step = piece / size;
  const bool stream = !progress && c.n * size >= kStreamBytes;
  const auto count = [&](int64_t k) { return std::min(step, c.n - k * step); };
  rounds(
      c, std::max<int64_t>(ceil_div(c.n, step), 1), count(0) * size,
      [&](int64_t k, char* slot) {
        spread(count(k), count(k) * size, kLine, [&](int64_t begin, int64_t end) {
          copy(at(slot, begin, size), at(c.x, k * step + begin, size), (end - begin) * size);
        });
      },
      [&](int64_t k, auto slots) {
        spread(count(k), count(k) * size, kLine, [&](int64_t begin, int64_t end) {
          const void* sources[kMaxWorld];
          for (int r = 0; r < world(); ++r) {
            sources[r] = r == rank() ? at(c.x, k * step + begin, size) : at(slots(r), begin, size);
          }
          reduce(c, sources, k * step + begin, end - begin, nullptr, stream);
        });
        if (progress) (*progress)(k* step + count(k));
      });
}

void Communicator::two_shot(const Collective& c, int64_t piece, const Progress* progress) {
  const int64_t size = static_cast<int64_t>(size_of(c.dtype)), W = world();
  const int64_t share = piece / size / W / kLine * kLine, step = share * W;
  const int64_t pieces = std::max<int64_t>(ceil_div(c.n, step), 1);
  const bool stream = !progress && c.n * size >= kStreamBytes;
  struct Range {
    int64_t begin, count;  // within the message
  };
  const auto range = [&](int64_t k, int64_t r) {
    const int64_t begin = std::min(k * step + r * share, c.n);
    return Range{begin, std::min(share, c.n - begin)};
  };
  // Everything of piece k but the own share.
  const auto put = [&](int64_t k) {
    const uint32_t event = turns_.next();
    char* slot = segment_->slot(rank(), event);
    timed(Phase::put, k, [&] {
      spread(W, step * size, 1, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; ++r) {
          const Range part = range(k, r);
          if (r != rank())
            copy(at(slot, r * share, size), at(c.x, part.begin, size), part.count * size);
        }
      });
    });
    turns_.publish();
    return event;
  };
  // The own share, to y and to the peers.
  const auto reduce = [&](int64_t k, uint32_t event) {
    const uint32_t result = turns_.next();
    char* slot = segment_->slot(rank(), result);
    const Range own = range(k, rank());
    spread(own.count, own.count * size * W, kLine, [&](int64_t begin, int64_t end) {
      const void* sources[kMaxWorld];
      for (int r = 0; r < W; ++r) {
        sources[r] = r == rank() ? at(c.x, own.begin + begin, size)
                                 : at(segment_->slot(r, event), rank() * share + begin, size);
      }
      this->reduce(c, sources, own.begin + begin, end - begin, at(slot, begin, size), stream);
    });
    turns_.publish();
    return result;
  };
  const auto gather = [&](int64_t k, uint32_t result) {
    timed(Phase::wait, k, [&] { turns_.wait(result); });
    timed(Phase::take, k, [&] {
      spread(W - 1, step * size, 1, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
          const int r = static_cast<int>((rank() + 1 + i) % W);
          const Range part = range(k, r);
          copy(at(c.y, part.begin, size), segment_->slot(r, result), part.count * size);
        }
      });
    });
    if (progress) (*progress)(std::min((k + 1) * step, c.n));
  };
  uint32_t now = put(0), before = 0;
  timed(Phase::wait, 0, [&] { first_wait(c, now); });
  for (int64_t k = 0; k < pieces; ++k) {
    const uint32_t next = k + 1 < pieces ? put(k + 1) : now;
    if (k > 0) timed(Phase::wait, k, [&] { turns_.wait(now); });
    uint32_t result = 0;
    timed(Phase::take, k, [&] { result = reduce(k, now); });
    if (k > 0) gather(k - 1, before);
    before = result;
    now = next;
  }
  gather(pieces - 1, before);
}

void Communicator::reduce_scatter(const Collective& c, int64_t piece) {
  const int64_t size = static_cast<int64_t>(size_of(c.dtype)), W = world();
  const int64_t step = std::min(piece / size / W / kLine * kLine, round_up(c.n + 1, kLine));
  const bool stream = c.n * size >= kStreamBytes;
  const auto count = [&](int64_t k) { return std::min(step, c.n - k * step); };
  rounds(
      c, std::max<int64_t>(ceil_div(c.n, step), 1), W * step * size,
      [&](int64_t k, char* slot) {
        spread(W, W * count(k) * size, 1, [&](int64_t first, int64_t last) {
          for (int64_t r = first; r < last; ++r) {
            if (r != rank())
              copy(at(slot, r * step, size), at(c.x, r * c.n + k * step, size), count(k) * size);
          }
        });
      },
      [&](int64_t k, auto slots) {
        spread(count(k), W * count(k) * size, kLine, [&](int64_t begin, int64_t end) {
          const void* sources[kMaxWorld];
          for (int r = 0; r < W; ++r) {
            sources[r] = r == rank() ? at(c.x, r * c.n + k * step + begin, size)
                                     : at(slots(r), rank() * step + begin, size);
          }
          reduce(c, sources, k * step + begin, end - begin, nullptr, stream);
        });
      });
}

void Communicator::all_gather(const Collective& c, int64_t piece) {
  const int64_t size = static_cast<int64_t>(size_of(c.dtype)), W = world(), step = piece / size;
  const auto count = [&](int64_t k) { return std::min(step, c.n - k * step); };
  rounds(
      c, std::max<int64_t>(ceil_div(c.n, step), 1), count(0) * size,
      [&](int64_t k, char* slot) { copy(slot, at(c.x, k * step, size), count(k) * size); },
      [&](int64_t k, auto slots) {
        spread(W, W * count(k) * size, 1, [&](int64_t first, int64_t last) {
          for (int64_t i = first; i < last; ++i) {
            const int r = static_cast<int>((rank() + i) % W);
            const void* from = r == rank() ? at(c.x, k * step, size) : slots(r);
            copy(at(c.y, r * c.n + k * step, size), from, count(k) * size);
          }
        });
      });
}

// A slot holds the scales, and behind them q.
void Communicator::all_reduce_int8(const Collective& c, const Progress* progress) {
  const int64_t size = static_cast<int64_t>(size_of(c.dtype)), step = kInt8Piece;
  const int64_t scale_bytes = round_up(step / c.group * 4, kLine);
  const auto count = [&](int64_t k) { return std::min(step, c.n - k * step); };
  rounds(
      c, std::max<int64_t>(ceil_div(c.n, step), 1), scale_bytes + count(0),
      [&](int64_t k, char* slot) {
        spread(count(k), count(k) * size, c.group, [&](int64_t begin, int64_t end) {
          kernels().quantise(c.dtype, at(c.x, k * step + begin, size), end - begin, c.group,
                             reinterpret_cast<int8_t*>(slot + scale_bytes + begin),
                             reinterpret_cast<float*>(slot) + begin / c.group);
        });
      },
      [&](int64_t k, auto slots) {
        spread(count(k), count(k) * size, c.group, [&](int64_t begin, int64_t end) {
          Quantised sources[kMaxWorld];
          for (int r = 0; r < world(); ++r) {
            const char* slot = slots(r);
            sources[r] = {reinterpret_cast<const int8_t*>(slot + scale_bytes + begin),
                          reinterpret_cast<const float*>(slot) + begin / c.group};
          }
          kernels().reduce_int8(c.dtype, c.reduction, sources, world(),
                                at(c.y, k * step + begin, size), end - begin, c.group);
        });
        if (progress) (*progress)(k* step + count(k));
      });
}

}  // namespace weft::comm::cpu
