// The arithmetic of these tests: words that depend on all words that went into them, in their
// order, so that a message that is lost, doubled, swapped or read too early is seen. On the host at
// once, or on a stream of the fake CUDA, late.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <array>
#include <cstdint>

#include "cuda_fake.h"
#include "torch_cuda_fake.h"

namespace pipert {

using Word = std::uint64_t;
constexpr std::size_t kNumWords = 32;
using Words = std::array<Word, kNumWords>;  // int64[kNumWords] as a tensor

enum class Kernel : Word {
  kBatch,
  kTarget,
  kInner,  // of a forward
  kActivation,
  kOutput,
  kSecondOutput,
  kLoss,
  kLossGradient,
  kInputGradient,
  kWeightGradient,
  kUpdate,
  kCopy,  // of its only operand
  kZero,
};

constexpr Word mix(Word a, Word b) {
  a ^= b + 0x9e3779b97f4a7c15 + (a << 12) + (a >> 4);
  a *= 0xff51afd7ed558ccd;
  return a ^ (a >> 33);
}

template <std::size_t N>
void compute(Kernel kernel, Word tag, const std::array<const Word*, N>& operands, Word* result) {
  for (std::size_t i = 0; i < kNumWords; ++i) {
    Word word = mix(mix(static_cast<Word>(kernel), tag), i);
    for (const Word* operand : operands) word = mix(word, operand[i]);
    if constexpr (N == 1) {
      if (kernel == Kernel::kCopy) word = operands[0][i];
    }
    result[i] = kernel == Kernel::kZero ? 0 : word;
  }
}

// The same on the host.
template <typename... Operands>
Words computed(Kernel kernel, Word tag, const Operands&... operands) {
  Words result;
  compute<sizeof...(Operands)>(kernel, tag, {operands.data()...}, result.data());
  return result;
}

inline Word* words_of(const at::Tensor& tensor) { return static_cast<Word*>(tensor.data_ptr()); }

// On the thread's current stream of the operands' device. Keeps no tensor alive: a kernel doesn't.
template <typename... Operands>
void launch_to(Word* to, int device, Kernel kernel, Word tag, const Operands&... operands) {
  const std::array<const Word*, sizeof...(Operands)> words{words_of(operands)...};
  cuda_fake::launch(cuda_fake::current_stream(device),
                    [=] { compute<sizeof...(Operands)>(kernel, tag, words, to); });
}

template <typename... Operands>
void launch(Kernel kernel, Word tag, const at::Tensor& result, const Operands&... operands) {
  launch_to(words_of(result), result.device().index(), kernel, tag, operands...);
}

// Not yet written to.
inline at::Tensor make_words(const c10::Device& device) {
  return at::empty({static_cast<std::int64_t>(kNumWords)},
                   at::TensorOptions().dtype(at::kLong).device(device));
}

}  // namespace pipert
