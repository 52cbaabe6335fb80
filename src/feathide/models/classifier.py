"""FeatureClassifier: any torch network, unmodified, that shows its logits and its pooled features
in one forward pass.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from feathide.data.valid_range import check_images, check_tensor
from feathide.errors import check_kind, expected, first_line, unknown
from feathide.models.averaging import averaged, seeded
from feathide.models.decision import as_decision
from feathide.models.dropout import (
    DropoutDraws,
    captured,
    check_draws,
    has_dropout,
    linear_head,
)
from feathide.models.layers import choose_layers, entrance, hooked, shapes_of, turned, units
from feathide.models.layouts import Layout, ReadOut, Tokens, readouts
from feathide.models.logits import logits_of
from feathide.models.memory import in_halves
from feathide.models.pooling import Pool, Watched, channel_mean, collectors, full, means
from feathide.types import Box, Outputs

__all__ = [
    "FeatureClassifier",
]

Reading = Callable[[Tensor], Tensor]
Look = Callable[[Tensor, Tensor], Tensor]
Purify = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, eq=False)
class FeatureClassifier:
    """A classifier as attackers and detectors see it: images in, ``Outputs`` out, differentiable.

    One forward pass gives the logits and, for each chosen layer, one value per channel. The network
    sees ``(clip(x, window) - mean) / std``, with ``window`` mapped to [0, 1] first. All of this is
    inside the attacked function, so eps and box stay in the units of the images. Hooks live only
    during a call; the network, its gradients and its mode are not changed. An image of one channel
    is repeated for a network that takes three.

    Args:
        model: A network in evaluation mode that maps (N, C, *S) to logits (N, K), or to (N, 1) for
            one sigmoid output; alone or in a tuple, dict or class.
        layers: Names, globs or presets ("blocks", "conv", "stages", "last"), resolved at the first
            call.
        box: The least and the greatest valid image value.
        mean: The mean per channel that the network was trained with; empty for 0.
        std: The standard deviation per channel, positive; empty for 1.
        window: The part (lo, hi) of the box that the network sees as [0, 1]; None for no window.
        head: "softmax"; "sigmoid" (one output z, shown as logits (0, z)); or ("finding", j), output
            j of a multi-label network, shown as (0, z_j) with the others in ``Outputs.others``.
        output: "probabilities" for a network that ends in a softmax or in sigmoids: their
            logarithm, or log odds, takes the place of the logits. A probability that is rounded to
            0 or 1 has no slope.
        outputs: The number of outputs, for a network that returns features beside its logits; 0
            where there is only one candidate.
        layout: Where the channels are: "channels-first" (N, C, *S), "channels-last" (N, *S, C) or
            "tokens" (N, T, C), for all layers or by name or glob; "auto" follows what the modules
            declare.
        tokens: For layers with a class token: the "mean" of the other tokens, the "class" token, or
            "both" (N, 2 C).
        pool: A function (N, ...) -> (N, C) of your own in place of ``layout`` and ``tokens``.
        dropout_samples: The number S of dropout draws in ``Outputs.stochastic``; 0 for none. They
            use the network's own dropout modules or, if it has none, a dropout before the last
            linear layer. The S masks are drawn once and shared by all images, so that no image's
            draws depend on its batch.
        dropout_rate: The rate of that additional dropout, in (0, 1).
        seed: The seed of the dropout masks.
        reference_network: A second classifier of the same images and classes, whose outputs are in
            ``Outputs.reference_network``.
        precision: "bf16" runs the network under autocast; logits and features come out as float32
            either way.
        compile: "inductor", or another backend of ``torch.compile``, runs a compiled copy of the
            network, made at the first call. Rounding differs by about 1e-5 of a logit.
        statistics: A function of the images with the box mapped to [0, 1], (N, C, *S) -> (N, F),
            for ``Outputs.statistics``; such as ``feathide.detectors.residuals.statistics``.
        squeezers: Functions of the images with the window (else the box) mapped to [0, 1]; the
            logits of what they return are in ``Outputs.squeezed``; such as
            ``feathide.detectors.squeezing.SQUEEZERS``.
        guards: Functions of the images in units of the box and of their logits, by name; the
            scores (N,) that they give are in ``Outputs.guards``; such as ``FrozenGuard.look``.
        purify: What is done to the images, with the box mapped to [0, 1], before the network sees
            them: a function of the images and the number of a draw; such as
            ``feathide.detectors.purifiers.Steps``. It is a part of what is attacked. Statistics and
            guards look at the images as they come.
        draws: The numbers of the draws of a random ``purify``, or, without one, of what is random
            in the network itself. The probabilities are averaged over them (expectation over
            transformation), features too, so that the outputs are the same at every pass.

    Raises:
        InputError: The network is in training mode, a layer is unknown, or the arguments contradict
            each other. ``check`` refuses images that are not finite or outside the box.

    Examples:
        >>> classifier = FeatureClassifier(network.eval(), "blocks", mean=[0.48], std=[0.24])
        >>> out = classifier(images)
        >>> out.logits.shape, out.last.shape
        (torch.Size([4, 2]), torch.Size([4, 4]))
    """

    model: nn.Module
    layers: str | Sequence[str] = "blocks"
    box: Box = (0.0, 1.0)
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    window: Box | None = None
    head: str | tuple[str, int] = "softmax"
    output: Literal["logits", "probabilities"] = "logits"
    outputs: int = 0
    layout: Layout | Mapping[str, Layout] = "auto"
    tokens: Tokens = "mean"
    pool: Pool = channel_mean
    dropout_samples: int = 0
    dropout_rate: float = 0.5
    seed: int = 0
    reference_network: "FeatureClassifier | None" = None
    precision: Literal["float32", "bf16"] = "float32"
    compile: str | None = None
    statistics: Reading | None = None
    squeezers: Sequence[Reading] = ()
    guards: Mapping[str, Look] = field(default_factory=dict)
    purify: Purify | None = None
    draws: Sequence[int] = ()
    _resolved: dict[str, tuple[str, ...]] = field(
        default_factory=dict, init=False, repr=False
    )
    _readouts: dict[str, ReadOut] = field(default_factory=dict, init=False, repr=False)
    _compiled: list[Callable[[Tensor], tuple[Tensor, ...]]] = field(
        default_factory=list, init=False, repr=False
    )
    # found once: looking takes time
    _modules: list[nn.Module] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        do = "give the network itself, in evaluation mode: network.eval()"
        check_kind("the model", self.model, nn.Module, do=do)
        self._modules.extend(self.model.modules())
        self._refuse_training()
        if self.head not in ("softmax", "sigmoid") and not (
            isinstance(self.head, tuple) and self.head[0] == "finding"
        ):
            raise expected(
                'head must be "softmax", "sigmoid" or ("finding", j)',
                got=repr(self.head),
                do="choose one of them",
            )
        if self.output not in ("logits", "probabilities"):
            raise unknown("output", str(self.output), ("logits", "probabilities"))
        if not self.box[0] < self.box[1]:
            raise expected(
                "box must be (lo, hi) with lo < hi",
                got=self.box,
                do="give the least and greatest image value",
            )
        if isinstance(self.mean, int | float) or isinstance(self.std, int | float):
            raise expected(
                "mean and std must have one number a channel",
                got=f"{self.mean}, {self.std}",
                do="say mean=[0.5], std=[0.25] for grey images",
            )
        if len(self.mean) != len(self.std) or any(s <= 0 for s in self.std):
            raise expected(
                "mean and std must be of equal length, std positive",
                got=f"{self.mean}, {self.std}",
                do="declare both per channel",
            )

    def __call__(self, x: Tensor) -> Outputs:
        """The outputs of one batch, differentiable in the images.

        Args:
            x: Images (N, C, *S) with values in the box.

        Returns:
            Logits, features and whatever else the classifier was asked for.
        """
        self._refuse_training()
        with torch.autocast(
            x.device.type, torch.bfloat16, enabled=self.precision == "bf16"
        ):
            return self._outputs(x)

    def _outputs(self, x: Tensor) -> Outputs:
        if self.purify is None and not self.draws:
            found = self._seen(x)
        else:
            found = averaged([self._drawn(x, draw) for draw in self.draws or (0,)])
        return replace(found, **self._beside(x, found.logits))

    def _drawn(self, x: Tensor, draw: int) -> Outputs:
        """What the network shows at one draw."""
        if self.purify is not None:
            low, high = self.box
            pure = self.purify((x - low) / (high - low), draw)
            return self._seen(low + (high - low) * pure)
        with seeded(self.seed, draw, x.device) as again:
            self.names(x)  # the first look at a network draws, too
            # a batch would share its draws among its images: each is seen by itself
            return Outputs.cat([again(partial(self._seen, one)) for one in x.split(1)])

    def _seen(self, x: Tensor) -> Outputs:
        """What the network shows of images as it is given them."""
        z = self.prepared(x)
        names = self._names(z)
        if self.compile and not self.dropout_samples:
            raw, *pooled = self._fast(names)(z)
            logits, others = self._as_decision(raw)
            features = {n: full(f) for n, f in zip(names, pooled, strict=True)}
            return Outputs(logits, features, None, others)
        found, counts = dict[str, Tensor](), dict[str, int]()
        head_input: list[Tensor] = []
        hooks = collectors(names, found, {}, self.pool, self._readouts, counts)
        head = None
        if self.dropout_samples and not has_dropout(self.model):
            head = linear_head(self.model)
        with hooked(hooks, self.model), captured(head, head_input):
            raw = logits_of(self.model(z), len(z), self.outputs)
        stochastic = None
        if self.dropout_samples:
            stochastic = self._stochastic(z, raw, head, head_input)
        logits, others = self._as_decision(raw)
        features = means({n: found[n] for n in names}, counts)
        return Outputs(logits, features, stochastic, others)

    def _as_decision(self, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        return as_decision(raw, self.head, self.output)

    def _stochastic(
        self, z: Tensor, raw: Tensor, head: nn.Linear | None, inputs: list[Tensor]
    ) -> Tensor:
        """The logits of the dropout draws, (N, S, K)."""
        dropout = DropoutDraws(
            self.model, self.dropout_samples, self.dropout_rate, self.seed, self.outputs
        )
        draws = dropout.of_head(head, inputs) if head else dropout.of_network(z)
        if head and self.output == "probabilities":
            check_draws(head, inputs, raw, self.head == "softmax")
        # those of the last linear layer come before a softmax
        said = "logits" if head else self.output
        decided, _ = as_decision(draws.flatten(0, 1), self.head, said)
        return decided.unflatten(0, draws.shape[:2])

    def _beside(self, x: Tensor, logits: Tensor) -> dict[str, Any]:
        """What is shown of the images ``x`` beside what this network makes of them."""
        low, high = self.box
        return {
            "reference_network": None
            if self.reference_network is None
            else self.reference_network(x),
            "statistics": None
            if self.statistics is None
            else full(self.statistics((x - low) / (high - low))),
            "squeezed": torch.stack([self._squeezed(x, s) for s in self.squeezers], 1)
            if self.squeezers
            else None,
            "guards": self._guarded(x, logits) if self.guards else None,
        }

    def _guarded(self, x: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """What guards as shipped say of the images; they run in the precision that they have."""
        with torch.autocast(x.device.type, enabled=False):
            return {name: look(x, logits) for name, look in self.guards.items()}

    def _squeezed(self, x: Tensor, squeeze: Reading) -> Tensor:
        """The logits of the images ``x`` once they are squeezed."""
        low, high = self.window or self.box
        z = self.prepared(
            low + (high - low) * squeeze((x.clamp(low, high) - low) / (high - low))
        )
        raw = (
            self._fast(self._names(z))(z)[0]
            if self.compile
            else logits_of(self.model(z), len(z))
        )
        return self._as_decision(raw)[0]

    def _refuse_training(self) -> None:
        if any(module.training for module in self._modules):
            training = [
                name or type(m).__name__
                for name, m in self.model.named_modules()
                if m.training
            ]
            raise expected(
                "the network must be in evaluation mode",
                got=f"training mode in {(training or ['a part that was replaced'])[0]}",
                do="call model.eval() first",
            )

    def _fast(self, names: Sequence[str]) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """The compiled copy, which gives the outputs and the pooled features of ``names``."""
        if not self._compiled:
            self._compiled.append(
                torch.compile(
                    Watched(self.model, names, self.pool, self._readouts, self.outputs),
                    backend=str(self.compile),
                )
            )
        return self._compiled[0]

    def narrowed(self, layers: Sequence[str], x: Tensor) -> "FeatureClassifier":
        """The same network, of which only the logits and those of its ``layers`` are shown that
        are named here; ``x``: images like those to come.
        """
        narrow = replace(
            self,
            layers=tuple(layers),
            dropout_samples=0,
            reference_network=None,
            statistics=None,
            squeezers=(),
            guards={},
        )
        narrow._resolved["layers"] = (
            tuple(n for n in self.names(x) if n in layers) if layers else ()
        )
        narrow._readouts.update(self._readouts)
        return narrow

    @property
    def device(self) -> torch.device:
        """Where the network's parameters are."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def extract(
        self, images: Tensor | Iterable[Tensor], *, batch_size: int = 64
    ) -> Outputs:
        """Outputs of many images, without gradient, batch by batch, on the CPU.

        Args:
            images: Images (N, C, *S), or an iterable of batches of them.
            batch_size: Images per forward pass, where ``images`` is a tensor.

        Returns:
            The outputs of all images, in order.
        """
        if batch_size < 1:
            do = "raise it"
            raise expected("batch_size must be 1 or more", got=batch_size, do=do)
        batches = images.split(batch_size) if isinstance(images, Tensor) else images
        with torch.no_grad():
            return Outputs.cat([self.observe(b) for b in batches])

    def observe(self, x: Tensor) -> Outputs:
        """Outputs of one batch, without gradient, on the CPU; in halves where memory does not
        suffice.
        """
        self._check_axes(x)
        with torch.no_grad(), self._shapes_said(x):
            return in_halves(
                lambda part: self(part.to(self.device)).to("cpu"), x, join=Outputs.cat
            )

    @contextmanager
    def _shapes_said(self, x: Tensor) -> Iterator[None]:
        """What torch says where the images do not suit the network, as one sentence."""
        try:
            yield
        except RuntimeError as error:
            first = entrance(self.model)
            channels = x.shape[1] if x.ndim > 1 else 0
            if first is None or channels == first.in_channels:
                raise
            raise expected(
                f"the network must be given images of {first.in_channels} channels",
                got=f"shape {tuple(x.shape)} ({first_line(error)})",
                do="convert the images, or say mean and std once for each channel",
            ) from error

    def check(self, x: Tensor) -> None:
        """Refuse images that are not finite or outside the box, and one without its axis N."""
        self._check_axes(x)
        check_images(x, self.box)

    def _check_axes(self, x: object) -> None:
        check_tensor("images", x)
        assert isinstance(x, Tensor)
        first = entrance(self.model)
        if first is None or x.ndim != first.weight.ndim - 1:
            return
        if len(x) in (1, first.in_channels):
            raise expected(
                "images must be a batch (N, C, *S)",
                got=f"shape {tuple(x.shape)}, a single image",
                do="add its axis: image[None]",
            )

    def names(self, x: Tensor) -> tuple[str, ...]:
        """The layers that ``layers`` stands for, in network order, for images like ``x``."""
        return self._names(self.prepared(x[:1]))

    def read_outs(self, x: Tensor) -> Mapping[str, ReadOut]:
        """How the feature of each layer is read, for images like ``x``; empty with a ``pool`` of
        one's own.
        """
        self.names(x)
        return dict(self._readouts)

    def _names(self, z: Tensor) -> tuple[str, ...]:
        if "layers" not in self._resolved:
            seen = units(self.model, z[:1])
            names = choose_layers(self.model, self.layers, seen)
            if self.pool is channel_mean:
                found = readouts(
                    self.model,
                    shapes_of(seen),
                    names,
                    layout=self.layout,
                    tokens=self.tokens,
                    turned=turned(seen),
                )
                self._readouts.update(found)
            else:  # what is given to a pool of one's own has the images first, too
                self._readouts.update(
                    {n: ReadOut(turned=True) for n in names if n in turned(seen)}
                )
            self._resolved["layers"] = names
        return self._resolved["layers"]

    def prepared(self, x: Tensor) -> Tensor:
        """What the network is given for the images ``x``: windowed, normalised, with as many
        channels as it takes.
        """
        z = x
        if self.window is not None:
            z = (z.clamp(*self.window) - self.window[0]) / (self.window[1] - self.window[0])
        if x.shape[1] == 1 and _input_channels(self.model) == 3:
            z = z.repeat(1, 3, *[1] * (x.ndim - 2))
        if self.mean:
            takes = _input_channels(self.model)
            if takes == z.shape[1] and len(self.mean) not in (1, takes):
                raise expected(
                    "mean and std must have one number a channel",
                    got=f"{len(self.mean)} for {takes} channels",
                    do="declare both per channel",
                )
            shape = (1, -1, *[1] * (x.ndim - 2))
            z = (z - z.new_tensor(self.mean).reshape(shape)) / z.new_tensor(
                self.std
            ).reshape(shape)
        # a first layer that works in place must not reach the caller's images
        return z.clone() if z is x else z


def _input_channels(model: nn.Module) -> int | None:
    first = entrance(model)
    return first.in_channels if first is not None else None
