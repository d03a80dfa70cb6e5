"""The assembled model: projector, language model, ``[SEG]`` state, SAM's mask decoder.

The image encoders are frozen and stand outside; their features come in. Two stages as in the paper
(section on training): first the language model is frozen; then LoRA joins, and with it what the
projector holds back (SSPE).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F

from harness.config import LanguageConfig
from harness.models.captions import Captions
from harness.models.language import SEG, Template, add_lora
from harness.models.packing import Branch, PackedBatch, mask_for, pack
from harness.models.promised import check_tokens
from harness.models.pruning import layer_mean, pruned_hidden
from harness.models.sam import decode_masks
from harness.models.seg_head import fit_start, make_seg_head
from harness.projector import Expressions, ImageFeatures, Projector, VisualTokens

__all__ = ["Forward", "RISModel"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _in_compute_dtype(
    method: Callable[Concatenate[RISModel, _P], _R],
) -> Callable[Concatenate[RISModel, _P], _R]:
    """Run a method under autocast where the language model's weights are of half precision."""

    @wraps(method)
    def wrapped(self: RISModel, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        device = cast(nn.Linear, self.seg_head[0]).weight.device.type
        with torch.autocast(device, self.compute, enabled=self.compute != torch.float32):
            return method(self, *args, **kwargs)

    return wrapped


class Forward(NamedTuple):
    """What a forward pass gives.

    Attributes:
        logits: ``[m, s, s]`` low-resolution mask logits of the expressions.
        ce: scalar cross-entropy of the answers.
        visual: the visual tokens.
        caption: scalar loss of the captions, where there are any.
    """

    logits: Tensor
    ce: Tensor
    visual: VisualTokens
    caption: Tensor | None


def _contiguous(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].contiguous(),)


