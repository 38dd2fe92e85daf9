"""`TiedLinear`: an output layer that shares the table of an embedding, as language models have it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from cce_core.adapters.torch.modules.module import Compressed
from cce_core.adapters.torch.modules.weight import Weight, linear


class TiedLinear(nn.Linear):
    """An `nn.Linear` whose weight is the table of an `Embedding`: `input · Tᵀ + bias`, the score of every id.

    It has no weight of its own: the table is trained from both ends, but stays the embedding's, **which must be a module of the
    model too**. There alone it is counted, saved, moved and given to optimisers; this layer has its bias. Copies and pickles of
    the model keep the two together. `linear.weight = embedding.weight` makes a tied layer of an `nn.Linear`, and `compress_`
    makes one of every layer that shares its weight with an embedding.

    Args:
        embedding: an `Embedding` or `EmbeddingBag` with a bounded vocabulary.
        bias: whether to add a trained vector (num_embeddings,).

    Shape:
        input: (*, embedding_dim); output: (*, num_embeddings).

    Raises:
        TypeError: the embedding is no compressed table's module; or something is assigned to `weight`.
        ValueError: the vocabulary is unbounded.

    Cost:
        For every call the whole table is worked out, and held until the backward pass is done; of a table with a rank only the
        narrow one, (num_embeddings, rank + 1), and the product is cheaper likewise.

    Example:
        >>> import torch
        >>> from cce_core.adapters.torch import Embedding, TiedLinear
        >>> emb = Embedding(1000, 16, method="cce", num_params=2048, seed=0)
        >>> model = torch.nn.Sequential(emb, TiedLinear(emb, bias=True))
        >>> model(torch.tensor([[1, 2]])).shape, [name for name, _ in model.named_parameters()]
        (torch.Size([1, 2, 1000]), ['0.memory', '0.projection', '1.bias'])
    """

    embedding: Compressed

    def __init__(self, embedding: Compressed, bias: bool = False) -> None:
        nn.Module.__init__(self)
        if not isinstance(embedding, Compressed):
            raise TypeError(
                f"embedding must be an Embedding or EmbeddingBag of cce_core, got {type(embedding).__name__}; torch's own are "
                "tied by linear.weight = embedding.weight"
            )
        if embedding.num_embeddings is None:
            raise ValueError("an unbounded table cannot be a layer's: it has a vector for every 64-bit id")
        self.in_features, self.out_features = embedding.embedding_dim, embedding.num_embeddings
        self.embedding = embedding
        like = next(embedding.parameters())
        empty = torch.empty(self.out_features, dtype=like.dtype, device=like.device) if bias else None
        self.register_parameter("bias", None if empty is None else nn.Parameter(empty))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the bias as `nn.Linear` does; the table is the embedding's own affair."""
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features) if self.in_features else 0
            nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        """The sizes, and that they are those of an embedding."""
        return f"{super().extra_repr()}, tied to {type(self.embedding).__name__}"

    # Annotated, since to torch it is an attribute; with or without torch at hand mypy says the same.
    weight: Any = property(lambda self: self.embedding.weight, doc="The embedding's.")

    def forward(self, input: Tensor) -> Tensor:
        """The scores of all ids: (*, num_embeddings)."""
        return linear(self.embedding, input, self.bias)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "embedding":
            self.__dict__[name] = value  # no submodule: `functional_call` leaves a module in two places broken
        elif name != "weight":
            super().__setattr__(name, value)
        elif value is not self.weight and not (isinstance(value, Weight) and value.owner is self.embedding):
            raise TypeError(
                "a tied layer has no weight of its own: assign to embedding.weight, or put another nn.Linear in its place"
            )


class _Becoming(TiedLinear):
    """An `nn.Linear` while it becomes a `TiedLinear`: where torch registers the parameter, it is not kept."""

    def _become(self) -> dict[str, Any]:
        becoming: Any = self
        becoming.__class__ = TiedLinear
        return {}

    _parameters: Any = property(_become)


def _tie(module: nn.Module, name: str, parameter: Tensor | None) -> None:
    """Make of `linear.weight = embedding.weight` what it says."""
    if not isinstance(parameter, Weight):
        return
    owner: Any = parameter.owner
    if type(module) is not nn.Linear or name != "weight":
        raise TypeError(
            f"the weight of a compressed table cannot be the parameter {name!r} of a {type(module).__name__}: it is worked out "
            "from other parameters. Keep the embedding itself and read embedding.weight where you use it, or take "
            "TiedLinear(embedding)"
        )
    if (module.out_features, module.in_features) != tuple(parameter.shape):
        raise ValueError(
            f"a layer of {module.in_features} to {module.out_features} features has a weight of shape "
            f"{(module.out_features, module.in_features)}, the table has {tuple(parameter.shape)}"
        )
    del module._parameters["weight"]
    module.__class__ = _Becoming
    module.embedding = owner


register_module_parameter_registration_hook(_tie)
