# Debian packages, downloaded by apt-get and unpacked into MOE_DEPS_DIR/debian. Nothing is installed,
# and no root rights are needed. Other releases and machines go on to the upstream repositories.

include(MoeChecksum)

# name version architecture SHA-256, of Debian 12
set(MOE_DEBIAN_PACKAGES
  "libeigen3-dev 3.4.0-4 all 1a167bb381acb90c1d8450a8f3e66a09d216dbc64b33ac8a082a0912513ef939"
  "libcli11-dev 2.1.2+ds-1 all f1f6ee9ec053e0e0bcec47345e241b6a8ee006321248b4329e9ce88d2b4b64a8"
  "nlohmann-json3-dev 3.11.2-2 all ec57940def6b6186c30be0e0ee81d1e58f86d11a54a145b28686a1e3e4aae801"
  "libfmt-dev 9.1.0+ds1-2 amd64 c8fa00dd0269e6eda9fd06668df3d720de4b5a1f647dcd3c6e0ba63f0cbf2150"
  "libfmt9 9.1.0+ds1-2 amd64 c3d405b6eabb1a521b60a57509826707f0e6f92b41cdfaae06bf1d7c37da2166"
  "catch2 2.13.10-1 amd64 0b32d3017609fecef1ecb0827729c2f3cda61332dd1f50da73ea9066fb4fc7ca"
  "librapidcheck-dev 0~1033-08b5058-3 amd64 7ad14dec6eee6c387669faaa83500579c260c73558867ddd202eb095acb59a34"
  "ccache 4.8+really4.7.5-1 amd64 d6562e03b90d4bbe299966117aef44975f57bea8270c233b1d71f1e6ba157e7d"
  "fortunes 1:1.99.1-7.3 all 41d0551dc0ff52f875a2ecef7c39da2f672ab468c37e170119f7e0245a9d63c5"
  "fortunes-de 0.35-1 all 03fe7a7912935bd3d4e02e38d79ef32a289097f8718d4488c409595abce067a0"
  "fortunes-it 1.99-4.1 all 675df6ecb00c3b67d06b39ab223ff17f1ef1d0ec82a7e40f989356a2eb61a97e"
  "libhiredis0.14 0.14.1-3 amd64 61f25d841052ad6cd6adfa9fad050345ea1047abc6ea79f931ab1a9ed55af3ae"
  "qemu-user 1:7.2+dfsg-7+deb12u18+b3 amd64 02a7d6a2675a12dd7fdd474924295552470c0c933e0b543975887f493a84219f"
  "libcapstone4 4.0.2-5 amd64 41277f0388184f6e3b9fc02eda3184afbc999314b25b77ed75e8049428bdfe5e"
  "liburing2 2.3-3 amd64 c23077e3640e6cb4b819c134b3f41d5cf21b3edac099654b1b4142c3069a39a3"
  "libnuma1 2.0.16-1 amd64 639e1ab6bd66ead40db8a22c332d7199679fa22db261cac34444eb8eb4c17dda"
  "libglib2.0-0 2.74.6-2+deb12u9 amd64 7ff85197685d89e150e342b29a59aab1beee400050ba7da73de81cd999ffee5a"
  "clang-19 1:19.1.7-3~deb12u1 amd64 89ab931a9bbfd567a76df3141af5d5ec67b01d800150e614f2c9bf4671da9b08"
  "libclang-cpp19 1:19.1.7-3~deb12u1 amd64 5daa784e1d747db320c16604729ffa805e6bfd72d3ac0b7cb0ee5f1a7ebc8aae"
  "libclang-common-19-dev 1:19.1.7-3~deb12u1 amd64 811c2d398ad772204ec05ffde485cbbc4c210abc5dcf0068ff9ca3e647591ce7"
  "libclang-rt-19-dev 1:19.1.7-3~deb12u1 amd64 872464dcd1aa3538e417e177f74a4c549b19313acaa1fe9465d32b936e9ef8eb"
  "clang-tools-19 1:19.1.7-3~deb12u1 amd64 5188563c2e08cba6e8e5d253e03bfc0a01e112eba1d8939f97d2e6ce35218491"
  "libllvm19 1:19.1.7-3~deb12u1 amd64 6edf3a8b28495cdba883d9760e0dca1a81983fc497a5f989dc64d0d96d23b4aa"
  "llvm-19 1:19.1.7-3~deb12u1 amd64 f91492c5b361ff12f540b9f6145cf638b5e0fb3f145fceabd6c4b9540eab4bf9"
  "lld-19 1:19.1.7-3~deb12u1 amd64 416e084363a16a7060eaa6343ed641dfe864b8208c39170ee00a5679e4b486a2"
  "libamdhip64-dev 5.2.3-8 amd64 1f87b72e5aa86025c6cb96312c75ee7f549c42475f4bc51049ab7b67cc4e762e"
  "libamdhip64-5 5.2.3-8 amd64 e89c3757b6ca16b7a03374a0a42402ab19e9e7000251d47379838be965330ebd"
  "libhsa-runtime-dev 5.2.3-3 amd64 7b5d021c2718818d597cd9439581757931ecdc8e346c1f5e7aab664793b53fb0"
  "libhsa-runtime64-1 5.2.3-3 amd64 9b633756945b16124376b274dbc681e4022c2b9704b8bdfa04637b09c7bfad93"
  "rocm-device-libs 5.2.3-2 amd64 c3fba847565141ac15b72164cbb3513bb919b1b5c15244112489d36fd5a75a79")

