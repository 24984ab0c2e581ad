# The Python module _C, and beside it _C.<tag>.json: what it was built against, to be read before it is loaded.
file(GLOB_RECURSE binding_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/bindings/*.cpp)
if(NOT binding_sources)
  message(STATUS "csrc/bindings has no source: _C is left out")
  return()
endif()

# Note [One C++ library in the process]
# Some compilers find no libstdc++.so of their own (the link that the linker looks for) and quietly take libstdc++.a.
# Then _C would bring a second copy of the C++ library beside torch's: a stream that one made has facets that the other
# doesn't know, and std::ostream crashes at the first number. So the library by the name that torch itself needs stands
# ahead of the implicit -lstdc++, which then has nothing left to resolve.
include(CheckCXXSourceCompiles)
function(pipert_link_shared_libstdcxx target)
  set(CMAKE_REQUIRED_LIBRARIES -l:libstdc++.so.6)
  set(CMAKE_REQUIRED_QUIET ON)
  check_cxx_source_compiles("#include <sstream>\nint main() { std::ostringstream s; s << 1; return s.str().empty(); }"
    PIPERT_SHARED_LIBSTDCXX)
  if(NOT PIPERT_SHARED_LIBSTDCXX)
    unset(PIPERT_SHARED_LIBSTDCXX CACHE)  # it is looked for again, once there is one
    message(FATAL_ERROR
      "${CMAKE_CXX_COMPILER} can't link libstdc++.so.6, the C++ library that torch uses: expected it in a folder that "
      "the compiler searches (CMakeFiles/CMakeConfigureLog.yaml in ${CMAKE_BINARY_DIR} has the linker's words). A second "
      "C++ library, linked statically, would crash beside torch's.")
  endif()
  target_link_libraries(${target} PRIVATE -l:libstdc++.so.6)
endfunction()

Python_add_library(_C MODULE WITH_SOABI ${binding_sources})
target_compile_definitions(_C PRIVATE PIPERT_VERSION="${PIPERT_VERSION}" TORCH_EXTENSION_NAME=_C)
target_link_libraries(_C PRIVATE pipert_search pipert_runtime)
pipert_link_shared_libstdcxx(_C)
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
