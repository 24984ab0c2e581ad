// quote: somebody else's text made fit for an error message.
#pragma once

#include <string>
#include <string_view>

namespace pipert {

// The text in double quotes. Bytes that are not printable ASCII become \xNN, so that the result is
// valid UTF-8 whatever came in; more than 60 bytes are cut, with "..." after the closing quote.
std::string quote(std::string_view text);

}  // namespace pipert
