// ConnectionLost: the other end has closed, or its process is gone.
#pragma once

#include <stdexcept>

namespace pipert {

class ConnectionLost : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Its process is gone: there is nobody who could say why.
class ProcessGone : public ConnectionLost {
 public:
  using ConnectionLost::ConnectionLost;
};

}  // namespace pipert
