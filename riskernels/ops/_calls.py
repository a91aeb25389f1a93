# SPDX-License-Identifier: Apache-2.0
"""How Python calls an operator: by less of torch's way to it where the call is a plain eager one.

Torch's own way to an autograd rule in Python takes 20 microseconds more than a plain autograd
function, and several times as long after a batch of scenes, which sweeps the interpreter out of the
caches. Nothing here is needed for a right result: every other call takes torch's own way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_rules: dict[str, Callable[..., Any]] = {}
"""By operator, what applies it as a node of the graph: its arguments, then a dict of options."""


def overload_of(op: str) -> Any:
    namespace, name = op.split("::")
    return getattr(getattr(torch.ops, namespace), name).default


def _option_defaults(overload: Any) -> dict[str, Any]:
    """Of the keyword-only arguments; None where there is none."""
    keywords = [argument for argument in overload._schema.arguments if argument.kwarg_only]
    # No gradient can be asked for to one of them.
    assert all(str(keyword.type) in ("bool", "float") for keyword in keywords)
    return {keyword.name: keyword.default_value for keyword in keywords}


def add_rule(op: str, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
    """The autograd rule of ``op``, in the form of :func:`torch.library.register_autograd`."""
    overload = overload_of(op)
    direct, defaults = overload._op, _option_defaults(overload)
    below_autograd = torch._C._AutoDispatchBelowAutograd

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            *inputs, options = args
            with below_autograd():
                output = direct(*inputs, **options)
            if defaults:
                setup_context(ctx, inputs, {**defaults, **options}, output)
            else:
                setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return (*backward(ctx, *grads), None)

    Rule.__name__ = Rule.__qualname__ = f"{overload._schema.name.split('::')[-1]}_rule"
    # Function.apply itself looks for functorch first, which caller() has done.
    _rules[op] = super(torch.autograd.Function, Rule).apply


def caller(op: str) -> Callable[..., Any]:
    """The operator of this name, as the public functions and the backward rules call it.

    Where nothing is to be differentiated the call starts below the autograd key, else with the rule
    of :func:`add_rule`. What does not change between calls is looked up once, here.
    """
    overload = overload_of(op)
    # What the call of an OpOverload calls.
    direct, defaults = overload._op, _option_defaults(overload)
    arguments = overload._schema.arguments
    numbers = slice(sum("Tensor" in str(argument.type) for argument in arguments), None)
    assert all("Tensor" not in str(argument.type) for argument in arguments[numbers])
    compiling, grad_enabled = torch.compiler.is_compiling, torch.is_grad_enabled
    requires_grad, level = torch._C._any_requires_grad, torch._C._functorch.maybe_current_level
    tracing, autocast = torch._C._get_tracing_state, torch._C._is_any_autocast_enabled
    below_autograd = torch._C._AutoDispatchBelowAutograd
    # What overrides torch functions runs Python inside the call, which may need autograd.
    overridden = torch._C._has_torch_function
    # A tensor that an ended transform has left stands for the one inside it.
    living = torch._C._functorch.unwrap_if_dead

    def has_rule(args: tuple[Any, ...]) -> bool:
        """Whether the rule may be applied to these arguments as they are."""
        # Autocast may replace them. A number in a tensor may change before the backward reads it.
        return (
            op in _rules
            and not autocast()
            and not any(isinstance(value, Tensor) and living(value) is not value for value in args)
            and not any(isinstance(value, Tensor) for value in args[numbers])
        )

    def call(*args: Any, **options: Any) -> Any:
        for value in options.values():
            if isinstance(value, Tensor):
                return overload(*args, **options)
        if options == defaults:
            # Parsing them takes torch as long as the kernel takes for a scene of 31 elements.
            options = {}
        if (
            compiling()
            or tracing() is not None
            or forward_ad._current_level >= 0
            or level() is not None
            or overridden(args)
        ):
            return overload(*args, **options)
        if grad_enabled() and requires_grad(*args):
            return _rules[op](*args, options) if has_rule(args) else overload(*args, **options)
        with below_autograd():
            return direct(*args, **options)

    return call
