#include "stage/scalar_op.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "base/error.h"

namespace pipert {
namespace {

constexpr std::array<std::pair<std::string_view, ScalarOp>, 25> kNames{{
    {"add", ScalarOp::kAdd},
    {"sub", ScalarOp::kSub},
    {"mul", ScalarOp::kMul},
    {"mod", ScalarOp::kMod},
    {"floordiv", ScalarOp::kFloorDiv},
    {"truediv", ScalarOp::kTrueDiv},
    {"pow", ScalarOp::kPow},
    {"neg", ScalarOp::kNeg},
    {"abs", ScalarOp::kAbs},
    {"min", ScalarOp::kMin},
    {"max", ScalarOp::kMax},
    {"sqrt", ScalarOp::kSqrt},
    {"float", ScalarOp::kToFloat},
    {"int", ScalarOp::kToInt},
    {"and_", ScalarOp::kBitAnd},
    {"or_", ScalarOp::kBitOr},
    {"eq", ScalarOp::kEq},
    {"ne", ScalarOp::kNe},
    {"lt", ScalarOp::kLt},
    {"le", ScalarOp::kLe},
    {"gt", ScalarOp::kGt},
    {"ge", ScalarOp::kGe},
    {"and", ScalarOp::kAnd},
    {"or", ScalarOp::kOr},
    {"not_", ScalarOp::kNot},
}};

template <typename T>
void check_divisor(T divisor) {
  if (divisor == T(0)) throw ValueError("a size is divided by zero");
}

template <typename T>
T compare(ScalarOp op, T left, T right) {
  switch (op) {
    case ScalarOp::kEq:
      return left == right;
    case ScalarOp::kNe:
      return left != right;
    case ScalarOp::kLt:
      return left < right;
    case ScalarOp::kLe:
      return left <= right;
    case ScalarOp::kGt:
      return left > right;
    case ScalarOp::kGe:
      return left >= right;
    case ScalarOp::kAnd:
      return left != T(0) && right != T(0);
    case ScalarOp::kOr:
      return left != T(0) || right != T(0);
    case ScalarOp::kNot:
      return left == T(0);
    case ScalarOp::kAdd:
    case ScalarOp::kSub:
    case ScalarOp::kMul:
    case ScalarOp::kFloorDiv:
    case ScalarOp::kTrueDiv:
    case ScalarOp::kMod:
    case ScalarOp::kPow:
    case ScalarOp::kNeg:
    case ScalarOp::kAbs:
    case ScalarOp::kMin:
    case ScalarOp::kMax:
    case ScalarOp::kSqrt:
    case ScalarOp::kToFloat:
    case ScalarOp::kToInt:
    case ScalarOp::kBitAnd:
    case ScalarOp::kBitOr:
      break;
  }
  throw InternalError("not a comparison");
}

// CPython's float_floor_div: the quotient itself may round up to a whole number that it isn't
// (1.0 // 0.1 is 9.0).
double floor_divide(double left, double right) {
  const double rest = std::fmod(left, right);
  double quotient = (left - rest) / right;
  if (rest != 0.0 && (rest < 0.0) != (right < 0.0)) quotient -= 1.0;
  if (quotient == 0.0) return std::copysign(0.0, left / right);
  const double floor = std::floor(quotient);
  return quotient - floor > 0.5 ? floor + 1.0 : floor;
}

double modulo(double left, double right) {
  const double rest = std::fmod(left, right);
  if (rest == 0.0) return std::copysign(0.0, right);
  return (rest < 0.0) != (right < 0.0) ? rest + right : rest;
}

}  // namespace

ScalarOp scalar_op(std::string_view name) {
  for (const auto& [known, op] : kNames) {
    if (known == name) return op;
  }
  throw ValueError(concat("expected an operation on sizes, got ", name));
}

int num_operands(ScalarOp op) {
  constexpr std::array kUnary{ScalarOp::kNeg,     ScalarOp::kAbs,   ScalarOp::kSqrt,
                              ScalarOp::kToFloat, ScalarOp::kToInt, ScalarOp::kNot};
  return std::find(kUnary.begin(), kUnary.end(), op) != kUnary.end() ? 1 : 2;
}

bool gives_bool(ScalarOp op) { return op >= ScalarOp::kEq; }

bool is_bitwise(ScalarOp op) { return op == ScalarOp::kBitAnd || op == ScalarOp::kBitOr; }

bool gives_float(ScalarOp op) {
  return op == ScalarOp::kTrueDiv || op == ScalarOp::kSqrt || op == ScalarOp::kToFloat;
}

std::int64_t apply(ScalarOp op, std::int64_t left, std::int64_t right) {
  switch (op) {
    case ScalarOp::kAdd:
      return left + right;
    case ScalarOp::kSub:
      return left - right;
    case ScalarOp::kMul:
      return left * right;
    case ScalarOp::kFloorDiv:
      check_divisor(right);
      return left / right - (left % right != 0 && (left < 0) != (right < 0) ? 1 : 0);
    case ScalarOp::kMod: {
      check_divisor(right);
      const std::int64_t rest = left % right;
      return rest != 0 && (rest < 0) != (right < 0) ? rest + right : rest;
    }
    case ScalarOp::kPow: {
      if (right < 0) throw ValueError("a size is raised to a negative power");
      std::int64_t result = 1;
      for (std::int64_t i = 0; i < right; ++i) result *= left;
      return result;
    }
    case ScalarOp::kNeg:
      return -left;
    case ScalarOp::kAbs:
      return std::abs(left);
    case ScalarOp::kMin:
      return std::min(left, right);
    case ScalarOp::kMax:
      return std::max(left, right);
    case ScalarOp::kToInt:
      return left;
    case ScalarOp::kBitAnd:
      return left & right;
    case ScalarOp::kBitOr:
      return left | right;
    case ScalarOp::kTrueDiv:
    case ScalarOp::kSqrt:
    case ScalarOp::kToFloat:
      break;
    case ScalarOp::kEq:
    case ScalarOp::kNe:
    case ScalarOp::kLt:
    case ScalarOp::kLe:
    case ScalarOp::kGt:
    case ScalarOp::kGe:
    case ScalarOp::kAnd:
    case ScalarOp::kOr:
    case ScalarOp::kNot:
      return compare(op, left, right);
  }
  throw InternalError("an operation on floats, called for integers");
}

double apply(ScalarOp op, double left, double right) {
  switch (op) {
    case ScalarOp::kAdd:
      return left + right;
    case ScalarOp::kSub:
      return left - right;
    case ScalarOp::kMul:
      return left * right;
    case ScalarOp::kTrueDiv:
      check_divisor(right);
      return left / right;
    case ScalarOp::kPow:
      return std::pow(left, right);
    case ScalarOp::kNeg:
      return -left;
    case ScalarOp::kAbs:
      return std::abs(left);
    case ScalarOp::kMin:
      return std::min(left, right);
    case ScalarOp::kMax:
      return std::max(left, right);
    case ScalarOp::kSqrt:
      return std::sqrt(left);
    case ScalarOp::kToFloat:
      return left;
    case ScalarOp::kFloorDiv:
      check_divisor(right);
      return floor_divide(left, right);
    case ScalarOp::kMod:
      check_divisor(right);
      return modulo(left, right);
    case ScalarOp::kToInt:
      return std::trunc(left);
    case ScalarOp::kBitAnd:
    case ScalarOp::kBitOr:
      break;
    case ScalarOp::kEq:
    case ScalarOp::kNe:
    case ScalarOp::kLt:
    case ScalarOp::kLe:
    case ScalarOp::kGt:
    case ScalarOp::kGe:
    case ScalarOp::kAnd:
    case ScalarOp::kOr:
    case ScalarOp::kNot:
      return compare(op, left, right);
  }
  throw InternalError("an operation on integers, called for floats");
}

}  // namespace pipert
