// A rank on a GPU: its memory and that of its peers, and the streams of its calls.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "comm/cuda/communicator.h"
#include "gpu/multicast.h"
#include "gpu/peer_memory.h"

namespace weft::comm::cuda {

class Node final : public Communicator {
 public:
  using CurrentStream = gpu::Stream (*)();

  // On the current device.
  Node(const Options& options, int rank, CurrentStream current_stream);
  ~Node() override;

  // What the others connect to: the handle of its memory and the name of its device.
  std::string address() const;
  // With multicast: file descriptors of its memory and, of rank 0, of the multicast object. Who asks
  // closes them.
  std::vector<int64_t> descriptors() const;
  // To all ranks, by their addresses, one after the other with spaces between; with multicast by
  // the others' descriptors, one after the other, which the caller closes. The slowest link.
  gpu::Link connect(const std::string& addresses, const std::vector<int64_t>& descriptors);
  // With multicast, once all have connected; it can be used once all have bound.
  void bind();
  // The same within this process and device, where all are at hand: for tests.
  static void connect(const std::vector<std::shared_ptr<Node>>& ranks);
  // What all ranks have agreed on.
  void agree(bool nvlink, const Table& table) {
    options_.topology.nvlink = nvlink;
    options_.table = table;
  }

  using Communicator::run;
  void run(const Collective& collective) override;

  // Finishes what is in the streams, then tells the peers and lets their memory go. The own one goes
  // with the object, when no peer needs it any more.
  void close();

 private:
  void check_ready(const Collective& collective) const;
  // Puts what the stream gets from now on behind the last call.
  void follow(gpu::Stream stream) const;
  void fork(const Collective& collective) override;
  void join() override;

  CurrentStream current_stream_;
  int device_;
  size_t bytes_;
  gpu::PeerMemory memory_;                // or, with multicast,
  gpu::Shareable shareable_, multicast_;  // where the object comes last and goes first
  gpu::HostMemory status_;
  std::vector<gpu::PeerMemory> peers_;
  std::vector<gpu::Shareable> shareable_peers_;
  bool connected_ = false, launched_ = false;
  bool alone_ = false;          // all ranks are this process's, and end together
  gpu::Stream last_ = nullptr;  // of the call before
  gpu::SideStream side_;
};

}  // namespace weft::comm::cuda
