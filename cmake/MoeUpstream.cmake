# Upstream repositories at pinned tags, for what neither the system nor a registry provides.

include(FetchContent)

# moe_run_logged(log what command...): a long step of the configuration, its output kept in a file.
function(moe_run_logged log what)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE failed OUTPUT_FILE ${log} ERROR_FILE ${log})
  if(failed)
    message(FATAL_ERROR "${what} failed; its output is in ${log}")
  endif()
endfunction()

# moe_install_source(name source prefix option...): configures, builds and installs a source tree.
function(moe_install_source name source prefix)
  set(work ${MOE_DEPS_DIR}/building/${name})
  file(REMOVE_RECURSE ${work})
  file(MAKE_DIRECTORY ${work})
  cmake_host_system_information(RESULT cores QUERY NUMBER_OF_LOGICAL_CORES)
  if(DEFINED ENV{CMAKE_BUILD_PARALLEL_LEVEL}) # who shares a machine says so
    set(cores $ENV{CMAKE_BUILD_PARALLEL_LEVEL})
  endif()
  moe_run_logged(${work}/configure.log "Configuring ${name}"
    ${CMAKE_COMMAND} -S ${source} -B ${work}/build -G ${CMAKE_GENERATOR} -DCMAKE_BUILD_TYPE=Release
    -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER} -DCMAKE_CXX_STANDARD=20 -DCMAKE_INSTALL_LIBDIR=lib
    -DCMAKE_INSTALL_PREFIX=${prefix} ${ARGN})
  moe_run_logged(${work}/build.log "Building ${name}"
    ${CMAKE_COMMAND} --build ${work}/build --parallel ${cores})
  moe_run_logged(${work}/install.log "Installing ${name}" ${CMAKE_COMMAND} --install ${work}/build)
  file(REMOVE_RECURSE ${work})
endfunction()

# moe_clone(name repository tag): leaves the tree in MOE_DEPS_DIR/src/<name>; stops where it cannot.
function(moe_clone name repository tag)
  find_package(Git QUIET)
  if(NOT Git_FOUND)
    message(FATAL_ERROR "git is missing, and ${name} comes from its repository; "
                        "install git with: sudo apt-get install git")
  endif()
  message(STATUS "moe: cloning ${repository} at ${tag}")
  FetchContent_Populate(${name} QUIET GIT_REPOSITORY ${repository} GIT_TAG ${tag}
                        SOURCE_DIR ${MOE_DEPS_DIR}/src/${name}
                        BINARY_DIR ${CMAKE_BINARY_DIR}/fetch/${name}-build
                        SUBBUILD_DIR ${CMAKE_BINARY_DIR}/fetch/${name})
endfunction()

function(moe_upstream_package name repository tag)
  moe_clone(${name} ${repository} ${tag})
  moe_install_source(${name} ${MOE_DEPS_DIR}/src/${name} ${MOE_DEPS_DIR}/upstream/${name} ${ARGN})
endfunction()
