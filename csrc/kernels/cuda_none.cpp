// A build without CUDA takes this file in place of kernels/cuda/.
#include "base/error.h"
#include "kernels/accumulate.h"
#include "kernels/finite_check.h"
#include "kernels/flag.h"
#include "kernels/pack.h"

namespace pipert::kernels {
namespace {

[[noreturn]] void refuse(const char* what) {
  throw ValueError(concat(what, ": expected memory of the CPU, pipert was built without CUDA"));
}

}  // namespace

std::int64_t pack(std::span<const Piece>, Format, std::byte*, DeviceStream) { refuse("pack"); }

std::int64_t unpack(std::span<const Piece>, Format, const std::byte*, DeviceStream) {
  refuse("unpack");
}

void accumulate(std::span<const Piece>, std::span<const Piece>, DeviceStream) {
  refuse("accumulate");
}

void check_finite(std::span<const Piece>, const FiniteResult&, DeviceStream) {
  refuse("check_finite");
}

void write_flag(std::uint32_t*, std::uint32_t, DeviceStream) { refuse("write_flag"); }

void wait_flag(const FlagWait&, DeviceStream) { refuse("wait_flag"); }

}  // namespace pipert::kernels
