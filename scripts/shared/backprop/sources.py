"""What the source of a layer says of it: its formula, and the code of its backward pass."""

import ast
import functools
import inspect
import re
import textwrap

import fnn


def formula_and_code(layer):
    """The docstring of the layer's constructor, up to its arguments, and the code of backward.

    Either is "" where it cannot be found.
    """
    backward, name = layer.backward, layer.name.partition("(")[0]
    while isinstance(backward, functools.partial):
        backward = backward.func
    backward = inspect.unwrap(backward)
    in_frame = getattr(backward, "__module__", "") == "fnn.layers._frame"  # which calls the layer's
    constructor = getattr(fnn, name, None) if in_frame else None
    if getattr(backward, "__qualname__", "").startswith(f"{name}.<locals>"):
        constructor = backward.__globals__.get(name)
    doc = inspect.getdoc(constructor) if callable(constructor) else inspect.getdoc(backward)
    formula = re.split(r"\n\n(?:Args|Raises):", doc or "")[0]
    formula = re.sub(r"(?<!\n)\n(?![\n ])", " ", formula)  # a paragraph is one line
    try:
        code = textwrap.dedent(inspect.getsource(constructor if in_frame else backward))
        code = _code_in_constructor(code) if in_frame else code
    except (OSError, TypeError):
        code = ""
    return formula, code


def _code_in_constructor(source):
    """The function backward in a constructor's source. If there is none, all but the docstring."""
    (constructor,) = ast.parse(source).body
    statements = [part for part in constructor.body if getattr(part, "name", "") == "backward"]
    statements = statements or constructor.body[1:]
    lines = source.splitlines()[statements[0].lineno - 1 : statements[-1].end_lineno]
    return textwrap.dedent("\n".join(lines))