# moe_debian_packages([INTO folder] name...): says so and returns where one cannot be had.
function(moe_debian_packages)
  cmake_parse_arguments(arg "" "INTO" "" ${ARGN})
  set(into ${MOE_DEPS_DIR}/debian)
  if(arg_INTO)
    set(into ${arg_INTO})
  endif()
  find_program(MOE_APT_GET apt-get)
  find_program(MOE_DPKG dpkg)
  mark_as_advanced(MOE_APT_GET MOE_DPKG)
  if(NOT MOE_APT_GET OR NOT MOE_DPKG)
    return()
  endif()
  foreach(name IN LISTS arg_UNPARSED_ARGUMENTS)
    set(row ${MOE_DEBIAN_PACKAGES})
    list(FILTER row INCLUDE REGEX "^${name} ")
    string(REPLACE " " ";" row "${row}")
    list(GET row 1 version)
    list(GET row 2 architecture)
    list(GET row 3 sha256)
    string(REPLACE ":" "%3a" file_version ${version}) # as apt-get names its files
    set(archive ${MOE_DEPS_DIR}/debian/archives/${name}_${file_version}_${architecture}.deb)
    if(NOT EXISTS ${archive})
      _moe_apt_download(${name}=${version})
    endif()
    if(NOT EXISTS ${archive})
      message(STATUS "moe: Debian's ${name} ${version} is not to be had here")
      return()
    endif()
    moe_check_sha256(${archive} ${sha256})
    execute_process(COMMAND ${MOE_DPKG} -x ${archive} ${into} COMMAND_ERROR_IS_FATAL ANY)
    message(STATUS "moe: unpacked ${name} ${version} from Debian")
  endforeach()
endfunction()

# Tries the system's package lists first, then lists of our own where those are empty or out of date.
function(_moe_apt_download package)
  set(apt ${MOE_DEPS_DIR}/debian/apt)
  file(MAKE_DIRECTORY ${MOE_DEPS_DIR}/debian/archives ${apt}/lists/partial ${apt}/cache/archives/partial)
  set(quiet WORKING_DIRECTORY ${MOE_DEPS_DIR}/debian/archives OUTPUT_QUIET ERROR_QUIET)
  execute_process(COMMAND ${MOE_APT_GET} -q download ${package} RESULT_VARIABLE failed ${quiet})
  if(failed)
    set(private -q -o Dir::State::lists=${apt}/lists -o Dir::Cache=${apt}/cache -o APT::Sandbox::User=)
    if(NOT EXISTS ${apt}/updated)
      execute_process(COMMAND ${MOE_APT_GET} ${private} update RESULT_VARIABLE failed ${quiet})
      file(TOUCH ${apt}/updated)
    endif()
    execute_process(COMMAND ${MOE_APT_GET} ${private} download ${package} ${quiet})
  endif()
endfunction()
