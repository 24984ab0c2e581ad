#include "transport/channel.h"

#include "base/error.h"

namespace pipert {

void check_arrival(const Message& message, const MessageKey& expected, std::int64_t epoch,
                   bool training) {
  if (message.training != training) {
    throw ValueError(concat("the ranks don't run the same step: this rank ",
                            training ? "trains" : "evaluates", ", the sender of the ",
                            to_string(message.key), message.training ? " trains" : " evaluates"));
  }
  if (message.key == expected && message.epoch == epoch) return;
  throw ValueError(concat("expected the ", to_string(expected), " of pass ", epoch, ", got the ",
                          to_string(message.key), " of pass ", message.epoch,
                          ": the ranks don't run the same step"));
}

}  // namespace pipert
