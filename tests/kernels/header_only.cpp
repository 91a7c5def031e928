// What a header-only program does on a lesser processor. Only avx512.cpp is compiled for AVX-512.
#include <cstdio>
#include <stdexcept>

const char* compiled_for_avx512();

int main() {
  try {
    std::printf("%s\n", compiled_for_avx512());
    return 0;
  } catch (const std::runtime_error& error) {
    std::printf("caught: %s\n", error.what());
    return 3;
  }
}
