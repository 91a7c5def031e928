// The pair of the include-order test: it must be reported.
#include <moe/layers/layer.hpp>
