// Calls a generic function with the C++ type of an Element.
#pragma once

#include "base/error.h"
#include "kernels/number_bits.h"
#include "kernels/piece.h"

namespace pipert::kernels {

// function(Number{}) with float, BFloat16 or Float16. InternalError for bytes, which the caller has
// sorted out.
template <typename Function>
void with_number(Element element, const Function& function) {
  switch (element) {
    case Element::kFloat32:
      return function(float{});
    case Element::kBFloat16:
      return function(BFloat16{});
    case Element::kFloat16:
      return function(Float16{});
    case Element::kByte:
      break;
  }
  throw InternalError("bytes are no numbers");
}

}  // namespace pipert::kernels
