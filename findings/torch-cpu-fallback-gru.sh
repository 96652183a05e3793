#!/usr/bin/env bash
# PyTorch 2.13.0: a device of one's own (PrivateUse1) whose missing operations all go to the processor by PyTorch's own
# `at::native::cpu_fallback` computes a Linear layer, but no GRUCell and no LSTMCell. PyTorch chooses its fused cells for
# every device but the processor, and these have no kernel for the processor, to which they are then sent.
# Seen: "Could not run 'aten::_thnn_fused_gru_cell' with arguments from the 'CPU' backend", and of the LSTM's likewise.
set -eu
cd "$(mktemp -d)"
python3 -m venv venv
venv/bin/pip install -q "torch==2.13.0" "numpy==2.4.6"
cat > own.cpp <<'CPP'
#include <ATen/EmptyTensor.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>
namespace {
constexpr auto TYPE = c10::DeviceType::PrivateUse1;
struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* p = c10::alloc_cpu(bytes);
    return {p, p, &c10::free_cpu, c10::Device(TYPE, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
} memory;
REGISTER_ALLOCATOR(TYPE, &memory);
C10_REGISTER_GUARD_IMPL(PrivateUse1, c10::impl::NoOpDeviceGuardImpl<TYPE>);
const c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);
at::Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> type, std::optional<c10::Layout>,
                 std::optional<c10::Device>, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, KEYS, c10::dtype_or_default(type), format);
}
at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> type,
                         std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, KEYS, c10::dtype_or_default(type));
}
at::Tensor on_cpu(const at::Tensor& x) {
  return x.is_cpu() ? x : at::from_blob(x.data_ptr(), x.sizes(), x.strides(), x.options().device(c10::kCPU));
}
at::Tensor copied(const at::Tensor& from, const at::Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}
at::Tensor copied_and_resized(const at::Tensor& from, const at::Tensor& to) {
  at::native::resize_impl_cpu_(to.unsafeGetTensorImpl(), from.sizes(), std::nullopt);
  return copied(from, to, false);
}
void on_processor(const c10::OperatorHandle& op, torch::jit::Stack* stack) { at::native::cpu_fallback(op, stack); }
}  // namespace
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_processor>());
}
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copied);
  m.impl("_copy_from_and_resize", &copied_and_resized);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
}
CPP
torch="$(venv/bin/python -c 'import torch, os; print(os.path.dirname(torch.__file__))')"
g++ -shared -fPIC -std=c++20 -O0 -I"$torch/include" -I"$torch/include/torch/csrc/api/include" \
  -I"$(venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')" \
  own.cpp -o own.so -L"$torch/lib" -lc10 -ltorch_cpu
venv/bin/python - <<'PYTHON'
from types import ModuleType

import torch

torch.ops.load_library("own.so")
torch.utils.rename_privateuse1_backend("own")
torch._register_device_module("own", ModuleType("torch.own"))
x, h = torch.rand(2, 3), torch.rand(2, 4)
for layer in (torch.nn.Linear(3, 4), torch.nn.GRUCell(3, 4), torch.nn.LSTMCell(3, 4)):
    name = type(layer).__name__
    own = [t.to("own") for t in ((x,) if name == "Linear" else (x, h))]
    expected = layer(x) if name == "Linear" else None
    if name == "LSTMCell":
        own[1] = (own[1], own[1])
    try:
        with torch.no_grad():
            got = layer.to("own")(*own)
        print(f"torch {torch.__version__}, {name}: as on the processor", torch.allclose(got.cpu(), expected))
        assert name == "Linear"
    except NotImplementedError as error:
        print(f"torch {torch.__version__}, {name}: {str(error).split(' backend.')[0]}")
        assert name != "Linear"
        assert f"aten::_thnn_fused_{name[:-4].lower()}_cell' with arguments from the 'CPU'" in str(error)
PYTHON
