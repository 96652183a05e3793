// A second device for PyTorch, so that what is meant for a GPU can be tested without one: it computes on the processor.
// As on a GPU, NumPy cannot see its tensors, and no operation takes tensors of two devices (but for numbers and indices).
#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

namespace {
using at::Tensor;
using std::optional;
using Numbers = c10::SymIntArrayRef;

constexpr auto TYPE = c10::DeviceType::PrivateUse1;
const c10::Device DEVICE(TYPE, 0);
const c10::Stream STREAM(c10::Stream::DEFAULT, DEVICE);
const c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* p = c10::alloc_cpu(bytes);
    return {p, p, &c10::free_cpu, DEVICE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
} memory;
REGISTER_ALLOCATOR(TYPE, &memory);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
};
const int registered = (at::RegisterPrivateUse1HooksInterface(new Hooks), 0);

struct Guard final : c10::impl::NoOpDeviceGuardImpl<TYPE> {  // there is one device with one stream
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  c10::Stream getStream(c10::Device) const noexcept override { return STREAM; }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return STREAM; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

Tensor empty(c10::IntArrayRef size, optional<c10::ScalarType> type, optional<c10::Layout>, optional<c10::Device>,
             optional<bool>, optional<c10::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, KEYS, c10::dtype_or_default(type), format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, optional<c10::ScalarType> type,
                     optional<c10::Layout>, optional<c10::Device>, optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, KEYS, c10::dtype_or_default(type));
}

Tensor on_cpu(const Tensor& x) {  // the same memory
  return x.is_cpu() ? x : at::from_blob(x.data_ptr(), x.sizes(), x.strides(), x.options().device(c10::kCPU));
}

Tensor back(const Tensor& x) { return x.defined() ? x.to(DEVICE) : x; }

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

Tensor& set_storage(Tensor& x, c10::Storage storage) {
  const int64_t count = storage.nbytes() / x.itemsize();
  return at::native::set_storage_cpu_(x, std::move(storage), 0, {count}, {1});
}

const Tensor& resize(const Tensor& x, c10::IntArrayRef size, optional<c10::MemoryFormat>) {
  at::native::resize_impl_cpu_(x.unsafeGetTensorImpl(), size, std::nullopt);
  return x;
}

c10::Scalar number(const Tensor& x) { return on_cpu(x).item(); }

void require_together(const std::string& name, const std::vector<Tensor>& given) {
  for (const Tensor& x : given)
    TORCH_CHECK(!x.defined() || !x.dim() || x.device() == DEVICE, name, " was given a tensor on ", x.device());
}

Tensor convolution(const Tensor& x, const Tensor& w, const optional<Tensor>& bias, Numbers stride, Numbers padding,
                   Numbers dilation, bool transposed, Numbers more, c10::SymInt groups) {
  require_together("convolution", {x, w, bias.value_or(Tensor())});
  const auto b = bias && bias->defined() ? optional(on_cpu(*bias)) : std::nullopt;
  return back(at::convolution_symint(on_cpu(x), on_cpu(w), b, stride, padding, dilation, transposed, more, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& grad, const Tensor& x, const Tensor& w,
                                                        Numbers stride, Numbers padding, Numbers dilation,
                                                        bool transposed, Numbers more, c10::SymInt groups,
                                                        std::array<bool, 3> wanted) {
  require_together("convolution_backward", {grad, x, w});
  const std::vector<c10::SymInt> bias{w.size(0)};
  const auto [dx, dw, db] =
      at::convolution_backward_symint(on_cpu(grad), on_cpu(x), on_cpu(w), Numbers(bias), stride, padding, dilation,
                                      transposed, more, groups, wanted);
  return {back(dx), back(dw), back(db)};
}

void any_other(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  std::vector<Tensor> given;
  for (const auto& value : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (value.isTensor()) given.push_back(value.toTensor());
    if (value.isTensorList()) for (const Tensor& x : value.toTensorVector()) given.push_back(x);
  }
  const auto& name = op.schema().name();
  if (name != "aten::index" && name != "aten::index_put_" && name != "aten::_index_put_impl_")
    require_together(name, given);
  at::native::cpu_fallback(op, stack);
}
}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&any_other>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("resize_", &resize);
  m.impl("set_.source_Storage", &set_storage);
  m.impl("set_.source_Storage_storage_offset", &at::native::set_storage_cpu_);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("_local_scalar_dense", &number);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}
