# The Python module _C, and beside it _C.<tag>.json: what it was built against, to be read before it is loaded.
file(GLOB_RECURSE binding_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/bindings/*.cpp)
if(NOT binding_sources)
  message(STATUS "csrc/bindings has no source: _C is left out")
  return()
endif()

Python_add_library(_C MODULE WITH_SOABI ${binding_sources})
target_compile_definitions(_C PRIVATE PIPERT_VERSION="${PIPERT_VERSION}" TORCH_EXTENSION_NAME=_C)
target_link_libraries(_C PRIVATE pipert_search pipert_runtime pipert_kernels)
# import torch has loaded torch's libraries by the time that _C is; the path serves a _C installed beside torch.
set_target_properties(_C PROPERTIES BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "$ORIGIN/../torch/lib")
install(TARGETS _C DESTINATION . COMPONENT python)

if(PIPERT_CUDA_LINKED)
  set(linked_cuda "\"${PIPERT_TORCH_CUDA}\"")
else()
  set(linked_cuda null)
endif()
set(built_against ${CMAKE_BINARY_DIR}/_C.${Python_SOABI}.json)
file(CONFIGURE OUTPUT ${built_against} CONTENT
  "{\"pipert\": \"@PIPERT_VERSION@\", \"torch\": \"@PIPERT_TORCH_VERSION@\", \"cuda\": @linked_cuda@}\n" @ONLY)
install(FILES ${built_against} DESTINATION . COMPONENT python)
