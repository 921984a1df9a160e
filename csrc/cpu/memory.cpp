#include "cpu/memory.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <fstream>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__GLIBC__)
#include <dlfcn.h>
#include <gnu/libc-version.h>
#include <malloc.h>
#endif

namespace weft::cpu {
namespace {

const std::string kSettings = "/sys/kernel/mm/transparent_hugepage/";

// "always [madvise] never" is how the kernel writes a choice; the words in brackets hold.
std::string chosen(const std::string& setting) {
  std::ifstream file(kSettings + setting);
  std::string line;
  std::getline(file, line);
  const size_t begin = line.find('['), end = line.find(']');
  return begin == line.npos || end == line.npos ? "" : line.substr(begin + 1, end - begin - 1);
}

size_t huge_page_bytes() {
  std::ifstream file(kSettings + "hpage_pmd_size");
  size_t bytes = 0;
  return file >> bytes ? bytes : 0;
}

std::atomic<bool> reusing{false};

#if defined(__GLIBC__)

// malloc may be another library's (jemalloc, tcmalloc, a sanitizer's), which mallopt does not
// reach.
bool malloc_is_glibc() {
  Dl_info allocator, libc;
  return dladdr(dlsym(RTLD_DEFAULT, "malloc"), &allocator) &&
         dladdr(reinterpret_cast<void*>(&gnu_get_libc_version), &libc) &&
         allocator.dli_fbase == libc.dli_fbase;
}

#endif

}  // namespace

void advise_huge_pages(void* memory, size_t bytes) {
#if defined(__linux__)
  static const size_t page = chosen("enabled") == "madvise" ? huge_page_bytes() : 0;
  if (page == 0 || bytes < page) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) & ~(page - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) & ~(page - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

bool reuse_memory(bool on) {
#if defined(__GLIBC__)
  if (!malloc_is_glibc()) return false;
  if (on) {
    mallopt(M_MMAP_MAX,
            0);  // large blocks from the heap, too: an mmapped block is unmapped when it is freed
    mallopt(M_TRIM_THRESHOLD, -1);  // never give the end of the heap back
    mallopt(M_TOP_PAD, 64 << 20);  // and keep the heaps of other threads, which end at 64 MiB, when
                                   // they fall empty
  } else if (reusing.load()) {
    // glibc's own values. It adjusts the first two as long as nobody has set them, and nothing
    // turns that on again: so we set what it arrives at in a process that has freed a block of 32
    // MiB, the most it adjusts to.
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 64 << 20);
    mallopt(M_TOP_PAD, 128 << 10);
    mallopt(M_MMAP_MAX, 65536);
    malloc_trim(0);
  }
  reusing = on;
  return true;
#else
  (void)on;
  return false;
#endif
}

bool reusing_memory() { return reusing; }

HugePages huge_pages() {
  HugePages state{chosen("enabled"), chosen("defrag"), huge_page_bytes(), 0};
  std::ifstream file("/proc/self/smaps_rollup");
  std::string word;
  while (file >> word) {
    size_t kibibytes;
    if (word == "AnonHugePages:" && file >> kibibytes) state.process_bytes = kibibytes * 1024;
  }
  return state;
}

}  // namespace weft::cpu
