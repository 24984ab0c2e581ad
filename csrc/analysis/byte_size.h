// byte_size: numbers of bytes as people read them.
#pragma once

#include <string>

namespace pipert {

// Three digits in powers of 1000: "0 B", "1.25 GB". REQUIRES bytes >= 0.
std::string byte_size(double bytes);

}  // namespace pipert
