// ScalarOp: the arithmetic on sizes that a native stage does beside its tensor operators.
#pragma once

#include <cstdint>
#include <string_view>

namespace pipert {

enum class ScalarOp : std::uint8_t {
  kAdd,
  kSub,
  kMul,
  kFloorDiv,
  kTrueDiv,
  kMod,
  kPow,
  kNeg,
  kAbs,
  kMin,
  kMax,
  kSqrt,
  kToFloat,
  kToInt,
  kBitAnd,
  kBitOr,
  kEq,
  kNe,
  kLt,
  kLe,
  kGt,
  kGe,
  kAnd,
  kOr,
  kNot,
};

// By Python's name in `operator` ("floordiv", "eq", "and_": bit by bit), or "min", "max", "sqrt",
// "float", "int", and "and", "or": logic. Throws ValueError for any other.
ScalarOp scalar_op(std::string_view name);

// How many operands it takes: 1 or 2.
int num_operands(ScalarOp op);

// Comparisons and logic: 0 or 1.
bool gives_bool(ScalarOp op);
// Bit by bit: bools of bools, integers of integers, never of floats.
bool is_bitwise(ScalarOp op);
// kTrueDiv, kSqrt, kToFloat: on integers too.
bool gives_float(ScalarOp op);

// As Python computes it: division and modulo round towards minus infinity. `right` is ignored where
// there is one operand. ValueError for a division by zero and a negative exponent.
std::int64_t apply(ScalarOp op, std::int64_t left, std::int64_t right);
double apply(ScalarOp op, double left, double right);

}  // namespace pipert
