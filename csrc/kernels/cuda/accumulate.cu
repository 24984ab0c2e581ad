#include "kernels/accumulate.h"

#include "kernels/cuda/map.h"
#include "kernels/number_type.h"

namespace pipert::kernels {

void accumulate(std::span<const Piece> gradients, std::span<const Piece> mains,
                DeviceStream stream) {
  check_accumulate(gradients, mains);
  for (const Element element : {Element::kFloat32, Element::kBFloat16, Element::kFloat16}) {
    std::vector<Span> spans;
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      if (gradients[i].element == element)
        spans.push_back({gradients[i].data, mains[i].data, mains[i].numel});
    }
    with_number(element, [&](auto number) {
      run_over<Map<decltype(number), float, true>>(spans, stream, "accumulate");
    });
  }
}

}  // namespace pipert::kernels
