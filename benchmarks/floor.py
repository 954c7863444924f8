"""The floor: the time of a pass's matrix products alone, at the multiplication rate of the machine at that moment.

    forward:            2 N operations per token             N: weights of all linear layers, the output head included
    backward to inputs: 2 N operations per token             frozen weights have no gradient
    attention:          2 products forward, 4 backward, of which causality leaves half: length * width per token, layer
                        and product

Nothing else is counted: no norm, no softmax, no adapter, no optimizer; embedding look-ups are free. So the floor holds
for any method that sends a gradient through frozen weights, and no implementation in the same dtype reaches it.
(Strictly, the first layer's query, key and value products need no gradient of their input; they are a negligible
share.)

The rate is measured on the model's own layers, with the faster of torch.mm and hylo's product, in the same rounds as
the steps. Attention is counted at the mean rate of the layers.
"""

import time
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.settings import Shape
from benchmarks.timing import Measurement, timed
from hylo.kernels.product import product
from hylo.models.architecture import decoder_layers, layer_shape, weight_OI
from hylo.models.targets import linear_layers

REPETITIONS, ENOUGH_SECONDS = 3, 0.2
FORWARD_PRODUCTS, BACKWARD_PRODUCTS = 2, 4


class Floor:
    """Floors of a model and a batch, in seconds, measured anew at every call."""

    def __init__(self, base: PreTrainedModel, shape: Shape) -> None:
        layers = [*linear_layers(base).values(), base.get_output_embeddings()]
        self._counts = Counter(layer_shape(layer) for layer in layers)
        self._weights = {layer_shape(layer): weight_OI(layer).detach().to(base.dtype) for layer in layers}
        text = base.config.get_text_config()
        width = text.num_attention_heads * (
            getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        )
        self._tokens = shape.tokens
        self._device, self._dtype = base.device, base.dtype
        self._linear = 2 * shape.tokens * sum(i * o * count for (i, o), count in self._counts.items())
        self._attention = shape.tokens * shape.length * width * len(decoder_layers(base))
        self.rates: list[float] = []
        """Operations per second of the linear layers, forward, in each measurement."""

    def step(self) -> float:
        """Seconds of a training step."""
        return self.forward() + self._pass(self._back, BACKWARD_PRODUCTS)

    def forward(self) -> float:
        """Seconds of a forward pass alone."""
        return self._pass(self._ahead, FORWARD_PRODUCTS)

    @torch.no_grad()
    def _pass(self, seconds: Callable[[Tensor], float], products: int) -> float:
        linear = sum(count * seconds(self._weights[shape]) for shape, count in self._counts.items())
        if products == FORWARD_PRODUCTS:
            self.rates.append(self._linear / linear)
        return linear * (1 + products * self._attention / self._linear)

    def _ahead(self, weight_OI: Tensor) -> float:
        x_NI = self._rows(weight_OI.shape[1])
        return self._best(lambda: torch.mm(x_NI, weight_OI.T), lambda: product(x_NI, weight_OI))

    def _back(self, weight_OI: Tensor) -> float:
        gradient_NO = self._rows(weight_OI.shape[0])
        return self._best(lambda: torch.mm(gradient_NO, weight_OI), lambda: product(gradient_NO, weight_OI.T))

    def _rows(self, width: int) -> Tensor:
        return torch.randn(self._tokens, width, device=self._device).to(self._dtype)

    def _best(self, *ways: Callable[[], object]) -> float:
        return min(best(timed(way, self._device)) for way in ways)


def best(measurement: Measurement) -> float:
    """Seconds of the fastest of a few repetitions; fewer if they take long enough to be reliable."""
    fastest, began = float("inf"), time.perf_counter()
    for _ in range(REPETITIONS):
        fastest = min(fastest, measurement())
        if time.perf_counter() - began > ENOUGH_SECONDS:
            break
    return fastest