class RISModel(nn.Module):
    """Referring image segmentation with a projector between frozen features and a language model."""

    def __init__(
        self,
        projector: Projector,
        language: Any,
        template: Template,
        sam: Sam,
        options: LanguageConfig,
    ):
        """Assemble; LoRA is injected here, so that both stages hold the same parameters.

        Args:
            projector: built for the language model's width.
            language: a causal language model with an embedding for every id of the tokenizer.
            template: the parsed prompt and answer.
            sam: its mask decoder is trained, its encoders are not used here.
            options: LoRA and attention.
        """
        super().__init__()
        self.projector = projector
        self.template = template
        self.options = options
        self.seg_id: int = template.tokenizer.convert_tokens_to_ids(SEG)  # type: ignore[assignment]
        add_lora(language, options)
        self.language: Any = language.requires_grad_(False)
        width, prompt_width = language.config.hidden_size, sam.prompt_encoder.embed_dim
        self.seg_head = make_seg_head(width, prompt_width)
        self.sam = sam.requires_grad_(False)
        # Up-scaling begins on a transposed view, whose layout gradients do not share: 5 % of a step on a CPU.
        sam.mask_decoder.output_upscaling.register_forward_pre_hook(_contiguous)
        # Frozen weights and activations may be of half precision; what learns never is.
        self.compute: torch.dtype = language.dtype
        for _, tensor in self._trained():
            tensor.data = tensor.data.float() if tensor.is_floating_point() else tensor.data

    # --- what learns -----------------------------------------------------------------------------

    def set_stage(self, stage: int, *, aligning: bool = False) -> list[tuple[str, nn.Parameter]]:
        """Switch on what learns in ``stage``, switch off the rest; returns the learning parameters.

        In stage 1 the language model is frozen but for the row of ``[SEG]``, which did not exist before.

        Args:
            stage: 1 or 2.
            aligning: the projector learns alone, and nothing of it is held back for stage 2.
        """
        # LoRA starts at zero: before it joins it costs time and gives nothing.
        self._enable_adapters(stage == 2)
        self.requires_grad_(False)
        self.projector.stage = 2 if aligning else stage
        self.projector.aligning = aligning
        prefixes = tuple(self.projector.trainable_in_stage(self.projector.stage))
        for name, parameter in self.projector.named_parameters():
            parameter.requires_grad_(name.startswith(prefixes))
        if aligning:
            return self._learning()
        self.seg_head.requires_grad_(True)
        self.sam.mask_decoder.requires_grad_(True)
        # Only the single-mask output is used: the other hypernetworks and the IoU head get no gradient.
        for network in list(self.sam.mask_decoder.output_hypernetworks_mlps)[1:]:
            network.requires_grad_(False)
        self.sam.mask_decoder.iou_prediction_head.requires_grad_(False)
        for table in self._embedding_tables():
            table.weight.requires_grad_(True)
        if stage == 2:
            for name, parameter in self.language.named_parameters():
                if "lora_" in name:
                    parameter.requires_grad_(True)
        return self._learning()

    def start_learning(self, *, checkpointing: bool) -> None:
        """Training mode, but for SAM, which is not fine-tuned as a whole.

        Args:
            checkpointing: forget the language model's activations and compute them again.
        """
        self.train()
        self.sam.eval()
        if checkpointing:
            self.language.gradient_checkpointing_enable({"use_reentrant": False})

    def _learning(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.named_parameters() if p.requires_grad]

    def _embedding_tables(self) -> list[nn.Embedding]:
        tables = [self.language.get_input_embeddings(), self.language.get_output_embeddings()]
        return tables[:1] if tables[0].weight is tables[1].weight else tables

    def partly_frozen(self, stage: int) -> list[Tensor]:
        """Embedding tables of which ``[SEG]``'s row alone learns; weight decay would move the others too."""
        whole = stage == 2 and self.options.train_embeddings
        return [] if whole else [table.weight for table in self._embedding_tables()]

    def mask_frozen_rows(self, stage: int) -> None:
        """After ``backward``: leave only the row of ``[SEG]`` a gradient where the rest is frozen."""
        for table in self.partly_frozen(stage):
            if table.grad is not None:
                kept = table.grad[self.seg_id].clone()
                table.grad.zero_()
                table.grad[self.seg_id] = kept

    def merge_lora(self) -> None:
        """Add LoRA to the weights it adapts, for a model that will not learn any more.

        Not where they are of half precision, which would round the sum.
        """
        if self._merges:
            for module in self.language.modules():
                if isinstance(module, BaseTunerLayer):
                    module.merge()

    def count_as_merged(self) -> None:
        """Leave LoRA out where :meth:`merge_lora` merges it: that model's arithmetic, not its answers.

        For timing a model whose frozen weights are others' too. :meth:`set_stage` takes it back.
        """
        if self._merges:
            self._enable_adapters(False)

    @property
    def _merges(self) -> bool:
        return self.compute == torch.float32

    def _enable_adapters(self, enabled: bool) -> None:
        for module in self.language.modules():
            if isinstance(module, BaseTunerLayer):
                module.enable_adapters(enabled)

    def trained_state(self) -> dict[str, Tensor]:
        """Everything that either stage trains, by name: what a stage file holds."""
        return {name: tensor.detach() for name, tensor in self._trained()}

    def _trained(self) -> Iterator[tuple[str, Tensor]]:
        tables = {id(t.weight) for t in self._embedding_tables()}
        for name, parameter in self.named_parameters():
            inside = name.startswith(("projector.", "seg_head.", "sam.mask_decoder."))
            if inside or "lora_" in name or id(parameter) in tables:
                yield name, parameter
        for name, buffer in self.projector.named_buffers():
            yield f"projector.{name}", buffer

    def load_trained(self, state: dict[str, Tensor], source: str) -> None:
        """Load what :meth:`trained_state` gave.

        Raises:
            ValueError: the keys or shapes are not those of this model; the message names ``source``.
        """
        own = dict(self._trained())
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or extra:
            raise ValueError(
                f"{source} is not of this run: {len(missing)} tensors missing ({', '.join(missing[:2])}), "
                f"{len(extra)} too many ({', '.join(extra[:2])}); delete it and train again"
            )
        with torch.no_grad():
            for name, tensor in own.items():
                if tensor.shape != state[name].shape:
                    raise ValueError(
                        f"{source}: {name} is {list(state[name].shape)}, not {list(tensor.shape)}"
                    )
                tensor.copy_(state[name])

    def start_seg_head(self, states: Tensor) -> None:
        """Start the ``[SEG]`` head from ``states [m, H]``, at the scale of SAM's own point prompts.

        Those are sines and cosines; see :func:`harness.models.seg_head.fit_start`.
        """
        wanted = states.new_full((1, self.sam.prompt_encoder.embed_dim), 0.5**0.5)
        fit_start(self.seg_head, states, torch.cat([wanted, -wanted]))

    # --- forward ---------------------------------------------------------------------------------

    @property
    def reads_expression(self) -> bool:
        """Whether an image's visual tokens hang on what is asked: then each expression has its own."""
        return "expression" in self.projector.needs

    def asked(
        self, image: ImageFeatures, texts: Sequence[Sequence[str]]
    ) -> tuple[ImageFeatures, Sequence[Sequence[str]], Tensor]:
        """A batch as this projector must see it: one that reads the expression gets an image for each.

        Args:
            image: features of ``b`` images.
            texts: what each is asked, ``m`` in all.

        Returns:
            features and texts of ``b`` images, or of ``m``; and of each of these which of the ``b`` it is.
        """
        device = image.patches.device
        if not self.reads_expression:
            return image, texts, torch.arange(len(texts), device=device)
        counts = torch.tensor([len(group) for group in texts], device=device)
        owner = torch.arange(len(texts), device=device).repeat_interleave(counts)
        alone = [[text] for group in texts for text in group]
        ids = [self.template.words(text) for (text,) in alone]
        embed = self.language.get_input_embeddings()
        read = embed(torch.tensor([word for words in ids for word in words], device=device)).detach()
        lengths = torch.tensor([len(words) for words in ids], device=device)
        return replace(image.take(owner), expressions=Expressions(read, lengths)), alone, owner

    @_in_compute_dtype
    def visual_tokens(self, image: ImageFeatures, **kwargs: object) -> VisualTokens:
        """The projector's tokens for a batch of images (as :meth:`asked` gives them).

        Raises:
            ValueError: they are not what a projector promises (:func:`harness.models.promised.check_tokens`).
        """
        visual: VisualTokens = self.projector(image, **kwargs)
        check_tokens(visual, self.projector, len(image.patches), kwargs.get("budget"))
        return visual

    def pack(self, visual: VisualTokens, expressions: Sequence[Sequence[str]]) -> PackedBatch:
        """Sequences of the images' expressions (see :func:`harness.models.packing.pack`)."""
        branches = [[Branch(*self.template.encode(text)) for text in group] for group in expressions]
        return pack(
            visual,
            branches,
            self.template.before,
            self.language.get_input_embeddings(),
            self.seg_id,
            bidirectional=self.options.visual_attention == "bidirectional",
        )

    @_in_compute_dtype
    def hidden(self, packed: PackedBatch) -> Tensor:
        """``[b, L, H]`` last hidden states; under a projector's ``llm_hook`` of the expressions alone."""
        if (hook := self.projector.llm_hook()) is not None:
            packed = replace(packed, embeddings=packed.embeddings.to(self.compute))
            return pruned_hidden(self.language.get_decoder(), packed, hook)
        out = self.language.get_decoder()(
            inputs_embeds=packed.embeddings.to(self.compute),
            attention_mask=mask_for(self.options.attention, packed.mask, self.compute),
            position_ids=packed.positions,
            use_cache=False,
        )
        return out.last_hidden_state

    def layer_tokens(self, count: int) -> float:
        """Visual tokens averaged over the language model's layers, of ``count`` at its input."""
        return layer_mean(self.projector.llm_hook(), count, self.language.config.num_hidden_layers)

    def seg_states(self, hidden: Tensor, packed: PackedBatch) -> Tensor:
        """``[m, H]`` states that prompt the mask decoder: at each ``[SEG]``, or the one before, as asked."""
        shift = 1 if self.template.seg_state == "before" else 0
        return hidden[packed.seg_row, packed.seg_column - shift]

    @_in_compute_dtype
    def seg_prompts(self, hidden: Tensor, packed: PackedBatch) -> Tensor:
        """``[m, 1, C]`` sparse prompts from :meth:`seg_states`."""
        return self.seg_head(self.seg_states(hidden, packed))[:, None]

    @_in_compute_dtype
    def mask_logits(self, prompts: Tensor, image_embeddings: Tensor) -> Tensor:
        """``[m, s, s]`` low-resolution mask logits; ``image_embeddings [m, C, h, w]``, one an expression."""
        return decode_masks(self.sam, image_embeddings, prompts)[0][:, 0]

    def read(
        self, image: ImageFeatures, texts: Sequence[Sequence[str]], **kwargs: object
    ) -> tuple[VisualTokens, PackedBatch, Tensor]:
        """What the language model makes of ``texts``, what each of ``b`` images is asked.

        Returns:
            the visual tokens, of each image or of each text (:meth:`asked`); the sequences, with
            ``image_index`` among the ``b``; their last hidden states.
        """
        image, texts, owner = self.asked(image, texts)
        visual = self.visual_tokens(image, **kwargs)
        packed = self.pack(visual, texts)
        hidden = self.hidden(packed)
        return visual, replace(packed, image_index=owner[packed.image_index]), hidden

    @_in_compute_dtype
    def caption(
        self,
        image: ImageFeatures,
        expressions: Sequence[Sequence[str]],
        captions: Captions,
        **kwargs: object,
    ) -> tuple[Tensor, VisualTokens]:
        """Scalar loss of the captions, and the visual tokens; no mask. Arguments as of :meth:`forward`."""
        texts = [[*said, *rest] for said, rest in zip(expressions, captions.places, strict=True)]
        visual, packed, hidden = self.read(image, texts, **kwargs)
        scores = self.language.get_output_embeddings()(hidden[packed.seg_row, packed.seg_column])
        return captions.loss(scores), visual

    @_in_compute_dtype
    def forward(
        self,
        image: ImageFeatures,
        expressions: Sequence[Sequence[str]],
        sam_embeddings: Tensor,
        captions: Captions | None = None,
        **kwargs: object,
    ) -> Forward:
        """Low-resolution logits of every expression.

        Args:
            image: features of ``b`` images.
            expressions: the expressions of each image.
            sam_embeddings: ``[b, C, h, w]`` frozen SAM image embeddings.
            captions: what each ``[SEG]`` is to name; the places that they ask for get no mask.
            kwargs: ``budget`` and ``generator`` of the projector.
        """
        asked = captions.places if captions else [()] * len(expressions)
        pairs = list(zip(expressions, asked, strict=True))
        visual, packed, hidden = self.read(image, [[*said, *rest] for said, rest in pairs], **kwargs)
        head = self.language.get_output_embeddings()
        scores = head(hidden[packed.target_row, packed.target_column])
        ce = F.cross_entropy(scores.float(), packed.target_ids)
        caption = captions.loss(head(hidden[packed.seg_row, packed.seg_column])) if captions else None
        states = self.seg_states(hidden, packed)
        kinds = [kind for said, rest in pairs for kind in [True] * len(said) + [False] * len(rest)]
        meant = torch.tensor(kinds, device=states.device)
        prompts = self.seg_head(states[meant])[:, None]
        logits = self.mask_logits(prompts, sam_embeddings[packed.image_index[meant]])
        # Places answer too: an expression, so that shares of a step add up by their expressions.
        return Forward(logits, ce * (len(states) / len(prompts)), visual, caption)
