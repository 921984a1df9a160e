// What is said when something is wrong: where a thread is, in the words of the kernel's source, and
// who waits where when nobody can go on.
#include <dlfcn.h>

#include <cstdio>
#include <map>
#include <sstream>
#include <tuple>

#include "core/error.h"
#include "gpu/sim/state.h"

namespace weft::gpu::sim {

namespace {

std::string look_up_line(const void* address) {
  Dl_info info;
  if (!address || !dladdr(address, &info) || !info.dli_fname) return "an unknown place";
  const size_t offset =
      static_cast<size_t>(static_cast<const char*>(address) - static_cast<char*>(info.dli_fbase));
  std::ostringstream command;
  command << "addr2line -i -e '" << info.dli_fname << "' " << std::hex << offset - 1
          << " 2>/dev/null";
  std::string line;
  if (FILE* pipe = popen(command.str().c_str(), "r")) {
    // A line for each function that was inlined, innermost first: the vocabulary's own are passed.
    char text[1024];
    while (std::fgets(text, sizeof text, pipe)) {
      line = text;
      if (line.find("/csrc/gpu/") == std::string::npos) break;
    }
    pclose(pipe);
  }
  while (!line.empty() && (line.back() == '\n' || line.back() == ' ')) line.pop_back();
  if (line.empty() || line[0] == '?') {
    std::ostringstream place;
    place << info.dli_fname << "+0x" << std::hex << offset;
    return place.str();
  }
  return line.substr(line.rfind('/') + 1);
}

}  // namespace

// "row_sum.h:23" for a return address, from the debug information, through binutils' addr2line; the
// library and the offset where that is not at hand.
std::string source_line(const void* address) {
  static std::map<const void*, std::string> known;  // a process each takes its time
  auto [line, is_new] = known.try_emplace(address);
  if (is_new) line->second = look_up_line(address);
  return line->second;
}

namespace {

std::string block_name(const BlockFacts& facts) {
  std::ostringstream text;
  text << "block (" << facts.index.x << ", " << facts.index.y << ", " << facts.index.z << ")";
  return text.str();
}

// "0-31, 64-95"
std::string ranges(const std::vector<uint32_t>& sorted) {
  std::ostringstream text;
  for (size_t i = 0; i < sorted.size();) {
    size_t j = i;
    while (j + 1 < sorted.size() && sorted[j + 1] == sorted[j] + 1) ++j;
    text << (i ? ", " : "") << sorted[i];
    if (j > i) text << "-" << sorted[j];
    i = j + 1;
  }
  return text.str();
}

std::string waits(const Task& task) {
  if (task.exited) return "have exited";
  std::ostringstream text;
  text << "wait in " << task.waits_for;
  const Block& block = block_of(task);
  const std::string name = task.waits_for;
  if (name == "sync_block" || name == "sync_named") {
    const Barrier& barrier = block.barriers[task.detail];
    if (task.detail) text << " " << task.detail;
    text << " (" << barrier.arrived << " of " << barrier.expected << " threads have arrived)";
  } else if (name == "cluster_wait") {
    text << " (" << block.cluster->arrived << " of " << block.cluster->live
         << " threads have arrived)";
  }
  if (name == "mbarrier_wait") {
    const auto m = block.mbarriers.find(static_cast<uint32_t>(task.detail));
    if (m != block.mbarriers.end())
      text << " (shared offset " << task.detail << ", in phase " << m->second.phase << ": "
           << m->second.pending << " arrivals and " << m->second.bytes << " bytes are due)";
  }
  text << ", " << source_line(task.where);
  return text.str();
}

// The kernel in "… [with auto kKernel = weft::norm::forward_kernel<float>]".
std::string kernel_name(const std::string& pretty) {
  const size_t begin = pretty.find("kKernel = ");
  if (begin == std::string::npos) return pretty;
  const size_t from = begin + sizeof("kKernel = ") - 1;
  return pretty.substr(from, pretty.size() - 1 - from);
}

// … and which launch of which stream it is, where there are several.
std::string launch_name(const Cluster& cluster) {
  std::ostringstream text;
  text << kernel_name(cluster.grid->kernel);
  const Lane& first = engine().lanes->front();
  if (engine().lanes->size() > 1)
    text << ", launch " << cluster.lane->turn << " of stream " << cluster.lane - &first;
  return text.str();
}

}  // namespace

std::string context_of(const Task& task, const void* where) {
  std::ostringstream text;
  text << "\n  in " << launch_name(*block_of(task).cluster) << "\n  " << block_name(*task.block)
       << ", thread " << task.index << ", " << source_line(where);
  return text.str();
}

void error(const std::string& what) {
  const Engine& e = engine();
  fail("simulator: ", what,
       e.acting ? context_of(*e.acting_for, e.acting->where) : context_of(self(), self().where));
}

std::string name_of_actor(uint64_t cluster, uint32_t actor) {
  std::ostringstream text;
  const auto name = [&](const Task& task) {
    text << "thread " << task.index << " of " << block_name(*task.block);
    if (engine().lanes->size() > 1)
      text << " of stream " << block_of(task).cluster->lane - &engine().lanes->front();
  };
  for (const auto& c : engine().resident) {
    const Task& first = *c->blocks[0]->tasks[0];
    if ((first.cluster & 0xFFFFFFFF) != (cluster & 0xFFFFFFFF)) continue;
    const uint32_t per_block = first.block->threads;
    if (actor < c->threads) {
      name(*c->blocks[actor / per_block]->tasks[actor % per_block]);
    } else {
      const Cluster::Engine& engine_of = c->engines[actor - c->threads];
      text << "a " << engine_of.name << " of ";
      name(*engine_of.of);
    }
    return text.str();
  }
  return "a block that has ended";
}

std::string deadlock_report(const Engine& e) {
  std::ostringstream text;
  text << "simulator: deadlock";
  for (const Lane& lane : *e.lanes) {
    if (lane.turn == lane.grids.size()) continue;
    const Grid& grid = *lane.grids[lane.turn];
    const uint64_t blocks = grid.config.cluster.count();
    if (grid.admitted < grid.clusters)
      text << "\n  " << (grid.clusters - grid.admitted) * blocks << " of " << grid.clusters * blocks
           << " blocks have not begun: there is room for " << grid.room * blocks << " at a time";
  }
  int shown = 0;
  std::string before;
  for (const auto& cluster : e.resident) {
    const std::string name = launch_name(*cluster);
    if (name != before) text << "\n  in " << name;
    before = name;
    for (const auto& block : cluster->blocks) {
      if (++shown > 8) {
        text << "\n  … and more blocks";
        return text.str();
      }
      using Key = std::tuple<bool, std::string, uint64_t, const void*>;
      std::map<Key, std::vector<uint32_t>> groups;
      for (uint32_t i = 0; i < block->facts.threads; ++i) {
        const Task& task = *block->tasks[i];
        groups[task.exited ? Key{true, "", 0, nullptr}
                           : Key{false, task.waits_for, task.detail, task.where}]
            .push_back(i);
      }
      for (const auto& [key, threads] : groups)
        text << "\n  " << block_name(block->facts) << ": threads " << ranges(threads) << " "
             << waits(*block->tasks[threads.front()]);
    }
  }
  return text.str();
}

}  // namespace weft::gpu::sim
