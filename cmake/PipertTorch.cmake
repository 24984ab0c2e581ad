# Finds the torch of the Python that the module is built for; defines pipert_torch, and
#   PIPERT_TORCH_ROOT      the folder of the torch package
#   PIPERT_TORCH_VERSION   2.13.0+cpu, say
#   PIPERT_TORCH_CUDA      13.0, say; empty for a torch without CUDA
#
# Note [No find_package(Torch)]
# The CMake files of a CUDA torch insist on a CUDA toolkit and bring its compiler flags along. pipert needs torch's
# headers and four of its libraries, and must build beside a CUDA torch on a machine that has no toolkit.
set(PIPERT_MINIMUM_TORCH 2.11)

if(NOT CMAKE_SYSTEM_NAME STREQUAL "Linux")
  message(FATAL_ERROR "pipert builds on Linux, this is ${CMAKE_SYSTEM_NAME}")
endif()
set(Python_FIND_VIRTUALENV FIRST)
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)

# The package's folder, found without importing it. A build in an isolated environment looks past that environment:
# what is built must fit the torch that it will run with.
function(pipert_find_torch result)
  set(probe "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')")
  foreach(environment "" "--unset=PYTHONPATH;--unset=PYTHONNOUSERSITE")
    execute_process(
      COMMAND ${CMAKE_COMMAND} -E env ${environment} ${Python_EXECUTABLE} -c "${probe}"
      WORKING_DIRECTORY ${CMAKE_BINARY_DIR}
      OUTPUT_VARIABLE root OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(root)
      break()
    endif()
  endforeach()
  set(${result} "${root}" PARENT_SCOPE)
endfunction()

# The value of one line of torch/version.py; empty for None.
function(pipert_torch_fact name result)
  file(STRINGS ${PIPERT_TORCH_ROOT}/version.py line REGEX "^${name}[ :=]")
  string(REGEX MATCH "= *'([^']*)'" matched "${line}")
  set(${result} "${CMAKE_MATCH_1}" PARENT_SCOPE)
endfunction()

pipert_find_torch(PIPERT_TORCH_ROOT)
if(NOT PIPERT_TORCH_ROOT)
  message(FATAL_ERROR
    "pipert is built against the torch that it will run with, and ${Python_EXECUTABLE} has none. Install one:\n"
    "    pip install 'torch>=${PIPERT_MINIMUM_TORCH}'\n"
    "and build again. If torch is installed and the tool that builds hides it (uv, python -m build), build with\n"
    "    pip install setuptools cmake ninja && pip install --no-build-isolation .")
endif()
pipert_torch_fact(__version__ PIPERT_TORCH_VERSION)
pipert_torch_fact(cuda PIPERT_TORCH_CUDA)
if(PIPERT_TORCH_VERSION VERSION_LESS PIPERT_MINIMUM_TORCH)
  message(FATAL_ERROR
    "pipert needs torch ${PIPERT_MINIMUM_TORCH} or newer, ${PIPERT_TORCH_ROOT} is ${PIPERT_TORCH_VERSION}: "
    "pip install --upgrade torch")
endif()
message(STATUS "torch ${PIPERT_TORCH_VERSION} at ${PIPERT_TORCH_ROOT}")

foreach(library torch_python torch torch_cpu c10)
  find_library(torch_library_${library} ${library} PATHS ${PIPERT_TORCH_ROOT}/lib NO_DEFAULT_PATH NO_CACHE REQUIRED)
  list(APPEND torch_libraries ${torch_library_${library}})
endforeach()

# Every C++ file of _C uses torch's std::string, the torch-free floors too.
file(STRINGS ${torch_library_c10} new_abi REGEX "__cxx11" LIMIT_COUNT 1)
if(new_abi)
  add_compile_definitions(_GLIBCXX_USE_CXX11_ABI=1)
else()
  add_compile_definitions(_GLIBCXX_USE_CXX11_ABI=0)
endif()

# The version is a definition so that another torch recompiles what depends on torch; its headers' dates would not.
add_library(pipert_torch INTERFACE)
target_include_directories(pipert_torch SYSTEM INTERFACE
  ${PIPERT_TORCH_ROOT}/include ${PIPERT_TORCH_ROOT}/include/torch/csrc/api/include ${Python_INCLUDE_DIRS})
target_compile_definitions(pipert_torch INTERFACE PIPERT_TORCH_VERSION="${PIPERT_TORCH_VERSION}")
target_link_libraries(pipert_torch INTERFACE ${torch_libraries})

# pybind11 hands objects over between modules of the same internals version only. torch's own version is written in
# torch_python; the one that the compiler finds must be equal, whatever else lies on its search path.
file(STRINGS ${torch_library_torch_python} torch_internals REGEX "pybind11_internals_v[0-9]+" LIMIT_COUNT 1)
string(REGEX MATCH "internals_v([0-9]+)" matched "${torch_internals}")
set(torch_internals ${CMAKE_MATCH_1})
list(TRANSFORM Python_INCLUDE_DIRS PREPEND "-isystem;" OUTPUT_VARIABLE python_flags)
file(WRITE ${CMAKE_BINARY_DIR}/pybind_internals.cpp "#include <pybind11/detail/internals.h>\n")
execute_process(
  COMMAND ${CMAKE_CXX_COMPILER} -std=c++20 -E -dM -isystem ${PIPERT_TORCH_ROOT}/include ${python_flags}
          ${CMAKE_BINARY_DIR}/pybind_internals.cpp
  OUTPUT_VARIABLE macros ERROR_VARIABLE errors RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "The compiler can't read torch's pybind11 headers:\n${errors}")
endif()
string(REGEX MATCH "#define PYBIND11_INTERNALS_VERSION ([0-9]+)" matched "${macros}")
if(torch_internals AND NOT CMAKE_MATCH_1 STREQUAL torch_internals)
  message(FATAL_ERROR
    "The compiler finds a pybind11 with internals version ${CMAKE_MATCH_1}, torch ${PIPERT_TORCH_VERSION} has version "
    "${torch_internals}: another pybind11 hides the one in ${PIPERT_TORCH_ROOT}/include. Remove it from CPATH, "
    "CPLUS_INCLUDE_PATH and CXXFLAGS.")
endif()
