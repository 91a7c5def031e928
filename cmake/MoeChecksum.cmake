# moe_check_sha256(archive expected): stops at a fetched file that is not the expected one, and removes it.
function(moe_check_sha256 archive expected)
  file(SHA256 ${archive} found)
  if(NOT found STREQUAL expected)
    file(REMOVE ${archive})
    message(FATAL_ERROR "${archive} has SHA-256 ${found}, expected ${expected}; it was removed")
  endif()
endfunction()
