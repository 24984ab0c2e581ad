// Network: the links between ranks, and when each message that is put onto them arrives.
//
// Note [Messages on a link]
//
// A link carries its messages one after another, in the order in which they are ready to leave, and
// each as a whole: bytes / bandwidth on the link, then the latency, in which the link is free for
// the next. So the messages of one edge queue behind each other, and behind those of the edges that
// share its link. With an infinite bandwidth nothing queues.
//
// Why not shares of the bandwidth, as flows in a network have them: with first come, first served a
// message's arrival is known when it leaves, and nothing that comes later changes it. So a schedule
// can be simulated in one pass, with the same result whatever the order in which ranks are looked
// at; sharing would move every arrival each time a message enters or leaves. It is also what one
// copy engine or one network queue does with copies that are given to it. The last byte of a busy
// period is through at the same time under both.
#pragma once

#include <vector>

#include "analysis/action_index.h"
#include "analysis/costs.h"

namespace pipert {

// A message that is ready to leave.
struct Parcel {
  Edge edge;
  double bytes = 0.0;
  double ready = 0.0;
  Place sender;
  Place cause;  // the step that made it ready just then
};

// What became of it.
struct Transmission {
  double begun = 0.0;    // when the link took it up
  double arrived = 0.0;  // at its destination
  Place ahead;         // the sender of the message that it queued behind; none if the link was free
  Rank ahead_to = -1;  // where that one went
  Place cause;         // the step without which it would have begun earlier
};

class Network {
 public:
  // REQUIRES costs that fit a schedule of so many ranks; they must outlive the network.
  Network(const Costs& costs, int num_ranks);

  // Whether messages of several ranks share a link, so that their order in time is needed.
  bool is_shared() const { return is_shared_; }

  // REQUIRES that each link gets its parcels in the order of their `ready`.
  Transmission send(const Parcel& parcel);

 private:
  struct Link {
    double free = 0.0;  // from when on
    Place last;         // sender of its last message
    Rank last_to = -1;  // and where it went
    Place cause;        // of that message's
  };
  struct Route {
    Rank destination = 0;
    double latency = 0.0;
    double bandwidth = 0.0;
    int link = 0;
  };

  Route& route_of(Edge edge);
  int link_of(Edge edge);

  const Costs& costs_;
  bool is_uniform_;  // one latency for all edges, and no queues
  std::map<Edge, int> shared_links_;
  std::vector<Link> links_;
  std::vector<std::vector<Route>> routes_;  // by source, then ascending destination
  bool is_shared_ = false;
};

}  // namespace pipert
