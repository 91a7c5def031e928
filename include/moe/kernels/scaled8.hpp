#pragma once
/// @file
/// The interface of FP8 arithmetic with block scales: `kernels::scale_blocks` and `kernels::multiply_scaled`.

#include "moe/kernels/device/blocks.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels {

using device::blocks_of;
using device::multiply_scaled;
using device::scale_block;
using device::scale_blocks;
using device::Scaled8;

}  // namespace kernels

MOE_NAMESPACE_END
