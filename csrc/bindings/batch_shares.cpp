#include "bindings/batch_shares.h"

#include "base/error.h"
#include "base/index.h"
#include "device/message.h"

namespace py = pybind11;

namespace pipert {
namespace {

using Keywords = std::optional<std::vector<std::string>>;

// Of a dict, the entries whose keys are in `keywords`.
py::object select(const py::handle& whole, const std::vector<std::string>& keywords) {
  py::dict part;
  for (const std::string& keyword : keywords) {
    const py::str key(keyword);
    if (whole.contains(key)) part[key] = whole[key];
  }
  return part;
}

}  // namespace

BatchShares::BatchShares(const StepArguments& arguments, int num_microbatches, bool has_first,
                         bool has_last)
    : arguments_(arguments),
      num_microbatches_(num_microbatches),
      rows_(num_microbatches),
      weights_(as_index(num_microbatches), 1.0 / num_microbatches) {
  if (arguments.is_cut) {
    for (const auto& [value, what] :
         {std::pair{arguments.args, "microbatches"}, std::pair{arguments.kwargs, "microbatches"},
          std::pair{arguments.target, "target"}}) {
      if (!value.is_none()) entries(value, what, false);
    }
    return;
  }
  if (has_first) size_ = batch_size(arguments.args);  // the others ignore it
  for (const py::object& value : {arguments.kwargs, arguments.target}) {
    if (!size_.has_value()) size_ = batch_size(value);
  }
  if (size_.has_value()) weights_ = batch_weights(num_microbatches, *size_);
  const auto check = [&](const py::object& value, const char* what) {
    if (!value.is_none())
      check_cut(value, num_microbatches, size_.value_or(num_microbatches), what);
  };
  if (has_first) check(arguments.args, "args");
  check(arguments.kwargs, "kwargs");
  if (has_last) check(arguments.target, "target");
  // Without any of the batch here, the shares come with the messages.
  if (!size_.has_value() && !has_first) weights_.clear();
}

std::vector<BatchPiece> BatchShares::kwargs(const Keywords& keywords, bool flat) const {
  const char* const what = arguments_.is_cut && keywords.has_value() ? "microbatches" : "kwargs";
  return cut(selected(keywords), what, flat);
}

py::object BatchShares::selected(const Keywords& keywords) const {
  const py::object& whole = arguments_.kwargs;
  if (whole.is_none() || !keywords.has_value()) return whole;
  if (!arguments_.is_cut) return select(whole, *keywords);
  py::list selected;
  for (const py::handle entry : whole) selected.append(select(entry, *keywords));
  return selected;
}

std::int64_t BatchShares::rows(const StagePosition& position, const Keywords& keywords) const {
  if (position.is_first) return arguments_.is_cut ? kInPieces : size_.value_or(0);
  const py::object kwargs = selected(keywords);
  const py::object target = position.is_last ? arguments_.target : py::object(py::none());
  if (!arguments_.is_cut) {
    const auto size = batch_size(py::make_tuple(kwargs, target));
    return size.value_or(0);
  }
  bool is_given = !target.is_none();
  for (const py::handle entry : kwargs.is_none() ? py::object(py::tuple()) : kwargs)
    is_given = is_given || py::len(entry) > 0;
  return is_given ? kInPieces : 0;
}

std::vector<BatchPiece> BatchShares::cut(const py::object& value, const char* what,
                                         bool flat) const {
  if (value.is_none()) return {};
  if (arguments_.is_cut) return entries(value, what, flat);
  const std::int64_t size = size_.value_or(num_microbatches_);
  std::vector<BatchPiece> pieces;
  if (flat && is_plain(value.ptr())) {
    for (FlatValue& piece : cut_batch_flat(value, rows_, size, what))
      pieces.push_back({.object = {}, .flat = std::move(piece)});
    return pieces;
  }
  for (py::object& piece : cut_batch(value, rows_, size, what))
    pieces.push_back({.object = std::move(piece), .flat = {}});
  return pieces;
}

std::vector<BatchPiece> BatchShares::entries(const py::object& value, const char* what,
                                             bool flat) const {
  std::vector<BatchPiece> pieces;
  for (const py::handle entry : value)
    pieces.push_back(piece(py::reinterpret_borrow<py::object>(entry), what, flat));
  if (pieces.size() != as_index(num_microbatches_)) {
    throw ValueError(concat(what, " must have one entry for each of the ", num_microbatches_,
                            " microbatches, got ", pieces.size()));
  }
  return pieces;
}

BatchPiece BatchShares::piece(const py::object& value, const char* what, bool flat) {
  if (flat && is_plain(value.ptr())) return {.object = {}, .flat = flatten(value.ptr(), what)};
  return {.object = value, .flat = {}};
}

}  // namespace pipert
