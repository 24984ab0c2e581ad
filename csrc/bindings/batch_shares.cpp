#include "bindings/batch_shares.h"

#include <pybind11/stl.h>

#include <array>
#include <string_view>

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

BatchShares::BatchShares(const StepArguments& arguments, const BatchSpecs& specs,
                         int num_microbatches, bool has_first, bool has_last)
    : arguments_(arguments),
      specs_(specs),
      num_microbatches_(num_microbatches),
      cache_(num_microbatches) {
  if (arguments.is_cut) {
    weights_.assign(as_index(num_microbatches), 1.0 / num_microbatches);
    for (const auto& [value, what] :
         {std::pair{arguments.args, "microbatches"}, std::pair{arguments.kwargs, "microbatches"},
          std::pair{arguments.target, "target"}}) {
      if (!value.is_none()) entries(value, what, false);
    }
    return;
  }
  struct Part {
    const py::object& value;
    const BatchSpec& spec;
    const char* what;
    bool is_taken;  // other ranks ignore it
  };
  const std::array<Part, 3> parts{{{arguments.args, specs.args, "args", has_first},
                                   {arguments.kwargs, specs.kwargs, "kwargs", true},
                                   {arguments.target, specs.target, "target", has_last}}};
  for (const Part& part : parts) {
    const bool looks = part.is_taken || part.what == std::string_view("target");
    if (looks && !rows_.has_value()) rows_ = batch_rows(part.value, part.spec, part.what);
  }
  if (rows_.has_value()) weights_ = batch_weights(num_microbatches, *rows_);
  for (const Part& part : parts) {
    if (part.is_taken && !part.value.is_none())
      check_cut(part.value, part.spec, num_microbatches, rows_.value_or(num_microbatches),
                part.what);
  }
}

std::vector<double> BatchShares::loss_weights(const Keywords& keywords) const {
  if (!arguments_.loss_weights.empty() || arguments_.weigh.is_none())
    return arguments_.loss_weights;
  const bool has_target = !arguments_.target.is_none();
  py::list given;
  for (BatchPiece& piece : has_target ? targets(false) : kwargs(keywords, false))
    given.append(piece.get(false));
  return py::cast<std::vector<double>>(arguments_.weigh(given));
}

std::vector<BatchPiece> BatchShares::kwargs(const Keywords& keywords, bool flat) const {
  const char* const what = arguments_.is_cut && keywords.has_value() ? "microbatches" : "kwargs";
  return cut(selected(keywords), specs_.kwargs, what, flat);
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
  if (position.is_first) return arguments_.is_cut ? kInPieces : rows_.value_or(0);
  const py::object kwargs = selected(keywords);
  const py::object target = position.is_last ? arguments_.target : py::object(py::none());
  if (!arguments_.is_cut) {
    const auto rows = batch_rows(kwargs, specs_.kwargs, "kwargs");
    return rows.has_value() ? *rows : batch_rows(target, specs_.target, "target").value_or(0);
  }
  bool is_given = !target.is_none();
  for (const py::handle entry : kwargs.is_none() ? py::object(py::tuple()) : kwargs)
    is_given = is_given || py::len(entry) > 0;
  return is_given ? kInPieces : 0;
}

std::vector<BatchPiece> BatchShares::cut(const py::object& value, const BatchSpec& spec,
                                         const char* what, bool flat) const {
  if (value.is_none()) return {};
  if (arguments_.is_cut) return entries(value, what, flat);
  const std::int64_t rows = rows_.value_or(num_microbatches_);
  std::vector<BatchPiece> pieces;
  if (flat) {
    if (auto all = cut_batch_flat(value, spec, cache_, rows, what)) {
      for (FlatValue& flat_piece : *all)
        pieces.push_back({.object = {}, .flat = std::move(flat_piece)});
      return pieces;
    }
  }
  for (const py::object& whole : cut_batch(value, spec, cache_, rows, what))
    pieces.push_back(piece(whole, what, flat));
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
