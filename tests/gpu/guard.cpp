// Lets a torch that was built without a kind of device hold tensors of it that are not there: nothing is ever allocated
// or launched. DEVICE is CUDA or MPS.
#include <c10/core/impl/DeviceGuardImplInterface.h>

static c10::impl::DeviceGuardImplRegistrar registered(
    c10::DeviceType::DEVICE, new c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::DEVICE>());
