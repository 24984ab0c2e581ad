# pipert_floor(<name> [TORCH] [DEPENDS <floor>...]) makes the static library pipert_<name> of all sources under
# csrc/<name>. Adding a file needs no edit here. A floor of headers alone becomes an interface library.
#
# Left to PipertCuda.cmake: csrc/cuda/real, folders in a floor named cuda, cuda_ipc or cuda_nvtx, and files named after one of
# them, cuda_none.cpp say, which stand in for it where it is not linked.
function(pipert_floor name)
  cmake_parse_arguments(floor "TORCH" "" "DEPENDS" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/${name}/*.cpp)
  list(FILTER sources EXCLUDE REGEX "/csrc/${name}/(.*/)?cuda(_ipc|_nvtx)?(/|_none\\.cpp$)")
  list(FILTER sources EXCLUDE REGEX "/csrc/cuda/real/")

  list(TRANSFORM floor_DEPENDS PREPEND pipert_)
  if(floor_TORCH)
    list(APPEND floor_DEPENDS pipert_torch)
  endif()

  if(sources)
    add_library(pipert_${name} STATIC ${sources})
    set(scope PUBLIC)
  else()
    add_library(pipert_${name} INTERFACE)
    set(scope INTERFACE)
  endif()
  target_include_directories(pipert_${name} ${scope} ${PROJECT_SOURCE_DIR}/csrc)
  target_link_libraries(pipert_${name} ${scope} ${floor_DEPENDS})
endfunction()
