"""Trains biases of a base that must come back bit for bit.

Trained copies stand in the modules while the base's own are kept, never written.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import nn

Slot = tuple[nn.Module, nn.Parameter, nn.Parameter]
"""A module, its own bias and the trained one."""


class TrainedBiases:
    """Biases of some of a model's modules, trained in place of the base's own.

    Args:
        model: whose modules they are; from here on the trained biases stand in them.
        name_of: gives the name under which the bias of a module is saved, or none to leave it frozen.
    """

    def __init__(self, model: nn.Module, name_of: Callable[[str, nn.Module], str | None]) -> None:
        self._slots: list[Slot] = []
        self.parameters: dict[str, nn.Parameter] = {}
        """The trained biases by name; one that several modules share once."""
        copies: dict[int, nn.Parameter] = {}
        for module_name, module in model.named_modules():
            own = module._parameters.get("bias")
            name = name_of(module_name, module) if own is not None else None
            if own is None or name is None:
                continue
            if id(own) not in copies:
                copies[id(own)] = nn.Parameter(own.detach().clone())
                self.parameters[name] = copies[id(own)]
            self._slots.append((module, own, copies[id(own)]))
        self.put_in()

    def put_in(self) -> None:
        """Let the trained biases stand in the modules."""
        for module, _, trained in self._slots:
            module.bias = trained

    def take_out(self) -> None:
        """Let the base's own biases stand in the modules."""
        for module, own, trained in self._slots:
            own.data = own.data.to(trained)  # the model may have been moved to another device since
            module.bias = own

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within the context the biases are the base's own."""
        self.take_out()
        try:
            yield
        finally:
            self.put_in()


def bias_names(kind: str, layers: Mapping[str, nn.Module]) -> Callable[[str, nn.Module], str | None]:
    """Return the names of the biases that are trained, those of PEFT.

    Args:
        kind: `none`, `all` or `lora_only`, as in PEFT's `bias`.
        layers: the base layers that are adapted, by the names of their places.
    """
    places = {id(layer): name for name, layer in layers.items()}

    def name_of(name: str, module: nn.Module) -> str | None:
        if kind != "none" and id(module) in places:
            return f"{places[id(module)]}.base_layer.bias"
        if kind != "all":
            return None
        return f"{name}.bias" if name else "bias"

    return name_of
