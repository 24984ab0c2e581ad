#include "runtime/part.h"

#include <iterator>
#include <utility>

#include "base/error.h"

namespace pipert {

std::vector<Part> take_apart(Message message) {
  std::vector<Part> parts(message.structure->children.size());
  std::size_t next = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Structure& child = message.structure->children[i];
    if (child.kind != Structure::Kind::kTensor) parts[i].structure = {message.structure, &child};
    for (const std::size_t end = next + num_tensors(child); next < end; ++next) {
      parts[i].tensors.push_back(std::move(message.tensors[next]));
      parts[i].requires_grad.push_back(message.requires_grad[next]);
    }
  }
  return parts;
}

std::vector<Part> cut(std::vector<at::Tensor> tensors, const std::vector<std::size_t>& sizes) {
  std::vector<Part> parts(sizes.size());
  auto next = tensors.begin();
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const auto end = next + static_cast<std::ptrdiff_t>(sizes[i]);
    parts[i].tensors.assign(std::move_iterator(next), std::move_iterator(end));
    next = end;
  }
  return parts;
}

Message put_together(std::vector<Part> parts) {
  Message message;
  Structure structure{.kind = Structure::Kind::kTuple, .text = {}, .children = {}};
  structure.children.reserve(parts.size());
  for (Part& part : parts) {
    structure.children.push_back(part.structure == nullptr ? Structure() : *part.structure);
    std::move(part.tensors.begin(), part.tensors.end(), std::back_inserter(message.tensors));
    message.requires_grad.insert(message.requires_grad.end(), part.requires_grad.begin(),
                                 part.requires_grad.end());
  }
  message.structure = std::make_shared<const Structure>(std::move(structure));
  return message;
}

Part alias_of(const Part& part) {
  Part alias{.tensors = {}, .requires_grad = part.requires_grad, .structure = part.structure};
  alias.tensors.reserve(part.tensors.size());
  for (const at::Tensor& tensor : part.tensors) alias.tensors.push_back(tensor.variable_data());
  return alias;
}

std::string describe_value(const Structure* structure) {
  if (structure == nullptr) return "a tensor";
  const std::size_t size = structure->children.size();
  switch (structure->kind) {
    case Structure::Kind::kTensor:
      return "a tensor";
    case Structure::Kind::kNone:
      return "None";
    case Structure::Kind::kBool:
    case Structure::Kind::kInt:
    case Structure::Kind::kFloat:
      return "a number";
    case Structure::Kind::kString:
      return "a string";
    case Structure::Kind::kTuple:
      return concat("a tuple of ", size);
    case Structure::Kind::kList:
      return concat("a list of ", size);
    case Structure::Kind::kDict:
      return concat("a dict of ", size / 2);
  }
  return "a tensor";
}

}  // namespace pipert
