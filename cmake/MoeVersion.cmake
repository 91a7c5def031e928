# The version is written once, in include/moe/version.hpp.
file(STRINGS ${CMAKE_CURRENT_LIST_DIR}/../include/moe/version.hpp _lines
     REGEX "^#define MOE_VERSION_(MAJOR|MINOR|PATCH) +[0-9]+")
foreach(_line IN LISTS _lines)
  string(REGEX MATCH "MOE_VERSION_([A-Z]+) +([0-9]+)" _ "${_line}")
  set(_version_${CMAKE_MATCH_1} ${CMAKE_MATCH_2})
endforeach()
set(MOE_VERSION ${_version_MAJOR}.${_version_MINOR}.${_version_PATCH})
