// Lets a torch without a GPU believe that there is one, as far as autograd and streams ask. Nothing can run on it: it is
// for FakeTensors, which have shapes and no data. Compiled against the headers of the torch that loads it, with
// registration done when the library is loaded (before torch's own) and `lwz_install_guard` called after `import torch`.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

constexpr auto kCuda = c10::DeviceType::CUDA;

c10::Device only_device() { return c10::Device(kCuda, 0); }

c10::Stream only_stream() { return c10::Stream(c10::Stream::DEFAULT, only_device()); }

// One device, one stream, on which everything has already happened.
struct Guard final : c10::impl::NoOpDeviceGuardImpl<kCuda> {
  c10::Device exchangeDevice(c10::Device) const override { return only_device(); }
  c10::Device getDevice() const override { return only_device(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }

  c10::Stream getStream(c10::Device) const noexcept override { return only_stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return only_stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return only_stream(); }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  bool isStreamCapturing(const c10::Stream&) const { return false; }  // no `override`: torch 2.11 never asks

  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return false; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
};

}  // namespace

namespace at {
using ::Hooks;
// Preferred: on a torch built with CUDA its own hooks are registered under the same name, in whichever order.
C10_REGISTER_TYPED_CLASS_WITH_PRIORITY(CUDAHooksRegistry, "CUDAHooks", c10::REGISTRY_PREFERRED, Hooks)
}  // namespace at

// Puts the guard in place, over torch's own if it has one. Returns 0 if the hooks are not known, which must not be.
extern "C" __attribute__((visibility("default"))) int lwz_install_guard() {
  static Guard guard;
  c10::impl::device_guard_impl_registry[static_cast<size_t>(kCuda)].store(&guard);
  return at::CUDAHooksRegistry()->Has("CUDAHooks") ? 1 : 0;
}
