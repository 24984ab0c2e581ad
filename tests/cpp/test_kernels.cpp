// Kernels on the CPU: every number of 16 and 8 bits, every tie between two neighbours, slots'
// bytes, blocks of fp8, main gradients, finite checks and flags.
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "kernels/accumulate.h"
#include "kernels/finite_check.h"
#include "kernels/flag.h"
#include "kernels/number_bits.h"
#include "kernels/pack.h"

namespace pipert::kernels {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::uint32_t bits_of(float value) { return std::bit_cast<std::uint32_t>(value); }

template <typename Number>
float widen(unsigned bits) {
  return to_float(Number{static_cast<decltype(Number::bits)>(bits)});
}
template <typename Number>
unsigned narrow(float value) {
  return from_float<Number>(value).bits;
}

// What the bits mean, by the formats' definition.
float defined_value(unsigned bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const unsigned mantissa = bits & ((1U << mantissa_bits) - 1);
  const int exponent = static_cast<int>(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const bool negative = (bits >> (exponent_bits + mantissa_bits)) != 0;
  const double significand = mantissa + (exponent == 0 ? 0.0 : std::ldexp(1.0, mantissa_bits));
  const double value = std::ldexp(significand, std::max(exponent, 1) - bias - mantissa_bits);
  return static_cast<float>(negative ? -value : value);
}

// All finite numbers, and what lies half way to the next one and right beside that.
template <typename Number>
void check_every_number(unsigned largest, int exponent_bits, int mantissa_bits) {
  const unsigned sign = 1U << (exponent_bits + mantissa_bits);
  for (unsigned bits = 0; bits <= largest; ++bits) {
    const float value = defined_value(bits, exponent_bits, mantissa_bits);
    CHECK(bits_of(widen<Number>(bits)) == bits_of(value));
    CHECK(bits_of(widen<Number>(bits | sign)) == bits_of(-value));
    CHECK(narrow<Number>(value) == bits);
    CHECK(narrow<Number>(-value) == (bits | sign));
    if (bits == largest) return;
    const float next = defined_value(bits + 1, exponent_bits, mantissa_bits);
    const auto middle = static_cast<float>((static_cast<double>(value) + next) / 2);
    CHECK(static_cast<double>(middle) * 2 == static_cast<double>(value) + next);
    CHECK(narrow<Number>(middle) == bits + bits % 2);
    CHECK(narrow<Number>(std::nextafter(middle, 0.0F)) == bits);
    CHECK(narrow<Number>(std::nextafter(middle, kInf)) == bits + 1);
    CHECK(narrow<Number>(-middle) == ((bits + bits % 2) | sign));
  }
}

void numbers_of_16_bits_round_to_nearest_even() {
  check_every_number<Float16>(0x7bff, 5, 10);
  check_every_number<BFloat16>(0x7f7f, 8, 7);
  for (const float sign : {1.0F, -1.0F}) {
    const unsigned bit = sign < 0 ? 0x8000 : 0;
    CHECK(narrow<Float16>(sign * 65520.0F) == (bit | 0x7c00));  // half way to 2^16
    CHECK(narrow<Float16>(sign * std::nextafter(65520.0F, 0.0F)) == (bit | 0x7bff));
    CHECK(narrow<Float16>(sign * 1e30F) == (bit | 0x7c00));
    CHECK(narrow<Float16>(sign * kInf) == (bit | 0x7c00));
    CHECK(narrow<BFloat16>(sign * kInf) == (bit | 0x7f80));
    CHECK(narrow<BFloat16>(sign * std::numeric_limits<float>::max()) == (bit | 0x7f80));
    CHECK(narrow<Float16>(std::copysign(kNan, sign)) == 0x7fff);
    CHECK(narrow<BFloat16>(std::copysign(kNan, sign)) == 0x7fff);
    CHECK(narrow<Float16>(sign * std::numeric_limits<float>::denorm_min()) == bit);
  }
}

void infinities_and_nans_of_16_bits_widen() {
  CHECK(widen<Float16>(0x7c00) == kInf && widen<Float16>(0xfc00) == -kInf);
  CHECK(widen<BFloat16>(0x7f80) == kInf && widen<BFloat16>(0xff80) == -kInf);
  for (unsigned bits = 0x7c01; bits <= 0x7fff; ++bits) {
    CHECK(bits_of(widen<Float16>(bits)) == 0x7fffffff);
    CHECK(bits_of(widen<Float16>(bits | 0x8000)) == 0x7fffffff);
  }
  for (unsigned bits = 0x7f81; bits <= 0x7fff; ++bits) {
    CHECK(bits_of(widen<BFloat16>(bits)) == bits << 16);
    CHECK(std::isnan(widen<BFloat16>(bits | 0x8000)));
  }
}

void fp8_rounds_saturates_and_keeps_nan() {
  check_every_number<Fp8>(0x7e, 4, 3);
  CHECK(bits_of(widen<Fp8>(0x7f)) == 0x7fffffff && bits_of(widen<Fp8>(0xff)) == 0x7fffffff);
  for (const float large : {448.0F, 449.0F, 464.0F, 480.0F, 1e30F}) {
    CHECK(narrow<Fp8>(large) == 0x7e);
    CHECK(narrow<Fp8>(-large) == 0xfe);
  }
  for (const float lost : {kInf, -kInf, kNan, -kNan}) CHECK(narrow<Fp8>(lost) == 0x7f);
}

// 448 times the scale holds the largest magnitude, and half of the scale would not do.
void a_block_has_the_smallest_scale_that_holds_it() {
  for (std::uint32_t exponent = 0; exponent < 255; ++exponent) {
    for (const std::uint32_t mantissa : {0U, 1U, 0x5fffffU, 0x600000U, 0x600001U, 0x7fffffU}) {
      const std::uint32_t largest = exponent << 23 | mantissa;
      const std::uint32_t byte = scale_byte_of(largest);
      CHECK(byte >= 1 && byte <= 246);
      const double value = std::bit_cast<float>(largest);
      CHECK(value <= 448.0 * scale_of(byte) || largest > 0x7f600000);  // the last saturates
      CHECK(byte == 1 || value > 224.0 * scale_of(byte));
      CHECK(scale_of(byte) * inverse_scale_of(byte) == 1.0F);
    }
  }
}

struct Packed {
  std::vector<std::byte> slot;
  std::int64_t num_bytes;
};

Packed pack_all(std::span<const Piece> pieces, Format format) {
  Packed packed;
  packed.slot.assign(static_cast<std::size_t>(SlotLayout(pieces, format).num_bytes()),
                     std::byte{0xee});
  packed.num_bytes = pack(pieces, format, packed.slot.data());
  CHECK(packed.num_bytes == static_cast<std::int64_t>(packed.slot.size()));
  return packed;
}

Piece piece_of(std::vector<float>& values) {
  return {values.data(), static_cast<std::int64_t>(values.size()), Element::kFloat32};
}

void pieces_lie_at_multiples_of_16_bytes_and_nothing_else_is_written() {
  std::vector<float> first{1.0F, 2.0F, 3.0F};
  std::vector<float> none;
  std::vector<float> second{4.0F};
  const std::vector<Piece> pieces{piece_of(first), piece_of(none), piece_of(second)};
  const Packed packed = pack_all(pieces, Format::kBFloat16);
  CHECK(packed.num_bytes == 32);
  const std::vector<unsigned> expected{0x80, 0x3f, 0x00, 0x40, 0x40, 0x40, 0xee, 0xee};
  for (std::size_t i = 0; i < expected.size(); ++i)
    CHECK(std::to_integer<unsigned>(packed.slot[i]) == expected[i]);
  CHECK(std::to_integer<unsigned>(packed.slot[16]) == 0x80);
  CHECK(std::to_integer<unsigned>(packed.slot[18]) == 0xee);
}

void what_is_packed_as_is_comes_back_to_the_bit() {
  std::string text = "pipelines";
  std::vector<float> values{1.5F, kNan, -0.0F};
  std::string text_back(text.size(), '?');
  std::vector<float> back(values.size());
  const std::vector<Piece> from{
      {text.data(), static_cast<std::int64_t>(text.size()), Element::kByte}, piece_of(values)};
  const std::vector<Piece> to{{text_back.data(), from[0].numel, Element::kByte}, piece_of(back)};
  std::vector<std::byte> slot(1 + 32);  // begins at an odd address
  CHECK(pack(from, Format::kAsIs, slot.data() + 1) == 32);
  CHECK(unpack(to, Format::kAsIs, slot.data() + 1) == 32);
  CHECK(text_back == text);
  CHECK(std::memcmp(back.data(), values.data(), values.size() * sizeof(float)) == 0);
  CHECK_THROWS(SlotLayout(from, Format::kFloat16), ValueError);
}

// 70 elements: two whole blocks and a part of one; outlier, NaN and infinities in the first.
void fp8_blocks_scale_each_32_elements_by_themselves() {
  std::vector<float> values(70);
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = std::ldexp(1.0F + static_cast<float>(i % 8) / 8.0F, i < 32 ? -3 : -60);
  values[0] = 1000.0F;
  values[1] = kNan;
  values[2] = kInf;
  values[3] = -kInf;
  values[33] = -0.0F;
  std::vector<float> back(values.size());
  const std::vector<Piece> from{piece_of(values)};
  const std::vector<Piece> to{piece_of(back)};
  const Packed packed = pack_all(from, Format::kFp8Block);
  CHECK(packed.num_bytes == 96);  // 70 codes, 10 bytes of nothing, 3 scales, 13 of nothing
  CHECK(unpack(to, Format::kFp8Block, packed.slot.data()) == 96);
  CHECK(std::isnan(back[1]) && std::isnan(back[2]) && std::isnan(back[3]));
  CHECK(back[0] == 1024.0F - 64.0F || back[0] == 1024.0F);  // 1000 = 250 * 4, between 240 and 256
  CHECK(bits_of(back[33]) == 0x80000000);
  for (std::size_t i = 4; i < values.size(); ++i)  // multiples of 1/8 take e4m3's three bits
    CHECK(bits_of(back[i]) == bits_of(values[i]));
}

void blocks_of_subnormals_and_of_the_largest_numbers_stay_finite() {
  constexpr float kMax = std::numeric_limits<float>::max();
  constexpr float kTiny = std::numeric_limits<float>::denorm_min();
  for (const float value : {kMax, -kMax, kTiny, 0x1p-127F, 0x1p-120F, 0.0F}) {
    std::vector<float> values(32, value);
    std::vector<float> back(32, kNan);
    const std::vector<Piece> to{piece_of(back)};
    const Packed packed = pack_all(std::vector<Piece>{piece_of(values)}, Format::kFp8Block);
    CHECK(unpack(to, Format::kFp8Block, packed.slot.data()) == packed.num_bytes);
    const float share = std::abs(value) == kMax ? 0.125F : 0.0625F;  // 448 of 512 remain
    const float error = std::max(std::abs(value) * share, 0x1p-136F);
    for (const float each : back) CHECK(std::isfinite(each) && std::abs(each - value) <= error);
  }
}

void main_gradients_add_up_in_float32() {
  std::vector<float> gradient{0.1F, 1e-9F, -2.0F};
  std::vector<Float16> half{from_float<Float16>(0.5F), from_float<Float16>(-0.25F)};
  std::vector<float> main{1.0F, 1.0F, 2.0F};
  std::vector<float> half_main{0.1F, 0.25F};
  const std::vector<Piece> gradients{piece_of(gradient), {half.data(), 2, Element::kFloat16}};
  const std::vector<Piece> mains{piece_of(main), piece_of(half_main)};
  accumulate(gradients, mains);
  CHECK(main == (std::vector<float>{1.0F + 0.1F, 1.0F + 1e-9F, 0.0F}));
  CHECK(half_main == (std::vector<float>{0.1F + 0.5F, 0.0F}));
  CHECK_THROWS(accumulate(gradients, std::span(mains).first(1)), ValueError);
  CHECK_THROWS(accumulate(mains, gradients), ValueError);
  const std::vector<Piece> longer{mains[0], mains[0]};
  CHECK_THROWS(accumulate(gradients, longer), ValueError);
}

void finite_checks_find_any_value_and_never_overflow() {
  std::vector<float> values{3.0F, 0.0F};
  std::vector<float> more{4.0F};
  const std::vector<Piece> pieces{piece_of(values), piece_of(more)};
  std::int32_t flag = -1;
  float norm = -1;
  const FiniteResult result{&flag, &norm, nullptr};
  check_finite(pieces, result);
  CHECK(flag == 0 && norm == 5.0F);
  values[1] = 3e38F;
  check_finite(pieces, result);
  CHECK(flag == 0 && norm == 3e38F);
  values = {3e-30F, 0.0F};
  more[0] = 4e-30F;
  check_finite(pieces, result);
  CHECK(flag == 0 && std::abs(norm - 5e-30F) < 1e-36F);
  for (const float lost : {kInf, -kInf, kNan}) {
    more[0] = lost;
    check_finite(pieces, result);
    CHECK(flag == 1 && !std::isfinite(norm));
  }
  check_finite({}, result);
  CHECK(flag == 0 && norm == 0.0F);
}

void what_was_written_before_a_flag_is_there_after_the_wait() {
  std::uint32_t flag = 0;
  int message = 0;
  std::thread writer([&] {
    message = 7;
    write_flag(&flag, 3);
  });
  std::uint32_t outcome = 9;
  wait_flag({&flag, 2, std::numeric_limits<std::int64_t>::max(), nullptr, &outcome});
  CHECK(outcome == 1 && message == 7);
  writer.join();
}

void waits_end_after_their_polls_or_by_the_abort_word() {
  std::uint32_t flag = 0xffffffff;  // before 0: flags wrap around
  std::uint32_t abort = 0;
  std::uint32_t outcome = 9;
  wait_flag({&flag, 0, 100, &abort, &outcome});
  CHECK(outcome == 0);
  std::thread ender([&] { write_flag(&abort, 1); });
  outcome = 9;
  wait_flag({&flag, 0, std::numeric_limits<std::int64_t>::max(), &abort, &outcome});
  CHECK(outcome == 0);
  ender.join();
  flag = 2;
  wait_flag({&flag, 0xfffffffe, 1, &abort, &outcome});
  CHECK(outcome == 1);
}

}  // namespace
}  // namespace pipert::kernels

int main() {
  using namespace pipert::kernels;
  numbers_of_16_bits_round_to_nearest_even();
  infinities_and_nans_of_16_bits_widen();
  fp8_rounds_saturates_and_keeps_nan();
  a_block_has_the_smallest_scale_that_holds_it();
  pieces_lie_at_multiples_of_16_bytes_and_nothing_else_is_written();
  what_is_packed_as_is_comes_back_to_the_bit();
  fp8_blocks_scale_each_32_elements_by_themselves();
  blocks_of_subnormals_and_of_the_largest_numbers_stay_finite();
  main_gradients_add_up_in_float32();
  finite_checks_find_any_value_and_never_overflow();
  what_was_written_before_a_flag_is_there_after_the_wait();
  waits_end_after_their_polls_or_by_the_abort_word();
}
