#include "comm/cuda/node.h"

#include <algorithm>
#include <memory>
#include <sstream>
#include <utility>

#include "core/error.h"

namespace weft::comm::cuda {

Node::Node(const Options& options, int rank, CurrentStream current_stream)
    : Communicator(options),
      current_stream_(current_stream),
      device_(gpu::current_device()),
      bytes_(static_cast<size_t>(Group::bytes(options.budget.blocks, options.budget.slot_bytes))),
      status_(sizeof(Status)) {
  std::byte* own = nullptr;
  if (options.topology.multicast) {
    check(gpu::has_multicast(), "weft: ", gpu::device_name(), " has no multicast memory");
    bytes_ = gpu::multicast_bytes(bytes_, world());
    shareable_ = gpu::Shareable::allocate(bytes_);
    shareable_.map();
    own = shareable_.data();
    if (rank == 0) multicast_ = gpu::Shareable::multicast(bytes_, world());
  } else {
    memory_ = gpu::PeerMemory::allocate(bytes_);
    own = memory_.data();
  }
  const auto header = std::make_unique<Header>();
  initialise(*header);
  gpu::copy_to_device(own, header.get(), sizeof *header);
  group_.rank = rank;
  group_.memory[rank] = own;
  group_.status = static_cast<Status*>(status_.data());
}

Node::~Node() {
  try {
    close();
  } catch (const std::exception&) {  // a context that is broken lets everything go by itself
  }
}

std::string Node::address() const {
  return (options_.topology.multicast ? "-" : memory_.handle()) + " " + gpu::device_name();
}

std::vector<int64_t> Node::descriptors() const {
  if (!options_.topology.multicast) return {};
  std::vector<int64_t> found = {shareable_.descriptor()};
  if (rank() == 0) found.push_back(multicast_.descriptor());
  return found;
}

gpu::Link Node::connect(const std::string& addresses, const std::vector<int64_t>& descriptors) {
  const bool multicast = options_.topology.multicast;
  auto next = descriptors.begin();
  const auto open_next = [&] {
    check(next != descriptors.end(), "weft: a rank's file descriptor is missing");
    return gpu::Shareable::open(static_cast<int>(*next++), bytes_);
  };
  std::istringstream text(addresses);
  gpu::Link slowest = gpu::Link::nvlink;
  for (int r = 0; r < world(); ++r) {
    std::string handle, device;
    text >> handle >> device;
    if (r == rank()) continue;
    const gpu::Link link = gpu::link_to(device);
    check(link != gpu::Link::none, "weft: the GPU of rank ", rank(), ", ", gpu::device_name(),
          ", does not reach that of rank ", r, ", ", device);
    slowest = std::min(slowest, link);
    if (multicast) {
      shareable_peers_.push_back(open_next());
      shareable_peers_.back().map();
      group_.memory[r] = shareable_peers_.back().data();
      if (r == 0) multicast_ = open_next();
    } else {
      peers_.push_back(gpu::PeerMemory::open(handle));
      group_.memory[r] = peers_.back().data();
    }
  }
  if (multicast) multicast_.add_device();
  connected_ = true;
  return slowest;
}

void Node::bind() {
  if (!options_.topology.multicast) return;
  multicast_.bind(shareable_);
  multicast_.map();
  group_.multicast = multicast_.data();
}

void Node::connect(const std::vector<std::shared_ptr<Node>>& ranks) {
  for (const auto& node : ranks) {
    for (size_t r = 0; r < ranks.size(); ++r) node->group_.memory[r] = ranks[r]->memory_.data();
    node->connected_ = node->alone_ = true;
  }
}

void Node::check_ready(const Collective& c) const {
  check(connected_, "weft.", name_of(c.kind), ": the communicator's GPUs are not connected");
  check(gpu::current_device() == device_, "weft.", name_of(c.kind),
        ": x is on cuda:", gpu::current_device(), ", the communicator on cuda:", device_);
}

// A graph's launches are the caller's to order with other calls.
void Node::follow(gpu::Stream stream) const {
  if (launched_ && stream != last_ && gpu::in_one_graph(last_, stream))
    gpu::order_streams(last_, stream);
}

void Node::run(const Collective& c) {
  check_ready(c);
  const gpu::Stream stream = current_stream_();
  follow(stream);
  launch(c, stream);
  launched_ = true;
  last_ = stream;
}

void Node::fork(const Collective& c) {
  check_ready(c);
  const gpu::Stream stream = current_stream_();
  follow(stream);
  gpu::order_streams(stream, side_.stream());
  launch(c, side_.stream());
  launched_ = true;
  last_ = stream;
}

void Node::join() { gpu::order_streams(side_.stream(), current_stream_()); }

void Node::close() {
  const auto peers = std::move(peers_);  // they go in the end, whatever fails
  const auto shareable_peers = std::move(shareable_peers_);
  if (!connected_) return;
  connected_ = false;
  gpu::synchronise_device();
  if (failure().empty() && !alone_)
    for (int r = 0; r < world(); ++r)
      if (r != rank()) gpu::copy_to_device(&group_.header(r)->told[rank()], &kClosed, 4);
}

}  // namespace weft::comm::cuda
