#include "base/ids.h"

#include "base/error.h"

namespace pipert {

std::string to_string(const MessageKey& message) {
  return concat(message.kind == MessageKind::kActivation ? "activation" : "gradient", " of stage ",
                message.stage, ", microbatch ", message.microbatch);
}

std::string to_string(const Edge& edge) { return concat(edge.source, "->", edge.destination); }

}  // namespace pipert
