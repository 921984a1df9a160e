#include "comm/cpu/segment.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <mutex>
#include <new>
#include <random>
#include <set>
#include <utility>

#include "core/error.h"

namespace weft::comm::cpu {
namespace {

constexpr uint64_t kMagic = 0x31666d6d6f637477;  // "wtcommf1": this layout

struct Header {
  uint64_t magic;
  uint32_t world, ring;
  uint64_t slot_bytes;
};
static_assert(sizeof(Header) <= sizeof(Flag));

constexpr const char* kPrefix = "weft-comm-";
constexpr time_t kStaleSeconds = 60;

std::string random_name() {
  std::random_device random;
  const char* digits = "0123456789abcdef";
  std::string name = std::string("/") + kPrefix;
  for (int i = 0; i < 4; ++i) {
    for (uint32_t bits = random(), d = 0; d < 8; ++d, bits >>= 4) name += digits[bits & 15];
  }
  return name;
}

struct flock byte_lock(int rank) {
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = rank;
  lock.l_len = 1;
  return lock;
}

// Names of the segments that this process has.
struct OwnNames {
  std::mutex mutex;
  std::set<std::string> names;
};
OwnNames& own_names() {
  static OwnNames* const all = new OwnNames;  // never destroyed, as segments may outlive statics
  return *all;
}

bool is_own(const std::string& name) {
  const std::lock_guard lock(own_names().mutex);
  return own_names().names.count(name) > 0;
}

// Names of objects whose makers died before all had opened them: nobody holds a lock there. Of its
// own none is opened: closing it would give this process's lock back.
void remove_stale() {
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir("/dev/shm"), closedir);
  if (!folder) return;
  while (const dirent* entry = readdir(folder.get())) {
    if (std::strncmp(entry->d_name, kPrefix, std::strlen(kPrefix)) != 0) continue;
    const std::string name = std::string("/") + entry->d_name;
    if (is_own(name)) continue;
    const int file = shm_open(name.c_str(), O_RDWR | O_CLOEXEC, 0);
    if (file < 0) continue;
    struct stat about;
    struct flock lock = byte_lock(0);
    lock.l_len = kMaxWorld;
    const bool old = fstat(file, &about) == 0 && time(nullptr) - about.st_mtime > kStaleSeconds;
    if (old && fcntl(file, F_GETLK, &lock) == 0 && lock.l_type == F_UNLCK) shm_unlink(name.c_str());
    close(file);
  }
}

}  // namespace

size_t Segment::header_bytes(int world) {
  constexpr size_t page = 4096;
  return (sizeof(Flag) * static_cast<size_t>(1 + world) + page - 1) / page * page;
}

size_t Segment::slots_at(int r) const {
  return header_bytes(world_) + static_cast<size_t>(r) * kRing * kSlotBytes;
}

size_t Segment::tiles_at(int r) const {
  return slots_at(world_) + static_cast<size_t>(r * kTiles * tile_bytes());
}

Segment::Segment(std::string name, int file, int rank, int world)
    : name_(std::move(name)), file_(file), rank_(rank), world_(world), process_(getpid()) {
  const std::lock_guard lock(own_names().mutex);
  own_names().names.insert(name_);
}

std::unique_ptr<Segment> Segment::create(int world) {
  check(world >= 1 && world <= kMaxWorld, "weft: a communicator has ", world,
        " ranks, expected 1 to ", kMaxWorld);
  remove_stale();
  const std::string name = random_name();
  const int file = shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  check(file >= 0, "weft: cannot create shared memory: ", std::strerror(errno));
  std::unique_ptr<Segment> segment(new Segment(name, file, 0, world));
  segment->check_room(ftruncate(file, static_cast<off_t>(segment->total_bytes())) ? errno : 0,
                      segment->slots_at(world));
  segment->check_room(posix_fallocate(file, 0, static_cast<off_t>(header_bytes(world))),
                      segment->slots_at(world));
  segment->map();
  new (segment->base_) Header{kMagic, static_cast<uint32_t>(world), kRing, kSlotBytes};
  for (int r = 0; r < world; ++r) new (segment->flags() + r) Flag;
  return segment;
}

std::unique_ptr<Segment> Segment::open(const std::string& name, int rank, int world) {
  check(rank >= 0 && rank < world && world <= kMaxWorld, "weft: rank ", rank, " of ", world,
        ", expected 0 to ", kMaxWorld - 1);
  const int file = shm_open(name.c_str(), O_RDWR | O_CLOEXEC, 0);
  check(file >= 0,
        "weft: cannot open the shared memory that rank 0 made (are all ranks on one "
        "host, with one /dev/shm?): ",
        std::strerror(errno));
  std::unique_ptr<Segment> segment(new Segment(name, file, rank, world));
  struct stat about;
  check(fstat(file, &about) == 0 && about.st_size == static_cast<off_t>(segment->total_bytes()),
        "weft: the shared memory that rank 0 made has another size: is it the same weft?");
  segment->map();
  const Header& header = *reinterpret_cast<const Header*>(segment->base_);
  check(header.magic == kMagic && header.world == static_cast<uint32_t>(world) &&
            header.ring == kRing && header.slot_bytes == kSlotBytes,
        "weft: the shared memory that rank 0 made has another layout: is it the same weft?");
  return segment;
}

void Segment::check_room(int error, size_t bytes) const {
  check(!error, "weft: a communicator of ", world_, " ranks needs ", bytes >> 20,
        " MiB of shared memory (/dev/shm): ", std::strerror(error));
}

void Segment::make_room(int64_t bytes) {
  if (bytes <= room_) return;
  constexpr int64_t kStep = 64 << 10;
  bytes = std::min(round_up(bytes, kStep), tile_bytes());
  for (int64_t t = 0; t < kTiles; ++t) {
    const off_t first = static_cast<off_t>(tiles_at(rank_)) + t * tile_bytes();
    int error = EINTR;  // of a signal, which may come at any time
    while (error == EINTR) error = posix_fallocate(file_, first + room_, bytes - room_);
    check_room(error, slots_at(world_) + static_cast<size_t>(world_ * kTiles * bytes));
  }
  room_ = bytes;
}

void Segment::map() {
  check_room(posix_fallocate(file_, static_cast<off_t>(slots_at(rank_)), kRing * kSlotBytes),
             slots_at(world_));
  void* base = mmap(nullptr, total_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
  check(base != MAP_FAILED, "weft: cannot map shared memory: ", std::strerror(errno));
  base_ = static_cast<char*>(base);
  struct flock lock = byte_lock(rank_);
  check(fcntl(file_, F_SETLK, &lock) == 0, "weft: rank ", rank_,
        " cannot lock its byte of the shared memory: ", std::strerror(errno));
}

Segment::~Segment() {
  if (rank_ == 0 && process_ == getpid()) unlink();
  if (base_) munmap(base_, total_bytes());
  close(file_);
  const std::lock_guard lock(own_names().mutex);
  own_names().names.erase(name_);
}

void Segment::unlink() const { shm_unlink(name_.c_str()); }

bool Segment::alive(int r) const {
  struct flock lock = byte_lock(r);
  return fcntl(file_, F_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

}  // namespace weft::comm::cpu
