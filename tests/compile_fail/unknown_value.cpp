// expect: a value was given of a policy that this router's type does not name
#include <moe/moe.hpp>

#ifdef MOE_COMPILE_FAIL_FIXED
using Router = moe::Router<moe::Softmax, moe::Scale>;
#else
using Router = moe::Router<moe::Softmax>;
#endif

Router router{moe::Scale{2.5}};
