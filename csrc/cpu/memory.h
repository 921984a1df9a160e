#pragma once

#include <cstddef>
#include <string>

#include "core/export.h"

// What a kernel library can do about page faults. Touching fresh memory in 4 KiB pages is ten times
// slower than a copy, and libc gives every large tensor fresh memory; that bounds the large
// elementwise operations of any library.

namespace weft::cpu {

// Asks for huge pages under [memory, memory + bytes), before it is first touched. A hint, which may
// have no effect; it costs about a microsecond. Does nothing where the block holds no whole huge
// page, the kernel's mode is not `madvise`, or the system is not Linux.
void advise_huge_pages(void* memory, size_t bytes);

// on: glibc keeps freed memory for later allocations of this process, whatever the size, instead of
// giving it back to the system at once. off: back to glibc's defaults, and what is free now goes
// back to the system. Returns whether that is possible: false where malloc is not glibc's, and then
// nothing changes. For what it costs see weft.reuse_memory.
WEFT_API bool reuse_memory(bool on);
WEFT_API bool reusing_memory();  // what the last call that had an effect asked for

struct HugePages {
  std::string mode;      // always, madvise or never; empty where the system has none
  std::string defrag;    // what the system does when none is free: always, defer, defer+madvise,
                         // madvise or never
  size_t page_bytes;     // 0 where the system has none
  size_t process_bytes;  // how much of this process lies in huge pages now
};
WEFT_API HugePages huge_pages();

}  // namespace weft::cpu
