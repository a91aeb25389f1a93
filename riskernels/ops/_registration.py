# SPDX-License-Identifier: Apache-2.0
"""How an operator enters the dispatcher: schema, reference, fake, autograd, vmap, autocast.

An operator file calls :func:`define` once per schema and then attaches its rules. Native libraries
add ``CPU`` and ``CUDA`` kernels to the same schemas when they are loaded, so nothing here changes
with the set of backends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import Library

from riskernels import library
from riskernels.ops._calls import add_rule, overload_of

NAMESPACE = "riskernels"
_LIBRARY = Library(NAMESPACE, "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)


def define(schema: str, reference: Callable[..., Any], check: Callable[..., None]) -> str:
    """Define an operator whose fallback on every device is ``reference`` after ``check``.

    Returns the qualified name, ``riskernels::<op>``.
    """
    op = str(_LIBRARY.define(schema, tags=_TAGS)).split("::")[-1]

    def checked(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        outputs = reference(*args, **kwargs)
        # Compiled code relies on the strides that the fake announces: contiguous ones.
        if isinstance(outputs, Tensor):
            return outputs.contiguous()
        return tuple(output.contiguous() for output in outputs)

    def fallback(*args: Any, **kwargs: Any) -> Any:
        library.note_fallback(op, args[0].device.type)
        return checked(*args, **kwargs)

    _LIBRARY.impl(op, fallback, "CompositeExplicitAutograd")
    library.register_reference(op, checked)
    return f"{NAMESPACE}::{op}"


def define_composite(schema: str, implementation: Callable[..., Any]) -> str:
    """Define an operator that is, on every device, a composition of other operators."""
    op = str(_LIBRARY.define(schema, tags=_TAGS)).split("::")[-1]
    _LIBRARY.impl(op, implementation, "CompositeImplicitAutograd")
    # Without a kernel of its own, vmap would run the composition once per mapped item.
    _LIBRARY.impl(op, implementation, "FuncTorchBatched")
    return f"{NAMESPACE}::{op}"


def register_fake(op: str, fake: Callable[..., Any]) -> None:
    """Shapes and dtypes without data, for FakeTensor, torch.compile and torch.export."""
    torch.library.register_fake(op, fake, lib=_LIBRARY)


def _refuse_tangents(op: str, args: tuple[Any, ...]) -> None:
    for value in args:
        if isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None:
            raise RuntimeError(
                f"{NAMESPACE}::{op}: forward-mode derivatives are not available; "
                "use reverse mode (backward or torch.autograd.grad)"
            )


class _ReverseModeOnly:
    """Stands in for the library while an autograd rule is registered.

    Without a requires_grad input, torch's rule would drop a forward-mode tangent and so return a
    derivative of zero. The kernel that is registered here looks for tangents first. It also goes
    straight to the backend where nothing is to be differentiated, without torch's rule in Python.
    """

    def impl(self, op: str, kernel: Callable[..., Any], key: str, **options: Any) -> None:
        overload = overload_of(f"{NAMESPACE}::{op.split('::')[-1]}")
        redispatch, below_autograd = overload.redispatch, torch._C._AutoDispatchBelowAutograd
        backends, any_requires_grad = torch._C._after_autograd_keyset, torch._C._any_requires_grad

        def guarded(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            if forward_ad._current_level >= 0:
                _refuse_tangents(op, args)
            if torch.is_grad_enabled() and any_requires_grad(*args, **kwargs):
                return kernel(keyset, *args, **kwargs)
            with below_autograd():
                return redispatch(keyset & backends, *args, **kwargs)

        _LIBRARY.impl(op, guarded, key, **options)


def register_autograd(
    op: str, backward: Callable[..., Any], setup_context: Callable[..., None] | None = None
) -> None:
    """Reverse-mode rule; forward-mode AD raises."""
    if setup_context is not None:
        add_rule(op, backward, setup_context)
    torch.library.register_autograd(
        op, backward, setup_context=setup_context, lib=cast(Library, _ReverseModeOnly())
    )


def refuse_autograd(op: str) -> None:
    """A backward operator has no derivative of its own: asking for one raises."""

    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"{op}: second derivatives are not available; "
            "detach the first-order gradient or call backward without create_graph=True"
        )

    register_autograd(op, backward)


def register_vmap(op: str, rule: Callable[..., Any]) -> None:
    """Rule for torch.vmap."""
    torch.library.register_vmap(op, rule, lib=_LIBRARY)


def _full_precision(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype == torch.complex32:
        return value.to(torch.complex64)
    return value


def register_full_precision_autocast(op: str) -> None:
    """Under autocast: half-precision complex inputs are widened, all others run as they are."""
    overload, short = overload_of(op), op.split("::")[-1]

    def make(device_type: str, key: Any) -> Callable[..., Any]:
        def autocast(*args: Any, **kwargs: Any) -> Any:
            args = tuple(_full_precision(value) for value in args)
            keys = torch._C.DispatchKeySet(key)
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return overload(*args, **kwargs)

        return autocast

    for device_type in ("CPU", "CUDA"):
        key = getattr(torch._C.DispatchKey, f"Autocast{device_type}")
        _LIBRARY.impl(short, make(device_type, key), f"Autocast{device_type}")


def fold_vmap(size: int, value: Tensor, dim: int | None) -> Tensor:
    """Merge the mapped dimension of ``value`` (or a stride-0 one) into its leading one."""
    moved = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    return moved.reshape(size * moved.shape[1], *moved.shape[2:])


def fold_mask(size: int, b: int, mask: Tensor | None, dim: int | None) -> Tensor | None:
    """As :func:`fold_vmap`, of an element mask [N] or [B, N]; one [N] for all stays as it is."""
    if mask is None or (dim is None and mask.dim() == 1):
        return mask
    mapped = mask.unsqueeze(0) if dim is None else mask.movedim(dim, 0)
    n = mapped.shape[-1]
    if mapped.dim() == 2:
        mapped = mapped.unsqueeze(1)
    return mapped.expand(size, b, n).reshape(size * b, n)


def unfold_vmap(size: int, value: Tensor) -> Tensor:
    """Undo :func:`fold_vmap` on an output."""
    return value.reshape(size, value.shape[0] // size if size else 0, *value.shape[1:])


def fold_arguments(
    size: int, args: tuple[Any, ...], in_dims: tuple[Any, ...], count: int
) -> list[Any]:
    """:func:`fold_vmap` of the first ``count`` arguments; None stays None."""
    return [None if args[i] is None else fold_vmap(size, args[i], in_dims[i]) for i in range(count)]


def unfold_needed(
    size: int, outputs: tuple[Tensor, ...], options: dict[str, Any], names: tuple[str, ...]
) -> tuple[Any, Any]:
    """Outputs and output dimensions of a backward's vmap rule, one gradient per ``need_*`` option.

    A gradient that is not needed stays the empty tensor that it is, unmapped.
    """
    needed = [options.get(name, True) for name in names]
    pairs = list(zip(outputs, needed, strict=True))
    return (
        tuple(unfold_vmap(size, out) if need else out for out, need in pairs),
        tuple(0 if need else None for need in needed),
    )
