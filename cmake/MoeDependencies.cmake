# Each dependency is looked for in three places: what is installed (find_package), the package
# registries (Debian's packages, PyPI), and the upstream repository at a pinned tag. Whatever is
# fetched stays in MOE_DEPS_DIR and is found there, offline, the next time. See docs/dependencies.md.

set(CMAKE_FIND_PACKAGE_TARGETS_GLOBAL ON) # a parent project links them through moe::moe
list(PREPEND CMAKE_PREFIX_PATH ${MOE_DEPS_DIR}/debian/usr)

include(MoeDebian)
include(MoeUpstream)
include(MoeKokkos)

# moe_dependency(name MINIMUM version DEBIAN package... UPSTREAM repository tag OPTIONS option...)
macro(moe_dependency name)
  cmake_parse_arguments(_arg "" "MINIMUM" "DEBIAN;UPSTREAM;OPTIONS" ${ARGN})
  list(PREPEND CMAKE_PREFIX_PATH ${MOE_DEPS_DIR}/upstream/${name})
  _moe_find(${name} "${_arg_MINIMUM}")
  if(NOT ${name}_FOUND AND MOE_FETCH)
    moe_debian_packages(${_arg_DEBIAN})
    _moe_find(${name} "${_arg_MINIMUM}")
  endif()
  if(NOT ${name}_FOUND AND MOE_FETCH)
    moe_upstream_package(${name} ${_arg_UPSTREAM} ${_arg_OPTIONS})
    _moe_find(${name} "${_arg_MINIMUM}")
  endif()
  if(NOT ${name}_FOUND)
    list(GET _arg_DEBIAN 0 _package)
    message(FATAL_ERROR "${name} ${_arg_MINIMUM} or newer was not found and could not be fetched; "
                        "install it with: sudo apt-get install ${_package}")
  endif()
endmacro()

# No version is given to find_package: Eigen 5 would refuse a request for 3.4.
macro(_moe_find name minimum)
  find_package(${name} CONFIG QUIET)
  if(${name}_FOUND AND "${${name}_VERSION}" VERSION_LESS "${minimum}")
    set(${name}_FOUND FALSE)
    unset(${name}_DIR CACHE)
  endif()
endmacro()

# Two builds that share the folder take turns.
if(MOE_FETCH)
  file(MAKE_DIRECTORY ${MOE_DEPS_DIR})
  file(LOCK ${MOE_DEPS_DIR}/lock TIMEOUT 1800)
endif()

moe_kokkos()
if(NOT TARGET Eigen3::Eigen)
  moe_dependency(Eigen3 MINIMUM 3.4 DEBIAN libeigen3-dev
                 UPSTREAM https://gitlab.com/libeigen/eigen.git 3.4.0
                 OPTIONS -DEIGEN_BUILD_DOC=OFF -DEIGEN_BUILD_TESTING=OFF -DBUILD_TESTING=OFF)
endif()

if(MOE_BUILD_TESTS OR MOE_BUILD_EXAMPLES OR MOE_BUILD_BENCH)
  moe_dependency(CLI11 MINIMUM 2.1 DEBIAN libcli11-dev
                 UPSTREAM https://github.com/CLIUtils/CLI11.git v2.4.2
                 OPTIONS -DCLI11_BUILD_TESTS=OFF -DCLI11_BUILD_EXAMPLES=OFF)
  moe_dependency(nlohmann_json MINIMUM 3.10 DEBIAN nlohmann-json3-dev
                 UPSTREAM https://github.com/nlohmann/json.git v3.11.3
                 OPTIONS -DJSON_BuildTests=OFF)
  moe_dependency(fmt MINIMUM 9 DEBIAN libfmt-dev libfmt9
                 UPSTREAM https://github.com/fmtlib/fmt.git 10.2.1
                 OPTIONS -DFMT_TEST=OFF -DFMT_DOC=OFF)
endif()
if(MOE_BUILD_TESTS)
  moe_dependency(Catch2 MINIMUM 2.13 DEBIAN catch2
                 UPSTREAM https://github.com/catchorg/Catch2.git v3.7.1
                 OPTIONS -DCATCH_DEVELOPMENT_BUILD=OFF)
  # RapidCheck carries no version; its upstream has no tags.
  moe_dependency(rapidcheck MINIMUM "" DEBIAN librapidcheck-dev
                 UPSTREAM https://github.com/emil-e/rapidcheck.git
                          ff6af6fc683159deb51c543b065eba14dfcf329b)
endif()
if(MOE_CCACHE)
  include(MoeCcache)
endif()

if(MOE_FETCH)
  file(LOCK ${MOE_DEPS_DIR}/lock RELEASE)
endif()
